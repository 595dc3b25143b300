"""A run that is steered while it goes on: calls are cancelled, held back, moved, aggregated as they can be.

It owns no clock and does no I/O, as :class:`~mosaicsim.runtime.orchestrator.Orchestrator`, which runs a plan
as it stands. Every session is open: calls join it while it runs, and it is stopped when it has none left.
What is decided here is what *must* hold (each call ends once, the gate's word, phases, workers' limits); who
gets a call and who takes over from whom is the scheduler's to say
(:class:`~mosaicsim.schedulers.base.Steering`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from math import inf

import numpy as np

from mosaicsim.aggregation.base import Gate
from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.base import Executor
from mosaicsim.runtime.events import (
    CallsFinished,
    CallsWithdrawn,
    Event,
    SessionEnded,
    SessionReady,
    SessionSpec,
    WorkerBack,
    WorkerLost,
)
from mosaicsim.runtime.forecast import Forecast
from mosaicsim.runtime.job import Job
from mosaicsim.runtime.lanes import Lanes
from mosaicsim.runtime.orchestrator import AGGREGATOR, FRUITLESS_LOSSES, Orchestrator
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.questions import Questions
from mosaicsim.runtime.runlog import PENDING, RunLog, SessionRow
from mosaicsim.runtime.takeovers import Takeovers
from mosaicsim.schedulers.base import (
    AGGREGATING,
    Plan,
    Problem,
    Scheduler,
    Seat,
    Steering,
    WorkerView,
)
from mosaicsim.workload.calls import Ints, Workload


def orchestrate(
    workload: Workload,
    pool: Pool,
    plan: Plan,
    scheduler: Scheduler,
    gate: Gate,
    problem_of: Callable[[Ints, tuple[WorkerView, ...]], Problem],
    fallback: Scheduler,
    log: RunLog | None = None,
) -> Orchestrator | SteeredRun:
    """The run of a plan: steered where it has a course and a scheduler that steers, else as it stands."""
    if plan.course is not None and isinstance(scheduler, Steering):
        return SteeredRun(workload, pool, plan, scheduler, gate, problem_of, log)
    return Orchestrator(workload, pool, plan, scheduler, gate, problem_of, fallback, log)


class SteeredRun:
    """One run under a scheduler that steers; ``plan.course`` says what is to be done beside sessions."""

    def __init__(
        self,
        workload: Workload,
        pool: Pool,
        plan: Plan,
        scheduler: Steering,
        gate: Gate,
        problem_of: Callable[[Ints, tuple[WorkerView, ...]], Problem],
        log: RunLog | None = None,
    ) -> None:
        """As :class:`Orchestrator`; a lost worker's calls are seated one by one, so that no plan can fail."""
        assert plan.course is not None, "a steering scheduler plans a course"
        n = len(workload.calls)
        self.log = log or RunLog(n + workload.n_questions)
        self.plan = plan
        self.expert_stage_s = 0.0
        self._workload, self._scheduler = workload, scheduler
        self._course = plan.course
        self._questions = Questions(workload, gate, self.log, plan.course.held)
        problem = problem_of(np.zeros(0, np.int64), pool.workers).shared_by(plan.course.slots)
        self._forecast = Forecast(workload, pool, problem.costs, plan.course)
        self._lanes = Lanes(pool, plan.course, self._forecast)
        self._takeovers = Takeovers(self._lanes, self._forecast, scheduler, plan.course)
        self._awaits: dict[int, tuple[int, int]] = {}
        self._loose: dict[int, dict[int, None]] = {}
        self._ready_questions: list[int] = []
        self._job_of: dict[int, Job] = {}
        self._begun: set[int] = set()
        self._last_phase = max((session.phase for session in plan.sessions), default=0)
        self._serial = max(self.log.sessions, default=-1) + 1
        self._experts_done = False
        self._fruitless_losses = 0
        self._news = False

    @property
    def accepted(self) -> Ints:
        """The gate's answer code of each question, or ASK; shape (questions,)."""
        return self._questions.accepted

    @property
    def finished(self) -> bool:
        """Whether every call has ended that is to run, and every session with it."""
        return self._experts_done and not self._questions.unsettled and not self._busy_with_anything()

    def begin(self, executor: Executor) -> None:
        """Start the first sessions of the plan."""
        self._executor = executor
        now = self.log.end_s
        held = self._questions.held
        for session in self.plan.sessions:
            calls = [c for c in session.call_ids.tolist() if c not in held]
            if calls:
                self._queue(Job((session.worker,), session.expert, dict.fromkeys(calls), session.phase))
        self._judge(range(self._workload.n_questions), now)
        self._dispatch(now)

    def handle(self, event: Event) -> None:
        """React to what the executor reports."""
        if isinstance(event, CallsFinished):
            self._finish(event)
            job = self._lanes.running[event.session]
            if job.calls and not self._news and self._experts_done == self._questions.all_ended:
                return
        elif isinstance(event, CallsWithdrawn):
            self._move(event)
        elif isinstance(event, SessionReady):
            job = self._lanes.running[event.session]
            job.ready, job.ready_s = True, event.at_s
            self._prefetch()
            if job.coming is None:
                return
            self._fetch(job)
        elif isinstance(event, SessionEnded):
            self._end(event)
        elif isinstance(event, WorkerLost):
            self._lose(event)
        elif isinstance(event, WorkerBack):
            self._come_back(event)
        self._dispatch(event.at_s)

    # what happens to calls

    def _finish(self, event: CallsFinished) -> None:
        self.log.record(event.session, event.records)
        self._fruitless_losses = 0
        job = self._lanes.running[event.session]
        n = len(self._workload.calls)
        ids = event.records.call_ids.tolist()
        for call in ids:
            del job.calls[call], self._job_of[call]
        job.taken -= int(event.records.cancelled.sum())
        if self._forecast.learn(job, event.at_s):
            self._news = True  # a worker that found nothing worth taking over may now
        self._feed(job, event.at_s)
        self._judge(sorted({call // self._questions.k for call in ids if call < n}), event.at_s)
        self._fill_up(job, event.at_s)

    def _judge(self, questions: Iterable[int], now: float) -> None:
        """Let the gate's word on these questions take effect."""
        for question in questions:
            word = self._questions.judge(question)
            for call in word.moot:
                self._drop(call, now)
            self._seat_all(word.released, now, ahead=True)
            if word.moot and not self._questions.pending(question):
                word = self._questions.judge(question)
            if word.asks:
                self._ready_questions.append(question)
        self._seat_ready(now)

    def _drop(self, call: int, now: float) -> None:
        """Cancel a call that can no longer matter, wherever it is."""
        job = self._job_of.get(call)
        if job is not None and job.number is not None and call not in job.kept:
            self._executor.cancel_call(job.number, call)
            return
        if job is not None:
            self._forget(job, call)
        for calls in self._loose.values():
            calls.pop(call, None)
        self.log.cancel_unstarted(call, now)

    def _forget(self, job: Job, call: int) -> None:
        """Take a call that the executor does not have out of its session."""
        del job.calls[call], self._job_of[call]
        job.kept.pop(call, None)
        job.taken -= 1

    def _feed(self, job: Job, now: float) -> None:
        """Tell the executor of a kept call for each that ended; where none is kept, take one over."""
        if job.expert == AGGREGATING or job.stopping:
            return
        free = self._forecast.cost(job.expert, job.workers).sequences - (len(job.calls) - len(job.kept))
        calls = list(job.kept)[: max(free, 0)]
        for call in calls:
            del job.kept[call]
        while len(calls) < free and (giver := self._giver(job, now)) is not None:
            call = next(iter(giver.kept))
            self._forget(giver, call)
            job.calls[call], self._job_of[call] = None, job
            job.taken += 1
            calls.append(call)
        if calls:
            self._executor.add_calls(self._spec(job, calls))

    def _giver(self, job: Job, now: float) -> Job | None:
        """The session of the expert that keeps calls and whose worker will be busy longest, and longer."""
        able = [other for other in self._lanes.running.values() if other.expert == job.expert and other.kept]
        if not able or not self._course.exchange:
            return None
        busy_s = [self._lanes.backlog_s(other.workers[0], now) for other in able]
        latest = max(range(len(able)), key=busy_s.__getitem__)
        return able[latest] if busy_s[latest] > self._lanes.backlog_s(job.workers[0], now) else None

    def _fill_up(self, job: Job, now: float) -> None:
        """Start held calls early where a session runs empty: then waiting costs more than they save."""
        while len(job.calls) < self._course.fill and not job.stopping and job.expert != AGGREGATING:
            call = self._questions.release_any(job.expert)
            if call is None:
                return
            self._join(job, call)

    def _seat_ready(self, now: float) -> None:
        """Give questions that need the aggregator to it: at once, or after the expert stage."""
        if self._ready_questions and (self._course.overlap or not self._questions.unsettled):
            n = len(self._workload.calls)
            calls = [n + q for q in self._ready_questions if self.log.status[n + q] == PENDING]
            self._ready_questions = []
            self._seat_all(calls, now)

    def _seat_all(self, calls: Iterable[int], now: float, *, ahead: bool = False) -> None:
        for call in calls:
            self._seat(call, now, ahead=ahead)

    def _seat(self, call: int, now: float, *, ahead: bool = False) -> None:
        """Put a call where the scheduler wants it: into a session, or onto a worker that will start one."""
        self._news = True
        expert = self._expert_of(call)
        seats: list[Seat] = []
        jobs: list[Job] = []
        backlog = {w: self._lanes.backlog_s(w, now) for w in sorted(self._lanes.alive)}
        weight = self._forecast.weight(call)
        for group in self._lanes.groups(expert):
            if not set(group) <= self._lanes.alive:
                continue
            before: list[Job] = []
            own: Job | None = None
            for job in self._lanes.of(group[0]):
                if job.expert == expert and job.workers == group and not job.stopping:
                    own = job
                    break
                before.append(job)
            cost = self._forecast.cost(expert, group)
            if own is not None:
                jobs.append(own)
                wait_s = self._lanes.wait_s(before, now) + self._lanes.loads_for_s(own, now)
                seats.append(Seat(group[0], self._forecast.size(own), weight, cost, wait_s))
            elif not self._may_host(expert, group):
                continue
            else:
                behind = any(len(job.workers) == 1 for job in before)
                alone = len(group) > 1  # a group has to be free
                wait_s = max(backlog[w] for w in group) if alone else self._lanes.wait_s(before, now)
                wait_s += self._lanes.load_s(group, expert, behind=behind)
                jobs.append(Job(group, expert, {}, self._last_phase))
                seats.append(Seat(group[0], 0.0, weight, cost, wait_s))
        if not seats:
            self._loose.setdefault(expert, {})[call] = None
            return
        job = jobs[self._scheduler.seat(seats)]
        if not job.calls and job.number is None and not any(job is j for j in self._lanes.of(job.workers[0])):
            self._queue(job)
        self._join(job, call, ahead=ahead)

    def _may_host(self, expert: int, group: tuple[int, ...]) -> bool:
        """Whether a new session may be planned there: behind others only if the expert has none yet.

        The aggregator's calls come last anyway: they may wait for whichever worker drains first.
        """
        if expert == AGGREGATING:
            return True
        if self._keeps_free(group[0]):
            return False
        if all(not self._lanes.of(w) and w not in self._awaits for w in group):
            return True
        return not any(
            job.expert == expert and not job.stopping
            for w in sorted(self._lanes.alive)
            for job in self._lanes.of(w)
        )

    def _join(self, job: Job, call: int, *, ahead: bool = False) -> None:
        job.calls[call] = None
        job.taken += 1
        job.drained = False
        job.mixed |= call in self._begun
        self._job_of[call] = job
        if job.number is None:
            return
        if job.kept and not ahead:
            job.kept[call] = None
        else:
            self._executor.add_calls(replace(self._spec(job, [call]), ahead=ahead))

    def _queue(self, job: Job) -> None:
        """Plan a session behind what its workers have to do."""
        self._lanes.queue(job)
        self._job_of.update(dict.fromkeys(job.calls, job))

    # sessions

    def _dispatch(self, now: float) -> None:
        """Stop sessions that are done, start what can start, and let idle workers help."""
        self._news = False
        for job in self._lanes.running.values():
            if not job.calls and not job.stopping and job.coming is None:
                job.stopping = True
                self._executor.stop_session(job.number if job.number is not None else -1)
        for calls in self._loose.values():
            waiting = list(calls)
            calls.clear()
            self._seat_all(waiting, now)
        for lane in self._lanes.planned.values():
            for job in [j for j in lane if not j.calls]:
                lane.remove(job)
        phase = self._lanes.phase()
        for worker in self._lanes.in_turn(now):
            lane = self._lanes.planned[worker]
            if lane and self._is_free(worker):
                self._relieve(worker, now)
            while lane and lane[0].phase == phase and self._room(lane[0].workers):
                job = lane.popleft()
                if job.calls:  # another worker may just have taken them all
                    self._start(job, now)
        if not self._experts_done and self._questions.all_ended:
            self._experts_done, self.expert_stage_s = True, now
        for worker in self._lanes.in_turn(now):
            if self._is_idle(worker):
                self._relieve(worker, now)
        if self._course.migrate:
            self._merge(now)
        self._prefetch()

    def _prefetch(self) -> None:
        """Have read what busy workers run next: what they have planned, else the aggregator."""
        if not self._course.prefetch:
            return
        for job in self._lanes.running.values():
            if not job.ready or len(job.workers) > 1:
                continue
            planned = ((other.workers, other.expert) for other in self._lanes.planned[job.workers[0]])
            last = ((g, AGGREGATING) for g in self._course.instances.groups if g[0] == job.workers[0])
            group, expert = next(chain(planned, last), (job.workers, job.expert))
            running = any((j.workers, j.expert) == (group, expert) for j in self._lanes.running.values())
            if not running and self._lanes.prefetched.get(group) != expert:
                self._lanes.prefetched[group] = expert
                self._executor.prefetch(self._name_of(expert), group)

    def _room(self, workers: tuple[int, ...]) -> bool:
        """Whether a session may start there; a group's only if no worker of it waits for calls."""
        waits = len(workers) > 1 and any(worker in self._awaits for worker in workers)
        return not waits and self._lanes.room(workers)

    def _start(self, job: Job, now: float) -> None:
        job.number, job.started_s, job.taken = self._serial, now, len(job.calls)
        job.load_s = self._lanes.load_s(job.workers, job.expert, behind=False)
        job.mixed |= not self._begun.isdisjoint(job.calls)
        prefetched = self._lanes.prefetched.get(job.workers) == job.expert
        if prefetched:
            del self._lanes.prefetched[job.workers]
        self._serial += 1
        self._lanes.running[job.number] = job
        if job.expert != AGGREGATING:
            ids = np.array(list(job.calls), np.int64)
            arranged = self._scheduler.arrange(ids, self._questions.observed())
            job.calls = dict.fromkeys(arranged.tolist())
            job.kept = dict.fromkeys(
                arranged[self._forecast.cost(job.expert, job.workers).sequences :].tolist()
            )
        spec = self._spec(job, [call for call in job.calls if call not in job.kept])
        self.log.sessions[spec.session] = SessionRow(
            spec, AGGREGATOR if job.expert == AGGREGATING else "expert", now, prefetched=prefetched
        )
        for worker in job.workers:
            self._lanes.holds.pop(worker, None)
        self._executor.start_session(spec)

    def _spec(self, job: Job, calls: list[int]) -> SessionSpec:
        """The session as the executor is told of it, with these calls."""
        ids, n = np.array(calls, np.int64), len(self._workload.calls)
        number = job.number if job.number is not None else -1
        slots = self._course.slots if len(job.workers) == 1 else 1
        if job.expert == AGGREGATING:
            prompts = self._workload.aggregator.prompt_tokens[ids - n]
            return SessionSpec(
                number,
                job.workers,
                AGGREGATOR,
                ids,
                prompts,
                np.full(len(ids), -1),
                open=True,
                slots=slots,
            )
        table, name = self._workload.calls, self._name_of(job.expert)
        prompts, groups = table.prompt_tokens[ids], table.question[ids]
        return SessionSpec(number, job.workers, name, ids, prompts, groups, open=True, slots=slots)

    def _end(self, event: SessionEnded) -> None:
        self.log.sessions[event.session].usage = event.usage
        job = self._lanes.running.pop(event.session)
        self._expect_nothing_of(event.session)
        for worker in job.workers:
            self._lanes.holds[worker] = job.expert if len(job.workers) == 1 else AGGREGATING - 1

    def _expect_nothing_of(self, session: int) -> None:
        """Wait no longer for calls of a session that is over: its worker may be lost before it answers."""
        self._awaits = {w: asked for w, asked in self._awaits.items() if asked[0] != session}
        for taker in self._lanes.running.values():
            if taker.coming is not None and taker.coming[0] == session:
                taker.coming = None

    # taking over

    def _is_idle(self, worker: int) -> bool:
        return not self._lanes.planned[worker] and self._is_free(worker)

    def _is_free(self, worker: int) -> bool:
        """Whether the worker has no session under way and may take over calls."""
        if worker in self._awaits or not self._room((worker,)):
            return False
        if any(worker in job.workers for job in self._lanes.running.values()):
            return False
        return not self._keeps_free(worker)

    def _keeps_free(self, worker: int) -> bool:
        """Whether the worker is kept for aggregator calls that may still come."""
        others = len(self._lanes.alive) > 1
        return others and worker in self._course.reserved and self._questions.unsettled > 0

    def _relieve(self, worker: int, now: float) -> None:
        """Let a free worker take calls from another's session, if the scheduler finds that it pays.

        Started ones go on where they are until the model is loaded.
        """
        choice = self._takeovers.for_worker(worker, self._asked(), now)
        if choice is None:
            return
        job, n, started = choice
        if started and job.number is not None:
            self._start(Job((worker,), job.expert, {}, job.phase, coming=(job.number, n)), now)
            return
        taken = list(job.kept or job.calls)[-n:]
        if job.number is None or job.kept:
            self._take_over(job, taken, worker)
            self._start(self._lanes.planned[worker].popleft(), now)
            return
        self._awaits[worker] = job.number, n
        self._executor.withdraw_calls(job.number, np.array(taken, np.int64))

    def _merge(self, now: float) -> None:
        """Let the last calls of a session that others wait behind join another session of its expert."""
        asked = self._asked()
        settled = self._takeovers.settled(asked)
        for job in settled:
            other = self._takeovers.to_join(job, settled, asked, now)
            if other is not None and job.number is not None:
                other.coming = job.number, len(job.calls)
                asked.add(job.number)
                self._executor.withdraw_calls(job.number, np.array(list(job.calls), np.int64), started=True)

    def _asked(self) -> set[int]:
        """Numbers of the sessions that calls were asked of and have not come yet."""
        coming = (job.coming[0] for job in self._lanes.running.values() if job.coming is not None)
        return {number for number, _ in self._awaits.values()} | set(coming)

    def _fetch(self, job: Job) -> None:
        """Ask for the started calls that a session that is ready now was started for."""
        assert job.coming is not None
        number, n = job.coming
        giver = self._lanes.running.get(number)
        n = min(n, self._takeovers.may_go(giver)) if giver is not None and not giver.stopping else 0
        if giver is None or not n:
            job.coming = None
            return
        last = np.array(list(giver.calls)[-n:], np.int64)
        self._executor.withdraw_calls(number, last, started=True)

    def _take_over(self, job: Job, calls: list[int], worker: int) -> None:
        for call in calls:
            self._forget(job, call)
        self._put_first(Job((worker,), job.expert, dict.fromkeys(calls), job.phase))

    def _put_first(self, job: Job) -> None:
        """Plan a session before what its worker has planned."""
        self._lanes.put_first(job)
        self._job_of.update(dict.fromkeys(job.calls, job))

    def _move(self, event: CallsWithdrawn) -> None:
        """Start calls that were given back on the worker that asked for them, or give them another seat."""
        worker = next((w for w, (n, _) in self._awaits.items() if n == event.session), None)
        running = self._lanes.running
        job = running.get(event.session)
        taker = next((j for j in running.values() if j.coming and j.coming[0] == event.session), None)
        calls = [c for c in event.call_ids.tolist() if self.log.status[c] == PENDING]
        _, asked = self._awaits.pop(worker, (0, 0)) if worker is not None else (0, 0)
        if job is not None:
            job.drained = len(event.call_ids) < asked
            for call in calls:
                job.calls.pop(call, None)
            job.taken -= len(calls)
        for call in calls:
            self._job_of.pop(call, None)
        moot = self._questions.moot(calls)
        if worker is None:  # they may have begun: the executor knows what a cancelled one had come to
            self._begun.update(calls)
        if taker is not None:
            for call in moot:
                self._join(taker, call)
                self._drop(call, event.at_s)
        else:
            for call in moot:
                self.log.cancel_unstarted(call, event.at_s)
        calls = [c for c in calls if c not in moot]
        if taker is not None:
            taker.coming = None
            if job is not None:
                job.mixed, job.stays = True, not len(event.call_ids)
            for call in calls:
                self._join(taker, call)
        elif calls and job and worker in self._lanes.alive and self._takeovers.pays(job, len(calls), worker):
            self._put_first(Job((worker,), job.expert, dict.fromkeys(calls), job.phase))
        elif calls and job is not None and not job.stopping:
            for call in calls:
                self._join(job, call)
            job.drained = True
        else:
            self._seat_all(calls, event.at_s)
        self._judge(sorted({c // self._questions.k for c in moot}), event.at_s)

    # lost workers

    def _lose(self, event: WorkerLost) -> None:
        """Keep what finished; seat the rest of the worker's calls anew."""
        self._fruitless_losses += 1
        if self._fruitless_losses > FRUITLESS_LOSSES:
            raise MosaicsimError(
                f"workers were lost {FRUITLESS_LOSSES} times in a row before any call could finish, "
                f"the last time at {event.at_s:.0f} s; failures come faster than a call takes"
            )
        self._lanes.alive.discard(event.worker)
        self.log.down.append((event.worker, event.at_s, inf))
        left: list[int] = []
        for number, usage in event.ended.items():
            row = self.log.sessions[number]
            row.usage, row.lost = usage, True
            job = self._lanes.running.pop(number)
            left += list(job.calls)
            self._expect_nothing_of(number)
        self._awaits.pop(event.worker, None)
        self._lanes.holds.pop(event.worker, None)
        self._lanes.prefetched = {
            g: expert for g, expert in self._lanes.prefetched.items() if event.worker not in g
        }
        for lane in self._lanes.planned.values():
            for job in [j for j in lane if event.worker in j.workers]:
                lane.remove(job)
                left += list(job.calls)
        for call in left:
            self._job_of.pop(call, None)
        # a cancel that had not taken effect was lost with the worker
        moot = self._questions.moot(left)
        for call in moot:
            self.log.cancel_unstarted(call, event.at_s)
        if left:
            self.log.notes.append(f"{len(left) - len(moot)} calls seated anew at {event.at_s:.1f} s")
        self._seat_all([c for c in left if c not in moot], event.at_s)
        self._judge(sorted({c // self._questions.k for c in moot}), event.at_s)

    def _come_back(self, event: WorkerBack) -> None:
        self._lanes.alive.add(event.worker)
        worker, lost_at, _ = next(d for d in reversed(self.log.down) if d[0] == event.worker)
        self.log.down[self.log.down.index((worker, lost_at, inf))] = (worker, lost_at, event.at_s)

    # what is known of workers and sessions

    def _expert_of(self, call: int) -> int:
        n = len(self._workload.calls)
        return int(self._workload.calls.expert[call]) if call < n else AGGREGATING

    def _name_of(self, expert: int) -> str:
        return AGGREGATOR if expert == AGGREGATING else self._workload.experts[expert]

    def _busy_with_anything(self) -> bool:
        return bool(
            self._lanes.running
            or any(self._lanes.planned.values())
            or any(self._loose.values())
            or self._ready_questions
        )
