"""A host's disk, which feeds several loading workers at once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy


@dataclass(eq=False)
class Read:
    """Something to be read: seconds of undisturbed disk time that are left of it."""

    left_s: float


class Disk:
    """Processor sharing: up to ``streams`` reads run at full speed, more of them share that rate."""

    def __init__(self, env: simpy.Environment, streams: float) -> None:
        """With infinite ``streams`` reads never slow each other down."""
        self._env = env
        self._full_speed = streams
        self._reads: list[Read] = []
        self._settled_at = 0.0
        self._changed = env.event()

    def read(self, read: Read) -> Generator[simpy.Event, Any, None]:
        """Read on until nothing is left; a SimPy process body. What an interrupt leaves can be read later."""
        self._settle()
        self._reads.append(read)
        self._announce()
        try:
            while read.left_s > 0:
                done = self._env.timeout(read.left_s / self._rate())
                changed = self._changed
                yield done | changed
                self._settle()
                if done.processed and not changed.triggered:
                    read.left_s = 0.0
        finally:
            self._settle()
            self._reads.remove(read)
            self._announce()

    def _rate(self) -> float:
        return min(1.0, self._full_speed / len(self._reads))

    def _settle(self) -> None:
        """Credit every read with what it got since the last change."""
        now = self._env.now
        if self._reads:
            progress = (now - self._settled_at) * self._rate()
            for read in self._reads:
                read.left_s = max(0.0, read.left_s - progress)
        self._settled_at = now

    def _announce(self) -> None:
        """Wake the other reads: their rate is another one now."""
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()
