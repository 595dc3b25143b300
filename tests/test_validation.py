"""A run held against its simulation: nothing but the costs can make a difference, and they make the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from executed_world import RESOLVED, execute_simulated, figures_of, write_world
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.analysis.comparison import errors_of
from mosaicsim.analysis.ranking import rank
from mosaicsim.analysis.recorded import complete, read_recorded
from mosaicsim.analysis.validation import Bench, validate
from mosaicsim.cli import cli
from mosaicsim.runtime.runlog import CANCELLED, FINISHED
from mosaicsim.scenario import load_scenario
from mosaicsim.workload.forecast import Forecast
from mosaicsim.workload.trace import read_trace

CANCELLING = [{"plurality": {"tau": "2/3", "cancel_pending": True}}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario and two of its executions: as profiled, and with engines that step and load slower."""
    folder = tmp_path_factory.mktemp("world")
    scenario = load_scenario(write_world(folder))
    execute_simulated(scenario, folder / "exact")
    execute_simulated(scenario, folder / "slow", steps=1.25, loads=1.25)
    execute_simulated(scenario, folder / "load", loads=2.0)
    return folder


def verb(world: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["validate", str(world / "world.yaml"), *arguments])


def test_a_run_as_profiled_has_no_error(world: Path) -> None:
    """Replayed or planned anew; with the engines' own settings, not the scenario's."""
    found = validate(load_scenario(world / "world.yaml"), [world / "exact"], draws=1).figures
    assert {settings["block_size"] for settings in found["engines"].values()} == {RESOLVED["block_size"]}
    for row in found["runs"]:
        for mode in ("replay", "plan"):
            for stage in row[mode]["stages"].values():
                assert stage["error_pct"] == pytest.approx(0, abs=1e-6)
            for figure in ("ttft", "ttft_from_ready", "tpot", "e2e"):
                assert row[mode]["calls"]["all"][figure]["mape_pct"] == pytest.approx(0, abs=1e-6)
        assert row["plan"]["same_worker_share"] == 1
        assert row["replay"]["calls"]["all"]["e2e"]["n"] >= 72
        for part in row["replay"]["sessions"]["errors"].values():
            assert not part["n"] or part["mape_pct"] == pytest.approx(0, abs=1e-6)
        assert row["notes"] == []


def test_schedulers_that_steer_a_run_are_held_against_themselves(tmp_path: Path) -> None:
    """Calls that move while the run goes on, and categories that lengths are predicted by."""
    schedulers = ["work_stealing", "tail_ilp"]
    scenario = load_scenario(write_world(tmp_path, schedulers=schedulers, gates=["always", *CANCELLING]))
    folder = execute_simulated(scenario, tmp_path / "run")
    rows = validate(scenario, [folder], draws=1).figures["runs"]
    assert {row["scheduler"] for row in rows} == set(schedulers)
    whole = [row for row in rows if not any("added to sessions under way" in note for note in row["notes"])]
    assert 0 < len(whole) < len(rows)
    for row in whole:
        assert row["replay"]["stages"]["makespan_s"]["error_pct"] == pytest.approx(0, abs=1e-6)
    for row in rows[::2]:  # without a gate that cancels all lengths are known
        assert row["plan"]["stages"]["makespan_s"]["error_pct"] == pytest.approx(0, abs=1e-6)
        assert row["plan"]["calls"]["all"]["e2e"]["mape_pct"] == pytest.approx(0, abs=1e-6)


def test_slower_engines_show_as_such(world: Path) -> None:
    found = validate(load_scenario(world / "world.yaml"), [world / "slow"], draws=1).figures
    for row in found["runs"]:
        assert row["replay"]["stages"]["makespan_s"]["error_pct"] == pytest.approx(-20, abs=1e-6)
        for figure in ("ttft", "tpot", "e2e"):
            errors = row["replay"]["calls"]["all"][figure]
            assert errors["mean_error_pct"] == pytest.approx(-20, abs=1e-6)
            assert (errors["mape_pct"], errors["p95_pct"]) == pytest.approx((20, 20), abs=1e-6)
    assert found["summary"]["replay_makespan_error_pct"] == pytest.approx(20, abs=1e-6)


def test_slower_loads_are_told_apart_from_slower_steps(world: Path) -> None:
    found = validate(load_scenario(world / "world.yaml"), [world / "load"], draws=1).figures
    for group in found["groups"]:
        assert group["sessions"]["load"]["mape_pct"] == pytest.approx(50, abs=1e-6)
        assert group["sessions"]["generate"]["mape_pct"] == pytest.approx(0, abs=1e-6)
        assert group["calls"]["all"]["e2e"]["mape_pct"] == pytest.approx(0, abs=1e-6)


