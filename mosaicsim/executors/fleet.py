"""The cluster of a scenario as the simulator needs it: an engine for each model on each worker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaicsim.errors import ProfileError, ScenarioError, nearest
from mosaicsim.executors.engine import EngineConfig
from mosaicsim.executors.session import EngineSpec
from mosaicsim.executors.simulated import Failure, SimulatedCluster
from mosaicsim.hardware.catalog import Catalog, load_catalog
from mosaicsim.hardware.cluster import Cluster, Host, Worker
from mosaicsim.hardware.latency import HostOverhead
from mosaicsim.runtime.orchestrator import AGGREGATOR
from mosaicsim.runtime.pool import Pool
from mosaicsim.scenario import EngineSection, ModelSection, Scenario
from mosaicsim.schedulers.base import WorkerView
from mosaicsim.streams import Streams

if TYPE_CHECKING:
    from mosaicsim.hardware.profile import Profile


RESOLVED = ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_gpu_blocks", "prefix_caching")
"""Settings that a real engine settles itself, in the journal's and in EngineConfig's names."""


class Fleet:
    """Workers, hosts and engines of a scenario, resolved against the profile catalog.

    Raises ScenarioError or ProfileError for unknown names, a cluster too small for the aggregator, and models
    that do not fit, before anything runs.
    """

    def __init__(self, scenario: Scenario, resolved: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """``resolved`` holds settings that real engines chose, by expert; they replace the scenario's."""
        self._scenario = scenario
        self._resolved = resolved or {}
        self._catalog: Catalog = load_catalog(files=[Path(p) for p in scenario.profiles])
        self.cluster = _cluster(scenario, self._catalog)
        self._engines: dict[tuple[str, str, int, int], EngineSpec] = {}
        largest = max(map(len, self.cluster.islands))
        for where, tp in self._aggregator_sizes():
            if tp > largest:
                raise ScenarioError(
                    f"{where}: {tp} GPUs of one device on one host asked for, "
                    f"the cluster has at most {largest}"
                )
        if scenario.aggregator.tp > (scenario.cluster.workers_at_once or largest):
            raise ScenarioError(
                f"cluster.workers_at_once: {scenario.cluster.workers_at_once}, but an aggregator instance "
                f"needs {scenario.aggregator.tp} workers (aggregator.tp)"
            )
        self.pool = Pool(
            tuple(WorkerView(i, w.name, w.device) for i, w in enumerate(self.cluster.workers)),
            scenario.cluster.experts_per_worker,
            scenario.aggregator.tp,
            self.cluster.islands,
            tuple(self._aggregator_speed(island) for island in self.cluster.islands),
            scenario.cluster.workers_at_once,
        )

    @property
    def worker_names(self) -> tuple[str, ...]:
        """Names of the workers, in the order of their indices."""
        return tuple(w.name for w in self.cluster.workers)

    def simulated(self, streams: Streams) -> SimulatedCluster:
        """The cluster for the simulated executor; sampled failures come from the stream "failures"."""
        hosts = [host.name for host in self.cluster.hosts]
        return SimulatedCluster(
            engine_of=self.engine_of,
            hosts=tuple(hosts.index(w.host) for w in self.cluster.workers),
            disk_streams=tuple(host.disk_streams for host in self.cluster.hosts),
            slots=self.pool.slots,
            keep_asleep=self._scenario.cluster.session_change == "sleep",
            failures=self._failures(streams),
        )

    def engine_of(self, name: str, workers: tuple[int, ...], slots: int = 1) -> EngineSpec:
        """The engine of an expert (or the aggregator) on a worker or a tensor-parallel group; made once.

        It has one of ``slots`` equal parts of the memory.
        """
        device, tp = self.cluster.workers[workers[0]].device, len(workers)
        key = name, device, tp, slots
        if key not in self._engines:
            self._engines[key] = self._engine(name, device, tp, slots)
        return self._engines[key]

    def profile_of(self, name: str, device: str, tp: int = 1, slots: int = 1) -> Profile:
        """The profile of the model that plays ``name``, with one of ``slots`` parts of the memory."""
        section = self.section_of(name, tp)
        where = "aggregator" if name == AGGREGATOR else f"experts.{name}"
        try:
            return self._catalog.profile(
                section.model,
                device,
                tp=tp,
                gpu_memory_utilization=self._scenario.engine.gpu_memory_utilization,
                memory_share=1 / slots,
                load_s=section.load_s,
                timing=section.timing,
            )
        except ProfileError as error:
            alone = "; an expert runs on one GPU, take a larger one" if "do not fit" in str(error) else ""
            raise ProfileError(f"{where}: {error}{alone if name != AGGREGATOR else ''}") from None

    def _aggregator_speed(self, island: tuple[int, ...]) -> float:
        """Decode sequences a second of a full batch; 0 where the island is too small for an instance."""
        tp = self._scenario.aggregator.tp
        if len(island) < tp:
            return 0.0
        spec = self.engine_of(AGGREGATOR, island[:tp])
        return spec.config.max_num_seqs / spec.tables.decode_base[spec.config.max_num_seqs]

    def aggregator_groups(self) -> list[tuple[int, tuple[tuple[int, ...], ...]]]:
        """Each tp the aggregator may run at, the scenario's own first, and the groups of workers for it."""
        found = []
        for _, tp in self._aggregator_sizes():
            groups = [
                island[i : i + tp]
                for island in self.cluster.islands
                for i in range(0, len(island) // tp * tp, tp)
            ]
            found.append((tp, tuple(groups)))
        return found

    def _aggregator_sizes(self) -> list[tuple[str, int]]:
        section = self._scenario.aggregator
        others = [(f"aggregator.alternatives.{i}.tp", o.tp) for i, o in enumerate(section.alternatives)]
        return [("aggregator.tp", section.tp), *others]

    def section_of(self, name: str, tp: int = 1) -> ModelSection:
        """What the scenario says of an expert or the aggregator. Raises ScenarioError if it says nothing."""
        if name == AGGREGATOR:
            return self._scenario.aggregator.at(tp)
        experts = self._scenario.experts
        if name not in experts:
            raise ScenarioError(
                f"experts: the trace has an expert '{name}' without an entry{nearest(name, experts)}; "
                f"add `{name}: {{model: ...}}`; there are entries for {', '.join(experts) or 'none'}"
            )
        return experts[name]

    def _engine(self, name: str, device: str, tp: int, slots: int) -> EngineSpec:
        settings, profile = self._scenario.engine, self.profile_of(name, device, tp, slots)
        blocks = settings.num_gpu_blocks or profile.kv_capacity_tokens // settings.block_size
        config = _as_resolved(engine_config(settings, blocks), self._resolved.get(name, {}))
        host = self._host_overhead(self.section_of(name, tp), profile)
        tables = profile.latency.compile(config.max_num_seqs, config.max_num_batched_tokens, host)
        return EngineSpec(
            config, tables, profile.load_s, profile.disk_s, profile.wake_s, profile.unload_s, host
        )

    def _host_overhead(self, section: ModelSection, profile: Profile) -> HostOverhead:
        """The scenario's for the model, or for all; else what was measured; else the engine version's."""
        settings = self._scenario.engine
        known = self._catalog.host_overhead(settings.version)
        if profile.host is not None and "version" not in settings.model_fields_set:
            known = profile.host
        base = settings.host_base_ms if section.host_base_ms is None else section.host_base_ms
        each = settings.host_per_sequence_ms
        return HostOverhead(
            known.base_s if base is None else base / 1e3, known.per_sequence_s if each is None else each / 1e3
        )

    def _failures(self, streams: Streams) -> dict[int, Iterator[Failure]]:
        """Each worker's failures in ascending order; only of workers that have any."""
        section = self._scenario.failures
        failures: dict[int, Iterator[Failure]] = {}
        for w in range(len(self.cluster.workers)):
            scripted = sorted((f for f in section.scripted if f.worker == w), key=lambda f: f.at_s)
            planned: Iterator[Failure] = (Failure(f.at_s, f.down_s) for f in scripted)
            if section.mtbf_s is not None:
                sampled = _sampled(section.mtbf_s, section.down_s, streams, w)
                planned = merge(planned, sampled, key=lambda failure: failure.at_s)
            if scripted or section.mtbf_s is not None:
                failures[w] = _while_up(planned)
        return failures


def _while_up(failures: Iterator[Failure]) -> Iterator[Failure]:
    """The failures that find the worker up: one that is down cannot fail."""
    back = 0.0
    for failure in failures:
        if failure.at_s < back:
            continue
        yield failure
        if failure.down_s is None:
            return
        back = failure.at_s + failure.down_s


def _sampled(mtbf_s: float, down_s: float, streams: Streams, worker: int) -> Iterator[Failure]:
    rng, at = streams(f"failures.{worker}"), 0.0
    while True:
        at += rng.exponential(mtbf_s)
        yield Failure(at, down_s)
        at += down_s


def _as_resolved(config: EngineConfig, resolved: Mapping[str, Any]) -> EngineConfig:
    """The engine as a real one settled; one block of vLLM's is its own, for no call's use."""
    chosen = {key: resolved[key] for key in RESOLVED if key in resolved}
    if "num_gpu_blocks" in chosen:
        chosen["num_gpu_blocks"] -= 1
    return replace(config, **chosen)


def engine_config(settings: EngineSection, num_gpu_blocks: int) -> EngineConfig:
    """The engine that ``settings`` describe, with so many blocks of KV cache."""
    return EngineConfig(
        policy=settings.policy,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.batched_tokens,
        block_size=settings.block_size,
        num_gpu_blocks=num_gpu_blocks,
        watermark_blocks=math.floor(_watermark(settings) * num_gpu_blocks),
        prefix_caching=_prefix_caching(settings),
    )


def _watermark(settings: EngineSection) -> float:
    if settings.watermark is not None:
        return settings.watermark
    return 0.01 if settings.policy == "v0" else 0.0


def _prefix_caching(settings: EngineSection) -> bool:
    return settings.policy == "v1" if settings.prefix_caching is None else settings.prefix_caching


def _cluster(scenario: Scenario, catalog: Catalog) -> Cluster:
    """One worker a GPU, named ``gpu0``, ``gpu1``, ... over all hosts."""
    hosts: list[Host] = []
    workers: list[Worker] = []
    for i, section in enumerate(scenario.cluster.hosts):
        name = section.name or f"host{i}"
        hosts.append(Host(name, math.inf if section.disk_streams is None else section.disk_streams))
        try:
            device = catalog.device_name(section.device)
        except ProfileError as error:
            raise ProfileError(f"cluster.hosts.{i}.device: {error}") from None
        workers += [Worker(f"gpu{len(workers) + j}", device, name) for j in range(section.gpus)]
    for i, failure in enumerate(scenario.failures.scripted):
        if failure.worker >= len(workers):
            raise ScenarioError(
                f"failures.scripted.{i}.worker: {failure.worker}, "
                f"but the cluster's workers are 0 to {len(workers) - 1}"
            )
    return Cluster(tuple(workers), tuple(hosts))
