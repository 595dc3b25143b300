"""Measuring processes: one for each engine that will run at the same time, each with its core or GPU."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.machine import environment_of
from mosaicsim.profiling.probe import Request
from mosaicsim.profiling.samples import StepSample

Progress = Callable[[int, int, str], None]

CHANGES = 3
"""Session changes of each process, one process at a time while the others generate."""

LONGEST_SILENCE_S = 900.0
"""A large model may load for minutes; a step never takes that long."""

HANG_UP_S = 20.0


@dataclass
class Measurements:
    """What one process or several said. Seconds are means over the processes."""

    resolved: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    samples: list[StepSample] = field(default_factory=list)
    process_start_s: float = 0.0
    """From the process's start to its first engine, less ``load_s``: paid once a process."""
    load_s: float = 0.0
    """An engine's start, in a process that had one before, while the others generate."""
    unload_s: float = 0.0
    """Closing the engine before it."""
    wake_s: float | None = None


@dataclass
class _Process:
    """A measuring process, and what it has said so far."""

    popen: subprocess.Popen[str]
    began: float
    log: Path
    said: dict[str, Any] = field(default_factory=dict)
    changes: list[tuple[float, float]] = field(default_factory=list)
    first_engine_s: float = 0.0

    def tell(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()


@dataclass(frozen=True)
class Place:
    """Where one engine runs: on these GPUs (as CUDA_VISIBLE_DEVICES takes them), or on a core."""

    gpus: tuple[str, ...] = ()
    core: int | None = None


def measure_together(
    engine: dict[str, Any], places: Sequence[Place], budget_s: float, progress: Progress
) -> Measurements:
    """Run the measurements on all ``places`` at once and put them together.

    Raises
    ------
    MosaicsimError
        A process ended or fell silent before it was done; the message has its last words.
    """
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="mosaicsim-profile-") as folder, _ended() as processes:
        for index, place in enumerate(places):
            process = _start(engine, place, budget_s, Path(folder) / f"engine{index}.log")
            processes.append(process)
            threading.Thread(target=_read, args=(index, process, lines), daemon=True).start()

        def hear() -> None:
            try:
                index, line = lines.get(timeout=LONGEST_SILENCE_S)
            except queue.Empty:
                raise MosaicsimError(
                    f"profile: the engine said nothing for {LONGEST_SILENCE_S:.0f} s; "
                    f"its log ends: {_last_words(processes[0].log)}"
                ) from None
            _hear(processes, index, line, progress)

        while not all("done" in process.said for process in processes):
            hear()
        for done in range(1, CHANGES + 1):
            for process in processes:
                process.tell("change")
                while len(process.changes) < done:
                    hear()
        return _together(processes)


def _start(engine: dict[str, Any], place: Place, budget_s: float, log: Path) -> _Process:
    request = Request(engine, place.core, budget_s)
    environment = environment_of("cuda" if place.gpus else "cpu", place.gpus, 1)
    with log.open("w") as errors:
        began = time.monotonic()
        popen = subprocess.Popen(
            [sys.executable, "-m", "mosaicsim.profiling.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
    process = _Process(popen, began, log)
    process.tell(json.dumps(asdict(request)))
    return process


@contextmanager
def _ended() -> Iterator[list[_Process]]:
    """Processes that are gone afterwards, whatever happens."""
    processes: list[_Process] = []
    try:
        yield processes
    finally:
        for process in processes:
            if process.popen.stdin is not None:
                process.popen.stdin.close()
        for process in processes:
            try:
                process.popen.wait(HANG_UP_S if "done" in process.said else 0)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()


def _read(index: int, process: _Process, lines: queue.Queue[tuple[int, str | None]]) -> None:
    assert process.popen.stdout is not None
    with process.popen.stdout as output:
        for line in output:
            lines.put((index, line))
    lines.put((index, None))


def _hear(processes: Sequence[_Process], index: int, line: str | None, progress: Progress) -> None:
    """Take note of one line; None is the end of a process."""
    process = processes[index]
    if line is None:
        code = process.popen.wait()
        raise MosaicsimError(
            f"profile: the engine's process ended with code {code}; its log ends: {_last_words(process.log)}"
        )
    name, value = json.loads(line)
    process.said[name] = value
    if name == "change_s":
        process.changes.append((value[0], value[1]))
    if name == "error":
        raise MosaicsimError(f"profile: the engine failed: {value}")
    if name == "first_load_s":
        process.first_engine_s = time.monotonic() - process.began
    if index == 0:
        progress(*_stage(name, value))


def _stage(name: str, value: Any) -> tuple[int, int, str]:
    if name == "progress":
        return value[0], value[1], "measuring"
    if name == "import_s":
        return 0, 0, "loading"
    return 0, 0, "changing sessions" if name in ("samples", "done", "change_s") else "measuring"


def _together(processes: Sequence[_Process]) -> Measurements:
    said = [process.said for process in processes]
    changes = [change for process in processes for change in process.changes]
    load_s = median(start for _, start in changes)
    waking = [s["wake_s"] for s in said if "wake_s" in s]
    return Measurements(
        resolved=said[0]["resolved"],
        shape=said[0]["shape"],
        samples=[StepSample(*values) for s in said for values in s["samples"]],
        process_start_s=max(0.0, mean(process.first_engine_s for process in processes) - load_s),
        load_s=load_s,
        unload_s=median(close for close, _ in changes),
        wake_s=mean(waking) if waking else None,
    )


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"
