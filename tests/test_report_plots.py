"""The plots: that they show the result's figures, at every size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from result_fixture import SCHEDULERS, make_result

from mosaicsim.analysis.result import Result, Run
from mosaicsim.cli.plot import plot
from mosaicsim.errors import OutputError
from mosaicsim.report import plots
from mosaicsim.report.bars import ROOM, bars_of
from mosaicsim.report.facts import agreement, call_counts
from mosaicsim.report.folder import write_result
from mosaicsim.report.means import best_of, rows_of
from mosaicsim.report.style import EXPERTS, expert_colours, ink_on, lighter


@pytest.fixture(scope="module")
def result() -> Result:
    return make_result(n_questions=60)


def texts(ax: Axes) -> str:
    return "\n".join(text.get_text() for text in [*ax.texts, ax.title, *ax.get_yticklabels()])


def bars(ax: Axes) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def test_the_gantt_has_a_bar_for_every_interval_on_one_time_axis(result: Result) -> None:
    ax = plots.gantt(result, gate="plurality(tau=1)", replicate=1)
    runs = result.of_replicate(1, "plurality(tau=1)")
    drawn = sorted((round(b.get_x(), 6), round(b.get_width(), 6)) for b in bars(ax))
    wanted = sorted(
        (round(start, 6), round(end - start, 6))
        for run in runs
        for start, end in zip(run.timeline["start_s"].tolist(), run.timeline["end_s"].tolist(), strict=True)
    )
    assert drawn == wanted
    hatched = sum(bar.get_hatch() is not None for bar in bars(ax))
    assert hatched == sum(int((run.timeline["state"] == "load").sum()) for run in runs)


def test_the_gantt_marks_every_makespan_and_the_oracle(result: Result) -> None:
    ax = plots.gantt(result)
    for run in result.of_replicate(0, "always"):
        makespan = run.metrics["makespan_s"]
        assert any(list(line.get_xdata()) == [makespan, makespan] for line in ax.lines)
        assert f"{makespan:,.0f} s" in texts(ax)
    assert "oracle (sees true lengths)" in texts(ax)
    assert "ilp takes" in texts(ax)


def test_gpu_time_bars_add_up_to_every_gpu_until_the_end(result: Result) -> None:
    ax = plots.gpu_time(result)
    ends = [bar.get_x() + bar.get_width() for bar in bars(ax)][5::6]
    wanted = [4 * row.mean("makespan_s") for row in rows_of(result, "always")]  # type: ignore[operator]  # never None here
    np.testing.assert_allclose(ends, wanted)


def test_speedup_bars_are_the_means_and_their_lines_the_range(result: Result) -> None:
    ax = plots.speedups(result)
    rows = [row for row in rows_of(result) if row.scheduler == "ilp"]
    widths = [bar.get_width() for bar in bars(ax)][4:8]
    assert widths == [rows[0].mean("expert_stage_speedup"), *(row.mean("speedup") for row in rows)]
    assert list(ax.lines[5].get_xdata()) == [rows[0].values("speedup").min(), rows[0].values("speedup").max()]


def test_no_speedups_without_round_robin(tmp_path: Path) -> None:
    alone = make_result(schedulers=("ilp",), gates=("always",), n_questions=10)
    with pytest.raises(ValueError, match="round_robin"):
        plots.speedups(alone)
    assert "speedup.png" not in [path.name for path in plots.save_plots(alone, tmp_path)]


def test_popularity_counts_calls_over_replicates(result: Result) -> None:
    ax = plots.popularity(result)
    widths = [bar.get_width() for bar in bars(ax)]
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) == pytest.approx(180)
    assert f"max/min {call_counts(result).max_min:.2f}" in texts(ax)


def test_agreement_buckets_say_what_each_gate_skips(result: Result) -> None:
    found = {bucket.name: bucket for bucket in agreement(result)}
    assert sum(bucket.share for bucket in found.values()) == pytest.approx(1)
    assert found["3:0"].skipped == {"always": 0, "plurality(tau=1)": 1, "plurality(tau=0.667)": 1}
    assert found["2:1"].skipped == {"always": 0, "plurality(tau=1)": 0, "plurality(tau=0.667)": 1}
    assert found["1:1:1"].skipped == dict.fromkeys(("always", "plurality(tau=1)", "plurality(tau=0.667)"), 0)
    shown = texts(plots.agreement_buckets(result))
    assert f"{found['3:0'].share:.1%}" in shown
    assert "skipped by\nplurality\n(tau=1)" in shown
    assert "always" not in shown


def test_lengths_are_ranked_and_state_their_means(result: Result) -> None:
    ax = plots.lengths(result)
    lengths = np.concatenate(
        [w.outcomes.output_tokens[w.calls.expert == w.experts.index("QwenR1")] for w in result.workloads]
    )
    assert f"mean {lengths.mean():,.0f}, p99 {np.percentile(lengths, 99):,.0f}" in texts(ax)


def test_every_plot_draws_on_given_axes(result: Result) -> None:
    for draw in (
        plots.gantt,
        plots.gpu_time,
        plots.speedups,
        plots.lengths,
        plots.popularity,
        plots.agreement_buckets,
    ):
        ax = Figure().add_subplot()
        assert draw(result, ax) is ax  # type: ignore[operator]  # each takes (result, ax)


@pytest.mark.parametrize(("schedulers", "workers", "experts"), [(1, 1, 1), (12, 16, 8)])
def test_any_size_can_be_drawn(schedulers: int, workers: int, experts: int, tmp_path: Path) -> None:
    names = ("round_robin", *(f"greedy_{i}" for i in range(schedulers - 1)))
    sized = make_result(
        schedulers=names,
        gates=("always",),
        n_workers=workers,
        n_experts=experts,
        n_questions=30,
        replicates=1,
    )
    for path in plots.save_plots(sized, tmp_path, "svg"):
        assert path.stat().st_size > 1000


def test_the_plot_verb_remakes_the_same_files(result: Result, tmp_path: Path) -> None:
    first_gate = replace(result, runs=result.runs[: len(SCHEDULERS)], workloads=result.workloads[:1])
    first_gate = replace(first_gate, summary=result.summary | {"runs": [r.metrics for r in first_gate.runs]})
    write_result(first_gate, tmp_path / "r")
    ran = CliRunner().invoke(
        plot, [str(tmp_path / "r"), "-o", str(tmp_path / "again")], catch_exceptions=False
    )
    remade = [Path(line) for line in ran.stdout.splitlines()]
    assert {path.name for path in remade} >= {
        "gantt-always.png",
        "agreement.png",
        "speedup.png",
    }
    for path in remade:
        assert path.read_bytes() == (tmp_path / "r" / "plots" / path.name).read_bytes()


def test_the_plot_verb_says_where_it_cannot_write(result: Result, tmp_path: Path) -> None:
    write_result(result, tmp_path / "r", plots=False)
    (tmp_path / "file").write_text("")
    ran = CliRunner().invoke(plot, [str(tmp_path / "r"), "-o", str(tmp_path / "file")])
    assert isinstance(ran.exception, OutputError)
    assert "cannot be written" in str(ran.exception)


def timeline_run(intervals: list[tuple[int, int, float, float]]) -> Run:
    """A Run with only a timeline: (worker, session, start, end), all generating expert 0."""
    worker, session, start, end = (np.array(column) for column in zip(*intervals, strict=True))
    columns = {
        "worker": worker,
        "stage": np.full(len(worker), "expert"),
        "session": session,
        "expert": np.zeros(len(worker), np.int64),
        "state": np.full(len(worker), "generate"),
        "start_s": start,
        "end_s": end,
    }
    return Run("s", "always", 0, False, {}, {}, columns, {}, {})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 30)),
        min_size=1,
        max_size=14,
    )
)
def test_bars_on_a_shared_gpu_stay_in_its_row_and_never_cover_each_other(
    spans: list[tuple[int, int, int]],
) -> None:
    intervals = [(w, i, float(start), float(start + length)) for i, (w, start, length) in enumerate(spans)]
    drawn = bars_of(timeline_run(intervals), ["a"])
    assert len(drawn) == len(spans)
    for bar, (worker, _, _, _) in zip(drawn, intervals, strict=True):
        assert worker < bar.top < bar.bottom < worker + 1
    boxes = [(bar.parts[0].start_s, bar.parts[-1].end_s, bar.top, bar.bottom) for bar in drawn]
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart


def test_a_tensor_parallel_session_is_one_block_with_one_label() -> None:
    drawn = bars_of(timeline_run([(w, 0, 0.0, 9.0) for w in (0, 1, 3)]), ["a"])
    assert [bar.label_at for bar in drawn] == [1.0, None, 3.5]
    assert drawn[0].bottom == drawn[1].top == 1
    assert drawn[1].bottom == pytest.approx(2 - ROOM)


def test_the_best_row_sees_no_lengths_unless_all_do(result: Result) -> None:
    rows = rows_of(result, "always")
    assert best_of(rows).scheduler == "ilp"
    assert best_of([row for row in rows if row.sees_lengths]).scheduler == "oracle"


def test_colours_differ_within_a_pool_and_text_on_them_is_readable() -> None:
    colours = expert_colours([str(i) for i in range(20)])
    assert len(set(colours.values())) == len(EXPERTS)
    assert ink_on("#332288") == "white"
    assert ink_on(lighter("#332288", 0.9)) != "white"
