"""The gate seam: from the votes so far and those pending, accept an answer, ask the aggregator, or wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from mosaicsim.validation import StrictModel
from mosaicsim.workload.ballots import Ballot, Ballots, GateCalibration
from mosaicsim.workload.calls import Ints

ASK = -2
"""In an array of verdicts: no answer is accepted, the aggregator is needed."""


class Verdict(Enum):
    """What a gate says of one question."""

    ACCEPT = "accept"
    ASK = "ask the aggregator"
    WAIT = "wait"


@dataclass(frozen=True)
class Decision:
    """A verdict, and the answer code when it is ACCEPT."""

    verdict: Verdict
    answer: int = ASK


class GateOptions(StrictModel):
    """Options every gate takes; a gate subclasses it with its own."""

    label: str | None = None
    """Name of this entry in tables and results; made from the gate's name and options unless given."""


class Gate(Protocol):
    """Decides which questions need the aggregator. Sees ballots, never lengths or the gold answer."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[GateOptions]]
    cancels: bool
    """Whether calls that can no longer matter are to be cancelled."""

    @property
    def label(self) -> str:
        """Name in tables and results."""
        ...

    def decide(self, ballot: Ballot) -> Decision:
        """Judge one question from the calls that ended and those pending.

        What is decided with calls pending must be what would be decided however they end: WAIT otherwise.
        """
        ...

    def decide_all(self, ballots: Ballots) -> Ints:
        """Judge finished questions at once: the accepted answer code or ``ASK``, shape (questions,).

        Equals ``decide`` on each.
        """
        ...


@runtime_checkable
class FittedGate(Protocol):
    """A gate that chooses its rule from calibration questions before a run."""

    info: dict[str, Any]
    """What was fitted and how sure it is, as plain data for summary.json; ``message`` says it in a line."""

    def fit(self, calibration: GateCalibration) -> Gate:
        """The gate to run with. It must not depend on anything else, nor change this one."""
        ...


def fit_gate(gate: Gate, calibration: Callable[[], GateCalibration]) -> Gate:
    """The gate itself, or what it becomes when it is one that is fitted."""
    return gate.fit(calibration()) if isinstance(gate, FittedGate) else gate


def decide_each(gate: Gate, ballots: Ballots) -> Ints:
    """``decide_all`` for a gate that has no faster way."""
    decisions = (gate.decide(ballots[question]) for question in range(len(ballots)))
    return np.array([d.answer if d.verdict is Verdict.ACCEPT else ASK for d in decisions], np.int64)
