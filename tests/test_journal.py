"""A study that is cut short goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mosaicsim.analysis.journal import Journal
from mosaicsim.analysis.study import Replicate, simulate
from mosaicsim.errors import OutputError, ScenarioError
from mosaicsim.report.folder import summary_text
from mosaicsim.scenario import Scenario, load_scenario

ROOT = Path(__file__).parent.parent
OVERRIDES = [
    "replicates=2",
    "workload.questions=60",
    "workload.routing=recorded",
    "schedulers=[round_robin, greedy]",
    "gates=[{calibrated: {bound_pp: 5}}, {plurality: {tau: 2/3, cancel_pending: true}}]",
]


@pytest.fixture
def scenario() -> Scenario:
    return load_scenario(ROOT / "scenarios" / "paper_mmlu_pro.yaml", OVERRIDES)


def test_a_study_goes_on_where_it_was(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = summary_text(simulate(scenario))
    ran: list[int] = []
    run_for_real = Replicate.run

    def counted(self: Replicate, *policies: object) -> object:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(1)
        return run_for_real(self, *policies)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(Replicate, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, journal=Journal(tmp_path / "out", scenario, resume=False))
    ran.clear()
    resumed = Journal(tmp_path / "out", scenario, resume=True)
    assert resumed.finished == 5
    result = simulate(scenario, journal=resumed)
    assert len(ran) == 3, "finished runs are not repeated"
    assert summary_text(result) == undisturbed
    resumed.close()
    assert list(tmp_path.iterdir()) == []


def test_another_study_is_not_gone_on_with(scenario: Scenario, tmp_path: Path) -> None:
    begun = Journal(tmp_path / "out", scenario, resume=False)
    assert list(tmp_path.iterdir()) == [], "nothing is written before a run is kept"
    simulate(scenario, journal=begun)
    other = scenario.model_copy(update={"seed": 5})
    with pytest.raises(ScenarioError, match="another scenario, trace, profile or version"):
        Journal(tmp_path / "out", other, resume=True)
    assert Journal(tmp_path / "out", other, resume=False).find(0) is None


def test_somebody_else_s_folder_is_left_alone(scenario: Scenario, tmp_path: Path) -> None:
    other = tmp_path / "out.unfinished"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(OutputError, match="is in the way"):
            Journal(tmp_path / "out", scenario, resume=resume)
    assert (other / "thesis.tex").exists()


def test_a_damaged_run_is_run_again(scenario: Scenario, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", scenario, resume=False)
    simulate(scenario, journal=journal)
    path = journal.folder / "2.npz"
    for damaged in (b"", path.read_bytes()[:500], b"PK\x03\x04 nothing"):
        path.write_bytes(damaged)
        assert Journal(tmp_path / "out", scenario, resume=True).find(2) is None
    assert Journal(tmp_path / "out", scenario, resume=True).find(1) is not None


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_resume_from_the_command_line(tmp_path: Path, request_to_stop: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "mosaicsim",
        "run",
        "scenarios/paper_mmlu_pro.yaml",
        "-o",
        str(out),
        "--no-plots",
    ]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "out.unfinished"
    give_up = time.monotonic() + 60
    while len(list(journal.glob("*.npz"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    running.send_signal(request_to_stop)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "--resume" in told
    assert "Traceback" not in told
    assert not out.exists()
    kept = len(list(journal.glob("*.npz")))
    assert kept >= 3

    done = subprocess.run(
        [*command, "--resume"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (out / "summary.json").exists()
    assert not journal.exists()
