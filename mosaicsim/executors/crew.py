"""The worker processes of an execution: started when first needed, kept from one run to the next."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.link import Closing, Connect, Inbox, Link
from mosaicsim.executors.messages import (
    Died,
    Heartbeat,
    Message,
    Prefetch,
    Quit,
    StartFailed,
    Unload,
    Unloaded,
    WarmUp,
)


class Place(NamedTuple):
    """What a link drives: a worker or a tensor-parallel group; of a worker that is shared, one slot."""

    workers: tuple[int, ...]
    slot: int = 0


FAREWELL_S = 20.0
"""Seconds a worker gets to free its memory or to quit before it is killed."""


class Crew:
    """Links by the place that they drive."""

    def __init__(self, connect: Connect, folder: Path) -> None:
        """``connect`` starts a worker; its output goes to a file in ``folder``."""
        self._connect, self._folder = connect, folder
        self._inbox: Inbox = queue.SimpleQueue()
        self._links: dict[Place, Link] = {}

    def link(self, place: Place) -> Link:
        """The link that drives this place; started if there is none."""
        if place not in self._links:
            self._links[place] = self._connect(place.workers, self.output(place), self._inbox)
        return self._links[place]

    def overlapping(self, workers: tuple[int, ...]) -> list[Place]:
        """Places of more or fewer workers that have some of these among them."""
        return [p for p in self._links if p.workers != workers and set(p.workers) & set(workers)]

    def beside(self, place: Place) -> list[Place]:
        """The other slots of the same worker, where there is a link."""
        return [p for p in self._links if p.workers == place.workers and p != place]

    def driving(self, worker: int) -> Place | None:
        """The place of a link that drives this worker, if there is one."""
        return next((place for place in self._links if worker in place.workers), None)

    def output(self, place: Place) -> Path:
        """Where the worker's stdout and stderr go."""
        slot = f".{place.slot}" if place.slot else ""
        return self._folder / f"worker-{'-'.join(map(str, place.workers))}{slot}.log"

    def send(self, place: Place, command: Quit | Unload | Prefetch) -> None:
        """Tell the worker behind a link that is there."""
        self._links[place].send(command)

    def receive(self, timeout_s: float) -> tuple[Place, Message] | None:
        """The next message and whose it is, or None after ``timeout_s``; the dead are struck off."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                link, message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            place = next((p for p, known in self._links.items() if known is link), None)
            if place is None:
                continue
            if isinstance(message, Died):
                del self._links[place]
            return place, message

    def kill(self, place: Place) -> None:
        """End a worker at once; its ``Died`` comes through :meth:`receive`."""
        if place in self._links:
            self._links[place].kill()

    def warm(
        self,
        places: Iterable[Place],
        timeout_s: float,
        first: Callable[[Place], WarmUp] | None = None,
        at_once: int = 1,
    ) -> None:
        """Start these and wait until they are up, so that no session pays for a process's start.

        Groups that overlap with them end first: what they hold may be needed. With ``first``, those that were
        not up yet also start and close an engine, ``at_once`` workers at a time and one on each. Raises
        MosaicsimError for one that does not come up, with where its output is.
        """
        wanted = list(places)
        self._dismiss({other for place in wanted for other in self.overlapping(place.workers)})
        new = [place for place in wanted if place not in self._links]
        for place in new:
            self.link(place)
        self._hear_of(new, timeout_s)
        while first is not None and new:
            firsts = {place.workers: place for place in reversed(new)}
            some = [place for place in new if firsts[place.workers] is place][:at_once]
            new = [place for place in new if place not in some]
            for place in some:
                self.link(place).send(first(place))
            self._hear_of(some, timeout_s)

    def _hear_of(self, places: Iterable[Place], timeout_s: float) -> None:
        """Wait for a word from each; raise MosaicsimError for one that fails, or says nothing in time."""
        silent, deadline = set(places), time.monotonic() + timeout_s
        while silent:
            received = self.receive(max(0.0, deadline - time.monotonic()))
            if received is None:
                raise MosaicsimError(self._not_up(min(silent), "is not up"))
            place, message = received
            if isinstance(message, (Died, StartFailed)) and place in silent:
                raise MosaicsimError(self._not_up(place, _failure(message)))
            if not isinstance(message, Heartbeat):
                silent.discard(place)

    def _dismiss(self, leaving: set[Place]) -> None:
        for place in leaving:
            self.send(place, Quit())
        self._await(leaving, Died)

    def _not_up(self, place: Place, what: str) -> str:
        worker = place.workers[0]
        return f"worker {worker} {what} before its first session; its output is in {self.output(place)}"

    def unload(self) -> None:
        """Have every worker free its memory, so that the next run starts from nothing."""
        waiting = set(self._links)
        for link in self._links.values():
            link.send(Unload())
        self._await(waiting, Unloaded)

    def close(self, *, at_once: bool = False) -> None:
        """End every worker: ask it to quit, and kill those that do not."""
        waiting = set(self._links)
        try:
            for link in self._links.values():
                link.kill() if at_once else link.send(Quit())
            self._await(waiting, Died)
        finally:
            if isinstance(self._connect, Closing):
                self._connect.close()

    def _await(self, waiting: set[Place], kind: type[Message]) -> None:
        deadline = time.monotonic() + FAREWELL_S
        while waiting and (left := deadline - time.monotonic()) > 0:
            received = self.receive(left)
            if received is not None and isinstance(received[1], (kind, Died)):
                waiting.discard(received[0])
        for place in waiting:
            self.kill(place)


def _failure(message: Died | StartFailed) -> str:
    if isinstance(message, Died):
        return f"died ({message.reason})"
    return f"could not start an engine ({message.error})"
