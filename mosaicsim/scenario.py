"""What the user wrote: a YAML scenario, validated, with overrides applied, and written back resolved.

Policies (schedulers, gates, the router) are written as a name or as one ``name: {options}`` pair; their
options are validated by the policy's own model, so a third party's options are checked like ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mosaicsim.document import read_mapping
from mosaicsim.errors import ScenarioError
from mosaicsim.execution import ExecutionSection
from mosaicsim.policies import Policy, PolicyKind, parse_policies
from mosaicsim.validation import StrictModel, explain
from mosaicsim.workload.build import AggregatorSource, CalibrationSpec
from mosaicsim.workload.skew import LengthSkew


def _list_of_policies(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list, each a name or one `name: {options}`")
    return value


PolicyText = Any
"""A name or one ``name: {options}``, checked by :mod:`mosaicsim.policies`."""

PolicyList = Annotated[tuple[PolicyText, ...], BeforeValidator(_list_of_policies), Field(min_length=1)]
Seconds = Annotated[float, Field(ge=0, le=1e8)]
Milliseconds = Annotated[float, Field(ge=0, le=1e6)]


class WorkloadSection(StrictModel):
    """What has to be computed."""

    trace: str = Field(description="Parquet trace; relative to the scenario's folder")
    calibration: CalibrationSpec = Field(
        default_factory=lambda: CalibrationSpec(share=0.15),
        description="questions the profiling run sees; never evaluated",
    )
    k: Annotated[int, Field(gt=0, le=64)] = Field(3, description="expert calls a question")
    routing: PolicyText = Field("recorded", description="router: a name or one `name: {options}`")
    aggregator_calls: AggregatorSource = Field(
        "auto",
        description="the aggregator's calls: recorded in the trace, modelled from the proposers', or (auto) "
        "recorded only under the routing they were recorded with",
    )
    length_skew: LengthSkew | None = Field(None, description="distort the recorded lengths")
    cost_error: Annotated[float, Field(ge=1, le=100)] = Field(
        1.0, description="schedulers are told lengths that are off by this factor, up or down by expert"
    )
    questions: PositiveInt | None = Field(
        None, description="evaluate only so many questions, drawn at random"
    )


class HostSection(StrictModel):
    """One machine and its GPUs."""

    name: str | None = Field(None, description="host0, host1, ... by default")
    device: str = Field(description="GPU type, as in `mosaicsim profiles`")
    gpus: Annotated[int, Field(gt=0, le=4096)] = 1
    disk_streams: Annotated[float, Field(ge=1)] | None = Field(
        None, description="loads the disk feeds at full speed at once; more share it; no limit by default"
    )


class ClusterSection(StrictModel):
    """What it runs on."""

    hosts: Annotated[tuple[HostSection, ...], Field(min_length=1)]
    experts_per_worker: Annotated[int, Field(ge=1, le=4)] = Field(
        1,
        description="engines that share a GPU at a time, each with its part of the memory (num_gpu_blocks is "
        "of one); a scheduler that steers may choose that none does",
    )
    workers_at_once: PositiveInt | None = Field(
        None,
        description="workers busy at a time, where cores or memory do not feed all; no limit by default",
    )
    session_change: Literal["restart", "sleep"] = Field(
        "restart", description="sleep: an engine that was loaded once on a worker is woken, not loaded again"
    )


class ModelSection(StrictModel):
    """Which profiled model plays an expert or the aggregator."""

    model: str = Field(description="model of the catalog, as in `mosaicsim profiles`")
    load_s: Seconds | None = Field(None, description="cold session start; the profile's by default")
    timing: str | None = Field(None, description="which timing of the profile to use")
    host_base_ms: Milliseconds | None = Field(
        None, description="host time an iteration of this model; the engine's by default"
    )


class InstanceSection(StrictModel):
    """Another way to run the aggregator; what is left out is the profile's or the engine's."""

    tp: PositiveInt = Field(1, description="GPUs an instance spans")
    load_s: Seconds | None = Field(None, description="cold session start at this tp")
    host_base_ms: Milliseconds | None = Field(None, description="host time an iteration at this tp")


class AggregatorSection(ModelSection):
    """The aggregator stage, after a barrier."""

    tp: PositiveInt = Field(1, description="GPUs an instance spans; instances share the questions")
    alternatives: tuple[InstanceSection, ...] = Field(
        (), description="other tp a scheduler that steers may choose, by predicted makespan"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> AggregatorSection:
        sizes = [self.tp, *(other.tp for other in self.alternatives)]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"tp and the tp of alternatives must differ, got {', '.join(map(str, sizes))}")
        return self

    def at(self, tp: int) -> ModelSection:
        """The aggregator as it is at ``tp`` GPUs."""
        for other in self.alternatives:
            if other.tp == tp:
                return ModelSection(
                    model=self.model,
                    timing=self.timing,
                    load_s=other.load_s,
                    host_base_ms=other.host_base_ms,
                )
        return self


class EngineSection(StrictModel):
    """vLLM's settings; what is left out follows from ``version``."""

    version: str = Field(
        "vllm-v1", description="host overhead of an engine version, as `vllm-0.7-v0`, `vllm-v1`"
    )
    policy: Literal["v0", "v1"] = Field(
        "v1", description="v0: prefills first, whole prompts; v1: chunked prefill mixed with decodes"
    )
    host_base_ms: Milliseconds | None = Field(
        None, description="host time an iteration; the version's by default"
    )
    host_per_sequence_ms: Milliseconds | None = Field(None, description="and for each sequence in it")
    max_num_seqs: Annotated[int, Field(gt=0, le=65_536)] = 256
    max_num_batched_tokens: Annotated[int, Field(gt=0, le=2_097_152)] | None = Field(
        None, description="v0: 32768, v1: 8192 by default"
    )
    block_size: Annotated[int, Field(gt=0, le=4096)] = 16
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    num_gpu_blocks: Annotated[int, Field(gt=0, le=2**40)] | None = Field(
        None, description="KV blocks; from the memory by default"
    )
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="share of the blocks kept free at admission; v0: 0.01, v1: 0 by default"
    )
    prefix_caching: bool | None = Field(
        None, description="share equal prompts; v0: false, v1: true by default"
    )

    @model_validator(mode="after")
    def _batch_fits(self) -> EngineSection:
        if self.batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs})"
            )
        return self

    @property
    def batched_tokens(self) -> int:
        """``max_num_batched_tokens`` with its default."""
        return self.max_num_batched_tokens or (32768 if self.policy == "v0" else 8192)


