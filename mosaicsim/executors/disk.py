"""A host's disk, which feeds several loading workers at once."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy


class Disk:
    """Processor sharing: up to ``streams`` reads run at full speed, more of them share that rate."""

    def __init__(self, env: simpy.Environment, streams: float) -> None:
        """With infinite ``streams`` reads never slow each other down."""
        self._env = env
        self._full_speed = streams
        self._left: dict[int, float] = {}
        self._settled_at = 0.0
        self._changed = env.event()
        self._serial = 0

    def read(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Read for ``seconds`` of undisturbed disk time; a SimPy process body."""
        self._serial += 1
        job = self._serial
        self._settle()
        self._left[job] = seconds
        self._announce()
        try:
            while self._left[job] > 0:
                done = self._env.timeout(self._left[job] / self._rate())
                changed = self._changed
                yield done | changed
                self._settle()
                if done.processed and not changed.triggered:
                    break
        finally:
            self._settle()
            del self._left[job]
            self._announce()

    def _rate(self) -> float:
        return min(1.0, self._full_speed / len(self._left))

    def _settle(self) -> None:
        """Credit every read with what it got since the last change."""
        now = self._env.now
        if self._left:
            progress = (now - self._settled_at) * self._rate()
            for job in self._left:
                self._left[job] = max(0.0, self._left[job] - progress)
        self._settled_at = now

    def _announce(self) -> None:
        """Wake the other reads: their rate is another one now."""
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()
