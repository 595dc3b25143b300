"""`mosaicsim validate` from end to end on tiny real engines: run, cut short, resumed, compared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engines import build_tiny_models, needs_vllm
from real_scenario import write_scenario

pytestmark = [pytest.mark.engine, needs_vllm]


def test_a_scenario_is_run_and_validated(tmp_path: Path) -> None:
    gates = [{"plurality": {"tau": "2/3", "cancel_pending": True}}]
    scenario = write_scenario(tmp_path, build_tiny_models(tmp_path / "models"), n_questions=8, gates=gates)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mosaicsim", "validate", str(scenario), "--repeats", "2", "-o", str(out)]
    first = out.with_name("out.unfinished") / "1" / "summary.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as cut:
        while not first.exists():
            assert cut.poll() is None, cut.communicate()[1]
            time.sleep(0.1)
        cut.send_signal(signal.SIGINT)
        assert "--resume goes on with it" in cut.communicate()[1]
    assert not out.exists()
    ran_at = first.stat().st_mtime_ns
    done = subprocess.run(
        [*command, "--resume", "--json", "--draws", "2", "--max-e2e-mape", "0.001"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "--max-e2e-mape 0.001 missed" in done.stderr, "an invented profile cannot be that good"
    figures = json.loads(done.stdout)
    assert figures == json.loads((out / "validation.json").read_text())
    assert figures["repeats"] == 2
    assert {settings["device"] for settings in figures["engines"].values()} == {"cpu"}
    (group,) = figures["groups"]
    assert len(group["stages"]["makespan_s"]["real_s"]) == 2
    assert group["stages"]["makespan_s"]["forecast"]["error_pct"] is not None
    for row in figures["runs"]:
        assert row["plan"]["same_worker_share"] == 1, "the scheduler plans in simulation as it did for real"
        assert row["replay"]["calls"]["expert"]["e2e"]["n"] > 0
        assert all(session["real"]["load"] > 0 for session in row["replay"]["sessions"]["rows"])
    assert sorted(p.name for p in (out / "repeats").iterdir()) == ["1", "2"]
    assert (out / "repeats" / "1" / "summary.json").stat().st_mtime_ns == ran_at, "it was not run again"
    assert list((out / "plots").glob("real-and-replay-*.png"))
    assert not out.with_name("out.unfinished").exists()

    again = [*command[:5], *(w for n in "12" for w in ("--from", str(out / "repeats" / n))), "--json"]
    reread = subprocess.run([*again, "--draws", "2"], capture_output=True, text=True, check=True)
    assert json.loads(reread.stdout) == figures, "the runs that were kept say the same"
