"""The Ray cluster that workers run on: joined, or a local one that is started for them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mosaicsim.errors import MosaicsimError, ScenarioError
from mosaicsim.execution import ExecutionSection
from mosaicsim.executors.link import Inbox, Link
from mosaicsim.executors.machine import Machine
from mosaicsim.executors.ray_actor import Arrival, WorkerActor
from mosaicsim.executors.ray_link import RayLink
from mosaicsim.hardware.cluster import Cluster

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a late call after the shutdown must not start a cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # of a cluster started here: engines are no background work
}
"""Of this process before Ray is imported, where the user has not said otherwise."""

CONNECT_S = 5.0
"""Seconds the head node gets to answer; Ray itself waits for minutes."""


class RayCluster:
    """A Ray cluster that is joined, or a local one that is started, with room reserved for every worker.

    Calling it starts a worker (see :data:`mosaicsim.executors.link.Connect`); ``close`` gives all back.
    """

    def __init__(self, section: ExecutionSection, device: str, hosts: Sequence[str]) -> None:
        """``hosts`` names every worker's host; the workers of one host are placed on one node.

        Raises ScenarioError where the cluster has too little for them, MosaicsimError where it cannot be
        reached or has nothing free within ``start_timeout_s``.
        """
        self.section, self.device = section, device
        # those on this host have to be on every other
        self.folders = tuple(model.path for model in section.models.values() if Path(model.path).is_dir())
        self._hosts = list(dict.fromkeys(hosts))
        self._host_of = [self._hosts.index(host) for host in hosts]
        self._pinned: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._lock = threading.Lock()
        self._left = ExitStack()
        # Ray prints its raylets' complaints to stdout, where results go
        self._left.enter_context(redirect_stdout(sys.stderr))
        try:
            self._join()
            self._reserve(hosts)
        except BaseException:
            self.close()
            raise

    def __call__(self, workers: tuple[int, ...], output: Path, inbox: Inbox) -> Link:
        """Start a worker."""
        return RayLink(self, len(workers), self._place(workers), output, inbox)

    def close(self) -> None:
        """Give the reserved room back, leave the cluster, and end it if it was started here."""
        self._left.close()

    def pin(self, arrival: Arrival, n_workers: int) -> tuple[int, ...] | None:
        """Cores for the sessions of so many workers on a host: the least used sets of it; None on GPUs."""
        if self.device == "cuda":
            return None
        each = self.section.cores_per_worker
        with self._lock:
            sets = [arrival.cores[i : i + each] for i in range(0, len(arrival.cores) - each + 1, each)]
            taken = sorted(sets, key=lambda cores: self._pinned[arrival.node, cores])[:n_workers]
            self._pinned.update((arrival.node, cores) for cores in taken)
        return tuple(core for cores in taken for core in cores) or None

    def unpin(self, arrival: Arrival, cores: tuple[int, ...] | None) -> None:
        """The worker on these cores is gone."""
        each = self.section.cores_per_worker
        with self._lock:
            for i in range(0, len(cores or ()), each):
                self._pinned[arrival.node, (cores or ())[i : i + each]] -= 1

    def _join(self) -> None:
        require_installed()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():  # the caller's own, and the caller's to end
            return
        self._left.callback(ray.shutdown)
        address, where = self.section.ray_address, f"execution.ray_address: {self.section.ray_address}"
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if address is None:
                cores = len(os.sched_getaffinity(0))
                small = {"include_dashboard": False, "object_store_memory": 100 << 20}
                ray.init("local", num_cpus=cores, **small, **quiet)
            else:
                require_answer(address)
                ray.init(address, **quiet)
        except MosaicsimError:
            raise
        except Exception as error:  # Ray raises many kinds
            raise MosaicsimError(
                f"{where if address else 'execution.executor: ray'}: {_line(error)}"
            ) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray takes it; ours cleans up

    def _reserve(self, hosts: Sequence[str]) -> None:
        """A bundle for each host, so that its workers and their groups find room on one node."""
        import ray
        from ray.util.placement_group import placement_group

        kind, each = resource(self.device, self.section)
        nodes = [node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]]
        require_room(kind, each, Counter(hosts), nodes, "the Ray cluster")
        bundles = [{kind: float(each * self._host_of.count(i))} for i in range(len(self._hosts))]
        self._group = placement_group(bundles, strategy="SPREAD")
        self._left.callback(self._free)
        if not self._group.wait(self.section.start_timeout_s):
            free = ray.available_resources().get(kind, 0.0)
            raise MosaicsimError(
                f"execution.start_timeout_s: after {self.section.start_timeout_s:g} s the Ray cluster has "
                f"not freed the workers' {kind}s ({_listed(b[kind] for b in bundles)} by host); of its "
                f"{sum(nodes):g}, {free:g} are free"
            )

    def _free(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        with suppress(ray.exceptions.RayError):  # a cluster that is gone holds nothing
            remove_placement_group(self._group)

    def _place(self, workers: tuple[int, ...]) -> Any:
        """An actor for them on their host's node."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        kind, each = resource(self.device, self.section)
        n = each * len(workers)
        place = PlacementGroupSchedulingStrategy(self._group, self._host_of[workers[0]])
        return (
            ray.remote(WorkerActor)
            .options(
                num_cpus=n if kind == "CPU" else 0,
                num_gpus=n if kind == "GPU" else 0,
                max_concurrency=4,  # obey, listen, clock and kill do not wait for each other
                scheduling_strategy=place,
            )
            .remote()
        )


