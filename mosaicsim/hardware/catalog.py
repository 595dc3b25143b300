"""The catalog: resolves (model, device, tensor-parallel degree, memory settings) to a Profile.

The numbers are in the YAML files of ``profiles/``, each with its source; here are only the rules that combine
them. A catalog is immutable; a user's profile file extends it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mosaicsim.errors import ProfileError, nearest
from mosaicsim.hardware.architecture import Architecture
from mosaicsim.hardware.latency import HostOverhead, ScalableLatency, TwoRegimeLatency
from mosaicsim.hardware.mixture import mixture_latency
from mosaicsim.hardware.profile import Profile
from mosaicsim.hardware.profile_file import (
    Device,
    DeviceRates,
    Engine,
    Measured,
    Model,
    ProfileFile,
    TensorParallel,
    Timing,
    load_profile_file,
)
from mosaicsim.hardware.tensor_parallel import DEGREES, TensorParallelScaling

PACKAGE_PROFILES = Path(__file__).parent / "profiles"
DEFAULT_TIMING = "two_regime"
GB = 1e9


@dataclass(frozen=True)
class Catalog:
    """Known devices, models, timings and engines.

    ``timings[model, device]`` are that pair's timings by name. Without a name, a file added later comes
    before one added earlier, and ``two_regime`` before the others of one file. ``measured[model, device,
    tp]`` states a capacity and load times that are otherwise derived.
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    timings: Mapping[tuple[str, str], Mapping[str, Timing]] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    tensor_parallel: TensorParallel | None = None
    measured: Mapping[tuple[str, str, int], Measured] = field(default_factory=dict)

    def extended(self, file: ProfileFile, where: str) -> Catalog:
        """Return this catalog with the file's entries added; an entry of the same name is replaced.

        Raises
        ------
        ProfileError
            The file refers to a model or device that neither it nor the catalog knows; starts with ``where``.
        """
        bare = Catalog(
            {**self.devices, **file.devices},
            {**self.models, **file.models},
            self.timings,
            {**self.engines, **file.engines},
            file.tensor_parallel or self.tensor_parallel,
        )
        try:
            bare._check_references()
            timings = bare._with_timings(file.timings)
            measured = {
                (bare.model_name(m.model), bare.device_name(m.device), m.tp): m for m in file.measured
            }
        except ProfileError as error:
            raise ProfileError(f"{where}: {error}") from None
        return replace(bare, timings=timings, measured={**self.measured, **measured})

    def device_name(self, name: str) -> str:
        """The catalog's own name of a device, whatever its case or alias."""
        return _resolve("device", name, self.devices)

    def model_name(self, name: str) -> str:
        """The catalog's own name of a model, whatever its case or alias."""
        return _resolve("model", name, self.models)

    def addressed(self, name: str) -> tuple[str, str, str | None]:
        """Device, model and timing that ``device/model`` or ``device/model/timing`` means.

        Raises ProfileError: it has another shape, or a part is unknown.
        """
        device, slash, rest = name.partition("/")
        if not slash or not rest:
            raise ProfileError(
                f"profile '{name}': expected a profile file, or a name as rtx-4090/llama-3.1-8b"
            )
        device = self.device_name(device)
        model, slash, timing = rest.rpartition("/")
        known = {n for timings in self.timings.values() for n in timings}
        if slash and timing in known:
            return device, self.model_name(model), timing
        return device, self.model_name(rest), None

    def architecture(self, model: str) -> Architecture:
        """Architecture of a model."""
        entry = self.models[self.model_name(model)]
        if entry.architecture is not None:
            return entry.architecture
        return self.architecture(str(entry.same_as))

    def host_overhead(self, name: str) -> HostOverhead:
        """Host time per iteration of an engine version, as ``vllm-0.7-v0``, ``vllm-v1`` or ``none``."""
        return self.engines[_resolve("engine", name, self.engines)].overhead()

    def profile(
        self,
        model: str,
        device: str,
        *,
        tp: int = 1,
        gpu_memory_utilization: float = 0.9,
        memory_share: float = 1.0,
        load_s: float | None = None,
        timing: str | None = None,
    ) -> Profile:
        """Resolve the costs of ``model`` on ``tp`` GPUs of type ``device``.

        ``memory_share`` is the part of the engine's memory that this model gets when experts share a GPU.
        ``load_s`` replaces the catalog's load time, its disk share kept in proportion. ``timing`` picks a
        timing by name (``two_regime``, ``hinge``, ``roofline_prototype``, a user's own).

        Raises
        ------
        ProfileError
            A name is unknown, a setting out of range, no timing is known, or the weights do not fit.
        """
        model, device = self.model_name(model), self.device_name(device)
        _check_settings(tp, gpu_memory_utilization, memory_share, load_s)
        measured = self.measured.get((model, device, tp))
        if measured is not None:
            return self._measured_profile(model, measured, memory_share, load_s, timing)
        shape, gpu = self.architecture(model), self._rates(model, device, tp)
        _check_heads(model, shape, tp)
        usable = _usable_bytes(gpu, gpu_memory_utilization, memory_share)
        capacity = shape.kv_capacity_tokens(max(tp * usable - shape.weight_bytes, 0.0), tp)
        if capacity < 1:
            raise ProfileError(_does_not_fit(model, device, shape, usable, tp))
        latency, latency_source = self._latency(model, device, timing, tp)
        disk_s = shape.weight_bytes / (gpu.disk_gb_per_s.value * GB)
        cold_s = disk_s + gpu.engine_start_s.value * self._start_factor(tp)
        return Profile(
            model=model,
            device=device,
            tp=tp,
            latency=latency,
            kv_bytes_per_token=shape.kv_bytes_per_token(tp),
            kv_capacity_tokens=capacity,
            load_s=cold_s if load_s is None else load_s,
            disk_s=disk_s if load_s is None else disk_s * load_s / cold_s,
            wake_s=gpu.wake_constant_s.value + shape.weight_bytes / (tp * gpu.pcie_gb_per_s.value * GB),
            reasoning=self.models[model].reasoning,
            sources=self._sources(model, gpu, latency_source, load_s),
        )

    def _measured_profile(
        self, model: str, measured: Measured, share: float, load_s: float | None, timing: str | None
    ) -> Profile:
        """What was measured, as it was measured: with the device's memory to itself."""
        tp, device = measured.tp, self.device_name(measured.device)
        if share != 1:
            raise ProfileError(
                f"{model} on {device} was measured alone on its device, and this is {share:g} of one; "
                "use cluster.experts_per_worker: 1, or a profile that states the device's rates"
            )
        latency, latency_source = self._latency(model, device, timing, tp)
        cold_s = measured.load_s if load_s is None else load_s
        given = measured.source if load_s is None else "given: the caller's load_s"
        return Profile(
            model=model,
            device=device,
            tp=tp,
            latency=latency,
            kv_bytes_per_token=self.architecture(model).kv_bytes_per_token(tp),
            kv_capacity_tokens=measured.kv_capacity_tokens,
            load_s=cold_s,
            disk_s=measured.disk_s * cold_s / measured.load_s,
            wake_s=cold_s if measured.wake_s is None else measured.wake_s,
            reasoning=self.models[model].reasoning,
            sources={
                "latency": latency_source,
                "kv_bytes_per_token": _kv_source(self.models[model].source),
                "kv_capacity_tokens": measured.source,
                "load_s": given,
                "disk_s": given,
                "wake_s": measured.source if measured.wake_s is not None else given,
            },
            host=measured.host,
            unload_s=measured.unload_s if load_s is None else 0.0,
        )

    def _rates(self, model: str, device: str, tp: int) -> DeviceRates:
        """What costs on this device are derived from."""
        rates = self.devices[device].rates
        if rates is None:
            there = [m for m, d, degree in self.measured if (d, degree) == (device, tp)]
            raise ProfileError(
                f"device '{device}' states no memory or disk speed, and '{model}' was not measured on it "
                f"at tp={tp}; measured there are {', '.join(there) or 'none'}"
            )
        return rates

    def _latency(self, model: str, device: str, name: str | None, tp: int) -> tuple[ScalableLatency, str]:
        latency, source = self._single_gpu_latency(model, device, name)
        if tp == 1:
            return latency, source
        scaling, shape = self._scaling(), self.architecture(model)
        scaled = latency.scaled(
            decode=1 / scaling.decode(shape, tp),
            prefill=1 / scaling.prefill(shape, tp),
            context=1 / scaling.context(shape, tp),
        )
        return scaled, f"derived: to tp={tp} by the tensor-parallel rule; from {source}"

    def _single_gpu_latency(self, model: str, device: str, name: str | None) -> tuple[ScalableLatency, str]:
        """The pair's own timing; else that of the nearest model it leads to, scaled to its architecture."""
        for owner in self._timing_owners(model):
            timing = self._timing(owner, device, name)
            if timing is not None:
                break
        else:
            raise ProfileError(self._no_timing(model, device, name))
        ours, theirs = self.architecture(model), self.architecture(owner)
        if ours == theirs:
            return timing.latency(), timing.source
        if ours.is_mixture and not theirs.is_mixture:
            return _of_mixture(model, ours, owner, theirs, timing)
        weights = ours.streamed_bytes / theirs.streamed_bytes
        kv = ours.kv_bytes_per_token() / theirs.kv_bytes_per_token()
        latency = timing.latency().scaled(decode=weights, prefill=weights, context=kv)
        return latency, f"derived: {owner} x {weights:.3f} (weights), x {kv:.3f} (KV); {timing.source}"

    def _timing_owners(self, model: str) -> list[str]:
        """The model, then those that ``same_as`` and ``timing_reference`` lead to, each once."""
        owners = [model]
        while True:
            entry = self.models[owners[-1]]
            following = entry.same_as or entry.timing_reference
            if following is None or self.model_name(following) in owners:
                return owners
            owners.append(self.model_name(following))

    def _timing(self, model: str, device: str, name: str | None) -> Timing | None:
        known = self.timings.get((model, device), {})
        return known.get(name) if name is not None else next(iter(known.values()), None)

    def _no_timing(self, model: str, device: str, name: str | None) -> str:
        known = {n: None for timings in self.timings.values() for n in timings}
        if name is not None and name not in known:
            return f"unknown timing '{name}'{nearest(name, known)}; known are {', '.join(known)}"
        wanted = "timing" if name is None else f"'{name}' timing"
        return f"no {wanted} for model '{model}' on device '{device}'; add one in a profile file"

    def _scaling(self) -> TensorParallelScaling:
        rule = self.tensor_parallel
        if rule is None:
            raise ProfileError("no 'tensor_parallel' section in any profile file, so only tp=1 is known")
        return TensorParallelScaling(
            reference=self.architecture(rule.reference_model),
            reference_tp=rule.reference_tp,
            prefill_speedup=rule.prefill_speedup.value,
            decode_speedup=rule.decode_speedup.value,
            start_factor=rule.start_factor.value,
        )

    def _start_factor(self, tp: int) -> float:
        return 1.0 if tp == 1 else self._scaling().start(tp)

    def _sources(self, model: str, gpu: DeviceRates, latency: str, load_s: float | None) -> dict[str, str]:
        cold = f"start {gpu.engine_start_s.source}; disk {gpu.disk_gb_per_s.source}"
        memory = f"memory {gpu.memory_gb.source}; reserve {gpu.activation_reserve_gb.source}"
        wake = f"constant {gpu.wake_constant_s.source}; PCIe {gpu.pcie_gb_per_s.source}"
        architecture = self.models[model].source
        return {
            "latency": latency,
            "kv_bytes_per_token": _kv_source(architecture),
            "kv_capacity_tokens": f"derived: memory less weights and reserve; {memory}; {architecture}",
            "load_s": f"derived: start + weights / disk; {cold}"
            if load_s is None
            else "given: the caller's load_s",
            "disk_s": f"derived: weights / disk; {gpu.disk_gb_per_s.source}",
            "wake_s": f"derived: constant + weights / PCIe; {wake}",
        }

    def _check_references(self) -> None:
        for name, model in self.models.items():
            for key, other in (("same_as", model.same_as), ("timing_reference", model.timing_reference)):
                if other is None:
                    continue
                if self.model_name(other) == name or self.models[self.model_name(other)].same_as is not None:
                    raise ProfileError(
                        f"models.{name}.{key}: '{other}' must have an 'architecture' of its own"
                    )
        if self.tensor_parallel is not None:
            self.model_name(self.tensor_parallel.reference_model)

    def _with_timings(self, added: Iterable[Timing]) -> dict[tuple[str, str], dict[str, Timing]]:
        new: dict[tuple[str, str], dict[str, Timing]] = {}
        for timing in sorted(added, key=lambda t: (t.name or t.form) != DEFAULT_TIMING):
            pair = (self.model_name(timing.model), self.device_name(timing.device))
            new.setdefault(pair, {})[timing.name or timing.form] = timing
        pairs = {**self.timings, **new}
        return {
            pair: {**new.get(pair, {}), **_without(self.timings.get(pair, {}), new.get(pair, {}))}
            for pair in pairs
        }


