"""The pace of sessions: what a run that is steered learns of costs that were told wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_steered import calibrated, check, run
from worlds import SPEC, make_workload

from mosaicsim.executors.engine import Engine
from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.runtime.pace import LARGEST_SHARE, LEAST_ENDED, PRIOR_CALLS, Pace
from mosaicsim.schedulers.base import SessionCost
from mosaicsim.workload.calls import Ints, Workload

RNG = np.random.default_rng
N_CALLS = 200


def lengths(n: int, seed: int, factor: float = 1.0) -> Ints:
    drawn = RNG(seed).lognormal(np.log(200), 0.8, n) * factor
    return np.clip(drawn, 1, 3000).astype(np.int64)


def profiled() -> SessionCost:
    return profile_sessions(SPEC, lengths(400, 1), np.full(400, 50), N_CALLS, True, RNG(2))


def watched(factor: float, seed: int) -> Pace:
    """The pace of a session whose calls are ``factor`` times as long as those profiled, seen as they end."""
    engine = Engine(SPEC.config, SPEC.tables)
    engine.add([50] * N_CALLS, lengths(N_CALLS, seed, factor).tolist())
    engine.advance()
    pace, cost = Pace(), profiled()
    for ended, seconds in enumerate(np.sort(engine.finish).tolist(), start=1):
        pace.see(0, N_CALLS, ended, seconds, cost)
    return pace


def test_profiles_tell_when_each_share_of_a_session_has_ended() -> None:
    cost = profiled()
    assert (np.diff(cost.progress, axis=1) >= 0).all()
    assert cost.progress[:, -1] == pytest.approx(1)
    assert cost.ended_s(N_CALLS, 1.0) == pytest.approx(cost.predict_s(N_CALLS))
    assert 0.3 < cost.ended_s(N_CALLS, 0.5) / cost.predict_s(N_CALLS) < 0.6
    assert replace(cost, progress=np.zeros((0, 0))).ended_s(N_CALLS, 0.5) == 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 2.0])
def test_a_pace_is_found_whether_profiles_are_too_long_or_too_short(factor: float) -> None:
    """But for the part by which it is drawn to 1."""
    found = [watched(factor, seed).factor for seed in range(3, 9)]
    seen = LARGEST_SHARE * N_CALLS
    assert np.mean(found) == pytest.approx(factor ** (seen / (seen + PRIOR_CALLS)), rel=0.1)


def test_few_calls_and_the_last_ones_say_nothing() -> None:
    pace, cost = Pace(), profiled()
    assert not pace.see(0, N_CALLS, LEAST_ENDED - 1, 1000.0, cost)
    assert not pace.see(0, N_CALLS, N_CALLS, 1000.0, cost)
    assert pace.factor == 1
    assert pace.see(0, N_CALLS, LEAST_ENDED, 1000.0, cost)
    assert pace.factor > 1


def test_a_cost_at_another_pace_takes_in_proportion() -> None:
    cost = profiled()
    slow = cost.at_pace(1.5)
    assert slow.predict_s(70) == pytest.approx(1.5 * cost.predict_s(70))
    assert slow.load_s == cost.load_s


def wrongly_told(workload: Workload) -> Workload:
    """Schedulers are told a tenth of expert 1's lengths."""
    told = workload.calibration
    short = tuple(np.maximum(own // 10, 1) if m == 1 else own for m, own in enumerate(told.output_tokens))
    return replace(workload, calibration=replace(told, output_tokens=short))


def test_calls_are_taken_over_from_an_expert_that_was_told_to_be_short() -> None:
    """Expert 1 writes ten times what was told: workers with little to do take its calls once that shows."""
    workload = calibrated(make_workload(500))
    wrong = wrongly_told(workload)
    options = {"start": "greedy", "scenes": 0, "overlap": False}
    steered, makespan = run(wrong, ("always", {}), options)
    check(steered, makespan, workload, ("always", {}))
    worker_of = {number: row.spec.workers[0] for number, row in steered.log.sessions.items()}
    hosts = {worker_of[s] for s in steered.log.session[np.flatnonzero(workload.calls.expert == 1)].tolist()}
    assert len(hosts) > len({s.worker for s in steered.plan.sessions if s.expert == 1})
    alone, _ = run(wrong, ("always", {}), {**options, "steal": False})
    assert steered.expert_stage_s < 0.9 * alone.expert_stage_s


def test_a_free_worker_helps_before_it_starts_what_it_has_planned() -> None:
    """Some worker runs a session that was not planned for it, and one that was, later."""
    workload = calibrated(make_workload(400, n_experts=5))
    options = {"start": "round_robin", "overlap": False, "scenes": 0}
    steered, makespan = run(wrongly_told(workload), ("always", {}), options)
    check(steered, makespan, workload, ("always", {}))
    planned = {(s.worker, s.expert) for s in steered.plan.sessions}
    ran = [
        (row.spec.workers[0], workload.experts.index(row.spec.expert))
        for row in steered.log.sessions.values()
        if row.stage == "expert"
    ]
    taken = [i for i, session in enumerate(ran) if session not in planned]
    assert any(ran[j][0] == ran[i][0] and ran[j] in planned for i in taken for j in range(i + 1, len(ran)))


def test_nothing_is_learnt_where_sessions_share_a_worker() -> None:
    workload = calibrated(make_workload(200))
    options = {"start": "greedy", "overlap": False, "scenes": 0}
    for slots in (1, 2):
        steered, _ = run(workload, ("always", {}), options, slots=slots)
        costs = [steered._forecast.cost(m, (0,)) for m in range(3)]
        profiled = [row[0] for row in steered._forecast._profiled]
        assert all(a is b for a, b in zip(costs, profiled, strict=True)) == (slots == 2)