def require_ray(section: ExecutionSection, device: str, cluster: Cluster, machine: Machine) -> None:
    """Raise ScenarioError for what can be told before a Ray cluster is joined or started here."""
    require_installed()
    if device == "cuda" and len(cluster.devices) > 1:
        raise ScenarioError(
            f"cluster.hosts: {', '.join(cluster.devices)}; with executor ray all workers are of one device, "
            "as Ray does not know which GPU is which"
        )
    if section.ray_address is None:
        kind, each = resource(device, section)
        here = len(machine.gpus if kind == "GPU" else machine.cores)
        workers = Counter(worker.host for worker in cluster.workers)
        require_room(kind, each, workers, [here], "a local Ray cluster here")


def require_installed() -> None:
    """Raise ScenarioError where Ray is missing."""
    if find_spec("ray") is None:
        raise ScenarioError(
            "execution.executor: ray, but Ray is not installed here; `pip install 'mosaicsim[ray]'`, "
            "or executor: local"
        )


def require_answer(address: str) -> None:
    """Raise unless something answers at ``auto`` or ``HOST:PORT``; Ray itself would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    where = f"execution.ray_address: {address}"
    if "/" in address or not host or not port.isdigit():
        raise ScenarioError(f"{where}; accepted: auto, or HOST:PORT of the head node, as head.example:6379")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        why = error.strerror or "no answer"
        raise MosaicsimError(
            f"{where}: no Ray cluster there ({why}); `ray status --address {address}`"
        ) from None


def resource(device: str, section: ExecutionSection) -> tuple[str, int]:
    """What a worker takes, in Ray's words: so many of GPU or CPU."""
    return ("GPU", 1) if device == "cuda" else ("CPU", section.cores_per_worker)


def require_room(
    kind: str, each: int, workers: Mapping[str, int], nodes: Sequence[float], where: str
) -> None:
    """Raise ScenarioError unless nodes with so many of ``kind`` can take the workers of every host.

    ``workers`` has the number of workers by host; a worker takes ``each``.
    """
    has = f"{where} has {_listed(sorted(nodes, reverse=True))} {kind}s by node"
    for host, n in workers.items():
        if n * each > max(nodes, default=0):
            raise ScenarioError(
                f"cluster.hosts: {n} workers on {host} take {n * each} {kind}s of one node, but {has}; "
                "each host is placed on one node"
            )
    total = each * sum(workers.values())
    if total > sum(nodes):
        raise ScenarioError(f"cluster.hosts: the workers take {total} {kind}s, but {has}")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "no"
