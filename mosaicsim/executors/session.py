"""A simulated session: its engine, and the map between the engine's seconds and the run's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import simpy

from mosaicsim.executors.disk import Read
from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import NO_OVERHEAD, HostOverhead, StepTables
from mosaicsim.runtime.events import SessionSpec
from mosaicsim.workload.calls import Floats


@dataclass(frozen=True)
class EngineSpec:
    """How one model runs on one kind of worker: the engine's settings and costs, and seconds to start it.

    ``unload_s`` comes before the load where another engine has to be closed. ``host`` is the part of
    ``tables`` in which the GPU has nothing to do.
    """

    config: EngineConfig
    tables: StepTables
    load_s: float
    disk_s: float
    wake_s: float
    unload_s: float = 0.0
    host: HostOverhead = NO_OVERHEAD

    def gpu_tables(self, part: float = 1.0) -> StepTables:
        """What iterations take of the GPU's time, or a part of that; made once."""
        if part not in self._gpu_tables:
            self._gpu_tables[part] = self._without_host(part)
        return self._gpu_tables[part]

    @cached_property
    def _gpu_tables(self) -> dict[float, StepTables]:
        return {}

    def _without_host(self, part: float) -> StepTables:
        tables = self.tables
        host = [self.host.seconds(batch) for batch in range(len(tables.decode_base))]
        return StepTables(
            decode_base=[part * (s - own) for s, own in zip(tables.decode_base, host, strict=True)],
            decode_context=part * tables.decode_context,
            mixed_base=[part * (s - own) for s, own in zip(tables.mixed_base, host, strict=True)],
            prefill=[part * s for s in tables.prefill],
            mixed_context=part * tables.mixed_context,
            tokens=[part * s for s in tables.tokens],
            mixed_pair=part * tables.mixed_pair,
        )


@dataclass(frozen=True)
class Begun:
    """What came of a call in the session that it was taken from: its tokens, and the run's seconds."""

    generated: int
    start_s: float
    first_token_s: float
    preemptions: int

    def joined(self, rest: Begun) -> Begun:
        """The call as a whole, after it went on elsewhere; ``rest`` counts the tokens of both."""
        first_token_s = self.first_token_s if self.generated else rest.first_token_s
        return Begun(rest.generated, self.start_s, first_token_s, self.preemptions + rest.preemptions)


@dataclass(frozen=True)
class Prefetch:
    """An expert whose weights are read ahead, and the process that reads what is left of them."""

    expert: str
    read: Read
    process: simpy.Process

    def halt(self) -> bool:
        """Read no further; whether the process has yet to end."""
        if self.process.is_alive:
            self.process.interrupt()
        return bool(self.process.is_alive)


class Session:
    """A session in progress: its engine, and the map between engine seconds and the run's seconds."""

    def __init__(self, spec: SessionSpec, costs: EngineSpec, engine: Engine, now: float) -> None:
        self.spec = spec
        self.costs = costs
        self.engine = engine
        self.ids: list[int] = []
        self.row_of: dict[int, int] = {}
        self.leaving: list[list[int]] = []
        self.stopping = not spec.open
        self.started = False
        self.generating = False
        self.load_start_s = now
        self.process: simpy.Process | None = None
        self.prefetch: Prefetch | None = None
        self._pieces: list[tuple[float, float, float]] = []

    def set_rate(self, now: float, rate: float) -> None:
        """From ``now`` on an engine second takes ``1 / rate`` seconds."""
        self._pieces.append((self.tau(now) if self._pieces else 0.0, now, rate))

    @property
    def rate(self) -> float:
        """Engine seconds a second."""
        return self._pieces[-1][2]

    def gpu_part(self) -> float:
        """What part of an iteration that begins now is GPU time."""
        if self.engine.idle:
            return 0.0
        return 1 - self.costs.host.seconds(self.engine.batch) / self.engine.step_s

    @property
    def ready_s(self) -> float:
        """When the model was loaded."""
        return self._pieces[0][1]

    def tau(self, now: float) -> float:
        """Engine seconds at ``now``."""
        tau, wall, rate = self._pieces[-1]
        return tau + (now - wall) * rate

    def wall(self, tau: float) -> float:
        """The run's second at which the engine will have reached ``tau``."""
        at, wall, rate = self._pieces[-1]
        return wall + (tau - at) / rate

    def walls(self, taus: Floats) -> Floats:
        """Seconds of the run for past engine seconds, shape kept; -1 (never happened) stays -1."""
        if len(self._pieces) == 1:
            since, at, speed = self._pieces[0]
            return np.where(taus < 0, -1.0, at + (taus - since) / speed)
        tau, wall, rate = np.array(self._pieces).T
        piece = np.maximum(np.searchsorted(tau, taus, side="right") - 1, 0)
        return np.where(taus < 0, -1.0, wall[piece] + (taus - tau[piece]) / rate[piece])