def test_a_gate_that_cancels_is_replayed_as_it_went(tmp_path: Path) -> None:
    scenario = load_scenario(write_world(tmp_path, gates=CANCELLING))
    folder = execute_simulated(scenario, tmp_path / "run")
    _, (recorded, *_) = read_recorded(folder)
    assert (recorded.log.status == CANCELLED).any()
    bench = Bench(scenario, [recorded])
    row, again = bench.compare(recorded)
    assert row["replay"]["stages"]["makespan_s"]["error_pct"] == pytest.approx(0, abs=1e-6)
    finished = int((recorded.log.status == FINISHED).sum())
    assert row["replay"]["calls"]["all"]["e2e"]["n"] == finished, "cancelled calls are not compared"
    cut = ((recorded.log.status == CANCELLED) & (recorded.log.start_s >= 0)).sum()
    assert len(again.calls["status"]) == finished + cut
    assert any("cancelled while they ran" in note for note in row["notes"]) == bool(cut)


def test_a_call_cut_short_has_the_length_of_another_run_s(tmp_path: Path) -> None:
    scenario = load_scenario(write_world(tmp_path, gates=[*CANCELLING, "always"]))
    _, runs = read_recorded(execute_simulated(scenario, tmp_path / "run"))
    cut = runs[0].log.status[: len(runs[0].workload.calls)] != FINISHED
    alone, unknown = complete(runs[0], runs[:1])
    assert unknown == cut.sum() > 0
    whole, unknown = complete(runs[0], runs)
    assert unknown == 0
    np.testing.assert_array_equal(whole.outcomes.output_tokens, runs[1].workload.outcomes.output_tokens)
    assert (alone.outcomes.output_tokens <= whole.outcomes.output_tokens).all()


def test_repeats_say_what_no_simulation_can_beat(world: Path) -> None:
    folders = [world / "exact", world / "slow"]
    found = validate(load_scenario(world / "world.yaml"), folders, draws=2).figures
    for group in found["groups"]:
        stage = group["stages"]["makespan_s"]
        first, second = stage["real_s"]
        assert second == pytest.approx(1.25 * first)
        assert stage["real_spread_s"] == pytest.approx(second - first)
        assert group["calls_between_repeats"]["all"]["e2e"]["mape_pct"] == pytest.approx(25, abs=1e-6)
        assert len(stage["forecast"]["simulated_s"]) == 2
        assert len(set(stage["forecast"]["simulated_s"])) == 2, "each forecast is another draw"
    for ranking in found["rankings"]:
        assert sorted(ranking["order_real"]) == ["ilp", "round_robin"]


def test_a_forecast_knows_calibration_only(world: Path) -> None:
    """Other real lengths, same forecast; each question's calls are a calibration question's."""
    scenario = load_scenario(world / "world.yaml")
    result, _ = read_recorded(world / "exact")
    workload, trace = result.workloads[0], read_trace(scenario.workload.calibration.trace or "")
    drawn = Forecast(workload, trace).draw(np.random.default_rng(1))
    blind = workload.outcomes.__class__(*(np.zeros_like(c) for c in vars(workload.outcomes).values()))
    again = Forecast(workload.__class__(**vars(workload) | {"outcomes": blind}), trace).draw(
        np.random.default_rng(1)
    )
    np.testing.assert_array_equal(drawn.outcomes.output_tokens, again.outcomes.output_tokens)
    lengths = set(trace.ints("output_tokens").tolist())
    firsts = drawn.outcomes.output_tokens[drawn.calls.sample == 0]
    assert set(firsts.tolist()) <= lengths
    assert not np.array_equal(drawn.outcomes.output_tokens, workload.outcomes.output_tokens)


def test_thresholds_decide_the_exit_code(world: Path) -> None:
    arguments = ["--from", str(world / "slow"), "--json", "--draws", "1"]
    kept = verb(world, *arguments, "--max-makespan-error", "20.1", "--max-e2e-mape", "20.1")
    assert kept.exit_code == 0
    assert json.loads(kept.stdout)["summary"]["replay_e2e_mape_pct"] == pytest.approx(20, abs=1e-6)
    for option, what in (("--max-makespan-error", "makespan error"), ("--max-e2e-mape", "MAPE")):
        missed = verb(world, *arguments, option, "19.9")
        assert missed.exit_code == 3
        assert f"mosaicsim: {option} 19.9 missed" in missed.stderr
        assert what in missed.stderr
        assert json.loads(missed.stdout), "figures are printed all the same"


