"""Gates: the paper's operating points, partial votes, and the agreement of the two ways to ask."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim import plugins
from mosaicsim.aggregation.base import ASK, Verdict, decide_each
from mosaicsim.aggregation.registry import available, create
from mosaicsim.errors import UserInputError
from mosaicsim.workload.ballots import Ballot, Ballots
from mosaicsim.workload.calls import NO_ANSWER

A, B, C = 0, 1, 2
votes_of_a_batch = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(NO_ANSWER, 3), min_size=k, max_size=k), min_size=1, max_size=8)
)


def ballots(votes: list[list[int]]) -> Ballots:
    """Finished questions of distinct experts in one category."""
    answers = np.array(votes, np.int64)
    experts = np.broadcast_to(np.arange(answers.shape[1]), answers.shape)
    return Ballots(answers, experts, np.full(answers.shape, np.nan), ("c",) * len(answers))


def ballot(votes: list[int], pending: int = 0) -> Ballot:
    n = len(votes)
    return Ballot(tuple(votes), tuple(range(n)), (np.nan,) * n, tuple(range(n, n + pending)), "c")


taus = st.sampled_from([1 / 3, 0.5, 2 / 3, "2/3", 0.6, 1.0])


@pytest.mark.parametrize(
    ("tau", "votes", "accepted"),
    [
        (1, [A, A, A], A),
        (1, [A, A, B], ASK),
        ("2/3", [A, B, A], A),
        ("2/3", [A, B, C], ASK),
        ("2/3", [A, A, NO_ANSWER], A),
        ("2/3", [NO_ANSWER, NO_ANSWER, A], ASK),
        (1, [NO_ANSWER] * 3, ASK),
        (0.1, [NO_ANSWER] * 3, ASK),
        ("1/3", [B, A, C], B),
    ],
)
def test_plurality_on_finished_votes(tau: float | str, votes: list[int], accepted: int) -> None:
    assert create("plurality", {"tau": tau}).decide_all(ballots([votes])).tolist() == [accepted]


@pytest.mark.parametrize(
    ("tau", "votes", "pending", "verdict"),
    [
        ("2/3", [A, A], 1, Verdict.ACCEPT),
        ("2/3", [A], 2, Verdict.WAIT),
        ("2/3", [A, B], 1, Verdict.WAIT),
        (1, [A, A], 1, Verdict.WAIT),
        (1, [A, B], 1, Verdict.ASK),
        (1, [], 3, Verdict.WAIT),
        ("1/3", [A], 2, Verdict.WAIT),
    ],
)
def test_plurality_on_partial_votes(
    tau: float | str, votes: list[int], pending: int, verdict: Verdict
) -> None:
    assert create("plurality", {"tau": tau}).decide(ballot(votes, pending)).verdict is verdict


@settings(deadline=None)
@given(taus, votes_of_a_batch)
def test_both_ways_to_ask_agree(tau: float | str, votes: list[list[int]]) -> None:
    gate = create("plurality", {"tau": tau})
    batch = ballots(votes)
    np.testing.assert_array_equal(gate.decide_all(batch), decide_each(gate, batch))


@settings(deadline=None)
@given(taus, st.lists(st.integers(NO_ANSWER, 2), min_size=3, max_size=5), st.integers(1, 2))
def test_an_early_decision_stands_whatever_comes(tau: float | str, votes: list[int], pending: int) -> None:
    """What is decided with calls pending is decided the same once they are in, however they vote."""
    gate = create("plurality", {"tau": tau})
    seen, rest = votes[:-pending], votes[-pending:]
    early = gate.decide(ballot(seen, pending))
    if early.verdict is not Verdict.WAIT:
        assert gate.decide(ballot(seen + rest)) == early


def test_always_asks() -> None:
    gate = create("always", {})
    assert gate.decide(ballot([A, A, A])).verdict is Verdict.ASK
    assert gate.decide(ballot([A], 2)).verdict is Verdict.WAIT
    assert gate.decide_all(ballots([[A] * 3] * 2)).tolist() == [ASK, ASK]


def test_labels_tell_the_gates_apart() -> None:
    labels = [
        create("plurality", {"tau": 1}).label,
        create("plurality", {"tau": "2/3"}).label,
        create("plurality", {"tau": "2/3", "cancel_pending": True}).label,
        create("plurality", {"label": "mine"}).label,
    ]
    assert labels == ["plurality(tau=1)", "plurality(tau=0.667)", "plurality(tau=0.667, cancel)", "mine"]
    assert set(available()) >= {"always", "plurality", "calibrated"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("plurality", "collections:Counter", "takes a name already in use"),
        ("mine", "no_such_module:Gate", "cannot be loaded"),
        ("mine", "collections:Counter", "lacks name, summary, Options, decide, decide_all"),
    ],
)
def test_a_bad_gate_plugin_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    entry = EntryPoint(name, value, "mosaicsim.gates")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    with pytest.raises(UserInputError, match=said):
        available()
