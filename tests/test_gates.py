"""Gates: the paper's operating points, partial votes, and the agreement of the two ways to ask."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim import plugins
from mosaicsim.aggregation.base import ASK, Verdict, decide_each
from mosaicsim.aggregation.registry import available, create
from mosaicsim.errors import UserInputError
from mosaicsim.workload.calls import NO_ANSWER

A, B, C = 0, 1, 2
ballots = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(NO_ANSWER, 3), min_size=k, max_size=k), min_size=1, max_size=8)
)
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
    assert create("plurality", {"tau": tau}).decide_all(np.array([votes])).tolist() == [accepted]


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
    assert create("plurality", {"tau": tau}).decide(votes, pending).verdict is verdict


@given(taus, ballots)
def test_both_ways_to_ask_agree(tau: float | str, votes: list[list[int]]) -> None:
    gate = create("plurality", {"tau": tau})
    np.testing.assert_array_equal(gate.decide_all(np.array(votes)), decide_each(gate, np.array(votes)))


@given(taus, st.lists(st.integers(NO_ANSWER, 2), min_size=3, max_size=5), st.integers(1, 2))
def test_an_early_decision_stands_whatever_comes(tau: float | str, votes: list[int], pending: int) -> None:
    """What is decided with calls pending is decided the same once they are in, however they vote."""
    gate = create("plurality", {"tau": tau})
    seen, rest = votes[:-pending], votes[-pending:]
    early = gate.decide(seen, pending)
    if early.verdict is not Verdict.WAIT:
        assert gate.decide(seen + rest, 0) == early


def test_always_asks() -> None:
    gate = create("always", {})
    assert gate.decide([A, A, A], 0).verdict is Verdict.ASK
    assert gate.decide([A], 2).verdict is Verdict.WAIT
    assert gate.decide_all(np.zeros((2, 3), np.int64)).tolist() == [ASK, ASK]


def test_labels_tell_the_gates_apart() -> None:
    labels = [
        create("plurality", {"tau": 1}).label,
        create("plurality", {"tau": "2/3"}).label,
        create("plurality", {"tau": "2/3", "cancel_pending": True}).label,
        create("plurality", {"label": "mine"}).label,
    ]
    assert labels == ["plurality(tau=1)", "plurality(tau=0.667)", "plurality(tau=0.667, cancel)", "mine"]
    assert set(available()) >= {"always", "plurality"}


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