def test_tables_and_folder(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = verb(
        world, "--from", str(world / "exact"), "--from", str(world / "slow"), "-o", str(out), "--draws", "1"
    )
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in out.iterdir()) == ["plots", "scenario.resolved.yaml", "validation.json"]
    assert [p.suffix for p in (out / "plots").iterdir()] == [".png"]
    figures = figures_of(out / "validation.json")
    assert figures["repeats"] == 2
    for expected in ("round_robin", "e2e from session ready", "between repeats", "Kendall tau"):
        assert expected in done.stdout
    assert "…" not in done.stdout
    again = verb(world, "--from", str(world / "exact"), "-o", str(out), "--no-plots", "--draws", "1")
    assert again.exit_code == 0, "an earlier validation is replaced"
    assert not (out / "plots").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "{world}/nowhere"], "nowhere: not a result folder"),
        (["--from", "{world}/exact", "--set", "seed=4"], "seed: {world}/exact was run with another: 0"),
        (["--from", "{world}/exact", "--set", "workload.k=2"], "workload.k: {world}/exact was run with 3"),
        (
            ["--from", "{world}/exact", "--set", "schedulers=[round_robin]"],
            "schedulers: {world}/exact has runs of 'ilp'; the scenario has round_robin",
        ),
        (["-o", "{world}"], "and no result of mosaicsim"),
        (["--set", "name=x", "-o", "{world}/new"], "execution: required for a real run, but missing"),
    ],
)
def test_bad_input_is_one_line(
    world: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    done = verb(world, *(a.format(world=world) for a in arguments), "--json")
    assert isinstance(done.exception, Exception)
    assert message.format(world=world) in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (world / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either SCENARIO or --log FILE"),
        (["s.yaml", "--log", "log.csv"], "give either SCENARIO or --log FILE"),
        (["s.yaml", "--profile", "rtx4090/llama-3.1-8b"], "--profile goes with --log only"),
        (["--log", "log.csv", "--profile", "x", "--repeats", "3"], "--repeats goes with SCENARIO only"),
        (["--log", "log.csv"], "--log needs --profile"),
        (["s.yaml", "--from", "a", "--resume"], "--resume goes on with real runs"),
    ],
)
def test_options_of_the_other_mode_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["validate", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_result_without_journals_is_refused(world: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        cli, ["run", str(world / "world.yaml"), "-o", str(tmp_path / "run"), "--no-plots"]
    )
    assert run.exit_code == 0, run.output
    done = verb(world, "--from", str(tmp_path / "run"), "--json")
    assert "no result of `mosaicsim execute`: its journals or outputs are missing" in str(done.exception)


REAL: dict[str, list[float]] = {"a": [10.0, 11.0], "b": [12.0, 13.0], "c": [12.5, 12.6]}


def test_a_ranking_counts_where_repeats_leave_no_doubt() -> None:
    right = rank(REAL, {"a": 9.0, "b": 14.0, "c": 12.0})
    assert right["order_real"] == ["a", "b", "c"]
    assert right["order_simulated"] == ["a", "c", "b"]
    assert [pair["decided"] for pair in right["pairs"]] == [True, True, False], "b and c overlap"
    assert right["agrees"] is True
    assert right["kendall_tau"] == pytest.approx(1 / 3)
    wrong = rank(REAL, {"a": 13.0, "b": 12.0, "c": 14.0})
    assert wrong["agrees"] is False
    assert wrong["pairs"][0]["speedup_real"] == pytest.approx(12.5 / 10.5)


def test_a_tie_is_no_right_order_and_one_repeat_decides_nothing() -> None:
    tied = rank(REAL, {"a": 12.0, "b": 12.0, "c": 13.0})
    assert tied["pairs"][0]["concordance"] == 0
    assert tied["agrees"] is False
    once = rank({"a": [1.0], "b": [2.0]}, {"a": 1.0, "b": 2.0})
    assert once["decided"] == 0
    assert once["agrees"] is None
    assert once["kendall_tau"] == 1


figure = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(figure, figure), min_size=1, max_size=30))
def test_errors_bound_each_other(pairs: list[tuple[float, float]]) -> None:
    real, simulated = np.array(pairs).T
    found: dict[str, Any] = errors_of(real, simulated)
    assert found["n"] == len(pairs)
    assert found["p50_pct"] <= found["p95_pct"] * (1 + 1e-12)
    assert found["mape_pct"] >= 0
    same = errors_of(real, 1.1 * real)
    assert same["mean_error_pct"] == pytest.approx(10)
    assert same["mape_pct"] == pytest.approx(10)
