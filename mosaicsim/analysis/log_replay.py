"""A log of real requests against its replay on the simulated engine.

The arrivals, prompts and output lengths are the log's, the step times a profile's; what comes out is how far
the simulated first and last tokens are from the real ones. At most one number is fitted, the host time of
a step, and then on the first part of the log only, with the errors of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from mosaicsim.csv_rows import count, number, read_rows
from mosaicsim.errors import ProfileError, ScenarioError, TraceError, UserInputError
from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.executors.fleet import engine_config
from mosaicsim.hardware.catalog import host_overhead, load_catalog
from mosaicsim.hardware.latency import HostOverhead, LatencyModel
from mosaicsim.hardware.profile_file import load_profile_file
from mosaicsim.scenario import EngineSection, apply_override
from mosaicsim.validation import StrictModel, explain
from mosaicsim.workload.calls import Floats, Ints

COLUMNS = {
    "arrival_s": number(0),
    "prompt_tokens": count(1),
    "generated_tokens": count(1),
    "first_token_s": number(0),
    "last_token_s": number(0),
}

HOST_TIME_STEPS = 20
"""Host times tried, evenly spaced, before the best is narrowed down."""

HOST_TIME_EXACT_S = 1e-6
"""A fitted host time is narrowed down to this."""


@dataclass(frozen=True)
class RequestLog:
    """Requests of a real run in order of arrival; columns of shape (n,), seconds on the log's own clock."""

    arrival_s: Floats
    prompt_tokens: Ints
    generated_tokens: Ints
    first_token_s: Floats
    last_token_s: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)


class ReplaySettings(StrictModel):
    """What ``--set`` reaches: vLLM's settings as in a scenario, host time ``none`` by default."""

    engine: EngineSection = Field(default_factory=lambda: EngineSection(version="none"))


@dataclass(frozen=True)
class ReplayEngine:
    """The simulated engine: its limits, step times and host time, and where the step times come from."""

    config: EngineConfig
    latency: LatencyModel
    host: HostOverhead
    source: str


@dataclass(frozen=True)
class Replay:
    """What the simulated engine did with a log: columns of shape (n,) and the times calls lost their KV."""

    first_token_s: Floats
    last_token_s: Floats
    preemptions: int


def read_log(path: Path) -> RequestLog:
    """Read a CSV of :data:`COLUMNS`. Raises TraceError with file and line."""
    rows = []
    for line, row in read_rows(path, "log", COLUMNS, TraceError):
        arrival, _, _, first, last = row
        if not arrival <= first <= last or arrival == last:
            raise TraceError(
                f"{path}:{line}: expected arrival_s <= first_token_s <= last_token_s and a last token after "
                f"the arrival, got {arrival:g}, {first:g}, {last:g}"
            )
        rows.append(row)
    if not rows:
        raise TraceError(f"{path}: no requests in it")
    rows.sort(key=lambda row: row[0])
    arrival_s, prompt, generated, first_s, last_s = map(np.array, zip(*rows, strict=True))
    return RequestLog(arrival_s, prompt, generated, first_s, last_s)


def replay_engine(profile: str, overrides: Iterable[str] = ()) -> ReplayEngine:
    """The engine for ``profile``: a file of one timing, or a name of the catalog, ``device/model[/timing]``.

    ``overrides`` are ``engine.<setting>=value``. Without ``num_gpu_blocks`` the device's memory decides.
    Raises ScenarioError and ProfileError.
    """
    settings = _settings(overrides)
    is_file = Path(profile).is_file() or Path(profile).suffix in (".yaml", ".yml")
    costs = _costs_of_file(Path(profile)) if is_file else _costs_of_name(profile)
    blocks = settings.num_gpu_blocks or (
        costs.kv_capacity_tokens(settings.gpu_memory_utilization) // settings.block_size
    )
    return ReplayEngine(engine_config(settings, blocks), costs.latency, _host(settings), costs.source)


