"""What calibration questions say of the votes to come: who agrees with whom, how often it takes more."""

from __future__ import annotations

from functools import cached_property
from math import nan

import numpy as np

from mosaicsim.aggregation.base import Verdict
from mosaicsim.schedulers.base import Problem
from mosaicsim.workload.ballots import Ballot
from mosaicsim.workload.calls import Floats, Ints

MOST_QUESTIONS = 200
"""So many calibration questions are judged for each set of experts: standard errors stay under 4 points."""

UNKNOWN = 0.5
"""The chance of whatever the calibration does not tell."""


class Outlook:
    """Chances, over the calibration questions, of what the gate says of the evaluated ones.

    Needs ``problem.gate``; without calibration answers every chance is UNKNOWN.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[tuple[int, ...], tuple[float, ...]] = {}
        self.cancels = problem.gate is not None and problem.gate.cancels
        self.k = len(problem.calls) // max(1, int(problem.calls.question.max(initial=0)) + 1)

    @cached_property
    def quorum(self) -> int:
        """The fewest equal answers that the gate accepts with the rest pending; k if none is enough."""
        gate = self._problem.gate
        assert gate is not None
        for given in range(1, self.k):
            ballot = Ballot((0,) * given, (0,) * given, (nan,) * given, (0,) * (self.k - given), "")
            if gate.decide(ballot).verdict is Verdict.ACCEPT:
                return given
        return self.k

    def undecided(self, experts: tuple[int, ...]) -> tuple[float, ...]:
        """For 1, 2, ..., k calls ended, in this order: the chance that the gate has not accepted by then."""
        if experts not in self._known:
            self._known[experts] = self._judge(experts)
        return self._known[experts]

    def asks(self) -> float:
        """How many of the evaluated questions will need the aggregator, as predicted."""
        experts = self._problem.calls.expert.reshape(-1, self.k)
        trios, counts = np.unique(np.sort(experts, axis=1), axis=0, return_counts=True)
        chances = [self.undecided(tuple(trio))[-1] for trio in trios.tolist()]
        return float(np.dot(chances, counts))

    def needed(self, order: Ints) -> Floats:
        """Chance that each call will run when a question's calls run one after another beyond the quorum.

        ``order`` (questions, k) holds call ids; returns the same shape.
        """
        experts = self._problem.calls.expert[order]
        chances = np.ones(order.shape)
        sets, place = np.unique(experts, axis=0, return_inverse=True)
        rows = np.array([self.undecided(tuple(s)) for s in sets.tolist()]).reshape(len(sets), -1)
        for i in range(self.quorum, self.k):
            chances[:, i] = rows[place.reshape(-1), i - 1]
        return chances

    def _judge(self, experts: tuple[int, ...]) -> tuple[float, ...]:
        calibration, gate = self._problem.calibration, self._problem.gate
        if gate is None or calibration is None or not len(calibration.answers):
            return (UNKNOWN,) * len(experts)
        answers = calibration.answers[:MOST_QUESTIONS]
        sample = [min(experts[:i].count(m), answers.shape[2] - 1) for i, m in enumerate(experts)]
        votes = answers[:, list(experts), sample].tolist()
        accepted = np.zeros(len(experts))
        for row in votes:
            for given in range(1, len(experts) + 1):
                ballot = Ballot(tuple(row[:given]), experts[:given], (nan,) * given, experts[given:], "")
                if gate.decide(ballot).verdict is Verdict.ACCEPT:
                    accepted[given - 1 :] += 1
                    break
        return tuple((1 - accepted / len(votes)).tolist())
