"""Profile files: the YAML in which devices, models, timings and engines are written, each with its source.

The package's own data and a user's additions have the same schema; a file holds whichever sections it needs.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mosaicsim.document import read_mapping
from mosaicsim.errors import OutputError, ProfileError, nearest
from mosaicsim.hardware.architecture import Architecture
from mosaicsim.hardware.latency import (
    HingeLatency,
    HostOverhead,
    OperatorLatency,
    ScalableLatency,
    TabulatedLatency,
    TwoRegimeLatency,
)

SOURCE_KINDS = ("measured", "published", "composed", "derived", "estimated")
"""What the first word of a source says: how the number came to be."""

MS = 1e-3


def _checked_source(source: str) -> str:
    if source.partition(":")[0] not in SOURCE_KINDS:
        raise ValueError(f"must start with one of {', '.join(kind + ':' for kind in SOURCE_KINDS)}")
    return source


Source = Annotated[str, AfterValidator(_checked_source)]


def _checked_ascending(points: tuple[float, ...]) -> tuple[float, ...]:
    if any(a >= b for a, b in itertools.pairwise(points)):
        raise ValueError("must ascend")
    return points


Points = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=2), AfterValidator(_checked_ascending)]
Values = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=2)]


class Entry(BaseModel):
    """Base of everything in a profile file: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quantity(Entry):
    """A number and where it comes from; its unit is in the key."""

    value: PositiveFloat
    source: Source


@dataclass(frozen=True)
class DeviceRates:
    """A device's memory, and what loading weights onto it takes; GB is 1e9 bytes."""

    memory_gb: Quantity
    activation_reserve_gb: Quantity
    disk_gb_per_s: Quantity
    engine_start_s: Quantity
    pcie_gb_per_s: Quantity
    wake_constant_s: Quantity


RATES = tuple(f.name for f in fields(DeviceRates))


