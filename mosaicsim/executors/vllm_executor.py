"""The real world: sessions on vLLM engines, a worker process each, in real time.

The coordinator (this module) owns no engine. It sends commands to workers, turns their messages into events,
restarts workers that die, and finds the call that keeps killing them. See ``docs/reliability.md``.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

import numpy as np

from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.base import Handler
from mosaicsim.executors.crew import FAREWELL_S, Crew, Place
from mosaicsim.executors.messages import (
    AddCalls,
    Begun,
    CallRequest,
    CallResult,
    CancelCall,
    Died,
    EngineArguments,
    EngineTime,
    Heartbeat,
    Message,
    Prefetch,
    Quit,
    Ready,
    Results,
    StartFailed,
    StartSession,
    Submitted,
    WithdrawCalls,
    Withdrawn,
)
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
from mosaicsim.workload.calls import Floats, Ints

TICK_S = 1.0
"""How often overdue workers are looked for where nothing else happens."""


@dataclass(frozen=True)
class Patience:
    """When to give up on what.

    A session must be ready within ``start_s`` and its worker heard of every ``silence_s``, or it is killed. A
    lost worker is back after ``restart_s``, twice that the next time, up to ``longest_restart_s``, and not at
    all after ``restarts`` losses without a call finished in between. A call that was in the engine at the
    death of ``deaths`` workers is given up; one death before, it runs alone. An expert whose engine fails to
    start ``failed_starts`` times in a row ends the run.
    """

    start_s: float = 1800.0
    silence_s: float = 600.0
    restart_s: float = 1.0
    longest_restart_s: float = 60.0
    restarts: int = 8
    deaths: int = 3
    failed_starts: int = 2


class Recorder(Protocol):
    """Who knows the calls' content and keeps what comes back; all times in seconds of the run."""

    def request(self, call_id: int) -> CallRequest:
        """The prompt and sampling settings of a call about to be sent."""
        ...

    def started(self, spec: SessionSpec, at_s: float, *, prefetched: bool) -> None:
        """A session is started; ``prefetched``: its weights were to be read ahead."""
        ...

    def ready(self, spec: SessionSpec, resolved: dict[str, object], at_s: float) -> None:
        """Its engine is there, with the settings it chose itself."""
        ...

    def ended(self, spec: SessionSpec, results: Sequence[CallResult]) -> Ints:
        """Calls ended; returns their answer codes, shape (results,). What is told here is not told again."""
        ...

    def happened(self, event: Event, note: str = "") -> None:
        """Any other event, before its handler learns of it."""
        ...


@dataclass
class _Session:
    """A session under way; ``calls`` have not ended, ``submitted`` of them were given to the engine.

    It starts once the places that it is ``blocked_by`` are given up.
    """

    spec: SessionSpec
    place: Place
    load_start_s: float
    calls: dict[int, None]
    stopping: bool
    blocked_by: set[Place] = field(default_factory=set)
    submitted: set[int] = field(default_factory=set)
    launched: bool = False
    ready_s: float | None = None
    time: EngineTime = field(default_factory=EngineTime)
    heard: float = 0.0


