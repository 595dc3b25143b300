"""The actor of a worker: holds its GPUs or cores on some host of a Ray cluster and runs its process there.

The process is the one the local executor starts, under the same environment variables, and a child of the
actor rather than the actor itself: how it died and its last words outlive it.
"""

from __future__ import annotations

import os
import queue
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mosaicsim import __version__
from mosaicsim.executors.link import Inbox
from mosaicsim.executors.machine import environment_of
from mosaicsim.executors.messages import Command, Message
from mosaicsim.executors.process import ProcessLink

OUTPUT_BYTES = 1 << 20
"""Most output handed over at a time."""


@dataclass(frozen=True)
class Arrival:
    """Where an actor came to be, and what it found there: cores it may use, folders that are not there."""

    host: str
    node: str
    pid: int
    version: str
    cores: tuple[int, ...]
    missing: tuple[str, ...]


class WorkerActor:
    """A Ray actor; its methods are called from several threads at a time."""

    def __init__(self) -> None:
        """Only take the place; the process comes with :meth:`start`."""
        self._inbox: Inbox = queue.SimpleQueue()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the actor, and leaves nothing
        self._told = 0

    def arrive(self, folders: Sequence[str]) -> Arrival:
        """Say where this is, and which of ``folders`` are missing here."""
        import ray

        return Arrival(
            socket.gethostname(),
            ray.get_runtime_context().get_node_id(),
            os.getpid(),
            __version__,
            tuple(sorted(os.sched_getaffinity(0))),
            tuple(folder for folder in folders if not Path(folder).is_dir()),
        )

    def clock(self) -> float:
        """This host's monotonic seconds."""
        return time.monotonic()

    def start(self, device: str, cores: int) -> None:
        """Start the worker's process, on the GPUs that Ray gave to this actor."""
        gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        output = Path(f"/proc/{os.getpid()}/fd/{self._output.fileno()}")
        self._process = ProcessLink(environment_of(device, gpus, cores), output, self._inbox)

    def obey(self, command: Command) -> None:
        """Pass a command on to the process."""
        self._process.send(command)

    def listen(self, timeout_s: float) -> tuple[list[Message], bytes]:
        """What the process reported since the last time, or nothing after ``timeout_s``, and its output."""
        messages: list[Message] = []
        with suppress(queue.Empty):
            messages.append(self._inbox.get(timeout=timeout_s)[1])
            while True:
                messages.append(self._inbox.get_nowait()[1])
        output = os.pread(self._output.fileno(), OUTPUT_BYTES, self._told)
        self._told += len(output)
        return messages, output

    def kill(self) -> None:
        """End the process at once, and all it started."""
        self._process.kill()