class Device(Entry):
    """A device and its rates: all of them, or none where each model's costs were ``measured`` on it."""

    aliases: tuple[str, ...] = ()
    memory_gb: Quantity | None = None
    activation_reserve_gb: Quantity | None = None
    disk_gb_per_s: Quantity | None = None
    engine_start_s: Quantity | None = None
    pcie_gb_per_s: Quantity | None = None
    wake_constant_s: Quantity | None = None
    description: str | None = None
    """What it is; for information."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Device:
        missing = [name for name in RATES if getattr(self, name) is None]
        if missing and len(missing) < len(RATES):
            raise ValueError(f"needs all of {', '.join(RATES)} or none; missing: {', '.join(missing)}")
        return self

    @property
    def rates(self) -> DeviceRates | None:
        """What costs are derived from; None where they are measured."""
        values = {name: getattr(self, name) for name in RATES}
        return None if None in values.values() else DeviceRates(**values)


class Model(Entry):
    """A model: its architecture, or ``same_as`` another's, which then also lends its timings.

    ``timing_reference`` names the model whose timings are scaled where a device has none for this one.
    """

    aliases: tuple[str, ...] = ()
    source: Source
    architecture: Architecture | None = None
    same_as: str | None = None
    timing_reference: str | None = None
    reasoning: bool = False

    @model_validator(mode="after")
    def _one_architecture(self) -> Model:
        if (self.architecture is None) == (self.same_as is None):
            raise ValueError("needs either 'architecture' or 'same_as'")
        return self


class _Timing(Entry):
    device: str
    model: str
    name: str | None = None
    source: Source
    mape_pct: dict[str, NonNegativeFloat] = {}
    """Mean absolute percentage error of the fit, by part; for information."""


class DecodeLine(Entry):
    """Milliseconds of a decode-only step."""

    base: NonNegativeFloat
    per_sequence: NonNegativeFloat
    per_context_token: NonNegativeFloat


class MixedLine(DecodeLine):
    """Milliseconds of a step with prefill."""

    per_prefill_token: NonNegativeFloat


class TwoRegimeTiming(_Timing):
    """See :class:`~mosaicsim.hardware.latency.TwoRegimeLatency`."""

    form: Literal["two_regime"]
    decode_ms: DecodeLine
    mixed_ms: MixedLine

    def latency(self) -> ScalableLatency:
        """The latency model, in seconds."""
        return TwoRegimeLatency(
            decode_base_s=self.decode_ms.base * MS,
            decode_per_sequence_s=self.decode_ms.per_sequence * MS,
            decode_per_context_token_s=self.decode_ms.per_context_token * MS,
            mixed_base_s=self.mixed_ms.base * MS,
            mixed_per_sequence_s=self.mixed_ms.per_sequence * MS,
            mixed_per_prefill_token_s=self.mixed_ms.per_prefill_token * MS,
            mixed_per_context_token_s=self.mixed_ms.per_context_token * MS,
        )


class HingeTiming(_Timing):
    """See :class:`~mosaicsim.hardware.latency.HingeLatency`."""

    form: Literal["hinge"]
    floor_ms: NonNegativeFloat
    base_ms: NonNegativeFloat
    per_token_ms: NonNegativeFloat
    per_sequence_ms: NonNegativeFloat
    per_context_token_ms: NonNegativeFloat
    per_prefill_token_squared_ms: NonNegativeFloat

    def latency(self) -> ScalableLatency:
        """The latency model, in seconds."""
        return HingeLatency(
            floor_s=self.floor_ms * MS,
            base_s=self.base_ms * MS,
            per_token_s=self.per_token_ms * MS,
            per_sequence_s=self.per_sequence_ms * MS,
            per_context_token_s=self.per_context_token_ms * MS,
            per_prefill_token_squared_s=self.per_prefill_token_squared_ms * MS,
        )


class TabulatedTiming(_Timing):
    """See :class:`~mosaicsim.hardware.latency.TabulatedLatency`."""

    form: Literal["tabulated"]
    batch: Points
    decode_ms: Values
    mixed_ms: Values
    prefill_tokens: Points
    prefill_ms: Values
    decode_per_context_token_ms: NonNegativeFloat
    mixed_per_context_token_ms: NonNegativeFloat

    @model_validator(mode="after")
    def _aligned(self) -> TabulatedTiming:
        if not len(self.batch) == len(self.decode_ms) == len(self.mixed_ms):
            raise ValueError("'batch', 'decode_ms' and 'mixed_ms' must have the same length")
        if len(self.prefill_tokens) != len(self.prefill_ms):
            raise ValueError("'prefill_tokens' and 'prefill_ms' must have the same length")
        return self

    def latency(self) -> ScalableLatency:
        """The latency model, in seconds."""
        return TabulatedLatency(
            batch=self.batch,
            decode_s=tuple(ms * MS for ms in self.decode_ms),
            mixed_s=tuple(ms * MS for ms in self.mixed_ms),
            prefill_tokens=self.prefill_tokens,
            prefill_s=tuple(ms * MS for ms in self.prefill_ms),
            decode_per_context_token_s=self.decode_per_context_token_ms * MS,
            mixed_per_context_token_s=self.mixed_per_context_token_ms * MS,
        )


class OperatorTiming(_Timing):
    """See :class:`~mosaicsim.hardware.latency.OperatorLatency`."""

    form: Literal["operators"]
    batch: Points
    decode_ms: Values
    mixed_ms: Values
    tokens: Points
    tokens_ms: Values
    decode_per_context_token_ms: NonNegativeFloat
    mixed_per_context_token_ms: NonNegativeFloat
    mixed_per_pair_ms: NonNegativeFloat

    @model_validator(mode="after")
    def _aligned(self) -> OperatorTiming:
        if not len(self.batch) == len(self.decode_ms) == len(self.mixed_ms):
            raise ValueError("'batch', 'decode_ms' and 'mixed_ms' must have the same length")
        if len(self.tokens) != len(self.tokens_ms):
            raise ValueError("'tokens' and 'tokens_ms' must have the same length")
        return self

    def latency(self) -> ScalableLatency:
        """The latency model, in seconds."""
        return OperatorLatency(
            batch=self.batch,
            decode_s=tuple(ms * MS for ms in self.decode_ms),
            mixed_s=tuple(ms * MS for ms in self.mixed_ms),
            tokens=self.tokens,
            tokens_s=tuple(ms * MS for ms in self.tokens_ms),
            decode_per_context_token_s=self.decode_per_context_token_ms * MS,
            mixed_per_context_token_s=self.mixed_per_context_token_ms * MS,
            mixed_per_pair_s=self.mixed_per_pair_ms * MS,
        )


Timing = Annotated[
    TwoRegimeTiming | HingeTiming | TabulatedTiming | OperatorTiming, Field(discriminator="form")
]


class TensorParallel(Entry):
    """The measured point that tensor-parallel scaling is anchored at; see :mod:`.tensor_parallel`."""

    reference_model: str
    reference_tp: Annotated[int, Field(ge=2)]
    prefill_speedup: Quantity
    decode_speedup: Quantity
    start_factor: Quantity


class Measured(Entry):
    """What a model was seen to take on a device; it replaces what rules would derive.

    ``load_s`` is an engine's start in a living process, weights included, of which ``disk_s`` is stretched
    when workers of a host load at once; where another engine has to be closed first, ``unload_s`` comes
    before it. The first session of a process comes ``process_start_s`` later. Without ``wake_s`` the device
    cannot put an engine to sleep, and waking is a load. ``host_*`` is host time a step, in place of an engine
    version's. ``engine`` holds the engine's settings, as resolved by itself.
    """

    device: str
    model: str
    tp: PositiveInt = 1
    source: Source
    load_s: PositiveFloat
    disk_s: NonNegativeFloat = 0.0
    unload_s: NonNegativeFloat = 0.0
    process_start_s: NonNegativeFloat = 0.0
    wake_s: PositiveFloat | None = None
    kv_capacity_tokens: PositiveInt
    host_base_ms: NonNegativeFloat | None = None
    host_per_sequence_ms: NonNegativeFloat = 0.0
    engine: dict[str, str | int | float | bool | None] = {}

    @model_validator(mode="after")
    def _disk_is_a_part(self) -> Measured:
        if self.disk_s > self.load_s:
            raise ValueError(f"disk_s ({self.disk_s}) is a part of load_s ({self.load_s})")
        return self

    @property
    def host(self) -> HostOverhead | None:
        """Host time a step, in seconds; None where it was not measured."""
        if self.host_base_ms is None:
            return None
        return HostOverhead(self.host_base_ms * MS, self.host_per_sequence_ms * MS)


class Engine(Entry):
    """Host time per iteration of an engine version."""

    aliases: tuple[str, ...] = ()
    base_ms: NonNegativeFloat
    per_sequence_ms: NonNegativeFloat
    source: Source

    def overhead(self) -> HostOverhead:
        """The overhead, in seconds."""
        return HostOverhead(self.base_ms * MS, self.per_sequence_ms * MS)


class ProfileFile(Entry):
    """What one YAML file holds."""

    devices: dict[str, Device] = {}
    models: dict[str, Model] = {}
    timings: tuple[Timing, ...] = ()
    tensor_parallel: TensorParallel | None = None
    engines: dict[str, Engine] = {}
    measured: tuple[Measured, ...] = ()


ENTRIES_OF_SECTION: Mapping[str, tuple[type[BaseModel], ...]] = {
    "devices": (Device, Quantity),
    "models": (Model, Architecture),
    "timings": (TwoRegimeTiming, HingeTiming, TabulatedTiming, OperatorTiming, MixedLine),
    "tensor_parallel": (TensorParallel, Quantity),
    "engines": (Engine,),
    "measured": (Measured,),
}


def load_profile_file(path: Path | str) -> ProfileFile:
    """Read and validate one profile file.

    Raises
    ------
    ProfileError
        The file cannot be read, is not YAML, or does not follow the schema; the message names the key.
    """
    path = Path(path)
    try:
        return ProfileFile.model_validate(read_mapping(path, "profile", ProfileError))
    except ValidationError as error:
        raise ProfileError(f"{path}: {_first_complaint(error)}") from None


def dump_timings(timings: Iterable[Timing]) -> str:
    """YAML of a profile file that holds ``timings`` only."""
    content = {"timings": [t.model_dump(mode="json", exclude_defaults=True) for t in timings]}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)


def check_profile_output(path: Path) -> None:
    """Raise OutputError where a profile cannot be written; only a file of YAML is replaced."""
    if path.exists() and not (path.is_file() and path.suffix in (".yaml", ".yml")):
        raise OutputError(f"{path}: is there and is not replaced: not a .yaml file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot write the profile: no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: cannot write the profile: {folder} is not writable")


def write_profile_file(path: Path, content: str) -> None:
    """Write a profile file whole or not at all. Raises OutputError; see :func:`check_profile_output`."""
    check_profile_output(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=".profile-", suffix=".tmp", dir=path.resolve().parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o644)
            file.write(content)
        os.replace(temporary, path)
    except OSError as problem:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"{path}: cannot write the profile: {problem.strerror}") from None


def _first_complaint(error: ValidationError) -> str:
    """One line from pydantic's errors: key, what is wrong, the value, and what would be accepted.

    An unknown key is told first: the one it stands for is then reported missing as well.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"]) or "file"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest_key(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing" or isinstance(first["input"], dict):
        return f"{where}: {message}"
    return f"{where}: {message}, got {str(first['input'])[:60]!r}"


def _nearest_key(loc: tuple[int | str, ...]) -> str:
    """Suggest a key of the section that the unknown key is in."""
    section = ENTRIES_OF_SECTION[str(loc[0])] if len(loc) > 1 else (ProfileFile,)
    accepted = {name for entry in section for name in entry.model_fields}
    return nearest(str(loc[-1]), accepted - {str(loc[-1])})
