"""A worker process: takes commands, steps its engine, reports. It decides nothing.

The engine gets no more calls than it can run at once (``max_num_seqs``); the rest wait here, in order, so
that a queued call is cancelled for free and the coordinator knows what a dying engine can have died of.
"""

from __future__ import annotations

import math
import os
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from mosaicsim.executors.messages import (
    AddCalls,
    Begun,
    CallRequest,
    CallResult,
    CancelCall,
    Command,
    EngineTime,
    Heartbeat,
    Hello,
    Message,
    Prefetch,
    Quit,
    Ready,
    Results,
    StartFailed,
    StartSession,
    Submitted,
    Unload,
    Unloaded,
    WarmUp,
    WithdrawCalls,
    Withdrawn,
)
from mosaicsim.executors.vllm_engine import Step, VllmEngine, in_one_line
from mosaicsim.executors.weights import ReadAhead

HEARTBEAT_S = 2.0
"""Between words of a worker that has nothing else to say; each costs the coordinator some CPU time."""


class Worker:
    """Runs sessions one after the other on the engine it holds.

    Commands come from ``commands``, an ordinary queue; ``send`` takes the messages. The loop ends with Quit.
    """

    def __init__(self, commands: queue.SimpleQueue[Command], send: Callable[[Message], None]) -> None:
        self._commands, self._send = commands, send
        self._engine: VllmEngine | None = None
        self._asleep: dict[str, VllmEngine] = {}
        self._read_ahead: ReadAhead | None = None
        self._session = -1
        self._waiting: deque[CallRequest] = deque()
        self._solo_running = False
        self._time = EngineTime()
        self._time_mark = self._spoke_s = 0.0

    def run(self) -> None:
        """Import vLLM, say hello, serve until told to quit."""
        import vllm.v1.engine.llm_engine  # noqa: F401  # part of a process's start, not of its first session

        self._say(Hello(time.monotonic(), os.getpid()))
        while True:
            command = self._next()
            if isinstance(command, Quit):
                return
            if command is not None:
                self._obey(command)
            elif self._engine is not None and (self._waiting or self._engine.unfinished):
                self._advance(self._engine)

    def _next(self) -> Command | None:
        """The next command; waits for one where there is nothing to generate."""
        busy = self._engine is not None and (self._waiting or self._engine.unfinished)
        try:
            if busy:
                return self._commands.get_nowait()
            return self._commands.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            if not busy:
                self._beat()
            return None
        finally:
            if not busy:  # waiting is nobody's time
                self._time_mark = time.monotonic()

    def _obey(self, command: Command) -> None:
        if isinstance(command, StartSession):
            self._start(command)
        elif isinstance(command, AddCalls) and command.session == self._session:
            if command.ahead:
                self._waiting.extendleft(reversed(command.calls))
            else:
                self._waiting.extend(command.calls)
        elif isinstance(command, CancelCall) and command.session == self._session:
            self._cancel(command.call_id)
        elif isinstance(command, WithdrawCalls) and command.session == self._session:
            self._withdraw(command)
        elif isinstance(command, Prefetch):
            self._prefetch(command)
        elif isinstance(command, WarmUp):
            self._warm_up(command)
        elif isinstance(command, Unload):
            self._unload()
            self._say(Unloaded(time.monotonic()))

    def _start(self, command: StartSession) -> None:
        self._session, self._time = command.session, EngineTime()
        self._waiting.clear()
        if command.cores is not None:
            os.sched_setaffinity(0, command.cores)
        try:
            engine = self._bring(command)
        except Exception as error:  # whatever vLLM raises is the coordinator's to judge
            self._say(StartFailed(time.monotonic(), command.session, in_one_line(error)))
            return
        self._waiting.extend(command.calls)
        self._time_mark = time.monotonic()
        self._say(Ready(self._time_mark, command.session, engine.resolved))

    def _prefetch(self, command: Prefetch) -> None:
        """Read the model's weights ahead in place of what is being read, unless it is there or asleep."""
        self._stop_reading()
        loaded = self._engine is not None and self._engine.expert == command.engine.expert
        if not loaded and command.engine.expert not in self._asleep:
            self._read_ahead = ReadAhead(command.engine.vllm)
            self._read_ahead.start()

    def _stop_reading(self) -> None:
        if self._read_ahead is not None:
            self._read_ahead.stop()
            self._read_ahead = None

    def _warm_up(self, command: WarmUp) -> None:
        if command.cores is not None:
            os.sched_setaffinity(0, command.cores)
        try:
            engine = VllmEngine(command.engine)
            engine.add(CallRequest(0, (1, 2), {"max_tokens": 1, "logprobs": 0}))
            while engine.unfinished:
                engine.step()
            engine.close()
        except Exception as error:  # as of a session's
            self._say(StartFailed(time.monotonic(), -1, in_one_line(error)))
            return
        self._say(Unloaded(time.monotonic()))

    def _bring(self, command: StartSession) -> VllmEngine:
        """The engine of the session's model: still loaded, woken, or loaded anew."""
        expert = command.engine.expert
        if self._engine is not None and self._engine.expert != expert:
            if command.keep_asleep:
                self._engine.sleep()
                self._asleep[self._engine.expert] = self._engine
            else:
                self._engine.close()
            self._engine = None
        if self._engine is None and expert in self._asleep:
            self._engine = self._asleep.pop(expert)
            self._engine.wake()
        if self._engine is None:
            self._engine = VllmEngine(command.engine)
        return self._engine

    def _unload(self) -> None:
        self._session = -1
        self._stop_reading()
        for engine in [self._engine, *self._asleep.values()]:
            if engine is not None:
                engine.close()
        self._engine = None
        self._asleep.clear()

    def _cancel(self, call_id: int) -> None:
        """Report a call that has not ended as cancelled; one that is unknown here has ended."""
        for call in self._waiting:
            if call.call_id == call_id:
                self._waiting.remove(call)
                self._report((_never_ran(call_id, "cancelled"),))
                return
        engine = self._engine
        if engine is not None and engine.holds(call_id):
            self._report((engine.cancel(call_id),))

    def _withdraw(self, command: WithdrawCalls) -> None:
        """Give back calls that wait here, or in the engine for their first turn; or any of them."""
        asked, engine = set(command.call_ids), self._engine
        free = [call.call_id for call in self._waiting if call.call_id in asked]
        self._waiting = deque(call for call in self._waiting if call.call_id not in asked)
        begun: list[Begun] = []
        if engine is not None:
            free += [c for c in command.call_ids if engine.holds(c) and engine.withdraw(c)]
            if command.started:
                held = (engine.take(c) for c in command.call_ids if engine.holds(c))
                begun = [one for one in held if one is not None]
        free += [one.result.call_id for one in begun]
        self._say(Withdrawn(time.monotonic(), self._session, tuple(free), tuple(begun)))

    def _advance(self, engine: VllmEngine) -> None:
        """Feed the engine and run one iteration."""
        rejected = self._feed(engine)
        if rejected:
            self._report(tuple(rejected))
        if not engine.unfinished:
            return
        step = engine.step()
        self._account(engine, step)
        if step.results:
            self._report(step.results)
        elif time.monotonic() - self._spoke_s > HEARTBEAT_S:
            self._beat()

    def _feed(self, engine: VllmEngine) -> list[CallResult]:
        """Hand over calls while the engine has a seat; a solo call gets the engine to itself."""
        fed: list[int] = []
        rejected: list[CallResult] = []
        seats = engine.resolved["max_num_seqs"]
        self._solo_running = self._solo_running and engine.unfinished > 0
        while self._waiting and engine.unfinished < seats and not self._solo_running:
            if self._waiting[0].solo and engine.unfinished:
                break
            call = self._waiting.popleft()
            self._solo_running = call.solo
            if call.solo:  # said before it can do harm
                self._say(Submitted(time.monotonic(), self._session, (call.call_id,)))
            else:
                fed.append(call.call_id)
            try:
                engine.add(call)
            except Exception as error:  # ValueError, vLLM's own kinds: about this call alone
                self._solo_running = False
                rejected.append(_never_ran(call.call_id, "error", in_one_line(error)))
        if fed:
            self._say(Submitted(time.monotonic(), self._session, tuple(fed)))
        return rejected

    def _account(self, engine: VllmEngine, step: Step) -> None:
        """Add the time since the last step to a state: a step that prefills counts as prefill whole."""
        now = time.monotonic()
        spent = now - self._time_mark
        began, self._time_mark = self._time_mark, now
        self._time = replace(self._time, between_s=self._time.between_s + max(0.0, spent - step.seconds))
        if step.prefilled:
            self._time = replace(self._time, prefill_s=self._time.prefill_s + spent, tail_since_s=math.inf)
        elif step.running < engine.resolved["max_num_seqs"] / 4 and not step.waiting and not self._waiting:
            since = min(self._time.tail_since_s, began)
            self._time = replace(self._time, tail_s=self._time.tail_s + spent, tail_since_s=since)
        else:
            self._time = replace(self._time, decode_s=self._time.decode_s + spent, tail_since_s=math.inf)

    def _report(self, results: tuple[CallResult, ...]) -> None:
        self._say(Results(time.monotonic(), self._session, results, self._time))

    def _beat(self) -> None:
        self._say(Heartbeat(time.monotonic(), self._session, self._time))

    def _say(self, message: Message) -> None:
        self._spoke_s = message.at_s
        self._send(message)


def _never_ran(call_id: int, reason: str, error: str = "") -> CallResult:
    now = time.monotonic()
    return CallResult(call_id, -1.0, -1.0, now, 0, 0, "", math.nan, reason, error)
