"""Workers that die at moments no real process can be made to: links that answer at once, and die when told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engines import KeepAll
from executor_conformance import Script, session, sessions_ended

from mosaicsim.executors.base import Executor
from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.link import Inbox
from mosaicsim.executors.messages import (
    CallResult,
    Command,
    Died,
    EngineArguments,
    EngineTime,
    Hello,
    Message,
    Quit,
    Ready,
    Results,
    StartSession,
    Unloaded,
    WarmUp,
)
from mosaicsim.executors.vllm_executor import Patience, VllmExecutor
from mosaicsim.runtime.events import Event, SessionSpec, WorkerBack, WorkerLost


class Puppet:
    """A worker that has done what it is told as soon as it is told; dying takes ``dying_s``."""

    def __init__(self, stage: Stage, output: Path, inbox: Inbox) -> None:
        self._stage, self._inbox, self.name = stage, inbox, output.stem
        self.dead = self.dying = False
        self.say(Hello(time.monotonic(), 1))

    def say(self, message: Message) -> None:
        self._inbox.put((self, message))

    def send(self, command: Command) -> None:
        self._stage.heard(self, command)

    def kill(self) -> None:
        if not self.dying:
            self.dying = True
            threading.Timer(self._stage.dying_s, self._die).start()

    def _die(self) -> None:
        self.dead = True
        self.say(Died(time.monotonic(), "killed"))

    def serve(self, command: StartSession) -> None:
        self.say(Ready(time.monotonic(), command.session, {}))
        now = time.monotonic()
        done = tuple(CallResult(c.call_id, now, now, now, 5, 0, "", 0.0, "length") for c in command.calls)
        self.say(Results(now, command.session, done, EngineTime()))


class Stage:
    """All puppets, what they were told, how often one was started beside one still dying, and who warmed up at once."""

    def __init__(self, dying_s: float, on_start: Callable[[Puppet, StartSession], None]) -> None:
        self.dying_s, self._on_start = dying_s, on_start
        self.puppets: dict[str, Puppet] = {}
        self.told: list[tuple[str, Command]] = []
        self.beside_the_dying = 0
        self.warming: list[str] = []
        self.at_once: list[list[str]] = []

    def connect(self, workers: tuple[int, ...], output: Path, inbox: Inbox) -> Puppet:
        puppet = self.puppets[output.stem] = Puppet(self, output, inbox)
        return puppet

    def heard(self, puppet: Puppet, command: Command) -> None:
        self.told.append((puppet.name, command))
        if isinstance(command, Quit):
            puppet.kill()
        elif isinstance(command, WarmUp):
            self.warming.append(puppet.name)
            self.at_once.append(sorted(self.warming))
            threading.Timer(0.05, self._warmed, (puppet,)).start()
        elif isinstance(command, StartSession):
            others = [p for p in self.puppets.values() if p is not puppet]
            self.beside_the_dying += any(p.dying and not p.dead for p in others)
            self._on_start(puppet, command)

    def _warmed(self, puppet: Puppet) -> None:
        self.warming.remove(puppet.name)
        puppet.say(Unloaded(time.monotonic()))


def pair(first: int) -> list[SessionSpec]:
    """Two sessions that share worker 0."""
    return [
        replace(session(first + i, (0,), name, range(first + i, first + i + 1)), slots=2)
        for i, name in enumerate("ab")
    ]


def run_again_after_a_loss(stage: Stage, folder: Path) -> Script:
    """Start a pair; once the worker they were lost with is back, another."""

    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, WorkerBack):
            for spec in pair(2):
                executor.start_session(spec)

    script = Script(pair(0), sessions_ended(2, 3), react)
    crew = Crew(stage.connect, folder)
    crew.warm([Place((0,)), Place((0,), 1)], 5)
    patience = Patience(restart_s=0.05)
    VllmExecutor(crew, 1, lambda e, w, s: EngineArguments(e, {}), KeepAll([5] * 4), patience=patience).run(
        script
    )
    return script


@pytest.mark.parametrize("dying_s", [0.0, 0.3])
def test_a_session_that_waits_for_its_turn_is_lost_with_its_worker(dying_s: float, tmp_path: Path) -> None:
    """Its own process dies while the engine beside it loads; nothing starts before both are gone."""

    def on_start(puppet: Puppet, command: StartSession) -> None:
        if command.session == 0:
            stage.puppets["worker-0.1"].kill()
        elif command.session > 1:
            puppet.serve(command)

    stage = Stage(dying_s, on_start)
    script = run_again_after_a_loss(stage, tmp_path)
    (lost,) = script.of(WorkerLost)
    assert isinstance(lost, WorkerLost)
    assert set(lost.ended) == {0, 1}
    assert [c.session for _, c in stage.told if isinstance(c, StartSession)] == [0, 2, 3]
    assert stage.beside_the_dying == 0
    assert set(script.calls()) == {2, 3}


def test_one_engine_a_gpu_warms_up_at_a_time(tmp_path: Path) -> None:
    stage = Stage(0.0, lambda puppet, command: None)
    crew = Crew(stage.connect, tmp_path)
    places = [Place((w,), slot) for slot in (0, 1) for w in (0, 1)]
    crew.warm(places, 5, lambda place: WarmUp(EngineArguments("a", {})), at_once=4)
    first, second = ["worker-0", "worker-1"], ["worker-0.1", "worker-1.1"]
    assert stage.at_once == [first[:1], first, second[:1], second]
