"""The simulated world: workers, sessions, loads and failures as SimPy processes around the engine.

One process a session, none per call. A session whose calls nobody will touch runs its engine to the end
in one go and sleeps until then; a *reactive* executor steps it span by span, so that each finish can be
answered with a cancel or more calls. Both give the same times (``tests/test_simulated.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import simpy

from mosaicsim.errors import InfeasibleError, MosaicsimError
from mosaicsim.executors.base import Handler
from mosaicsim.executors.disk import Disk, Read
from mosaicsim.executors.engine import Engine
from mosaicsim.executors.session import Begun, EngineSpec, Prefetch, Session
from mosaicsim.hardware.sharing import rates
from mosaicsim.runtime.events import (
    CallRecords,
    CallsFinished,
    CallsWithdrawn,
    Event,
    SessionEnded,
    SessionReady,
    SessionSpec,
    SessionUsage,
    WorkerBack,
    WorkerLost,
)
from mosaicsim.workload.calls import NO_ANSWER, Floats, Ints

_LOST = "worker lost"
_POKE = "something changed"

LEAST_CHANGE, REFRESH_S = 0.01, 5.0
"""Relative change of an engine's speed beside others that counts, and seconds between looks at it where
nothing ends: every change is an event."""


@dataclass(frozen=True)
class Failure:
    """A worker fails at ``at_s`` and is back ``down_s`` later, or never (None)."""

    at_s: float
    down_s: float | None


@dataclass(frozen=True)
class SimulatedCluster:
    """What the executor runs on.

    ``engine_of(expert, workers, slots)`` gives the engine of a model on a worker or a group, with one of
    ``slots`` parts of the memory; always the same object. ``hosts[w]`` is worker w's host, and
    ``disk_streams[h]`` how many loads host h's disk feeds at full speed. ``slots`` experts share a worker at
    a time, as fast as :mod:`mosaicsim.hardware.sharing` says. ``keep_asleep`` engines are woken when their
    expert returns to a worker, not loaded again. ``failures`` maps a worker to its failures in ascending
    order.
    """

    engine_of: Callable[[str, tuple[int, ...], int], EngineSpec]
    hosts: tuple[int, ...]
    disk_streams: tuple[float, ...] = (inf,)
    slots: int = 1
    keep_asleep: bool = False
    failures: Mapping[int, Iterable[Failure]] = field(default_factory=dict)


SessionCache = dict[tuple[int, bytes], Engine]
"""Engines that ran a session undisturbed to its end, by (engine spec, call ids): a pure function of both,
given the call lengths, so schedulers and gates that share a session share the work."""


class SimulatedExecutor:
    """Carries out sessions in virtual time; see :class:`mosaicsim.executors.base.Executor`."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        output_tokens: Ints,
        answers: Ints | None = None,
        confidences: Floats | None = None,
        *,
        reactive: bool = False,
        cache: SessionCache | None = None,
    ) -> None:
        """``output_tokens[call_id]`` is the length each call turns out to have, ``answers`` its answer code,
        ``confidences`` its confidence.

        ``reactive`` is needed to cancel or add calls while a session runs. ``cache`` remembers undisturbed
        sessions from one run to the next; it must only ever see the same ``output_tokens``.
        """
        self.env = simpy.Environment()
        self._cluster = cluster
        self._lengths = output_tokens
        self._answers = np.full(len(output_tokens), NO_ANSWER, np.int64) if answers is None else answers
        unknown = np.full(len(output_tokens), np.nan)
        self._confidences = unknown if confidences is None else confidences
        self._reactive = reactive
        self._stepping = reactive or cluster.slots > 1
        self._cache = None if self._stepping or cluster.failures else cache
        self._disks = [Disk(self.env, streams) for streams in cluster.disk_streams]
        self._starting = [simpy.Resource(self.env) for _ in cluster.hosts]
        self._sessions: dict[int, Session] = {}
        self._resident: dict[tuple[int, ...], list[str]] = {}
        self._asleep: set[tuple[tuple[int, ...], str]] = set()
        self._prefetches: dict[tuple[int, ...], Prefetch] = {}
        self._begun: dict[int, Begun] = {}
        self._lost: set[int] = set()
        self._next_failure = dict.fromkeys(range(len(cluster.hosts)), inf)
        self._finished = self.env.event()

    def run(self, handler: Handler) -> float:
        """See Executor. Raises MosaicsimError when work is left but no worker will ever come back."""
        self._handler = handler
        self.env.process(self._begin())
        for worker, failures in self._cluster.failures.items():
            self.env.process(self._fail(worker, iter(failures)))
        while not self._finished.processed:
            if self.env.peek() == inf:
                raise MosaicsimError(
                    f"calls are left at {self.env.now:.1f} s and too few workers: of "
                    f"{len(self._cluster.hosts)}, {len(self._lost)} are lost for good; give failures a down_s"
                )
            self.env.step()
        return float(self.env.now)

    def start_session(self, spec: SessionSpec) -> None:
        """See Executor. Raises InfeasibleError for a call that does not fit into the worker's KV cache."""
        costs = self._cluster.engine_of(spec.expert, spec.workers, spec.slots)
        known = self._cache.get((id(costs), spec.call_ids.tobytes())) if self._cache is not None else None
        engine = known or Engine(costs.config, costs.tables, reactive=self._reactive)
        session = Session(spec, costs, engine, float(self.env.now))
        if spec.workers in self._prefetches and self._prefetches[spec.workers].expert == spec.expert:
            session.prefetch = self._prefetches.pop(spec.workers)
        if known:
            session.ids = spec.call_ids.tolist()
        else:
            self._enqueue(session, spec, 0.0)
        self._sessions[spec.session] = session
        session.process = self.env.process(self._live(session))

    def add_calls(self, spec: SessionSpec) -> None:
        """See Executor."""
        session = self._sessions[spec.session]
        if not session.generating:
            self._enqueue(session, spec, 0.0)
            return
        now = session.tau(float(self.env.now))
        session.engine.advance(now)
        self._enqueue(session, spec, now)
        self._poke(session)

    def cancel_call(self, session: int, call_id: int) -> None:
        """See Executor."""
        target = self._sessions.get(session)
        if target is None or call_id not in target.row_of:
            return
        if target.generating:
            target.engine.advance(target.tau(float(self.env.now)))
        target.engine.cancel(target.row_of[call_id])
        self._poke(target)

    def withdraw_calls(self, session: int, call_ids: Ints, *, started: bool = False) -> None:
        """See Executor."""
        self.env.process(self._withdraw(session, call_ids, started))

    def stop_session(self, session: int) -> None:
        """See Executor."""
        if session in self._sessions:
            self._sessions[session].stopping = True
            self._poke(self._sessions[session])

    def prefetch(self, expert: str, workers: tuple[int, ...]) -> None:
        """See Executor. No session's start overlaps with a read of its own weights, as without prefetch."""
        if (workers, expert) in self._asleep:
            return
        if workers in self._prefetches:
            self._prefetches.pop(workers).halt()
        read = Read(self._cluster.engine_of(expert, workers, 1).disk_s)
        self._prefetches[workers] = Prefetch(expert, read, self.env.process(self._read_ahead(workers, read)))

    def _read_ahead(self, workers: tuple[int, ...], read: Read) -> Generator[simpy.Event, Any, None]:
        try:
            yield from self._disk_of(workers).read(read)
        except simpy.Interrupt:
            return  # the session reads on, or another expert is wanted

    def _disk_of(self, workers: tuple[int, ...]) -> Disk:
        return self._disks[self._cluster.hosts[workers[0]]]

    def _withdraw(self, number: int, call_ids: Ints, started: bool) -> Generator[simpy.Event, Any, None]:
        """Take calls back and say so: as the command's own event, never inside of it.

        What runs is taken at the end of the iteration in progress; the session then says so.
        """
        session = self._sessions.get(number)
        rows: list[int] = []
        if session is not None:
            if session.generating:
                session.engine.advance(session.tau(float(self.env.now)))
            known = (session.row_of.get(call) for call in call_ids.tolist())
            rows = [r for r in known if r is not None and session.engine.withdraw(r, started=started)]
            self._poke(session)
        if session is not None and any(session.engine.start[row] >= 0 for row in rows):
            session.leaving.append(rows)
        else:
            self._give_back(number, rows)
        yield self.env.timeout(0)

    def _give_back(self, number: int, rows: list[int]) -> None:
        """Tell of calls that have left a session, and remember how far they had come."""
        session, calls = self._sessions.get(number), []
        for row in rows:
            if session is None or row not in session.engine.withdrawn:
                continue
            call, engine = session.ids[row], session.engine
            del session.row_of[call]
            calls.append(call)
            if engine.start[row] < 0:
                continue
            known = self._begun.get(call)
            start_s, first_token_s = session.walls(np.array([engine.start[row], engine.first_token[row]]))
            came_to = Begun(
                engine.tokens_generated(row), float(start_s), float(first_token_s), engine.preempted[row]
            )
            self._begun[call] = known.joined(came_to) if known is not None else came_to
        self._emit(CallsWithdrawn(float(self.env.now), number, np.array(calls, np.int64)))

    def _begin(self) -> Generator[simpy.Event, Any, None]:
        self._handler.begin(self)
        self._check_finished()
        yield self.env.timeout(0)

    def _emit(self, event: Event) -> None:
        self._handler.handle(event)
        self._check_finished()

    def _check_finished(self) -> None:
        if self._handler.finished and not self._finished.triggered:
            self._finished.succeed()

    def _live(self, session: Session) -> Generator[simpy.Event, Any, None]:
        """A session from load to end; a lost worker ends it early."""
        spec = session.spec
        if spec.session not in self._sessions:
            return
        session.started = True
        try:
            yield from self._load(session)
            session.generating = True
            session.set_rate(float(self.env.now), 1.0)
            self._share(spec.workers)
            self._emit(SessionReady(float(self.env.now), spec.session))
            yield from self._step(session) if self._stepping else self._run_through(session)
        except simpy.Interrupt as interrupt:
            if interrupt.cause != _LOST:
                raise
            return
        del self._sessions[spec.session]
        self._resident.setdefault(spec.workers, []).append(spec.expert)
        self._share(spec.workers)
        self._report(session)
        self._emit(SessionEnded(float(self.env.now), spec.session, self._usage(session)))

    def _load(self, session: Session) -> Generator[simpy.Event, Any, None]:
        """Bring the model there; engines that share a worker start one after the other, as real ones do."""
        if self._cluster.slots == 1 or len(session.spec.workers) > 1:
            yield from self._bring(session)
            return
        with self._starting[session.spec.workers[0]].request() as turn:
            yield turn
            yield from self._bring(session)

    def _bring(self, session: Session) -> Generator[simpy.Event, Any, None]:
        """Take the workers' memory; the model is resident, woken or read from disk."""
        spec, costs = session.spec, session.costs
        ahead = session.prefetch
        if ahead is not None and ahead.halt():
            yield ahead.process
        resident = self._resident.get(spec.workers, [])
        if spec.expert in resident:
            resident.remove(spec.expert)
            return
        if self._evict(spec) and not self._cluster.keep_asleep:
            yield self.env.timeout(costs.unload_s)
        copies = sum(
            (s.spec.workers, s.spec.expert) == (spec.workers, spec.expert) for s in self._sessions.values()
        )
        if (spec.workers, spec.expert) in self._asleep and copies == 1:
            yield self.env.timeout(costs.wake_s)
            return
        yield self.env.timeout(costs.load_s - costs.disk_s)
        yield from self._disk_of(spec.workers).read(ahead.read if ahead else Read(costs.disk_s))
        if self._cluster.keep_asleep:
            self._asleep.add((spec.workers, spec.expert))

    def _evict(self, spec: SessionSpec) -> bool:
        """Unload idle models so that a new one fits: the oldest on a shared worker, else all that overlap.

        Returns whether there were any.
        """
        workers, before = spec.workers, sum(map(len, self._resident.values()))
        for holders in list(self._resident):
            if holders == workers and spec.slots > 1:
                running = sum(s.spec.workers == workers for s in self._sessions.values())
                keep = max(0, spec.slots - running)
                self._resident[holders] = self._resident[holders][len(self._resident[holders]) - keep :]
            elif set(holders) & set(workers):
                del self._resident[holders]
        return sum(map(len, self._resident.values())) < before

    def _enqueue(self, session: Session, spec: SessionSpec, tau: float) -> None:
        ids = spec.call_ids.tolist()
        try:
            rows = session.engine.add(
                spec.prompt_tokens.tolist(),
                self._lengths[spec.call_ids].tolist(),
                spec.groups.tolist(),
                [tau] * len(ids),
                generated=[self._begun[call].generated if call in self._begun else 0 for call in ids]
                if self._begun
                else None,
                ahead=spec.ahead,
            )
        except InfeasibleError as error:
            raise InfeasibleError(f"{spec.expert} on worker {spec.workers}: {error}") from error
        session.ids.extend(ids)
        session.row_of.update(zip(ids, rows, strict=True))

    def _run_through(self, session: Session) -> Generator[simpy.Event, Any, None]:
        """Run the engine to its end, or to the failure of a worker, and sleep until then."""
        fails_at = min(self._next_failure[w] for w in session.spec.workers)
        if session.engine.advance(session.tau(fails_at)) < inf:
            yield self.env.event()  # the failure interrupts
        if self._cache is not None:
            self._cache[id(session.costs), session.spec.call_ids.tobytes()] = session.engine
        yield self.env.timeout(max(0.0, session.wall(session.engine.clock) - self.env.now))

    def _step(self, session: Session) -> Generator[simpy.Event, Any, None]:
        """Advance the engine span by span, so that commands meet it where it is."""
        engine, leave = session.engine, 0.0
        while True:
            moment = engine.advance(leave)
            self._share(session.spec.workers)
            if engine.finished:
                self._report(session)
                continue
            if session.leaving and all(engine.finish[row] >= 0 for row in session.leaving[0]):
                self._give_back(session.spec.session, session.leaving.pop(0))
                continue
            if moment == inf and session.stopping:
                return
            wait = self.env.event()  # a command pokes the process
            if moment < inf:
                seconds = max(0.0, session.wall(moment) - self.env.now)
                if self._cluster.slots > 1 and seconds > REFRESH_S:
                    seconds, moment = REFRESH_S, session.tau(float(self.env.now) + REFRESH_S)
                wait = self.env.timeout(seconds)
            try:
                yield wait
                leave = moment
            except simpy.Interrupt as interrupt:
                if interrupt.cause != _POKE:
                    raise
                leave = session.tau(float(self.env.now))

    def _poke(self, session: Session) -> None:
        if session.generating and session.process is not self.env.active_process and session.process:
            session.process.interrupt(_POKE)

    def _share(self, workers: tuple[int, ...]) -> None:
        """Set the speed of each session that generates on a worker by what the others do there."""
        if self._cluster.slots == 1:
            return
        sharing = [s for s in self._sessions.values() if s.generating and s.spec.workers == workers]
        speeds = rates([session.gpu_part() for session in sharing])
        for session, speed in zip(sharing, speeds, strict=True):
            if abs(speed - session.rate) > LEAST_CHANGE * session.rate:
                session.set_rate(float(self.env.now), speed)
                self._poke(session)

    def _report(self, session: Session) -> None:
        """Tell the orchestrator which calls ended and were not told of yet."""
        engine = session.engine
        if self._reactive:
            rows = list(engine.finished)
            engine.finished.clear()
        else:
            rows = [row for row, finish in enumerate(engine.finish) if finish >= 0]
        if rows:
            self._emit(CallsFinished(float(self.env.now), session.spec.session, self._records(session, rows)))

    def _records(self, session: Session, rows: list[int]) -> CallRecords:
        engine = session.engine
        ids = np.array([session.ids[row] for row in rows], np.int64)
        cancelled = np.array([row in engine.cancelled for row in rows], np.bool_)
        columns = engine.start, engine.first_token, engine.finish
        taus = np.array([[column[row] for row in rows] for column in columns], np.float64)
        start_s, first_token_s, finish_s = session.walls(taus)
        preemptions = np.array([engine.preempted[row] for row in rows], np.int64)
        for i, begun in enumerate(map(self._begun.get, ids.tolist()) if self._begun else ()):
            if begun is not None:
                whole = begun.joined(Begun(0, start_s[i], first_token_s[i], int(preemptions[i])))
                start_s[i], first_token_s[i] = whole.start_s, whole.first_token_s
                preemptions[i] = whole.preemptions
        return CallRecords(
            call_ids=ids,
            start_s=start_s,
            first_token_s=first_token_s,
            finish_s=finish_s,
            output_tokens=np.array([engine.tokens_generated(row) for row in rows], np.int64),
            preemptions=preemptions,
            cancelled=cancelled,
            failed=np.zeros(len(rows), np.bool_),
            answer=np.where(cancelled, NO_ANSWER, self._answers[ids]),
            confidence=np.where(cancelled, np.nan, self._confidences[ids]),
        )

    def _usage(self, session: Session, *, lost: bool = False) -> SessionUsage:
        now, stats = float(self.env.now), session.engine.stats
        ready = session.ready_s if session.generating else now
        tail = float(session.walls(np.array([stats.tail_since]))[0]) if stats.tail_since < inf else now
        # a lost worker cuts an iteration short: what it had spent on it is in no count yet
        cut = session.tau(now) - session.engine.clock if lost and session.generating else 0.0
        return SessionUsage(
            session.load_start_s,
            ready,
            min(tail, now),
            now,
            stats.prefill_s,
            stats.decode_s + cut,
            stats.tail_s,
        )

    def _fail(self, worker: int, failures: Iterator[Failure]) -> Generator[simpy.Event, Any, None]:
        """A worker's failures, one after another."""
        for failure in failures:
            self._next_failure[worker] = failure.at_s
            yield self.env.timeout(max(0.0, failure.at_s - self.env.now))
            self._lose(worker)
            if failure.down_s is None:
                self._lost.add(worker)
                return
            yield self.env.timeout(failure.down_s)
            self._next_failure[worker] = inf
            self._emit(WorkerBack(float(self.env.now), worker))

    def _lose(self, worker: int) -> None:
        """End the worker's sessions where they are; what they finished is kept."""
        lost = [s for s in self._sessions.values() if worker in s.spec.workers]
        for session in lost:
            del self._sessions[session.spec.session]
            if session.process is not None and session.started:
                session.process.interrupt(_LOST)
            if session.prefetch is not None:
                session.prefetch.halt()
            if session.generating:
                self._share(session.spec.workers)
                self._report(session)
        for holders in [h for h in self._resident if worker in h]:
            del self._resident[holders]
        self._asleep = {(workers, expert) for workers, expert in self._asleep if worker not in workers}
        for workers in [w for w in self._prefetches if worker in w]:
            self._prefetches.pop(workers).halt()
        now = float(self.env.now)
        self._emit(WorkerLost(now, worker, {s.spec.session: self._usage(s, lost=True) for s in lost}))