@functools.cache
def _package_catalog() -> Catalog:
    files = [load_profile_file(path) for path in sorted(PACKAGE_PROFILES.glob("*.yaml"))]
    whole = ProfileFile(
        devices={k: v for f in files for k, v in f.devices.items()},
        models={k: v for f in files for k, v in f.models.items()},
        timings=tuple(t for f in files for t in f.timings),
        tensor_parallel=next(f.tensor_parallel for f in files if f.tensor_parallel is not None),
        engines={k: v for f in files for k, v in f.engines.items()},
        measured=tuple(m for f in files for m in f.measured),
    )
    return Catalog().extended(whole, str(PACKAGE_PROFILES))


def load_catalog(extra_dir: Path | None = None, files: Iterable[Path] = ()) -> Catalog:
    """Load the package's profiles, then every ``*.yaml`` of ``extra_dir``, then ``files``, in that order.

    Raises
    ------
    ProfileError
        A file or ``extra_dir`` is missing or malformed.
    """
    catalog = _package_catalog()
    if extra_dir is not None and not extra_dir.is_dir():
        raise ProfileError(f"{extra_dir}: no such folder of profile files")
    found = sorted(extra_dir.glob("*.yaml")) if extra_dir is not None else []
    for path in (*found, *files):
        catalog = catalog.extended(load_profile_file(path), str(path))
    return catalog


