"""The result folder: whole or not at all, and read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from result_fixture import make_result

from mosaicsim.analysis.result import Result
from mosaicsim.errors import OutputError, UserInputError
from mosaicsim.report import plots
from mosaicsim.report.folder import NEEDED, check_writable, read_result, summary_text, write_result


@pytest.fixture(scope="module")
def result() -> Result:
    return make_result(n_questions=40)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_what_is_written_is_read_back(result: Result, tmp_path: Path) -> None:
    write_result(result, tmp_path / "r", plots=False)
    back = read_result(tmp_path / "r")
    assert back.summary == result.summary
    assert back.scenario == result.scenario
    assert back.workers == result.workers
    assert len(back.runs) == len(result.runs)
    for ours, theirs in zip(result.runs, back.runs, strict=True):
        assert (ours.scheduler, ours.gate, ours.replicate) == (
            theirs.scheduler,
            theirs.gate,
            theirs.replicate,
        )
        for mine, other in ((ours.calls, theirs.calls), (ours.timeline, theirs.timeline)):
            assert mine.keys() == other.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], other[name], err_msg=name)
    for before, after in zip(result.workloads, back.workloads, strict=True):
        assert (before.questions, before.categories, before.experts) == (
            after.questions,
            after.categories,
            after.experts,
        )
        for part in ("calls", "outcomes", "aggregator"):
            for name, column in vars(getattr(before, part)).items():
                np.testing.assert_array_equal(column, getattr(getattr(after, part), name), err_msg=name)


def test_unknown_times_and_experts_are_null_in_the_file(result: Result, tmp_path: Path) -> None:
    run = result.runs[0]
    calls = run.calls | {"start_s": np.where(np.arange(len(run.calls["start_s"])) == 0, -1.0, 5.0)}
    write_result(
        replace(result, runs=(replace(run, calls=calls), *result.runs[1:])), tmp_path / "r", plots=False
    )
    table = pq.read_table(tmp_path / "r" / "calls.parquet")
    assert table["start_s"][0].as_py() is None
    assert table["start_s"][1].as_py() == 5.0
    aggregated = [stage == "aggregator" for stage in table["stage"].to_pylist()]
    assert [expert is None for expert in table["expert"].to_pylist()] == aggregated


def test_the_same_result_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(result, tmp_path / name, plots=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == NEEDED | {"wall.json"}


def test_wall_clock_figures_stay_out_of_the_summary(result: Result, tmp_path: Path) -> None:
    write_result(result, tmp_path / "r", plots=False)
    assert json.loads((tmp_path / "r/wall.json").read_text()) == {"simulate_s": 1.25}
    assert "1.25" not in (tmp_path / "r/summary.json").read_text()
    assert yaml.safe_load((tmp_path / "r/scenario.resolved.yaml").read_text())["name"] == "made_up"


def test_a_summary_is_json_whatever_the_figures() -> None:
    base = make_result(n_questions=4, replicates=1)
    odd = {"a": float("inf"), "b": np.float64("nan"), "c": np.int64(3), "d": (1, np.array([0.1, 0.2]))}
    text = summary_text(replace(base, summary=odd))
    assert json.loads(text) == {"a": None, "b": None, "c": 3, "d": [1, [0.1, 0.2]]}


def test_an_earlier_result_and_an_empty_folder_are_replaced(result: Result, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    write_result(result, tmp_path / "r", plots=False)
    other = make_result(n_questions=10, replicates=1)
    write_result(other, tmp_path / "r", plots=False)
    assert read_result(tmp_path / "r").workloads[0].n_questions == 10
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_folder_with_other_things_is_never_touched(result: Result, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis.tex' and no result"):
        write_result(result, tmp_path)
    write_result(result, tmp_path / "r", plots=False)
    (tmp_path / "r" / "notes.md").write_text("mine")
    for attempt in (check_writable, lambda folder: write_result(result, folder)):
        with pytest.raises(OutputError, match=r"holds 'notes.md', which mosaicsim did not write"):
            attempt(tmp_path / "r")
    assert (tmp_path / "r" / "notes.md").read_text() == "mine"
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_where_no_folder_can_be_is_found_out_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="it is a file, not a folder"):
        check_writable(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file is not a folder"):
        check_writable(tmp_path / "file" / "deep" / "er")
    check_writable(tmp_path / "new" / "deep")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failure_leaves_what_was_there_and_nothing_half_written(
    error: BaseException,
    raised: type[BaseException],
    result: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_result(result, tmp_path / "r", plots=False)
    before = contents(tmp_path / "r")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(plots, "save_plots", fail)
    for folder in (tmp_path / "r", tmp_path / "new" / "deep"):
        with pytest.raises(raised):
            write_result(result, folder)
    assert contents(tmp_path / "r") == before
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_reading_what_is_no_result_says_so(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no such folder"):
        read_result(tmp_path / "absent")
    with pytest.raises(UserInputError, match="is missing"):
        read_result(tmp_path)
    write_result(result, tmp_path / "r", plots=False)
    whole = (tmp_path / "r/calls.parquet").read_bytes()
    (tmp_path / "r/calls.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserInputError, match=r"damaged result folder: .*Parquet"):
        read_result(tmp_path / "r")
    (tmp_path / "r/calls.parquet").write_bytes(whole)
    (tmp_path / "r/summary.json").write_text('{"runs": [')
    with pytest.raises(UserInputError, match="damaged result folder: JSONDecodeError"):
        read_result(tmp_path / "r")
