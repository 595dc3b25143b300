"""The table on the console."""

from __future__ import annotations

import io
import re

import pytest
from result_fixture import make_result
from rich.console import Console

from mosaicsim.analysis.result import Result
from mosaicsim.report.console import print_result


def printed(result: Result, width: int | None = None, encoding: str = "utf-8") -> str:
    """What a terminal of that width shows, or what a pipe gets."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    terminal = {"force_terminal": True, "color_system": "standard", "width": width} if width else {}
    print_result(result, Console(file=stream, **terminal))  # type: ignore[arg-type]  # options by name
    stream.flush()
    return raw.getvalue().decode(encoding)


def plain(text: str) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


def row(lines: list[str], scheduler: str, gate: str) -> str:
    at = lines.index(f"gate {gate}")
    return next(line for line in lines[at:] if line[2:].startswith(scheduler))


def test_every_scheduler_under_every_gate_with_its_figures() -> None:
    result = make_result(replicates=1)
    lines = plain(printed(result))
    for run in result.runs:
        cells = row(lines, run.scheduler, run.gate)
        m = run.metrics
        shown = [f"{m['expert_stage_s']:,.0f}", f"{m['makespan_s']:,.0f}", f"{m['speedup']:.2f}x"]
        shown += [
            f"{m['idle_fraction']:.1%}",
            f"{m['skip_rate']:.1%}",
            f"{m['accuracy']:.1%}",
            "-9.0%",
            "+25%",
        ]
        assert [text for text in shown if text not in cells] == []


def test_the_best_row_of_each_gate_is_marked_and_never_the_oracle() -> None:
    result = make_result()
    lines = plain(printed(result))
    for gate in ("always", "plurality(tau=1)", "plurality(tau=0.667)"):
        assert row(lines, "ilp", gate).startswith("> ")
        assert row(lines, "round_robin", gate).startswith("  ")
        assert row(lines, "oracle", gate).startswith("  oracle †")
    assert any(line.startswith("† is shown the true output lengths") for line in lines)


def test_delta_comes_with_its_interval_and_full_aggregation_is_the_reference() -> None:
    lines = plain(printed(make_result(replicates=1)))
    assert re.search(r"-0\.\d\d \[-\d\.\d\d, \+\d\.\d\d\]", row(lines, "ilp", "plurality(tau=1)"))
    assert "reference" in row(lines, "ilp", "always")


def test_modelled_figures_are_marked_and_recorded_ones_are_not() -> None:
    recorded, modelled = make_result(), make_result(labels={"accuracy": "modelled"})
    assert "‡" not in printed(recorded)
    lines = plain(printed(modelled))
    assert "racy ‡" in lines[3]
    assert lines[3].count("‡") == 1
    assert lines[-1].startswith("‡")


def test_a_pipe_gets_no_colour_and_no_cut_line() -> None:
    result = make_result()
    text = printed(result)
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert "±" in text


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_narrow_terminal_drops_the_spread_and_no_figure(width: int) -> None:
    text = printed(make_result(n_questions=2100), width)
    lines = plain(text)
    assert "\x1b[" in text
    assert "±" not in "".join(line for line in lines if line[2:].startswith("ilp"))
    assert "…" not in text
    shown = row(lines, "ilp", "plurality(tau=1)")
    assert len(shown) <= 100
    assert len(re.findall(r"\d[\d,.]*", shown)) == 12  # ten figures, one with two ends


def test_an_ascii_terminal_gets_stand_ins() -> None:
    text = printed(make_result(labels={"accuracy": "modelled"}), encoding="ascii")
    assert "oracle *" in text
    assert " ~" in text


def test_a_study_without_round_robin_has_no_speedup() -> None:
    lines = plain(printed(make_result(schedulers=("greedy",), gates=("always",), replicates=1)))
    assert " - " in row(lines, "greedy", "always")


def test_the_header_states_the_workload_and_the_cluster() -> None:
    header = plain(printed(make_result(n_questions=1200)))[0]
    assert "1,200 questions" in header
    assert "3,600 calls to 6 experts" in header
    assert "4 x A100-80G" in header
    assert re.search(r"popularity max/min \d+\.\d\d", header)
