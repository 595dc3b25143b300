"""`mosaicsim profile` on a real engine with a tiny random model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engines import build_tiny_models, needs_vllm

from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.profile_file import load_profile_file

pytestmark = [pytest.mark.engine, needs_vllm]

SETTINGS = [
    "dtype=float32",
    "enforce_eager=true",
    "kv_cache_memory_bytes=33554432",
    "max_model_len=512",
    "max_num_seqs=4",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("models"))


def profile(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = [part for setting in SETTINGS for part in ("--engine", setting)]
    command = [
        sys.executable,
        "-m",
        "mosaicsim",
        "profile",
        "--model",
        str(model),
        "--device",
        "core",
        "--quick",
    ]
    return subprocess.run(
        [*command, *settings, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_a_real_engine_is_profiled_into_a_file_that_simulates(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    answer = profile(models / "tiny", "-o", str(path))
    assert answer.returncode == 0, answer.stderr
    assert "held out of the fit" in answer.stderr
    assert str(models) not in path.read_text()
    (measured,) = load_profile_file(path).measured
    blocks, size = measured.engine["num_gpu_blocks"], measured.engine["block_size"]
    assert measured.kv_capacity_tokens == (blocks - 1) * size
    assert measured.engine["max_num_seqs"] == 4
    assert measured.engine["vllm"]
    assert 0 < measured.unload_s < 60
    assert 0 < measured.load_s < measured.load_s + measured.process_start_s < 300
    found = load_catalog(files=[path]).profile("tiny", "core")
    assert found.host is not None
    tables = found.latency.compile(4, 2048, found.host)
    assert 0 < found.host.base_s < tables.decode_s(1, 32) < tables.mixed_s(1, 400, 32, 400 * 200)


def test_what_vllm_refuses_is_one_line(models: Path) -> None:
    answer = profile(models / "tiny", "--engine", "dtype=float99")
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("mosaicsim: profile: the engine failed: ")
    assert "float99" in last
    assert "Traceback" not in answer.stderr


def test_an_argument_that_the_engine_does_not_have(models: Path) -> None:
    answer = profile(models / "tiny", "--engine", "max_num_seq=4")
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "mosaicsim: --engine: 'max_num_seq' is no argument of vLLM's EngineArgs (did you mean 'max_num_seqs'?)"
    ]