class ScriptedFailure(StrictModel):
    """One worker fails once."""

    worker: Annotated[int, Field(ge=0)]
    at_s: Seconds
    down_s: Seconds | None = Field(None, description="back after so long; never by default")


class FailureSection(StrictModel):
    """Workers that fail: at given times, or with exponential times between failures."""

    scripted: tuple[ScriptedFailure, ...] = ()
    mtbf_s: Annotated[float, Field(gt=0, le=1e8)] | None = Field(
        None, description="mean time between failures of a worker"
    )
    down_s: Seconds = Field(120.0, description="time a sampled failure takes a worker away")


class Scenario(StrictModel):
    """A whole study: one workload and cluster under several schedulers and gates."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    replicates: Annotated[int, Field(gt=0, le=10_000)] = Field(
        1, description="repetitions, each with random streams of its own"
    )
    workload: WorkloadSection
    cluster: ClusterSection
    experts: dict[str, ModelSection] = Field(description="the model that plays each expert of the trace")
    aggregator: AggregatorSection
    engine: EngineSection = Field(default_factory=lambda: EngineSection())
    profiles: tuple[str, ...] = Field(
        (), description="profile files of your own; relative to the scenario's folder"
    )
    schedulers: PolicyList
    gates: PolicyList = ("always",)
    failures: FailureSection = Field(default_factory=FailureSection)
    execution: ExecutionSection | None = Field(
        None, description="a real run of this scenario, as `mosaicsim execute` makes it"
    )

    def policies(self, kind: PolicyKind, where: str = "scenario") -> list[Policy]:
        """The schedulers, gates or router with their validated options. Raises ScenarioError."""
        if kind is PolicyKind.ROUTER:
            return parse_policies(kind, "workload.routing", [self.workload.routing], where, numbered=False)
        field = "schedulers" if kind is PolicyKind.SCHEDULER else "gates"
        return parse_policies(kind, field, getattr(self, field), where)


def load_scenario(path: Path, overrides: Iterable[str] = ()) -> Scenario:
    """Read, override (``a.b.0.c=value``) and validate a scenario; paths in it become absolute.

    Raises ScenarioError naming the file, the path in it, the value and what is accepted.
    """
    raw = read_mapping(path, "scenario", ScenarioError)
    for override in overrides:
        apply_override(raw, override)
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain(error, Scenario)}") from None
    for kind in PolicyKind:
        scenario.policies(kind, str(path))
    return _absolute(scenario, path.resolve().parent)


def resolved(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data, every default and policy option written out."""
    data = scenario.model_dump(mode="json")
    data["workload"]["routing"] = scenario.policies(PolicyKind.ROUTER)[0].as_yaml()
    data["schedulers"] = [p.as_yaml() for p in scenario.policies(PolicyKind.SCHEDULER)]
    data["gates"] = [p.as_yaml() for p in scenario.policies(PolicyKind.GATE)]
    return data


