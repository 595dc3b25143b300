"""Runs a workload: asks the scheduler, hands sessions to an executor, lets the gate decide, logs every fact.

It owns no clock and does no I/O. What it knows of time is the ``at_s`` of the event at hand, so the same
object runs in virtual and in real time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf

import numpy as np

from mosaicsim.aggregation.base import ASK, Gate, Verdict
from mosaicsim.errors import InfeasibleError, MosaicsimError
from mosaicsim.executors.base import Executor
from mosaicsim.runtime.events import (
    CallsFinished,
    Event,
    SessionEnded,
    SessionSpec,
    WorkerBack,
    WorkerLost,
)
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import FAILED, FINISHED, PENDING, RunLog, SessionRow
from mosaicsim.schedulers.base import Plan, PlannedSession, Problem, Scheduler, WorkerView, check_plan
from mosaicsim.workload.ballots import Ballot, Ballots
from mosaicsim.workload.calls import Ints, Workload

AGGREGATOR = "aggregator"
"""The aggregator's name where an expert's name stands."""

FRUITLESS_LOSSES = 200
"""So many workers lost in a row without a call finished in between: the run would never end."""


class Orchestrator:
    """One run. ``problem_of(call_ids, workers)`` states what is to be placed, in the scheduler's terms."""

    def __init__(
        self,
        workload: Workload,
        pool: Pool,
        plan: Plan,
        scheduler: Scheduler,
        gate: Gate,
        problem_of: Callable[[Ints, tuple[WorkerView, ...]], Problem],
        fallback: Scheduler,
        log: RunLog | None = None,
    ) -> None:
        """``plan`` is the scheduler's for all calls. It is asked again for what a lost worker leaves.

        ``fallback`` plans that where the scheduler's own constraints forbid it. A ``log`` is that of a run
        cut short, which goes on: calls that ended in it stay ended, and ``plan`` is for the others.
        """
        self.log = log or RunLog(len(workload.calls) + workload.n_questions)
        self.plan = plan
        self.expert_stage_s = 0.0
        self.accepted: Ints = np.full(workload.n_questions, ASK, np.int64)
        self.finished = False
        self._workload, self._pool = workload, pool
        self._scheduler, self._gate, self._fallback = scheduler, gate, fallback
        self._problem_of = problem_of
        self._queues: dict[int, deque[PlannedSession]] = {w.index: deque() for w in pool.workers}
        self._alive = {w.index for w in pool.workers}
        self._running: dict[int, PlannedSession] = {}
        self._stranded: Ints = np.zeros(0, np.int64)
        self._aggregating: Ints | None = None
        self._serial = max(self.log.sessions, default=-1) + 1
        self._fruitless_losses = 0
        self._session_of = np.full(len(workload.calls), -1, np.int64)
        self._calls_of = np.arange(len(workload.calls)).reshape(workload.n_questions, -1)

    def begin(self, executor: Executor) -> None:
        """Start the first sessions of the plan."""
        self._executor = executor
        self._enqueue(self.plan.sessions)
        if self._gate.cancels:  # what a run cut short had decided
            for question in np.flatnonzero((self.log.status[self._calls_of] != PENDING).any(axis=1)).tolist():
                for call in self._moot(question):
                    self.log.cancel_unstarted(call, self.log.end_s)
        n = len(self._workload.calls)
        if n and (self.log.status[:n] != PENDING).all():
            self.expert_stage_s = self.log.stage_end_s("expert")
        self._dispatch(self.log.end_s)

    def handle(self, event: Event) -> None:
        """React to what the executor reports."""
        if isinstance(event, CallsFinished):
            self.log.record(event.session, event.records)
            self._fruitless_losses = 0
            if self._gate.cancels and self._aggregating is None:
                self._cancel_decided(event)
        elif isinstance(event, SessionEnded):
            self.log.sessions[event.session].usage = event.usage
            self._running.pop(event.session, None)
            self._dispatch(event.at_s)
        elif isinstance(event, WorkerLost):
            self._lose(event)
        elif isinstance(event, WorkerBack):
            self._alive.add(event.worker)
            worker, lost_at, _ = next(d for d in reversed(self.log.down) if d[0] == event.worker)
            self.log.down[self.log.down.index((worker, lost_at, inf))] = (worker, lost_at, event.at_s)
            if len(self._stranded) or any(self._queues.values()):
                self._strand_queued()
            self._place_stranded(event.at_s)

    # expert stage

    def _enqueue(self, sessions: Iterable[PlannedSession]) -> None:
        for session in sessions:
            self._queues[session.worker].append(session)

    def _phase(self) -> int:
        """The lowest phase with a session left: later phases wait for it."""
        queued = (queue[0].phase for queue in self._queues.values() if queue)
        return min([*queued, *(s.phase for s in self._running.values())], default=0)

    def _dispatch(self, now: float) -> None:
        """Start every session that may start; go on to the aggregator when none is left."""
        if self._aggregating is not None:
            self._dispatch_aggregator(now)
            return
        self._skip_cancelled()
        phase = self._phase()
        for worker in self._next_workers(now):
            queue = self._queues[worker]
            while queue and queue[0].phase == phase and self._room(worker):
                session = queue.popleft()
                self._running[self._serial] = session
                name = self._workload.experts[session.expert]
                self._start((worker,), name, session.call_ids, "expert", now)
        if not self._running and not any(self._queues.values()) and not len(self._stranded):
            self.expert_stage_s = self.expert_stage_s or now
            self._aggregate(now)

    def _skip_cancelled(self) -> None:
        """Drop cancelled calls from sessions not yet started, and sessions that are left with none."""
        if not self._gate.cancels:
            return
        for queue in self._queues.values():
            kept = [replace(s, call_ids=s.call_ids[self.log.status[s.call_ids] == PENDING]) for s in queue]
            queue.clear()
            queue.extend(s for s in kept if len(s.call_ids))

    def _next_workers(self, now: float) -> list[int]:
        """Workers alive as they may start: where not all can at once, those with most to do first."""
        if self._pool.at_once is None:
            return sorted(self._alive)
        return sorted(self._alive, key=lambda worker: (-self._backlog(worker, now), worker))

    def _room(self, worker: int) -> bool:
        """Whether the worker may start another session."""
        running = [session.worker for session in self._running.values()]
        if running.count(worker) >= self._pool.slots:
            return False
        return self._pool.at_once is None or worker in running or len(set(running)) < self._pool.at_once

    def _start(self, workers: tuple[int, ...], name: str, call_ids: Ints, stage: str, now: float) -> None:
        calls, n = self._workload.calls, len(self._workload.calls)
        if stage == AGGREGATOR:
            prompts = self._workload.aggregator.prompt_tokens[call_ids - n]
            groups = np.full(len(call_ids), -1, np.int64)
        else:
            prompts, groups = calls.prompt_tokens[call_ids], calls.question[call_ids]
            self._session_of[call_ids] = self._serial
        slots = 1 if stage == AGGREGATOR else self._pool.slots
        spec = SessionSpec(self._serial, workers, name, call_ids, prompts, groups, slots=slots)
        self._serial += 1
        self.log.sessions[spec.session] = SessionRow(spec, stage, now)
        self._executor.start_session(spec)

    def _cancel_decided(self, event: CallsFinished) -> None:
        """Cancel the calls that can no longer change the answer of a question just voted on."""
        for question in set(self._workload.calls.question[event.records.call_ids].tolist()):
            for call in self._moot(question):
                if self._session_of[call] >= 0:
                    self._executor.cancel_call(int(self._session_of[call]), call)
                else:
                    self.log.cancel_unstarted(call, event.at_s)

    def _moot(self, question: int) -> list[int]:
        """Pending calls of a question whose answer the gate accepts without them."""
        calls = self._calls_of[question]
        pending = calls[self.log.status[calls] == PENDING]
        if not len(pending):
            return []
        decision = self._gate.decide(self._ballot(question))
        return pending.tolist() if decision.verdict is Verdict.ACCEPT else []

    # aggregator stage

    def _aggregate(self, now: float) -> None:
        """The barrier: let the gate judge every question and queue the rest for the aggregator."""
        n = len(self._workload.calls)
        self.accepted = self._gate.decide_all(self._ballots())
        self._aggregating = n + np.flatnonzero(self.accepted == ASK)
        self._dispatch_aggregator(now)

    # what the gate sees

    def _ballot(self, question: int) -> Ballot:
        """A question as it stands: the calls that finished or failed, and who is still to answer."""
        calls = self._calls_of[question]
        status, experts = self.log.status[calls], self._workload.calls.expert[calls]
        ended = np.isin(status, (FINISHED, FAILED))
        return Ballot(
            answers=tuple(self.log.answer[calls[ended]].tolist()),
            experts=tuple(experts[ended].tolist()),
            confidences=tuple(self.log.confidence[calls[ended]].tolist()),
            pending=tuple(experts[status == PENDING].tolist()),
            category=self._workload.categories[question],
        )

    def _ballots(self) -> Ballots:
        """Every question at the barrier; a call that was cancelled or failed gave no answer."""
        workload, calls = self._workload, self._calls_of
        return Ballots(
            self.log.answer[calls],
            workload.calls.expert[calls],
            self.log.confidence[calls],
            workload.categories,
        )

    def _dispatch_aggregator(self, now: float) -> None:
        """Deal the questions left to aggregator instances; finish when none is left."""
        assert self._aggregating is not None
        if self._running:
            return
        left = self._aggregating[self.log.status[self._aggregating] == PENDING]
        if not len(left):
            self.finished = True
            return
        for group, share in self._pool.deal_aggregation(left, self._alive):
            self._running[self._serial] = PlannedSession(group[0], -1, share)
            self._start(group, AGGREGATOR, share, AGGREGATOR, now)

    # lost workers

    def _lose(self, event: WorkerLost) -> None:
        """Keep what finished; give the rest of the worker's calls back to the scheduler."""
        self._fruitless_losses += 1
        if self._fruitless_losses > FRUITLESS_LOSSES:
            raise MosaicsimError(
                f"workers were lost {FRUITLESS_LOSSES} times in a row before any call could finish, "
                f"the last time at {event.at_s:.0f} s; failures come faster than a call takes"
            )
        self._alive.discard(event.worker)
        self.log.down.append((event.worker, event.at_s, inf))
        for number, usage in event.ended.items():
            row = self.log.sessions[number]
            row.usage, row.lost = usage, True
            session = self._running.pop(number)
            left = session.call_ids[self.log.status[session.call_ids] == PENDING]
            if self._aggregating is None:
                self._session_of[left] = -1
                self._stranded = np.concatenate([self._stranded, left])
        queue = self._queues[event.worker]
        self._stranded = np.concatenate([self._stranded, *(s.call_ids for s in queue)])
        queue.clear()
        if self._gate.cancels:
            # a cancel that had not taken effect was lost with the worker
            for question in set(self._workload.calls.question[self._stranded].tolist()):
                for call in self._moot(question):
                    if call in self._stranded:
                        self.log.cancel_unstarted(call, event.at_s)
        self._place_stranded(event.at_s)

    def _strand_queued(self) -> None:
        """Take back every session that has not started, so that a worker that is back gets its part."""
        queued = [s.call_ids for queue in self._queues.values() for s in queue]
        self._stranded = np.concatenate([self._stranded, *queued])
        for queue in self._queues.values():
            queue.clear()

    def _place_stranded(self, now: float) -> None:
        """Plan the calls no worker has, over the workers alive, behind what these already have to do."""
        self._stranded = np.sort(self._stranded[self.log.status[self._stranded] == PENDING])
        if len(self._stranded) and self._alive:
            workers = tuple(
                replace(w, backlog_s=self._backlog(w.index, now))
                for w in self._pool.workers
                if w.index in self._alive
            )
            problem = self._problem_of(self._stranded, workers)
            note = f"{len(self._stranded)} calls replanned at {now:.1f} s"
            try:
                plan = self._scheduler.plan(problem)
            except InfeasibleError as error:
                plan = self._fallback.plan(problem)
                note += f" by {self._fallback.name}: {error}"
            self.log.notes.append(note)
            check_plan(plan, problem, self._scheduler.name)
            self._stranded = self._stranded[:0]
            after = max((s.phase for q in self._queues.values() for s in q), default=self._phase())
            self._enqueue(replace(s, phase=after + s.phase) for s in plan.sessions)
        self._dispatch(now)

    def _backlog(self, worker: int, now: float) -> float:
        """Predicted seconds until a worker has done what it was given."""
        position = next(i for i, w in enumerate(self._pool.workers) if w.index == worker)
        problem = self._problem_of(np.zeros(0, np.int64), self._pool.workers)
        backlog = 0.0
        for number, session in self._running.items():
            if session.worker == worker:
                cost = problem.costs[session.expert][position]
                due = (
                    self.log.sessions[number].started_s + cost.load_s + cost.predict_s(len(session.call_ids))
                )
                backlog += max(0.0, due - now)
        for session in self._queues[worker]:
            cost = problem.costs[session.expert][position]
            backlog += cost.load_s + cost.predict_s(len(session.call_ids))
        return backlog
