"""The executor seam: commands in, events out. One conformance suite holds every implementation."""

from __future__ import annotations

from typing import Protocol

from mosaicsim.runtime.events import Event, SessionSpec
from mosaicsim.workload.calls import Ints


class Handler(Protocol):
    """Who listens to an executor: the orchestrator."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; the executor returns then."""
        ...

    def begin(self, executor: Executor) -> None:
        """Issue the first commands; called once, at second 0."""
        ...

    def handle(self, event: Event) -> None:
        """React to an event, possibly with commands."""
        ...


class Executor(Protocol):
    """Carries out sessions on workers and reports what happens, on a clock of its own."""

    def run(self, handler: Handler) -> float:
        """Drive ``handler`` until it says it has finished; return the final second."""
        ...

    def start_session(self, spec: SessionSpec) -> None:
        """Load the model on the workers, which must be free, and run the calls in their order."""
        ...

    def add_calls(self, spec: SessionSpec) -> None:
        """Queue the calls of ``spec`` behind those of its open session, or ``ahead`` of those that wait."""
        ...

    def cancel_call(self, session: int, call_id: int) -> None:
        """Drop a queued or running call; nothing happens to a call that has ended."""
        ...

    def withdraw_calls(self, session: int, call_ids: Ints, *, started: bool = False) -> None:
        """Take back those of the calls that have not started; started ones go on, unless ``started``.

        Answered once by CallsWithdrawn, which tells which they were (possibly none), unless the session's
        worker is lost first. A call that was taken back is the handler's again, to give to any session of
        its expert; it goes on after the tokens it has generated, which are computed anew with its prompt, as
        after a preemption.
        """
        ...

    def stop_session(self, session: int) -> None:
        """Let an open session end as soon as its calls are done."""
        ...

    def prefetch(self, expert: str, workers: tuple[int, ...]) -> None:
        """Read the expert's weights into the host's memory while the workers are busy with another.

        A session of it there then need not wait for the disk, or for what is left to read. A hint that
        nothing answers; the workers' last one counts.
        """
        ...
