"""The seam between the coordinator and a worker, wherever the worker runs: commands there, messages back."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from mosaicsim.executors.messages import Command, Message


class Link(Protocol):
    """One worker process or actor. Its messages, :class:`Hello` first and ``Died`` last, go to an inbox."""

    def send(self, command: Command) -> None:
        """Hand over a command; one to a worker that is dead is lost, and ``Died`` tells so."""
        ...

    def kill(self) -> None:
        """End the worker at once."""
        ...


Inbox = queue.SimpleQueue[tuple[Link, Message]]

Connect = Callable[[tuple[int, ...], Path, Inbox], Link]
"""Starts a worker that drives the devices of these worker indices, its output appended to a file."""


@runtime_checkable
class Closing(Protocol):
    """A Connect that holds something of its own, given back when no worker is left."""

    def close(self) -> None:
        """Give it back."""
        ...
