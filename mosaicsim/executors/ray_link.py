"""A worker behind an actor of a Ray cluster, on this host or another.

An actor that dies is a worker lost, whatever it died of: its process, its host, or the way there.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaicsim import __version__
from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.clock import ClockOffset
from mosaicsim.executors.link import Inbox
from mosaicsim.executors.messages import Command, Died, StartSession, WarmUp
from mosaicsim.executors.ray_actor import Arrival

if TYPE_CHECKING:
    from mosaicsim.executors.ray_cluster import RayCluster

LISTEN_S, ANSWER_S, RESET_CLOCK_S = 1.0, 5.0, 60.0
"""Longest wait in one question to an actor; for an answer to a kill; between measurements of its clock."""


class RayLink:
    """A worker behind an actor; see :class:`mosaicsim.executors.link.Link`. Never waits for its actor."""

    def __init__(self, cluster: RayCluster, n_workers: int, actor: Any, output: Path, inbox: Inbox) -> None:
        """The actor may still be on its way: ``arrival`` and ``clock`` are told once it is there."""
        self._cluster, self._n_workers, self.actor = cluster, n_workers, actor
        self._output, self._inbox = output, inbox
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.arrival: Arrival | None = None
        self.clock: ClockOffset | None = None
        self._cores: tuple[int, ...] | None = None
        output.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._live, daemon=True).start()

    def send(self, command: Command) -> None:
        """See Link."""
        self._commands.put(command)

    def kill(self) -> None:
        """See Link."""
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        """Have the actor kill its process, which tells how it went; one that does not answer is killed."""
        import ray

        with suppress(ray.exceptions.RayError):
            ray.get(self.actor.kill.remote(), timeout=ANSWER_S)
            return
        ray.kill(self.actor)

    def _live(self) -> None:
        """From the actor's arrival to its death, which is the last thing told."""
        import ray

        try:
            self._arrive()
            died = self._listen()
        except Exception as error:  # whatever ends this thread is the end of the worker
            died = Died(time.monotonic(), reason_of(error))
        with suppress(Exception):  # Ray itself may be gone
            ray.kill(self.actor)  # what it holds is free for the next
        self._commands.put(None)
        if self.arrival is not None:
            self._cluster.unpin(self.arrival, self._cores)
        self._inbox.put((self, died))

    def _arrive(self) -> None:
        """Wait for the actor to be placed, see that all is there, set its clock, start its process."""
        import ray

        section = self._cluster.section
        try:
            arriving = self.actor.arrive.remote(self._cluster.folders)
            self.arrival = ray.get(arriving, timeout=section.start_timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise MosaicsimError(
                f"its Ray actor found no place within {section.start_timeout_s:g} s "
                "(execution.start_timeout_s)"
            ) from None
        require_same(self.arrival)
        self._cores = self._cluster.pin(self.arrival, self._n_workers)
        ray.get(self.actor.start.remote(self._cluster.device, section.cores_per_worker))
        threading.Thread(target=self._speak, daemon=True).start()

    def _set_clock(self) -> ClockOffset:
        import ray

        self.clock = ClockOffset.measure(lambda: float(ray.get(self.actor.clock.remote())))
        return self.clock

    def _listen(self) -> Died:
        """Pass messages and output on until the process ends."""
        import ray

        clock, measured_s = self._set_clock(), time.monotonic()
        while True:
            messages, output = ray.get(self.actor.listen.remote(LISTEN_S))
            self._write(output)
            for message in map(clock.convert, messages):
                if isinstance(message, Died):
                    return message
                self._inbox.put((self, message))
            if time.monotonic() - measured_s > RESET_CLOCK_S:  # clocks of two hosts drift apart
                clock, measured_s = self._set_clock(), time.monotonic()

    def _write(self, output: bytes) -> None:
        if output:
            with self._output.open("ab") as file:
                file.write(output)

    def _speak(self) -> None:
        """Hand commands over one after the other: Ray keeps no order among the calls of several threads."""
        import ray

        with suppress(ray.exceptions.RayError):
            while (command := self._commands.get()) is not None:
                if isinstance(command, (StartSession, WarmUp)) and command.cores is None:
                    command = replace(command, cores=self._cores)
                ray.get(self.actor.obey.remote(command))


def require_same(arrival: Arrival) -> None:
    """Raise MosaicsimError unless the host has this version and the models."""
    if arrival.version != __version__:
        raise MosaicsimError(
            f"host {arrival.host} has mosaicsim {arrival.version}, this one {__version__}; install the same"
        )
    if arrival.missing:
        raise MosaicsimError(
            f"host {arrival.host} has no folder {arrival.missing[0]}; a model's folder must be at the same "
            "path on every host of the Ray cluster"
        )


def reason_of(error: Exception) -> str:
    """What an actor died of, as Ray tells it, in one line."""
    if isinstance(error, MosaicsimError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    dead = [line for line in lines if line.startswith("The actor is dead because")]
    return (dead or lines or [type(error).__name__])[-1].partition(" Some common causes")[0][:300]
