"""The worker processes of an execution: started when first needed, kept from one run to the next."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from pathlib import Path

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

FAREWELL_S = 20.0
"""Seconds a worker gets to free its memory or to quit before it is killed."""


class Crew:
    """Links by the workers they drive: one worker, or a tensor-parallel group of them."""

    def __init__(self, connect: Connect, folder: Path) -> None:
        """``connect`` starts a worker; its output goes to a file in ``folder``."""
        self._connect, self._folder = connect, folder
        self._inbox: Inbox = queue.SimpleQueue()
        self._links: dict[tuple[int, ...], Link] = {}

    def link(self, workers: tuple[int, ...]) -> Link:
        """The link that drives these workers; started if there is none."""
        if workers not in self._links:
            self._links[workers] = self._connect(workers, self.output(workers), self._inbox)
        return self._links[workers]

    def overlapping(self, workers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Other links that drive some of these workers."""
        return [other for other in self._links if other != workers and set(other) & set(workers)]

    def driving(self, worker: int) -> tuple[int, ...] | None:
        """The workers of the link that drives this one, if there is one."""
        return next((workers for workers in self._links if worker in workers), None)

    def output(self, workers: tuple[int, ...]) -> Path:
        """Where the worker's stdout and stderr go."""
        return self._folder / f"worker-{'-'.join(map(str, workers))}.log"

    def send(self, workers: tuple[int, ...], command: Quit | Unload | Prefetch) -> None:
        """Tell the worker behind a link that is there."""
        self._links[workers].send(command)

    def receive(self, timeout_s: float) -> tuple[tuple[int, ...], Message] | None:
        """The next message and whose it is, or None after ``timeout_s``; the dead are struck off."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                link, message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            workers = next((w for w, known in self._links.items() if known is link), None)
            if workers is None:
                continue
            if isinstance(message, Died):
                del self._links[workers]
            return workers, message

    def kill(self, workers: tuple[int, ...]) -> None:
        """End a worker at once; its ``Died`` comes through :meth:`receive`."""
        if workers in self._links:
            self._links[workers].kill()

    def warm(
        self,
        workers: Iterable[tuple[int, ...]],
        timeout_s: float,
        first: Callable[[tuple[int, ...]], WarmUp] | None = None,
        at_once: int = 1,
    ) -> None:
        """Start these and wait until they are up, so that no session pays for a process's start.

        Groups that overlap with them end first: what they hold may be needed. With ``first``, those that were
        not up yet also start and close an engine, ``at_once`` of them at a time. Raises MosaicsimError for
        one that does not come up, with where its output is.
        """
        wanted = list(workers)
        self._dismiss({other for group in wanted for other in self.overlapping(group)})
        new = [group for group in wanted if group not in self._links]
        for group in new:
            self.link(group)
        self._hear_of(new, timeout_s)
        while first is not None and new:
            some, new = new[:at_once], new[at_once:]
            for group in some:
                self.link(group).send(first(group))
            self._hear_of(some, timeout_s)

    def _hear_of(self, groups: Iterable[tuple[int, ...]], timeout_s: float) -> None:
        """Wait for a word from each; raise MosaicsimError for one that fails, or says nothing in time."""
        silent, deadline = set(groups), time.monotonic() + timeout_s
        while silent:
            received = self.receive(max(0.0, deadline - time.monotonic()))
            if received is None:
                raise MosaicsimError(self._not_up(min(silent), "is not up"))
            group, message = received
            if isinstance(message, (Died, StartFailed)) and group in silent:
                raise MosaicsimError(self._not_up(group, _failure(message)))
            if not isinstance(message, Heartbeat):
                silent.discard(group)

    def _dismiss(self, leaving: set[tuple[int, ...]]) -> None:
        for group in leaving:
            self.send(group, Quit())
        self._await(leaving, Died)

    def _not_up(self, group: tuple[int, ...], what: str) -> str:
        return f"worker {group[0]} {what} before its first session; its output is in {self.output(group)}"

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

    def _await(self, waiting: set[tuple[int, ...]], kind: type[Message]) -> None:
        deadline = time.monotonic() + FAREWELL_S
        while waiting and (left := deadline - time.monotonic()) > 0:
            received = self.receive(left)
            if received is not None and isinstance(received[1], (kind, Died)):
                waiting.discard(received[0])
        for workers in waiting:
            self.kill(workers)


def _failure(message: Died | StartFailed) -> str:
    if isinstance(message, Died):
        return f"died ({message.reason})"
    return f"could not start an engine ({message.error})"
