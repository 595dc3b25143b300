"""Workers and the coordinator killed at random points of a real run: nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from engines import build_tiny_models, needs_vllm
from real_scenario import write_scenario

pytestmark = [pytest.mark.engine, pytest.mark.slow, needs_vllm]

CALLS = 12 * 3 + 12


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenario")
    return write_scenario(folder, build_tiny_models(folder / "models"))


def start(scenario: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mosaicsim",
        "execute",
        str(scenario),
        "-o",
        str(out),
        "--no-plots",
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def facts(out: Path) -> list[dict[str, object]]:
    """What the journal of the unfinished run has so far; a line being written is not there yet."""
    journals = list(out.with_name(f"{out.name}.unfinished").glob("runs/*/journal.jsonl"))
    lines = [line for path in journals for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def calls_journalled(out: Path) -> int:
    return sum(len(fact["results"]) for fact in facts(out) if fact["kind"] == "calls")  # type: ignore[arg-type,misc]  # JSON


def wait_for_calls(process: subprocess.Popen[bytes], out: Path, n: int) -> None:
    while calls_journalled(out) < n:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]  # a pipe
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def outputs(out: Path) -> dict[tuple[str, str, int], tuple[str, str]]:
    """Text and answer by call; fails if a call is there twice."""
    rows = pq.read_table(out / "outputs.parquet").to_pylist()
    found = {(r["question_id"], r["expert"], r["slot"]): (r["text"], r["answer"]) for r in rows}
    assert len(found) == len(rows) == CALLS
    return found


def test_killed_twice_and_resumed_it_ends_as_if_undisturbed(scenario: Path, tmp_path: Path) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    process = start(scenario, calm)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()

    rng = random.Random(20)
    process = start(scenario, shaken)
    struck = sorted(rng.sample(range(1, CALLS - 4), 3))
    for n in struck[:2]:
        wait_for_calls(process, shaken, n)
        os.kill(rng.choice(children(process.pid)), signal.SIGKILL)
    wait_for_calls(process, shaken, struck[2])
    process.kill()
    process.communicate()
    kept = calls_journalled(shaken)
    assert struck[2] <= kept < CALLS
    lost = [fact for fact in facts(shaken) if fact["kind"] == "lost"]
    assert lost, "a killed worker is a lost worker"

    process = start(scenario, shaken, "--resume")
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert outputs(shaken) == outputs(calm)
    journal = next((shaken / "runs").glob("*.jsonl")).read_text().splitlines()
    reported = [r["call_id"] for line in journal for r in json.loads(line).get("results", ())]
    assert sorted(reported) == list(range(CALLS)), "every call ended exactly once"
    summary = json.loads((shaken / "summary.json").read_text())
    assert summary["runs"][0]["calls_finished"] == CALLS


def test_ctrl_c_stops_cleanly_and_leaves_no_process(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(scenario, out)
    wait_for_calls(process, out, 1)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "--resume goes on with it" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