def replay(log: RequestLog, engine: ReplayEngine) -> Replay:
    """Run the log's requests through the engine; times are on the log's clock.

    Raises InfeasibleError for a request that does not fit into the KV cache.
    """
    config = engine.config
    tables = engine.latency.compile(config.max_num_seqs, config.max_num_batched_tokens, engine.host)
    simulated = Engine(config, tables)
    began_s = float(log.arrival_s[0])
    simulated.add(
        log.prompt_tokens.tolist(),
        log.generated_tokens.tolist(),
        arrive=(log.arrival_s - began_s).tolist(),
    )
    simulated.advance()
    first_s, last_s = np.array(simulated.first_token), np.array(simulated.finish)
    return Replay(first_s + began_s, last_s + began_s, simulated.stats.preemptions)


def compare(log: RequestLog, replayed: Replay, chosen: slice = slice(None)) -> dict[str, Any]:
    """Errors of the ``chosen`` requests in percent, simulated over real less one, and the means behind them.

    An error is None where there is nothing to compare with: no request of two tokens, a real mean of 0.
    """
    real = _figures(log, log.first_token_s, log.last_token_s, chosen)
    simulated = _figures(log, replayed.first_token_s, replayed.last_token_s, chosen)
    real_s, simulated_s = (
        (last_s - log.arrival_s)[chosen] for last_s in (log.last_token_s, replayed.last_token_s)
    )
    return {
        "ttft_mean_error_pct": _error_pct(simulated["ttft_mean_s"], real["ttft_mean_s"]),
        "tpot_mean_error_pct": _error_pct(simulated["tpot_mean_s"], real["tpot_mean_s"]),
        "e2e_mean_error_pct": _error_pct(simulated["e2e_mean_s"], real["e2e_mean_s"]),
        "e2e_mape_pct": 100 * float(np.abs(simulated_s / real_s - 1).mean()),
        "makespan_error_pct": _error_pct(simulated["makespan_s"], real["makespan_s"]),
        "real": real,
        "simulated": simulated,
    }


def fit_host_time(log: RequestLog, engine: ReplayEngine, chosen: slice) -> float:
    """Seconds of host time a step at which the ``chosen`` requests' e2e errors (MAPE) are least.

    The whole log is replayed, the other requests' real times stay unread.
    """

    def error(host_s: float) -> float:
        figures = compare(log, replay(log, with_host_time(engine, host_s)), chosen)
        return float(figures["e2e_mape_pct"])

    config = engine.config
    tables = engine.latency.compile(config.max_num_seqs, config.max_num_batched_tokens, HostOverhead())
    width = tables.decode_s(1, 0) / HOST_TIME_STEPS
    tried = {i: error(i * width) for i in range(HOST_TIME_STEPS + 1)}
    while max(tried) == min(tried, key=tried.__getitem__) and len(tried) < 50 * HOST_TIME_STEPS:
        tried |= {i: error(i * width) for i in range(max(tried) + 1, max(tried) + 1 + HOST_TIME_STEPS)}
    best = min(tried, key=tried.__getitem__)
    return _least(error, max(best - 1, 0) * width, (best + 1) * width)


def with_host_time(engine: ReplayEngine, host_s: float) -> ReplayEngine:
    """The engine with so much host time a step instead of its own."""
    return replace(engine, host=HostOverhead(host_s))


def first_part(log: RequestLog, fraction: float) -> int:
    """How many requests the first ``fraction`` of the log is. Raises UserInputError: none, or all of them."""
    requests = round(fraction * len(log))
    if not 0 < requests < len(log):
        raise UserInputError(
            f"--fit-overhead {fraction:g}: of {len(log)} requests that is {requests}; "
            "some must be left to fit on, and some to compare"
        )
    return requests


