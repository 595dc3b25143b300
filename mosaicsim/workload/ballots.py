"""Ballots: what a gate sees of a question, and the calibration questions a gate may be fitted to.

A ballot holds who answered what in which category, never a length and never whether it was right. Grades are
in :class:`GateCalibration` only, on questions that are not evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mosaicsim.workload.calls import Bools, Floats, Ints


@dataclass(frozen=True)
class Ballot:
    """One question while it is being answered.

    ``answers``, ``experts`` and ``confidences`` are of the calls that ended: answer codes (NO_ANSWER among
    them), indices into the pool, and 0 to 1 or NaN where unknown. ``pending`` holds the experts whose calls
    are still out.
    """

    answers: tuple[int, ...]
    experts: tuple[int, ...]
    confidences: tuple[float, ...]
    pending: tuple[int, ...]
    category: str


@dataclass(frozen=True)
class Ballots:
    """Finished questions, k calls each.

    ``answers`` (NO_ANSWER where a call gave none, failed or was cancelled), ``experts`` and ``confidences``
    (NaN where unknown) have shape (questions, k); ``categories`` has a name a question.
    """

    answers: Ints
    experts: Ints
    confidences: Floats
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.answers)

    def take(self, rows: Ints) -> Ballots:
        """Some of the questions."""
        categories = tuple(self.categories[row] for row in rows.tolist())
        return Ballots(self.answers[rows], self.experts[rows], self.confidences[rows], categories)

    def __getitem__(self, question: int) -> Ballot:
        """One finished question."""
        return Ballot(
            tuple(self.answers[question].tolist()),
            tuple(self.experts[question].tolist()),
            tuple(self.confidences[question].tolist()),
            (),
            self.categories[question],
        )


@dataclass(frozen=True)
class GradedCalls:
    """Every profiled call on the calibration questions, drawn or not; columns of shape (calls,).

    ``question`` is an index into the ballots of the :class:`GateCalibration`.
    """

    question: Ints
    expert: Ints
    answer: Ints
    correct: Bools
    confidence: Floats

    def take(self, rows: Bools) -> GradedCalls:
        """Some of the calls."""
        return GradedCalls(
            self.question[rows],
            self.expert[rows],
            self.answer[rows],
            self.correct[rows],
            self.confidence[rows],
        )


@dataclass(frozen=True)
class GateCalibration:
    """Questions a gate may be fitted to: routed as the evaluated ones are, graded, and never evaluated.

    ``correct`` (questions, k) belongs to the ballots' answers; ``aggregator_correct`` (questions,) says
    whether the aggregator was right, as ``aggregator`` tells: recorded in the trace, or modelled.
    ``confidences_modelled`` says that no model gave the confidences.
    """

    experts: tuple[str, ...]
    ballots: Ballots
    correct: Bools
    aggregator_correct: Bools
    calls: GradedCalls
    aggregator: Literal["recorded", "modelled"]
    confidences_modelled: bool = False

    def __len__(self) -> int:
        return len(self.ballots)

    def take(self, rows: Ints) -> GateCalibration:
        """Some of the questions, with their calls."""
        place = np.full(len(self), -1, np.int64)
        place[rows] = np.arange(len(rows))
        calls = self.calls.take(place[self.calls.question] >= 0)
        calls = GradedCalls(
            place[calls.question], calls.expert, calls.answer, calls.correct, calls.confidence
        )
        return replace(
            self,
            ballots=self.ballots.take(rows),
            correct=self.correct[rows],
            aggregator_correct=self.aggregator_correct[rows],
            calls=calls,
        )
