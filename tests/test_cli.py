"""The command line as a user meets it: real processes, exit codes, one clear line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAPER = "scenarios/paper_mmlu_pro.yaml"
QUICK = [
    *("--set", "replicates=1"),
    *("--set", "workload.questions=60"),
    *("--set", "workload.routing=recorded"),
    *("--set", "schedulers=[round_robin, greedy]"),
]


def mosaicsim(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mosaicsim.cli import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


def test_run_writes_a_result_folder(tmp_path: Path) -> None:
    out = tmp_path / "result"
    done = mosaicsim("run", PAPER, *QUICK, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "round_robin" in done.stdout
    assert "greedy" in done.stdout
    names = {p.name for p in out.iterdir()}
    assert {"scenario.resolved.yaml", "summary.json", "calls.parquet", "timeline.parquet", "plots"} <= names
    assert len(list((out / "plots").glob("*.png"))) >= 6

    again = mosaicsim("run", str(out / "scenario.resolved.yaml"), "--json")
    assert again.returncode == 0, again.stderr
    assert again.stdout == (out / "summary.json").read_text(), "the resolved scenario gives the same bytes"
    replotted = mosaicsim("plot", str(out), "-o", str(tmp_path / "plots"), "--format", "svg")
    assert replotted.returncode == 0, replotted.stderr
    assert list((tmp_path / "plots").glob("*.svg"))


def test_json_is_the_summary_and_nothing_else() -> None:
    done = mosaicsim("run", PAPER, *QUICK, "--json")
    assert done.returncode == 0
    summary = json.loads(done.stdout)
    assert {"scenario", "seed", "runs"} <= set(summary)
    expected = {
        "scheduler", "gate", "replicate", "expert_stage_s", "aggregator_stage_s", "makespan_s", "idle_fraction",
        "lower_bound_s", "predicted_expert_stage_s", "skip_rate", "accuracy", "delta_pp", "delta_pp_ci95",
        "calls_finished", "calls_cancelled", "output_tokens",
    }  # fmt: skip
    assert all(expected <= set(run) for run in summary["runs"])
    assert done.stderr == "", "no progress where stderr is no terminal"


def test_dry_run_prints_the_resolved_scenario_and_runs_nothing(tmp_path: Path) -> None:
    done = mosaicsim("run", str(ROOT / PAPER), "--dry-run", "--set", "seed=9", cwd=tmp_path)
    assert done.returncode == 0
    assert "seed: 9" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [["schedulers"], ["profiles"], ["trace", "info", "traces/gpqa.parquet"]])
def test_listing_verbs(verb: list[str]) -> None:
    plain, as_json = mosaicsim(*verb), mosaicsim(*verb, "--json")
    assert plain.returncode == as_json.returncode == 0, plain.stderr + as_json.stderr
    assert plain.stdout.strip()
    json.loads(as_json.stdout)


def test_schema_verb() -> None:
    assert json.loads(mosaicsim("schema").stdout)["title"] == "Scenario"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["rnu"], 2, "no command 'rnu' (did you mean 'run'?)"),
        (["run"], 2, "Missing argument"),
        (["run", "nowhere.yaml"], 2, "nowhere.yaml: no such scenario file"),
        (["run", PAPER, "--set", "sede=1"], 2, "sede: unknown key (did you mean 'seed'?)"),
        (["run", PAPER, "--set", "seed=.nan"], 2, "seed: "),
        (["run", PAPER, "--set", "schedulers.4.ilp.gap=x"], 2, "schedulers.4.ilp.gap: input should be a valid number"),
        (["run", PAPER, "--set", "workload.trace=no.parquet"], 2, "no.parquet"),
        (["run", PAPER, "--set", "experts.Gemma=null"], 2, "experts.Gemma"),
        (["run", PAPER, "--set", "cluster.hosts.0.gpus=0"], 2, "cluster.hosts.0.gpus: input should be greater than 0, got 0"),
        (["run", PAPER, "--set", "schedulers=[{ilp: {max_models_per_worker: 1}}]"], 1, "max_models_per_worker"),
        (["trace", "validate", "README.md"], 2, "README.md"),
        (["plot", "docs"], 2, "docs"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(args: list[str], code: int, said: str) -> None:
    done = mosaicsim(*args)
    assert done.returncode == code, done.stderr
    assert said in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Usage:", "Try ")) and line]
    assert len(lines) == (0 if said in done.stdout else 1), done.stderr


def test_truncated_trace_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = (ROOT / "traces" / "gpqa.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    done = mosaicsim(
        "run", PAPER, "--set", f"workload.trace={tmp_path / 'cut.parquet'}", "-o", str(tmp_path / "out")
    )
    assert done.returncode == 2
    assert "cut.parquet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can make a folder")
def test_unwritable_output_is_found_before_the_run() -> None:
    done = mosaicsim("run", PAPER, *QUICK, "-o", "/proc/out")
    assert done.returncode == 1
    assert done.stderr.startswith("mosaicsim: /proc/out: ")
    assert len(done.stderr.splitlines()) == 1


def test_output_that_is_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = mosaicsim("run", PAPER, *QUICK, "-o", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    below_a_file = mosaicsim("run", PAPER, *QUICK, "-o", str(tmp_path / "thesis.tex" / "out"))
    assert below_a_file.returncode == 1
    assert "Traceback" not in below_a_file.stderr


def test_a_trace_never_replaces_something_else(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("question_id,category,expert,prompt_tokens,output_tokens,answer\n1,a,x,5,6,B\n")
    spec = tmp_path / "gpqa.yaml"
    spec.write_text((ROOT / "traces" / "gpqa.yaml").read_text())
    for args in (
        ["import", str(table), "-o", str(table), "--dataset", "d"],
        ["generate", str(spec), "-o", str(spec)],
    ):
        before = table.read_bytes(), spec.read_bytes()
        done = mosaicsim("trace", *args)
        assert done.returncode == 1
        assert "is not replaced" in done.stderr
        assert (table.read_bytes(), spec.read_bytes()) == before
    assert mosaicsim("trace", "generate", str(spec), "-o", os.devnull).returncode == 1
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_said_in_one_line() -> None:
    for args in (["schema"], ["profiles"], ["run", PAPER, "--dry-run"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "mosaicsim", *args],
                stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == "mosaicsim: cannot write to standard output: No space left on device\n"


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    scenario = (ROOT / PAPER).read_text().replace("paper_mmlu_pro", "名前", 1).replace("../", f"{ROOT}/")
    (tmp_path / "s.yaml").write_text(scenario, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mosaicsim", "run", "s.yaml", *QUICK, "-o", "r", "--no-plots"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round_robin" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """--help must be instant, so it must not import numpy, pyarrow, pulp, simpy, matplotlib or pydantic."""
    code = (
        "import sys; sys.argv=['mosaicsim', '--help']\n"
        "from mosaicsim.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pyarrow', 'pulp', 'simpy', 'matplotlib', 'pydantic', 'yaml', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert done.stderr.strip() == "[]"
