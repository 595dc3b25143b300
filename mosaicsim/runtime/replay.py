"""Carries a recorded run out again: its sessions with their calls, order and workers, as a fixed plan.

No scheduler, gate or predictor has a say, so what differs from the record is the executor's doing. Times are
the executor's own; what is kept of the recorded ones is what waited for what:

* a session waits for the one before it on each of its workers, or shares it as it did;
* where a moment came at which everything begun had ended and a worker that had waited was given work, or at
  which the aggregator began, every later session waits for every earlier one (a *barrier*);
* no more workers are busy at a time than the pool allows; sessions get their turn in recorded order;
* weights that were read ahead are so again, from when the session before generates.

A call that was cancelled or lost while it ran is replayed with the tokens it came to, so that it takes the
room it took; one that never ran is left out. One that was added to a session under way is taken as queued
from its start, behind the others: a journal does not say when it came. One that moved once it had
started is replayed where it ended, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaicsim.executors.base import Executor
from mosaicsim.runtime.events import CallsFinished, Event, SessionEnded, SessionReady, SessionSpec
from mosaicsim.runtime.runlog import RunLog, SessionRow
from mosaicsim.workload.calls import Ints, Workload


@dataclass(frozen=True)
class Step:
    """A session to run again; it waits for every session of a lower ``epoch``."""

    spec: SessionSpec
    stage: str
    epoch: int
    prefetched: bool = False


class Replay:
    """Handler of one replay; what happens is in ``log``, in the recorded run's numbers."""

    def __init__(self, recorded: RunLog, workload: Workload, at_once: int | None = None) -> None:
        self.log = RunLog(recorded.n_calls)
        self._left = steps_of(recorded, workload)
        self._running: dict[int, Step] = {}
        self._at_once = at_once

    @property
    def finished(self) -> bool:
        """See Handler."""
        return not self._left and not self._running

    def begin(self, executor: Executor) -> None:
        """See Handler."""
        self._executor = executor
        self._dispatch(0.0)

    def handle(self, event: Event) -> None:
        """See Handler."""
        if isinstance(event, CallsFinished):
            self.log.record(event.session, event.records)
        elif isinstance(event, SessionReady):
            self._prefetch(self._running[event.session])
        elif isinstance(event, SessionEnded):
            self.log.sessions[event.session].usage = event.usage
            del self._running[event.session]
            self._dispatch(event.at_s)

    def _prefetch(self, running: Step) -> None:
        """Have read what comes next where this session runs, if it was in the recorded run."""
        workers = set(running.spec.workers)
        following = next((step for step in self._left if workers & set(step.spec.workers)), None)
        if following is not None and following.prefetched:
            self._executor.prefetch(following.spec.expert, following.spec.workers)

    def _dispatch(self, now: float) -> None:
        """Start every session that waits for nothing, in recorded order."""
        epoch = min((step.epoch for step in [*self._left, *self._running.values()]), default=0)
        for step in [step for step in self._left if step.epoch == epoch]:
            if self._has_room(step):
                self._left.remove(step)
                self._running[step.spec.session] = step
                self.log.sessions[step.spec.session] = SessionRow(step.spec, step.stage, now)
                self._executor.start_session(step.spec)

    def _has_room(self, step: Step) -> bool:
        """Whether its workers have room beside those before it there, and no more are busy than may be."""
        running = [other.spec for other in self._running.values()]
        before = [other.spec for other in self._left[: self._left.index(step)]]
        for worker in step.spec.workers:
            there = [spec for spec in [*running, *before] if worker in spec.workers]
            if len(there) >= min([step.spec.slots, *(spec.slots for spec in there)]):
                return False
        busy, workers = {w for spec in running for w in spec.workers}, set(step.spec.workers)
        return self._at_once is None or len(busy | workers) <= self._at_once


def replayed_tokens(recorded: RunLog) -> Ints:
    """Output tokens of each call as it is replayed, shape (calls,): at least the one that a prefill makes."""
    return np.maximum(recorded.output_tokens, 1)


def steps_of(recorded: RunLog, workload: Workload) -> list[Step]:
    """The recorded sessions that took any time, in the order they began."""
    rows = [recorded.sessions[number] for number in sorted(recorded.sessions)]
    epochs = _epochs(rows)
    steps = []
    for row, epoch in zip(rows, epochs, strict=True):
        calls, usage = _ran(recorded, row.spec), row.usage
        if len(calls) or (usage is not None and usage.ready_s > usage.load_start_s):
            steps.append(Step(_spec(row.spec, calls, workload), row.stage, epoch, row.prefetched))
    return steps


def added_calls(recorded: RunLog, spec: SessionSpec) -> Ints:
    """Calls that ran in a session and were not among those it began with, as they were admitted."""
    own = np.flatnonzero((recorded.session == spec.session) & (recorded.start_s >= 0))
    added = np.setdiff1d(own, spec.call_ids)
    return np.asarray(added[np.argsort(recorded.start_s[added], kind="stable")])


def _ran(recorded: RunLog, spec: SessionSpec) -> Ints:
    """Calls that ran in a session and ended there: as they were queued, then those that were added."""
    begun_with = spec.call_ids
    ran = (recorded.session[begun_with] == spec.session) & (recorded.start_s[begun_with] >= 0)
    return np.concatenate([begun_with[ran], added_calls(recorded, spec)])


def _spec(spec: SessionSpec, call_ids: Ints, workload: Workload) -> SessionSpec:
    calls, n = workload.calls, len(workload.calls)
    own = call_ids < n
    prompts, groups = np.full(len(call_ids), -1), np.full(len(call_ids), -1)
    prompts[own], groups[own] = calls.prompt_tokens[call_ids[own]], calls.question[call_ids[own]]
    prompts[~own] = workload.aggregator.prompt_tokens[call_ids[~own] - n]
    return SessionSpec(spec.session, spec.workers, spec.expert, call_ids, prompts, groups, slots=spec.slots)


def _epochs(rows: Sequence[SessionRow]) -> list[int]:
    """How many barriers lie before each session, given in the order they began.

    A session is begun when another has ended, its *trigger*. Everything had ended by then: that is a barrier
    if a worker other than the trigger's was given work, which must have waited for it, or the aggregator.
    """
    triggers = [_trigger(rows[:i], row) for i, row in enumerate(rows)]
    epoch, epochs = 0, []
    for i, (row, trigger) in enumerate(zip(rows, triggers, strict=True)):
        begins_group = i == 0 or triggers[i - 1] is not trigger
        if trigger is not None and begins_group:
            group = [r for r, t in zip(rows, triggers, strict=True) if t is trigger]
            earlier = rows[:i]
            waited = any(set(r.spec.workers) - set(trigger.spec.workers) for r in group)
            begins_stage = row.stage != earlier[-1].stage
            if (waited or begins_stage) and all(_end(r) <= row.started_s for r in earlier):
                epoch += 1
        epochs.append(epoch)
    return epochs


def _trigger(earlier: Sequence[SessionRow], row: SessionRow) -> SessionRow | None:
    """The last session that had ended when this one began."""
    return max((r for r in earlier if _end(r) <= row.started_s), key=_end, default=None)


def _end(row: SessionRow) -> float:
    return row.started_s if row.usage is None else row.usage.end_s