def host_overhead(name: str) -> HostOverhead:
    """Host time per iteration of one of the package's engine versions; see :meth:`Catalog.host_overhead`."""
    return _package_catalog().host_overhead(name)


def _without(timings: Mapping[str, Timing], replaced: Mapping[str, Timing]) -> dict[str, Timing]:
    return {name: timing for name, timing in timings.items() if name not in replaced}


def _resolve(kind: str, name: str, entries: Mapping[str, Device | Model | Engine]) -> str:
    """Find ``name`` among keys and aliases, case ignored."""
    index = {alias.lower(): key for key, entry in entries.items() for alias in entry.aliases}
    index |= {key.lower(): key for key in entries}
    key = index.get(name.lower())
    if key is None:
        known = ", ".join(entries)
        raise ProfileError(f"unknown {kind} '{name}'{nearest(name.lower(), index)}; known are {known}")
    return key


def _kv_source(architecture: str) -> str:
    return f"derived: 2 x layers x kv_heads x head_dim x bytes; {architecture}"


def _check_settings(tp: int, utilization: float, share: float, load_s: float | None) -> None:
    if tp not in DEGREES:
        raise ProfileError(f"tp must be one of {', '.join(map(str, DEGREES))}, got {tp}")
    for name, value in (("gpu_memory_utilization", utilization), ("memory_share", share)):
        if not 0 < value <= 1:
            raise ProfileError(f"{name} must be above 0 and at most 1, got {value}")
    if load_s is not None and not (math.isfinite(load_s) and load_s >= 0):
        raise ProfileError(f"load_s must be a finite number of seconds, 0 or more, got {load_s}")


