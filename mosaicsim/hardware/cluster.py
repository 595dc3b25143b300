"""What a workload runs on: hosts and the workers on them, a GPU each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mosaicsim.errors import ScenarioError, nearest


@dataclass(frozen=True)
class Host:
    """A machine whose GPUs read their weights from one disk.

    ``disk_streams`` loads read at full speed at once; beyond that they share. Infinity never slows.
    """

    name: str = "host0"
    disk_streams: float = math.inf

    def __post_init__(self) -> None:
        """Reject a disk that serves less than one load at full speed."""
        if not self.disk_streams >= 1:
            raise ScenarioError(
                f"host '{self.name}': disk_streams must be 1 or more, got {self.disk_streams}"
            )


@dataclass(frozen=True)
class Worker:
    """A GPU that holds one model at a time: its name, its device (a catalog name) and its host's name."""

    name: str
    device: str
    host: str = "host0"


@dataclass(frozen=True)
class Cluster:
    """The workers, possibly of different devices, and the hosts they are on; at least one worker in all."""

    workers: tuple[Worker, ...]
    hosts: tuple[Host, ...] = (Host(),)

    def __post_init__(self) -> None:
        """Reject an empty cluster, repeated names and unknown hosts."""
        if not self.workers:
            raise ScenarioError("the cluster has 0 GPUs; it needs at least one")
        _check_unique("host", (host.name for host in self.hosts))
        _check_unique("worker", (worker.name for worker in self.workers))
        known = [host.name for host in self.hosts]
        for worker in self.workers:
            if worker.host not in known:
                close = nearest(worker.host, known)
                accepted = ", ".join(known)
                raise ScenarioError(
                    f"worker '{worker.name}': unknown host '{worker.host}'{close}; known are {accepted}"
                )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices present, each once, in first-seen order."""
        return tuple(dict.fromkeys(worker.device for worker in self.workers))

    @property
    def islands(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the workers of one device on one host: what tensor parallelism can span."""
        members: dict[tuple[str, str], list[int]] = {}
        for i, worker in enumerate(self.workers):
            members.setdefault((worker.device, worker.host), []).append(i)
        return tuple(map(tuple, members.values()))


def _check_unique(kind: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ScenarioError(f"{kind} name '{repeated[0]}' is used more than once in the cluster")
