"""The questions of a steered run: what the gate says of each as its calls end, and which calls wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mosaicsim.aggregation.base import ASK, Decision, Gate, Verdict
from mosaicsim.runtime.runlog import FAILED, FINISHED, PENDING, RunLog
from mosaicsim.schedulers.base import Observed
from mosaicsim.workload.ballots import Ballot
from mosaicsim.workload.calls import NO_ANSWER, Ints, Workload


@dataclass(frozen=True)
class Word:
    """What follows: calls that cannot matter, held calls to start, whether the aggregator is asked."""

    moot: list[int]
    released: list[int]
    asks: bool = False


_NOTHING = Word([], [])


class Questions:
    """Judges questions from the log. A question is *settled* when all its calls have ended.

    ``held`` calls, in the order of ``held``, wait until the others of their question have ended undecided.
    """

    def __init__(self, workload: Workload, gate: Gate, log: RunLog, held: Ints) -> None:
        n = len(workload.calls)
        self.k = n // workload.n_questions
        self.accepted: Ints = np.full(workload.n_questions, ASK, np.int64)
        waiting = [call for call in held.tolist() if log.status[call] == PENDING]
        self.held: dict[int, int] = {call: rank for rank, call in enumerate(waiting)}
        self._expert = workload.calls.expert
        self._categories = workload.categories
        self._gate, self._log = gate, log
        self._settled = [False] * workload.n_questions
        self.unsettled = workload.n_questions

    @property
    def all_ended(self) -> bool:
        """Whether every expert call has ended."""
        return self.unsettled == 0

    def observed(self) -> Observed:
        """What has come of the calls so far: of finished ones only."""
        n = len(self._expert)
        finished = self._log.status[:n] == FINISHED
        return Observed(
            np.where(finished, self._log.answer[:n], NO_ANSWER),
            np.where(finished, self._log.output_tokens[:n], 0),
        )

    def pending(self, question: int) -> list[int]:
        """Calls of a question that have not ended."""
        first = question * self.k
        status = self._log.status[first : first + self.k].tolist()
        return [first + i for i, ended in enumerate(status) if ended == PENDING]

    def judge(self, question: int) -> Word:
        """The gate's word now. A question is settled, and asks, only once."""
        if self._settled[question]:
            return _NOTHING
        pending = self.pending(question)
        if not pending:
            return self._settle(question)
        if not self._gate.cancels and pending[-1] not in self.held:
            return _NOTHING
        decision = self._decide(question)
        if decision.verdict is Verdict.ACCEPT and self._gate.cancels:
            for call in pending:
                self.held.pop(call, None)
            return Word(pending, [])
        if all(call in self.held for call in pending):
            # one at a time while it may help; where the aggregator is needed it reads all proposals
            released = pending if decision.verdict is not Verdict.WAIT else self._first(pending)
            for call in released:
                del self.held[call]
            return Word([], released)
        return _NOTHING

    def moot(self, calls: Iterable[int]) -> list[int]:
        """Those of some pending expert calls whose question the gate has decided without them."""
        if not self._gate.cancels:
            return []
        found = []
        for call in calls:
            if call >= len(self._expert) or self._log.status[call] != PENDING:
                continue
            question = call // self.k
            if self._decide(question).verdict is Verdict.ACCEPT:
                found.append(call)
        return found

    def release_any(self, expert: int) -> int | None:
        """A held call of the expert, to start before its question's others have ended, or None."""
        call = next((c for c in self.held if self._expert[c] == expert), None)
        if call is not None:
            del self.held[call]
        return call

    def _first(self, pending: list[int]) -> list[int]:
        return [min(pending, key=self.held.__getitem__)]

    def _settle(self, question: int) -> Word:
        self._settled[question] = True
        self.unsettled -= 1
        decision = self._gate.decide(self._ballot(question, whole=True))
        if decision.verdict is Verdict.ACCEPT:
            self.accepted[question] = decision.answer
            return _NOTHING
        return Word([], [], asks=True)

    def _decide(self, question: int) -> Decision:
        return self._gate.decide(self._ballot(question))

    def _ballot(self, question: int, *, whole: bool = False) -> Ballot:
        """A question as it stands; as a ``whole``, a call that was cancelled gave no answer."""
        log, own = self._log, slice(question * self.k, (question + 1) * self.k)
        columns = log.status[own], self._expert[own], log.answer[own], log.confidence[own]
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        ended = [row for row in rows if whole or row[0] in (FINISHED, FAILED)]
        return Ballot(
            answers=tuple([row[2] for row in ended]),
            experts=tuple([row[1] for row in ended]),
            confidences=tuple([row[3] for row in ended]),
            pending=tuple([row[1] for row in rows if row[0] == PENDING]),
            category=self._categories[question],
        )
