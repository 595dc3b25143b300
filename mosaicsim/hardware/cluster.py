"""What a workload runs on: hosts, their GPUs, and the workers made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mosaicsim.errors import ProfileError, ScenarioError, nearest


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

    def disk_slowdown(self, loading: int) -> float:
        """Factor by which each of ``loading`` simultaneous loads takes longer to read its weights."""
        return max(1.0, loading / self.disk_streams)


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, its device (a catalog name) and the name of its host."""

    name: str
    device: str
    host: str = "host0"


@dataclass(frozen=True)
class Worker:
    """What holds one model at a time: a GPU, or several of one device and host as a tensor-parallel group."""

    name: str
    gpus: tuple[Gpu, ...]

    def __post_init__(self) -> None:
        """Reject a group that is empty or that tensor parallelism cannot span."""
        if not self.gpus:
            raise ScenarioError(f"worker '{self.name}': needs at least one GPU")
        kinds = {(gpu.device, gpu.host) for gpu in self.gpus}
        if len(kinds) > 1:
            listed = ", ".join(f"{device} on {host}" for device, host in sorted(kinds))
            raise ScenarioError(
                f"worker '{self.name}': its GPUs must be of one device and host, got {listed}"
            )

    @property
    def device(self) -> str:
        """Device of every GPU of this worker."""
        return self.gpus[0].device

    @property
    def host(self) -> str:
        """Name of the host of this worker."""
        return self.gpus[0].host

    @property
    def tp(self) -> int:
        """Tensor-parallel degree: the number of GPUs."""
        return len(self.gpus)


@dataclass(frozen=True)
class Cluster:
    """The workers, possibly of different devices, and the hosts they are on; at least one GPU in all."""

    workers: tuple[Worker, ...]
    hosts: tuple[Host, ...] = (Host(),)

    def __post_init__(self) -> None:
        """Reject an empty cluster, repeated names and unknown hosts."""
        if not self.workers:
            raise ScenarioError("the cluster has 0 GPUs; it needs at least one")
        _check_unique("host", (host.name for host in self.hosts))
        _check_unique("worker", (worker.name for worker in self.workers))
        _check_unique("GPU", (gpu.name for gpu in self.gpus))
        known = [host.name for host in self.hosts]
        for worker in self.workers:
            if worker.host not in known:
                close = nearest(worker.host, known)
                accepted = ", ".join(known)
                raise ScenarioError(
                    f"worker '{worker.name}': unknown host '{worker.host}'{close}; known are {accepted}"
                )

    @classmethod
    def of_gpus(cls, gpus: Sequence[Gpu], hosts: Iterable[Host] = (Host(),)) -> Cluster:
        """One worker a GPU, named after it."""
        return cls(tuple(Worker(gpu.name, (gpu,)) for gpu in gpus), tuple(hosts))

    @classmethod
    def homogeneous(cls, device: str, count: int, host: Host | None = None) -> Cluster:
        """``count`` workers of one GPU each, on one host, named ``gpu0``, ``gpu1``, ..."""
        where = host or Host()
        return cls.of_gpus([Gpu(f"gpu{i}", device, where.name) for i in range(count)], (where,))

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs, in the order of their workers."""
        return tuple(gpu for worker in self.workers for gpu in worker.gpus)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices present, each once, in first-seen order."""
        return tuple(dict.fromkeys(worker.device for worker in self.workers))

    def host(self, worker: Worker) -> Host:
        """The host a worker is on."""
        return next(host for host in self.hosts if host.name == worker.host)

    def check_devices(self, known: Iterable[str]) -> None:
        """Raise ProfileError for a device that is not among ``known``, the catalog's names."""
        accepted = list(known)
        for worker in self.workers:
            if worker.device not in accepted:
                close = nearest(worker.device, accepted)
                listed = ", ".join(accepted)
                raise ProfileError(
                    f"worker '{worker.name}': unknown device '{worker.device}'{close}; known are {listed}"
                )

    def tensor_parallel_group(self, tp: int, name: str = "tp_group") -> Worker:
        """Group the first ``tp`` GPUs that share a device and a host, as for the aggregator.

        Raises
        ------
        ScenarioError
            No host has that many GPUs of one device.
        """
        if tp < 1:
            raise ScenarioError(f"tp must be 1 or more, got {tp}")
        kinds: dict[tuple[str, str], list[Gpu]] = {}
        for gpu in self.gpus:
            kinds.setdefault((gpu.device, gpu.host), []).append(gpu)
        for gpus in kinds.values():
            if len(gpus) >= tp:
                return Worker(name, tuple(gpus[:tp]))
        most = max(len(gpus) for gpus in kinds.values())
        raise ScenarioError(
            f"tp={tp} needs {tp} GPUs of one device on one host; the cluster has at most {most}"
        )


def _check_unique(kind: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ScenarioError(f"{kind} name '{repeated[0]}' is used more than once in the cluster")