def validate_log(log: RequestLog, engine: ReplayEngine, fit_fraction: float | None) -> dict[str, Any]:
    """Replay and compare; with a ``fit_fraction`` the host time is fitted on so much of the log first."""
    fitted = 0 if fit_fraction is None else first_part(log, fit_fraction)
    if fitted:
        engine = with_host_time(engine, fit_host_time(log, engine, slice(fitted)))
    replayed = replay(log, engine)
    return compare(log, replayed, slice(fitted, None)) | {
        "host_overhead_s": engine.host.base_s,
        "preemptions": replayed.preemptions,
        "requests": len(log),
        "requests_fitted": fitted,
        "requests_compared": len(log) - fitted,
        "engine": asdict(engine.config),
        "profile_source": engine.source,
    }


def _settings(overrides: Iterable[str]) -> EngineSection:
    raw: dict[str, Any] = {"engine": {"version": "none"}}
    for override in overrides:
        apply_override(raw, override)
    try:
        return ReplaySettings.model_validate(raw).engine
    except ValidationError as error:
        raise ScenarioError(f"--set: {explain(error, ReplaySettings)}") from None


def _host(settings: EngineSection) -> HostOverhead:
    known = host_overhead(settings.version)
    base, each = settings.host_base_ms, settings.host_per_sequence_ms
    return HostOverhead(
        known.base_s if base is None else base / 1e3, known.per_sequence_s if each is None else each / 1e3
    )


@dataclass(frozen=True)
class _Costs:
    """Step times and their source, and the KV capacity at a share of the device's memory."""

    latency: LatencyModel
    source: str
    kv_capacity_tokens: Callable[[float], int]


def _costs_of_file(path: Path) -> _Costs:
    file = load_profile_file(path)
    if len(file.timings) != 1:
        raise ProfileError(f"{path}: a profile to replay with has one timing, got {len(file.timings)}")
    timing = file.timings[0]

    def capacity(utilization: float) -> int:
        try:
            catalog = load_catalog(files=[path])
            profile = catalog.profile(timing.model, timing.device, gpu_memory_utilization=utilization)
        except ProfileError as error:
            raise ProfileError(f"{error}; or say how many with --set engine.num_gpu_blocks=N") from None
        return profile.kv_capacity_tokens

    return _Costs(timing.latency(), timing.source, capacity)


def _costs_of_name(name: str) -> _Costs:
    catalog = load_catalog()
    device, model, timing = catalog.addressed(name)
    profile = catalog.profile(model, device, timing=timing)

    def capacity(utilization: float) -> int:
        return catalog.profile(model, device, gpu_memory_utilization=utilization).kv_capacity_tokens

    return _Costs(profile.latency, profile.sources["latency"], capacity)


def _figures(log: RequestLog, first_s: Floats, last_s: Floats, chosen: slice) -> dict[str, float | None]:
    """Means of the chosen requests, and the time from their first arrival to their last token."""
    arrival_s, output = log.arrival_s[chosen], log.generated_tokens[chosen]
    first_s, last_s = first_s[chosen], last_s[chosen]
    several = output > 1
    tpot_s = (last_s - first_s)[several] / (output[several] - 1)
    return {
        "ttft_mean_s": float((first_s - arrival_s).mean()),
        "tpot_mean_s": float(tpot_s.mean()) if several.any() else None,
        "e2e_mean_s": float((last_s - arrival_s).mean()),
        "makespan_s": float(last_s.max() - arrival_s.min()),
    }


def _error_pct(simulated: float | None, real: float | None) -> float | None:
    return 100 * (simulated / real - 1) if simulated is not None and real else None


def _least(error: Callable[[float], float], low: float, high: float) -> float:
    """Where ``error`` is least between ``low`` and ``high``, by golden section."""
    ratio = (sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    errors = [error(at) for at in inner]
    while high - low > HOST_TIME_EXACT_S:
        if errors[0] <= errors[1]:
            high, inner = inner[1], [inner[1] - ratio * (inner[1] - low), inner[0]]
            errors = [error(inner[0]), errors[0]]
        else:
            low, inner = inner[0], [inner[1], inner[0] + ratio * (high - inner[0])]
            errors = [errors[1], error(inner[1])]
    return min((error(low), low), (error((low + high) / 2), (low + high) / 2))[1]