def _check_heads(model: str, shape: Architecture, tp: int) -> None:
    if shape.heads % tp:
        accepted = ", ".join(str(degree) for degree in DEGREES if shape.heads % degree == 0)
        raise ProfileError(
            f"{model}: {shape.heads} attention heads do not divide by tp={tp}; tp can be {accepted}"
        )


def _usable_bytes(gpu: DeviceRates, utilization: float, share: float) -> float:
    """Bytes of one GPU for weights and KV: ``memory x utilization x share - activation reserve``."""
    return (gpu.memory_gb.value * utilization * share - gpu.activation_reserve_gb.value) * GB


def _of_mixture(
    model: str, ours: Architecture, owner: str, theirs: Architecture, timing: Timing
) -> tuple[ScalableLatency, str]:
    """A mixture's latency from a dense model's, and its source."""
    dense = timing.latency()
    if not isinstance(dense, TwoRegimeLatency):
        raise ProfileError(
            f"'{model}' is a mixture of experts and has no '{timing.name or timing.form}' timing of its own; "
            f"one is derived from a two_regime timing only, and {owner}'s is {timing.form}"
        )
    source = f"derived: {owner} by the mixture rule, of the weights picked and active; {timing.source}"
    return mixture_latency(dense, theirs, ours), source


def _does_not_fit(model: str, device: str, shape: Architecture, usable: float, tp: int) -> str:
    """The message for weights that leave no room for KV, with the least tp that would do."""
    enough = [
        degree
        for degree in DEGREES
        if shape.heads % degree == 0
        and shape.kv_capacity_tokens(max(degree * usable - shape.weight_bytes, 0.0), degree) >= 1
    ]
    gpus = "one GPU" if tp == 1 else f"{tp} GPUs"
    advice = f"tp={enough[0]} is the least that fits" if enough else f"not at tp={DEGREES[-1]} either"
    usable_gb = max(tp * usable, 0.0) / GB
    return (
        f"{model} on {device}: weights of {shape.weight_bytes / GB:.1f} GB do not fit in {gpus} at tp={tp} "
        f"({usable_gb:.1f} GB usable after gpu_memory_utilization, memory_share and activations); {advice}"
    )