def dump_scenario(scenario: Scenario) -> str:
    """The resolved scenario as YAML; it can be run again."""
    return yaml.safe_dump(resolved(scenario), sort_keys=False, allow_unicode=True, width=100)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one ``path=value``, the value being YAML; a policy given by name becomes a mapping on the way.

    Raises ScenarioError: no path or value in it, or a path that leads nowhere in ``raw``.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ScenarioError(f"--set {override!r}: expected path=value, as in --set cluster.hosts.0.gpus=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ScenarioError(f"--set {override!r}: the value is not valid YAML") from None
    *parents, last = path.split(".")
    node: Any = raw
    for depth, key in enumerate(parents):
        node = _descend(node, key, parents[depth + 1] if depth + 1 < len(parents) else last, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ScenarioError(
            f"--set {override!r}: {'.'.join(parents)} is {node!r}, which holds nothing to set"
        )


def _descend(node: Any, key: str, following: str, override: str) -> Any:
    if isinstance(node, list):
        index = _index(node, key, override)
        if node[index] == following:
            node[index] = {following: {}}
        return node[index]
    if not isinstance(node, dict):
        raise ScenarioError(f"--set {override!r}: {key} is not below a mapping or list")
    if node.get(key) is None:
        node[key] = {}
    if node[key] == following:
        node[key] = {following: {}}
    return node[key]


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise ScenarioError(
            f"--set {override!r}: '{key}' is no index of a list of {len(node)} (0 is the first)"
        )
    return int(key)


def _absolute(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with its files found from its own folder, wherever the program runs."""

    def found(name: str) -> str:
        return str((folder / name).resolve())

    calibration = scenario.workload.calibration
    if calibration.trace is not None:
        calibration = calibration.model_copy(update={"trace": found(calibration.trace)})
    workload = scenario.workload.model_copy(
        update={"trace": found(scenario.workload.trace), "calibration": calibration}
    )
    execution = scenario.execution and scenario.execution.resolve(folder)
    return scenario.model_copy(
        update={
            "workload": workload,
            "profiles": tuple(found(p) for p in scenario.profiles),
            "execution": execution,
        }
    )


def json_schema() -> dict[str, Any]:
    """JSON schema of a scenario, the options of every known policy included."""
    schema = Scenario.model_json_schema()
    definitions = schema["$defs"]

    def policy_schema(kind: PolicyKind) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for name, options in kind.option_models().items():
            inner = options.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(inner.pop("$defs", {}))
            properties[name] = {"anyOf": [inner, {"type": "null"}]}
        pair = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {"anyOf": [{"enum": list(properties)}, pair]}

    schema["properties"]["schedulers"]["items"] = policy_schema(PolicyKind.SCHEDULER)
    schema["properties"]["gates"]["items"] = policy_schema(PolicyKind.GATE)
    routing: Mapping[str, Any] = definitions["WorkloadSection"]["properties"]["routing"]
    definitions["WorkloadSection"]["properties"]["routing"] = {
        **policy_schema(PolicyKind.ROUTER),
        "default": routing["default"],
        "description": routing["description"],
    }
    return schema