class VllmExecutor:
    """Carries out sessions on real engines; see :class:`mosaicsim.executors.base.Executor`."""

    def __init__(
        self,
        crew: Crew,
        n_workers: int,
        engine_of: Callable[[str, tuple[int, ...], int], EngineArguments],
        recorder: Recorder,
        *,
        cores: Sequence[tuple[int, ...]] = (),
        keep_asleep: bool = False,
        patience: Patience | None = None,
        begin_s: float = 0.0,
    ) -> None:
        """``engine_of(expert, workers, slots)`` says what to load into one of ``slots`` parts of the memory.
        A run that goes on begins at ``begin_s``.

        ``steps_s`` and ``between_s`` add up, over all sessions, the seconds that workers spent in their
        engines' steps and between them. With ``cores`` every session is pinned to one of these sets of CPU
        cores, the least used one.
        """
        self._crew, self._n_workers = crew, n_workers
        self._engine_of, self._recorder = engine_of, recorder
        self._cores, self._keep_asleep = tuple(cores), keep_asleep
        self._patience = patience or Patience()
        self._begin_s = self._last_s = begin_s
        self._origin = 0.0
        self._sessions: dict[int, _Session] = {}
        self._pinned: dict[int, tuple[int, ...]] = {}
        self._prefetched: dict[tuple[int, ...], str] = {}
        self._leaving: dict[Place, float] = {}
        self._held: dict[Place, tuple[str, int]] = {}
        self._cause: dict[Place, str] = {}
        self._back_at: dict[int, float] = {}
        self._losses: Counter[int] = Counter()
        self._gone: dict[int, str] = {}
        self._begun: dict[int, Begun] = {}
        self._deaths: Counter[int] = Counter()
        self._failed_starts: Counter[str] = Counter()
        self.steps_s = self.between_s = 0.0
        self._own: deque[tuple[Place, Message]] = deque()

    def run(self, handler: Handler) -> float:
        """See Executor. Raises MosaicsimError when calls are left that no worker can run."""
        self._handler = handler
        self._origin = time.monotonic() - self._begin_s
        handler.begin(self)
        while not handler.finished:
            received = self._own.popleft() if self._own else self._crew.receive(self._idle_s())
            if received is not None:
                self._take(*received)
            self._look_around()
        return self._last_s

    def _idle_s(self) -> float:
        """How long to wait for a word: a worker may be due to be back."""
        return max(0.0, min([TICK_S, *(due - time.monotonic() for due in self._back_at.values())]))

    # commands

    def start_session(self, spec: SessionSpec) -> None:
        """See Executor. Engines in the way quit first; one that shares the worker loads after the others."""
        place = self._place_for(spec)
        in_the_way = self._make_way(place, spec.slots)
        self._held[place] = spec.expert, spec.slots
        session = _Session(
            spec,
            place,
            self._now(),
            dict.fromkeys(spec.call_ids.tolist()),
            not spec.open,
            blocked_by=in_the_way | ({place} & self._leaving.keys()),
        )
        self._sessions[spec.session] = session
        prefetched = self._prefetched.get(spec.workers) == spec.expert
        if prefetched:
            del self._prefetched[spec.workers]
        self._recorder.started(spec, session.load_start_s, prefetched=prefetched)
        self._launch_the_unblocked()

    def add_calls(self, spec: SessionSpec) -> None:
        """See Executor."""
        session = self._sessions[spec.session]
        added = dict.fromkeys(spec.call_ids.tolist())
        session.calls = added | session.calls if spec.ahead else session.calls | added
        if session.launched:
            requests = self._requests(spec.call_ids.tolist())
            self._crew.link(session.place).send(AddCalls(spec.session, requests, spec.ahead))

    def cancel_call(self, session: int, call_id: int) -> None:
        """See Executor."""
        target = self._sessions.get(session)
        if target is None or call_id not in target.calls:
            return
        if target.launched:
            self._crew.link(target.place).send(CancelCall(session, call_id))
        else:
            self._own.append((target.place, _cancelled(session, call_id)))

    def withdraw_calls(self, session: int, call_ids: Ints, *, started: bool = False) -> None:
        """See Executor. A started call that stops at some text stays where it is."""
        target, asked = self._sessions.get(session), tuple(call_ids.tolist())
        if target is not None and target.launched:
            self._crew.link(target.place).send(WithdrawCalls(session, asked, started))
            return
        # nothing of a session that has not been launched has started, and one that has ended has no calls
        place = target.place if target is not None else Place(())
        free = tuple(call for call in asked if target is not None and call in target.calls)
        self._own.append((place, Withdrawn(time.monotonic(), session, free)))

    def stop_session(self, session: int) -> None:
        """See Executor."""
        if session in self._sessions:
            target = self._sessions[session]
            target.stopping = True
            self._own.append((target.place, Heartbeat(time.monotonic(), session, target.time)))

    def prefetch(self, expert: str, workers: tuple[int, ...]) -> None:
        """See Executor. The process that drives the first of the workers reads, whoever loads later."""
        driver = self._crew.driving(workers[0])
        if driver is not None:
            self._forget_prefetches(driver.workers)
            self._prefetched[workers] = expert
            self._crew.send(driver, Prefetch(self._engine_of(expert, workers, 1)))

    def _forget_prefetches(self, driver: tuple[int, ...]) -> None:
        """A process reads one model at a time: what it may have read of another is not counted on."""
        self._prefetched = {w: expert for w, expert in self._prefetched.items() if w[0] not in driver}

    def _place_for(self, spec: SessionSpec) -> Place:
        """A slot that is free, if one is: first the one that had the expert last."""
        taken = {session.place for session in self._sessions.values()}
        slots = [Place(spec.workers, slot) for slot in range(spec.slots)]
        held = spec.expert, spec.slots

        def rank(place: Place) -> tuple[bool, bool, bool]:
            return place in taken, place in self._leaving, self._held.get(place) != held

        return min(slots, key=rank)

    def _make_way(self, place: Place, slots: int) -> set[Place]:
        """Have engines quit that hold what a session is to have; returns the places that are in its way."""
        beside = self._crew.beside(place)
        in_the_way = set(self._crew.overlapping(place.workers))
        in_the_way |= {p for p in beside if slots == 1 or self._held.get(p, ("", slots))[1] != slots}
        for other in sorted(in_the_way - self._leaving.keys()):
            self._leaving[other] = time.monotonic()
            self._crew.send(other, Quit())
        # what is about to die gives memory back, which an engine that starts meanwhile must not see
        return in_the_way | {p for p in beside if p in self._leaving}

    def _launch_the_unblocked(self) -> None:
        """Launch what nothing is in the way of.

        Engines that share a worker load one after the other: each takes what memory it finds changed while
        it starts for its own.
        """
        for session in list(self._sessions.values()):
            workers = session.spec.workers
            loading = any(
                s.launched and s.ready_s is None for s in self._sessions.values() if s.spec.workers == workers
            )
            if not session.launched and not session.blocked_by and not loading:
                self._launch(session)

    def _launch(self, session: _Session) -> None:
        spec = session.spec
        if session.stopping and not session.calls:  # all were cancelled while it waited
            session.ready_s = self._now()
            self._end_if_done(session, session.ready_s)
            return
        session.launched, session.heard = True, time.monotonic()
        self._crew.link(session.place).send(
            StartSession(
                spec.session,
                self._engine_of(spec.expert, spec.workers, spec.slots),
                self._requests(list(session.calls)),
                self._keep_asleep,
                self._pin(session),
            )
        )

    def _requests(self, call_ids: list[int]) -> tuple[CallRequest, ...]:
        suspect = self._patience.deaths - 1
        return tuple(replace(self._request(call), solo=self._deaths[call] >= suspect) for call in call_ids)

    def _request(self, call: int) -> CallRequest:
        """What is asked of an engine; of a call that has begun elsewhere, to go on after its tokens."""
        request, begun = self._recorder.request(call), self._begun.get(call)
        if begun is None:
            return request
        n, sampling = len(begun.token_ids), dict(request.sampling)
        sampling |= {
            key: max(sampling[key] - n, 0) for key in ("max_tokens", "min_tokens") if key in sampling
        }
        # the engine's generator begins anew: with the same seed it would draw the same numbers again
        sampling |= {"seed": sampling["seed"] + n} if sampling.get("seed") is not None else {}
        return CallRequest(call, request.prompt_token_ids + begun.token_ids, sampling)

    def _pin(self, session: _Session) -> tuple[int, ...] | None:
        """The set of cores that the fewest sessions use; a group of workers takes as many sets.

        Sessions that share a worker share its cores.
        """
        if not self._cores:
            return None
        workers = session.spec.workers
        beside = [n for n, s in self._sessions.items() if s.spec.workers == workers and n in self._pinned]
        if len(workers) == 1 and beside:
            self._pinned[session.spec.session] = self._pinned[beside[0]]
            return self._pinned[beside[0]]
        used = Counter(cores for n in self._sessions if (cores := self._pinned.get(n)) is not None)
        ranked = sorted(self._cores, key=lambda cores: used[cores])
        taken = ranked[: len(workers)]
        self._pinned[session.spec.session] = taken[0]
        return tuple(core for cores in taken for core in cores)

    # messages

    def _take(self, place: Place, message: Message) -> None:
        if isinstance(message, Died):
            self._bury(place, message)
            return
        if isinstance(message, Withdrawn):
            self._give_back(message)
            return
        session = self._sessions.get(getattr(message, "session", -1))
        if session is None or session.place != place:
            return
        session.heard = time.monotonic()
        if isinstance(message, Ready):
            self._make_ready(session, message)
        elif isinstance(message, Submitted):
            session.submitted.update(message.call_ids)
        elif isinstance(message, StartFailed):
            self._fail_start(session, message)
        elif isinstance(message, (Results, Heartbeat)):
            session.time = message.time
            if isinstance(message, Results):
                self._report(session, message.results, self._at(message.at_s))
            self._end_if_done(session, self._at(message.at_s))

    def _make_ready(self, session: _Session, message: Ready) -> None:
        session.ready_s = self._at(message.at_s)
        self._failed_starts[session.spec.expert] = 0
        self._recorder.ready(session.spec, message.resolved, session.ready_s)
        self._emit(SessionReady(session.ready_s, session.spec.session))
        self._end_if_done(session, session.ready_s)
        self._launch_the_unblocked()

    def _report(self, session: _Session, results: Sequence[CallResult], at_s: float) -> None:
        """Tell of calls that ended."""
        results = [self._as_a_whole(r, session, at_s) for r in results if r.call_id in session.calls]
        if not results:
            return
        for result in results:
            del session.calls[result.call_id]
            session.submitted.discard(result.call_id)
            self._begun.pop(result.call_id, None)
        if any(r.finished for r in results):
            for worker in session.spec.workers:
                self._losses[worker] = 0
        answers = self._recorder.ended(session.spec, results)
        self._emit(CallsFinished(at_s, session.spec.session, records_of(results, answers)))

    def _give_back(self, message: Withdrawn) -> None:
        """Calls leave the session; one cancelled on the way is not among them."""
        session = self._sessions.get(message.session)
        free = [call for call in message.call_ids if session is not None and call in session.calls]
        at_s = self._at(message.at_s)
        if session is not None:
            session.heard = time.monotonic()
            for begun in [one for one in message.begun if one.result.call_id in free]:
                before = self._begun.get(begun.result.call_id)
                tokens = (before.token_ids if before is not None else ()) + begun.token_ids
                whole = self._as_a_whole(begun.result, session, at_s)
                self._begun[whole.call_id] = Begun(whole, tokens)
            for call in free:
                del session.calls[call]
                session.submitted.discard(call)
        self._emit(CallsWithdrawn(at_s, message.session, np.array(free, np.int64)))
        if session is not None:
            self._end_if_done(session, at_s)

    def _end_if_done(self, session: _Session, at_s: float) -> None:
        if session.calls or not session.stopping or session.ready_s is None:
            return
        if self._sessions.pop(session.spec.session, None) is not None:
            self._pinned.pop(session.spec.session, None)
            self._emit(SessionEnded(at_s, session.spec.session, self._usage(session, at_s)))

    def _fail_start(self, session: _Session, message: StartFailed) -> None:
        """Count a failed start and lose the worker for it; too many in a row end the run."""
        expert, place = session.spec.expert, session.place
        self._failed_starts[expert] += 1
        if self._failed_starts[expert] >= self._patience.failed_starts:
            raise MosaicsimError(
                f"{expert}: the engine does not start: {message.error}; more in {self._crew.output(place)}"
            )
        self._cause[place] = f"the engine of {expert} did not start: {message.error}"
        self._crew.kill(place)

    # losses

    def _bury(self, place: Place, message: Died) -> None:
        """A process ended: as it was told to, or a worker is lost, and with it whatever shares it."""
        told = self._leaving.pop(place, None) is not None
        self._held.pop(place, None)
        reason = self._cause.pop(place, message.reason)
        if any(s.launched and s.place == place for s in self._sessions.values()) or not told:
            for other in self._crew.beside(place):
                self._leaving[other] = time.monotonic()
                self._crew.kill(other)
            self._lose(place, reason, self._at(message.at_s))
        for session in self._sessions.values():
            session.blocked_by.discard(place)
        self._launch_the_unblocked()

    def _lose(self, place: Place, reason: str, at_s: float) -> None:
        """Give up calls that have killed too often, report the worker lost, and plan its return."""
        workers = place.workers
        lost = [session for session in self._sessions.values() if session.spec.workers == workers]
        for session in lost:
            if session.place == place:
                self._blame(session, reason, at_s)
            del self._sessions[session.spec.session]
            self._pinned.pop(session.spec.session, None)
        self._forget_prefetches(workers)
        worker = workers[0]
        self._losses[worker] += 1
        patience = self._patience
        if self._losses[worker] <= patience.restarts:
            wait = min(patience.restart_s * 2 ** (self._losses[worker] - 1), patience.longest_restart_s)
            self._back_at[worker] = time.monotonic() + wait
        else:
            self._gone[worker] = reason
        ended = {s.spec.session: self._usage(s, at_s, lost=True) for s in lost}
        self._emit(WorkerLost(at_s, worker, ended), reason)

    def _blame(self, session: _Session, reason: str, at_s: float) -> None:
        """The engine died of one of the calls it held, or of none: count, and give up the worst."""
        self._deaths.update(session.submitted)
        guilty = [c for c in sorted(session.submitted) if self._deaths[c] >= self._patience.deaths]
        error = f"its worker died {self._patience.deaths} times, last: {reason}"
        now = at_s - self._begin_s + self._origin
        given_up = [_unfinished(call, now, "error", error) for call in guilty]
        self._report(session, given_up, at_s)

    def _look_around(self) -> None:
        """Kill what is silent for too long, bring back who is due, and notice when nothing can go on."""
        now = time.monotonic()
        for session in self._sessions.values():
            ready = session.ready_s is not None
            limit = self._patience.silence_s if ready else self._patience.start_s
            if session.launched and now - session.heard > limit:
                what = "no word from it" if ready else f"{session.spec.expert} was not ready"
                self._cause[session.place] = f"{what} for {limit:.0f} s"
                session.heard = now
                self._crew.kill(session.place)
        for place, told in self._leaving.items():
            if now - told > FAREWELL_S:
                self._crew.kill(place)
        for worker, due in list(self._back_at.items()):
            if now >= due:
                del self._back_at[worker]
                self._emit(WorkerBack(self._now(), worker))
        if not self._sessions and not self._back_at and not self._own and not self._handler.finished:
            raise MosaicsimError(
                f"calls are left at {self._now():.1f} s and no worker can run them: of {self._n_workers}, "
                f"{len(self._gone)} died {self._patience.restarts + 1} times without finishing a call"
                + "".join(f"; worker {w}: {reason}" for w, reason in sorted(self._gone.items())[:1])
            )

    def _emit(self, event: Event, note: str = "") -> None:
        if not isinstance(event, CallsFinished):
            self._recorder.happened(event, note)
        self._handler.handle(event)

    # time

    def _at(self, monotonic_s: float) -> float:
        """Seconds of the run; never before the event before, whatever clocks and pipes do."""
        self._last_s = max(self._last_s, monotonic_s - self._origin)
        return self._last_s

    def _now(self) -> float:
        return self._at(time.monotonic())

    def _as_a_whole(self, result: CallResult, session: _Session, at_s: float) -> CallResult:
        """The result in seconds of the run, with what the call came to before it moved."""
        own, begun = self._in_run_time(result, session, at_s), self._begun.get(result.call_id)
        return own if begun is None else begun.joined(own)

    def _in_run_time(self, result: CallResult, session: _Session, at_s: float) -> CallResult:
        """The result with times in seconds of the run, within the session's."""
        ready = at_s if session.ready_s is None else session.ready_s

        def seconds(moment: float) -> float:
            return -1.0 if moment < 0 else min(max(moment - self._origin, ready), at_s)

        return replace(
            result,
            start_s=seconds(result.start_s),
            first_token_s=seconds(result.first_token_s),
            finish_s=seconds(result.finish_s),
        )

    def _usage(self, session: _Session, at_s: float, *, lost: bool = False) -> SessionUsage:
        spent, ready = session.time, at_s if session.ready_s is None else session.ready_s
        counted = spent.prefill_s + spent.decode_s + spent.tail_s
        self.steps_s += counted - spent.between_s
        self.between_s += spent.between_s
        tail = at_s if spent.tail_since_s == inf else spent.tail_since_s - self._origin
        return SessionUsage(
            load_start_s=session.load_start_s,
            ready_s=ready,
            tail_start_s=min(max(tail, ready), at_s),
            end_s=at_s,
            prefill_s=spent.prefill_s,
            # what a lost worker had spent since its last word is in no count
            decode_s=spent.decode_s + (max(0.0, at_s - ready - counted) if lost else 0.0),
            tail_s=spent.tail_s,
        )


def records_of(results: Sequence[CallResult], answers: Ints) -> CallRecords:
    """Results as columns."""

    def seconds(name: str) -> Floats:
        return np.array([getattr(r, name) for r in results], np.float64)

    return CallRecords(
        call_ids=np.array([r.call_id for r in results], np.int64),
        start_s=seconds("start_s"),
        first_token_s=seconds("first_token_s"),
        finish_s=seconds("finish_s"),
        output_tokens=np.array([r.output_tokens for r in results], np.int64),
        preemptions=np.array([r.preemptions for r in results], np.int64),
        cancelled=np.array([r.cancelled for r in results], np.bool_),
        failed=np.array([r.failed for r in results], np.bool_),
        answer=answers,
        confidence=np.array([r.confidence for r in results], np.float64),
    )


def _unfinished(call_id: int, at_s: float, reason: str, error: str = "") -> CallResult:
    return CallResult(call_id, -1.0, -1.0, at_s, 0, 0, "", float("nan"), reason, error)


def _cancelled(session: int, call_id: int) -> Results:
    now = time.monotonic()
    return Results(now, session, (_unfinished(call_id, now, "cancelled"),))
