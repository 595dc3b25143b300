"""No policy but the marked oracle can come by a true length."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scheduling import COUNTS, problem, with_lengths

from mosaicsim.errors import UserInputError
from mosaicsim.schedulers.base import OracleProblem, Problem
from mosaicsim.schedulers.registry import BUILT_IN, create
from mosaicsim.workload.calls import CallTable, Outcomes

BLIND = [name for name, policy in BUILT_IN.items() if not policy.sees_lengths]


def test_what_a_blind_scheduler_is_handed_has_no_field_for_outcomes() -> None:
    outcomes = {field.name for field in dataclasses.fields(Outcomes)}
    for seen in (CallTable, Problem):
        assert not outcomes & {field.name for field in dataclasses.fields(seen)}


@pytest.mark.parametrize("name", BLIND)
def test_blind_plans_do_not_change_with_the_lengths(name: str) -> None:
    """Even when handed an OracleProblem by mistake."""
    rng = np.random.default_rng(0)
    plans = [
        create(name).plan(with_lengths(problem(), rng.integers(1, 30_000, sum(COUNTS)))) for _ in range(2)
    ]
    placed = [[(s.worker, s.phase, s.call_ids.tolist()) for s in plan.sessions] for plan in plans]
    assert placed[0] == placed[1]
    assert plans[0].predicted_s == plans[1].predicted_s


def test_the_oracle_refuses_a_problem_without_lengths() -> None:
    plain = problem()
    with pytest.raises(UserInputError, match="'oracle' needs the true output lengths"):
        create("oracle").plan(plain)
    empty = OracleProblem(plain.experts, plain.calls, plain.call_ids, plain.workers, plain.costs)
    with pytest.raises(UserInputError, match="'oracle' needs the true output lengths"):
        create("oracle").plan(empty)


def test_the_oracle_queues_the_longest_calls_first_and_balances_tokens() -> None:
    lengths = np.random.default_rng(1).lognormal(7, 1, sum(COUNTS)).astype(np.int64) + 1
    asked = with_lengths(problem(), lengths)
    plan = create("oracle").plan(asked)
    for session in plan.sessions:
        assert (np.diff(lengths[session.call_ids]) <= 0).all()
    split = [m for m in range(6) if sum(s.expert == m for s in plan.sessions) > 1]
    assert split
    for m in split:
        means = [lengths[s.call_ids].mean() for s in plan.sessions if s.expert == m]
        assert max(means) < 1.1 * min(means)
