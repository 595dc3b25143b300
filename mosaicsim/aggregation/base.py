"""The gate seam: from the votes so far and those pending, accept an answer, ask the aggregator, or wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

import numpy as np

from mosaicsim.validation import StrictModel
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
    """Decides which questions need the aggregator. Sees answers, never lengths or the gold answer."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[GateOptions]]
    cancels: bool
    """Whether calls that can no longer matter are to be cancelled."""

    @property
    def label(self) -> str:
        """Name in tables and results."""
        ...

    def decide(self, votes: Sequence[int], pending: int) -> Decision:
        """Judge one question from the answer codes so far (NO_ANSWER among them) and the calls pending."""
        ...

    def decide_all(self, votes: Ints) -> Ints:
        """Judge finished questions at once.

        ``votes`` has shape (questions, k), NO_ANSWER where a call gave none or was cancelled; returns the
        accepted answer code or ``ASK``, shape (questions,). Equals ``decide`` on each row.
        """
        ...


def decide_each(gate: Gate, votes: Ints) -> Ints:
    """``decide_all`` for a gate that has no faster way."""
    decisions = (gate.decide(row, 0) for row in votes.tolist())
    return np.array([d.answer if d.verdict is Verdict.ACCEPT else ASK for d in decisions], np.int64)
