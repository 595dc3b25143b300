"""What every executor must do, as tests. A module for one executor subclasses it and makes the executor.

The suite speaks in commands and events only, so that it can be run against any world.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

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

React = Callable[[Executor, Event], None]


def session(number: int, workers: tuple[int, ...], expert: str, calls: range, **more: object) -> SessionSpec:
    n = len(calls)
    groups = np.asarray(more.pop("groups", np.full(n, -1)), np.int64)
    ids = np.array(calls, np.int64)
    return SessionSpec(number, workers, expert, ids, np.full(n, 20), groups, **more)  # type: ignore[arg-type]  # fields by name


class Script:
    """A handler that starts given sessions, keeps all events and reacts as told; done when ``until`` is."""

    def __init__(
        self, start: list[SessionSpec], until: Callable[[Script], bool], react: React = lambda e, v: None
    ) -> None:
        self.events: list[Event] = []
        self._start, self._until, self._react = start, until, react

    @property
    def finished(self) -> bool:
        return self._until(self)

    def begin(self, executor: Executor) -> None:
        self._executor = executor
        for spec in self._start:
            executor.start_session(spec)

    def handle(self, event: Event) -> None:
        self.events.append(event)
        self._react(self._executor, event)

    def of(self, kind: type) -> list[Event]:
        return [e for e in self.events if isinstance(e, kind)]

    def ended(self) -> set[int]:
        return {e.session for e in self.events if isinstance(e, SessionEnded)}

    def calls(self) -> dict[int, dict[str, float]]:
        """Facts of every call reported, by id; fails if one is reported twice."""
        facts: dict[int, dict[str, float]] = {}
        for event in self.events:
            if isinstance(event, CallsFinished):
                r = event.records
                for i, call in enumerate(r.call_ids.tolist()):
                    assert call not in facts, f"call {call} was reported twice"
                    facts[call] = {
                        "start": r.start_s[i],
                        "first": r.first_token_s[i],
                        "finish": r.finish_s[i],
                        "tokens": r.output_tokens[i],
                        "cancelled": r.cancelled[i],
                        "at": event.at_s,
                    }
        return facts


def sessions_ended(*numbers: int) -> Callable[[Script], bool]:
    return lambda script: set(numbers) <= script.ended()


class Conformance(ABC):
    """Subclass with ``executor(lengths, ...)``: workers 0 and 1 on one host, experts "a" and "b"."""

    ENDLESS, LONG, SHORT = 20_000, 200, 5

    @abstractmethod
    def executor(
        self, lengths: list[int], *, failures: dict[int, tuple[float, float | None]] | None = None
    ) -> Executor:
        """An executor whose call ``i`` generates ``lengths[i]`` tokens; a worker fails ``(at_s, down_s)``."""

    @abstractmethod
    def session_seconds(self) -> float:
        """Seconds at which a lone session of LONG calls is surely generating."""

    def test_events_come_in_order(self) -> None:
        script = Script([session(0, (0,), "a", range(4))], sessions_ended(0))
        end = self.executor([self.SHORT] * 4).run(script)
        times = [e.at_s for e in script.events]
        assert times == sorted(times)
        assert isinstance(script.events[0], SessionReady)
        assert isinstance(script.events[-1], SessionEnded)
        assert end == script.events[-1].at_s
        assert set(script.calls()) == {0, 1, 2, 3}
        ready = script.events[0].at_s
        for call in script.calls().values():
            assert ready <= call["start"] <= call["first"] <= call["finish"] <= call["at"]
            assert call["tokens"] == self.SHORT
            assert not call["cancelled"]

    def test_usage_covers_the_session(self) -> None:
        script = Script([session(0, (0,), "a", range(4))], sessions_ended(0))
        self.executor([self.SHORT] * 4).run(script)
        ended = script.events[-1]
        assert isinstance(ended, SessionEnded)
        usage = ended.usage
        assert usage.load_start_s <= usage.ready_s <= usage.tail_start_s <= usage.end_s == ended.at_s
        spent = usage.prefill_s + usage.decode_s + usage.tail_s
        np.testing.assert_allclose(spent, usage.end_s - usage.ready_s, rtol=0.02, atol=1e-9)

    def test_two_workers_run_at_once(self) -> None:
        specs = [session(0, (0,), "a", range(2)), session(1, (1,), "b", range(2, 4))]
        script = Script(specs, sessions_ended(0, 1))
        self.executor([self.LONG] * 4).run(script)
        a, b = (e for e in script.of(SessionEnded) if isinstance(e, SessionEnded))
        assert a.usage.load_start_s < b.usage.end_s
        assert b.usage.load_start_s < a.usage.end_s

    def test_session_change_on_one_worker(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionEnded) and event.session == 0:
                executor.start_session(session(1, (0,), "b", range(2, 4)))

        script = Script([session(0, (0,), "a", range(2))], sessions_ended(1), react)
        self.executor([self.SHORT] * 4).run(script)
        first, second = (e.usage for e in script.of(SessionEnded) if isinstance(e, SessionEnded))
        assert first.end_s <= second.load_start_s < second.ready_s
        assert set(script.calls()) == {0, 1, 2, 3}

    def test_cancel_of_a_running_call(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
                executor.cancel_call(0, 1)

        script = Script([session(0, (0,), "a", range(2))], sessions_ended(0), react)
        self.executor([self.SHORT, self.LONG]).run(script)
        calls = script.calls()
        assert calls[1]["cancelled"]
        assert 0 < calls[1]["tokens"] < self.LONG
        assert not calls[0]["cancelled"]

    def test_cancel_of_a_queued_call(self) -> None:
        """With room for two at a time the third waits, and is cancelled while it does."""

        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionReady):
                executor.cancel_call(0, 2)

        script = Script([session(0, (0,), "a", range(3))], sessions_ended(0), react)
        self.executor([self.LONG, self.LONG, self.LONG]).run(script)
        calls = script.calls()
        assert calls[2]["cancelled"]
        assert calls[2]["tokens"] == 0
        assert calls[2]["finish"] < calls[0]["finish"]

    def test_cancel_of_an_ended_or_unknown_call_does_nothing(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, CallsFinished):
                executor.cancel_call(0, 0)
                executor.cancel_call(0, 77)
                executor.cancel_call(5, 0)

        script = Script([session(0, (0,), "a", range(1))], sessions_ended(0), react)
        self.executor([self.SHORT]).run(script)
        assert not script.calls()[0]["cancelled"]

    def test_calls_that_wait_are_given_back(self) -> None:
        """Of five calls two can run; the others come back when asked for, and may go to another worker."""

        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
                executor.withdraw_calls(0, np.array([0, 1, 3, 4, 77]))
            if isinstance(event, CallsWithdrawn):
                given = event.call_ids.tolist()
                executor.start_session(session(1, (1,), "a", range(min(given), max(given) + 1)))

        script = Script([session(0, (0,), "a", range(5))], sessions_ended(0, 1), react)
        lengths = [self.SHORT, self.LONG, self.LONG, self.SHORT, self.SHORT]
        self.executor(lengths).run(script)
        (withdrawn,) = script.of(CallsWithdrawn)
        assert isinstance(withdrawn, CallsWithdrawn)
        assert withdrawn.session == 0
        moved = set(withdrawn.call_ids.tolist())
        assert moved <= {3, 4}, "neither ended, nor started, nor unknown calls"
        assert 4 in moved
        calls = script.calls()
        assert set(calls) == set(range(5))
        ready = {e.session: e.at_s for e in script.of(SessionReady) if isinstance(e, SessionReady)}
        for call in moved:
            assert calls[call]["start"] >= ready[1]
            assert not calls[call]["cancelled"]

    def test_started_calls_go_on_elsewhere(self) -> None:
        """A running call is taken to a worker that has the model, where it makes the tokens that it lacks."""

        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionReady) and event.session == 1:
                executor.start_session(session(0, (0,), "a", range(3)))
            if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
                executor.withdraw_calls(0, np.array([0, 1, 77]), started=True)
            if isinstance(event, CallsWithdrawn):
                executor.add_calls(session(1, (1,), "a", range(1, 2)))
                executor.stop_session(1)

        elsewhere = session(1, (1,), "a", range(3, 4), open=True)
        script = Script([elsewhere], sessions_ended(0, 1), react)
        self.executor([self.SHORT, self.LONG, self.SHORT, self.SHORT]).run(script)
        (withdrawn,) = script.of(CallsWithdrawn)
        assert isinstance(withdrawn, CallsWithdrawn)
        assert withdrawn.call_ids.tolist() == [1], "neither ended nor unknown calls"
        facts = script.calls()
        assert set(facts) == {0, 1, 2, 3}
        moved = facts[1]
        assert moved["tokens"] == self.LONG
        assert not moved["cancelled"]
        ready = {e.session: e.at_s for e in script.of(SessionReady) if isinstance(e, SessionReady)}
        assert ready[0] <= moved["start"] < moved["first"] <= withdrawn.at_s, "it began where it was at first"
        assert withdrawn.at_s < moved["finish"]

    def test_a_call_that_moved_may_be_cancelled(self) -> None:
        """It is reported with what it had come to where it was before."""

        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionReady) and event.session == 1:
                executor.start_session(session(0, (0,), "a", range(2)))
            if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
                executor.withdraw_calls(0, np.array([1]), started=True)
            if isinstance(event, CallsWithdrawn):
                executor.add_calls(session(1, (1,), "a", range(1, 2)))
                executor.cancel_call(1, 1)
                executor.stop_session(1)

        elsewhere = session(1, (1,), "a", range(2, 3), open=True)
        script = Script([elsewhere], sessions_ended(0, 1), react)
        self.executor([self.SHORT, self.LONG, self.SHORT]).run(script)
        (withdrawn,) = script.of(CallsWithdrawn)
        moved = script.calls()[1]
        assert moved["cancelled"]
        assert 0 < moved["tokens"] < self.LONG
        assert 0 <= moved["start"] < moved["first"] <= withdrawn.at_s <= moved["finish"]

    def test_nothing_is_given_back_by_a_session_that_is_over(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionEnded):
                executor.withdraw_calls(event.session, np.array([0]))

        script = Script([session(0, (0,), "a", range(1))], lambda s: bool(s.of(CallsWithdrawn)), react)
        self.executor([self.SHORT]).run(script)
        (withdrawn,) = script.of(CallsWithdrawn)
        assert isinstance(withdrawn, CallsWithdrawn)
        assert not len(withdrawn.call_ids)

    def test_calls_added_to_an_open_session(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if not isinstance(event, CallsFinished):
                return
            if 0 in event.records.call_ids:
                executor.add_calls(session(0, (0,), "a", range(1, 3)))
            if 2 in event.records.call_ids:
                executor.stop_session(0)

        script = Script([session(0, (0,), "a", range(1), open=True)], sessions_ended(0), react)
        self.executor([self.SHORT, self.SHORT, self.LONG]).run(script)
        calls = script.calls()
        assert set(calls) == {0, 1, 2}
        assert min(calls[1]["start"], calls[2]["start"]) >= calls[0]["finish"]
        assert len(script.of(SessionReady)) == 1

    def test_a_lost_worker_keeps_what_finished(self) -> None:
        script = Script(
            [session(0, (0,), "a", range(2)), session(1, (1,), "b", range(2, 4))],
            lambda s: bool(s.of(WorkerLost)) and 1 in s.ended(),
        )
        self.executor(
            [self.SHORT, self.ENDLESS, self.SHORT, self.LONG], failures={0: (self.session_seconds(), None)}
        ).run(script)
        (lost,) = script.of(WorkerLost)
        assert isinstance(lost, WorkerLost)
        assert lost.worker == 0
        assert set(lost.ended) == {0}
        calls = script.calls()
        assert set(calls) == {0, 2, 3}, "the finished call is kept, the running one is not reported"
        assert calls[0]["finish"] <= lost.at_s
        assert script.ended() == {1}

    def test_a_worker_that_comes_back_can_be_used(self) -> None:
        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, WorkerBack):
                executor.start_session(session(1, (0,), "a", range(1, 2)))

        script = Script([session(0, (0,), "a", range(1))], sessions_ended(1), react)
        self.executor([self.ENDLESS, self.SHORT], failures={0: (self.session_seconds(), 1.0)}).run(script)
        assert set(script.calls()) == {1}
        (back,) = script.of(WorkerBack)
        ready = [e for e in script.of(SessionReady) if e.at_s > back.at_s]
        assert ready, "the model is loaded anew"

    def test_weights_may_be_read_ahead(self) -> None:
        """Of the next session's model, of one that never comes, of one that runs, and where nothing runs."""

        def react(executor: Executor, event: Event) -> None:
            if isinstance(event, SessionReady) and event.session == 0:
                for expert, workers in (("a", (0,)), ("b", (0,)), ("a", (0, 1)), ("b", (1,))):
                    executor.prefetch(expert, workers)
            if isinstance(event, SessionEnded) and event.session == 0:
                executor.start_session(session(1, (0,), "b", range(2, 4)))

        script = Script([session(0, (0,), "a", range(2))], sessions_ended(1), react)
        self.executor([self.LONG] * 4).run(script)
        assert set(script.calls()) == {0, 1, 2, 3}
        kinds = [type(e) for e in script.events if not isinstance(e, CallsFinished)]
        assert kinds == [SessionReady, SessionEnded] * 2, "a hint is not answered"

    def test_a_duplicate_draw_is_two_calls(self) -> None:
        script = Script([session(0, (0,), "a", range(2), groups=[7, 7])], sessions_ended(0))
        self.executor([self.SHORT, self.LONG]).run(script)
        calls = script.calls()
        assert [calls[0]["tokens"], calls[1]["tokens"]] == [self.SHORT, self.LONG]

    def test_a_tensor_parallel_group_takes_all_its_workers(self) -> None:
        script = Script([session(0, (0, 1), "a", range(2))], sessions_ended(0))
        self.executor([self.SHORT] * 2).run(script)
        assert set(script.calls()) == {0, 1}
