"""The table `mosaicsim run` prints: schedulers by gate, means over the replicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaicsim.analysis.result import BASELINE, Result
from mosaicsim.report.facts import call_counts
from mosaicsim.report.means import Row, baseline_of, best_of, gates_of, rows_of

if TYPE_CHECKING:
    from rich.console import Console

PLAIN = str.maketrans({"±": "~", "·": "-", "†": "*", "‡": "#"})
"""What stands in where the terminal's encoding lacks a character."""

MODELLED = "modelled"
"""Label of a figure that does not come from recorded rows of the trace."""


@dataclass(frozen=True)
class _Column:
    """A figure: its two-line header, how it is written, and the labels that make it a modelled one."""

    header: str
    value: Callable[[Row], str]
    labels: tuple[str, ...] = ()
    spread: Callable[[Row], str] = lambda row: ""


def _figure(metric: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        mean = row.mean(metric)
        return "-" if mean is None else form.format(scale * mean)

    return text


def _half_range(metric: str, scale: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        half = row.half_range(metric)
        return "" if half is None else f" ±{scale * half:,.0f}"

    return text


def _seconds(header: str, metric: str, *labels: str) -> _Column:
    return _Column(header, _figure(metric, "{:,.0f}"), labels, _half_range(metric))


def _delta(row: Row) -> str:
    """Accuracy lost or gained by the gate; nothing skipped is what it is compared with."""
    mean, interval = row.mean("delta_pp"), row.interval("delta_pp_ci95")
    if mean is None:
        return "-"
    if not row.mean("skip_rate"):
        return "reference"
    return f"{mean:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


COLUMNS = (
    _seconds("expert\nstage s", "expert_stage_s", "output_tokens", "lengths"),
    _seconds("aggregator\nstage s", "aggregator_stage_s", "aggregator_stage", "output_tokens", "lengths"),
    _seconds("makespan\ns", "makespan_s", "aggregator_stage", "output_tokens", "lengths"),
    _Column("speed\nup", _figure("speedup", "{:.2f}x"), ("aggregator_stage", "output_tokens", "lengths")),
    _Column("\nidle", _figure("idle_fraction", "{:.1f}%", 100)),
    _Column("\nskip", _figure("skip_rate", "{:.1f}%", 100), ("answer",)),
    _Column("accu-\nracy", _figure("accuracy", "{:.1f}%", 100), ("accuracy", "answer")),
    _Column("delta pp\n[95 %]", _delta, ("delta_pp", "answer")),
    # signed errors of replicates cancel in the mean, so their range belongs beside it
    _Column(
        "pred.\nerror",
        _figure("prediction_error", "{:+.1f}%", 100),
        spread=_half_range("prediction_error", 100),
    ),
    _Column("above\nbound", _figure("bound_distance", "{:+.0f}%", 100)),
)
"""One a figure, after the scheduler's own."""


def print_result(result: Result, console: Console) -> None:
    """Print the header, the rows gate by gate, the headline and the footnotes to ``console``.

    No number is ever cut: where a terminal is too narrow the spread over replicates is left out, then lines
    run over.
    """
    rows, spread = rows_of(result), True
    cells = _cells(rows, spread)
    if console.is_terminal and sum(_widths(result, cells)) + len(COLUMNS) > console.width:
        spread = False
        cells = _cells(rows, spread)
    widths = _widths(result, cells)
    _print(console, _header(result), "bold")
    _print(console, "")
    _print_rows(console, widths, headers=_headers(result))
    for gate in gates_of(result):
        _print(console, f"gate {gate}", "bold cyan")
        of_gate = [(row, line) for row, line in zip(rows, cells, strict=True) if row.gate == gate]
        _print_rows(console, widths, rows=of_gate)
    for note in ["", *_headline(rows), *_footnotes(result, rows, spread)]:
        _print(console, note)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(_plain(text, console), style=style, markup=False, highlight=False, soft_wrap=True)


def _plain(text: str, console: Console) -> str:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN)
    return text


def _print_rows(
    console: Console,
    widths: list[int],
    headers: list[str] | None = None,
    rows: Sequence[tuple[Row, list[str]]] = (),
) -> None:
    """Print the headers, or the rows of one gate, in columns of the given widths."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=headers is not None)
    table.width = sum(widths) + len(COLUMNS)
    for i, width in enumerate(widths):
        header = _plain(headers[i], console) if headers else ""
        table.add_column(
            header, justify="right" if i else "left", min_width=width, no_wrap=True, header_style="bold"
        )
    best = best_of([row for row, _ in rows]) if rows else None
    for row, line in rows:
        style = "bold green" if row is best else "dim" if row.sees_lengths else ""
        name = f"{'>' if row is best else ' '} {line[0]}"
        table.add_row(*(Text(_plain(cell, console)) for cell in (name, *line[1:])), style=style)
    console.print(table, crop=False, soft_wrap=True)


def _cells(rows: list[Row], spread: bool) -> list[list[str]]:
    """The text of every cell; within a column the spreads start below each other."""
    columns = [[row.scheduler + (" †" if row.sees_lengths else "") for row in rows]]
    for column in COLUMNS:
        spreads = [column.spread(row) if spread else "" for row in rows]
        width = max(map(len, spreads))
        columns.append(
            [column.value(row) + text.ljust(width) for row, text in zip(rows, spreads, strict=True)]
        )
    return [list(line) for line in zip(*columns, strict=True)]


def _headers(result: Result) -> list[str]:
    labels = result.summary.get("labels", {})
    headers = ["\n  scheduler"]
    for column in COLUMNS:
        modelled = any(labels.get(name) == MODELLED for name in column.labels)
        headers.append(column.header + (" ‡" if modelled else ""))
    return headers


def _widths(result: Result, cells: list[list[str]]) -> list[int]:
    """Width of each column, so that nothing in it is cut; the first has a mark before the name."""
    headers = [max(map(len, header.split("\n"))) for header in _headers(result)]
    found = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [max(headers[0], found[0] + 2), *map(max, zip(headers[1:], found[1:], strict=True))]


def _header(result: Result) -> str:
    """What was run, in one line."""
    workload, counts = result.workloads[0], call_counts(result)
    parts = [
        f"{result.summary['scenario']}: {workload.n_questions:,} questions",
        f"{len(workload.calls):,} calls to {int((counts.calls > 0).sum())} experts",
        _cluster(result),
        f"popularity max/min {counts.max_min:.2f}, CV {counts.cv:.2f}",
        f"seed {result.summary['seed']}",
    ]
    return " · ".join(parts)


def _cluster(result: Result) -> str:
    """``4 x a100-80g``, from the scenario."""
    gpus: Counter[str] = Counter()
    for host in result.scenario["cluster"]["hosts"]:
        gpus[host["device"]] += host.get("gpus", 1)
    return ", ".join(f"{count} x {device}" for device, count in gpus.items())


def _headline(rows: list[Row]) -> list[str]:
    """The best schedule against the plain one without a gate, and what it costs in accuracy."""
    base, best = baseline_of(rows), best_of(rows)
    speedup = best.mean("end_to_end_speedup")
    if base is None or base.mean("end_to_end_speedup") != 1 or speedup is None or best is base:
        return []
    price = f", accuracy {_delta(best)} pp" if best.mean("skip_rate") else ""
    return [
        f"{base.scheduler} with gate {base.gate} takes {base.mean('makespan_s'):,.0f} s, "
        f"{best.scheduler} with {best.gate} {best.mean('makespan_s'):,.0f} s: {speedup:.2f}x{price}"
    ]


def _footnotes(result: Result, rows: list[Row], spread: bool) -> list[str]:
    notes = [f"> shortest makespan under its gate · speedup over {BASELINE} under the same gate"]
    if len(result.workloads) > 1:
        half = " ± half their range" if spread else ""
        notes.append(f"mean of {len(result.workloads)} replicates{half}, ends of the 95 % intervals averaged")
    notes.append(
        "idle: GPU time of the expert stage · pred. error: its forecast by the scheduler over what it took"
    )
    for row in result.summary.get("gates", ()):
        of = f" (replicate {row['replicate']})" if len(result.workloads) > 1 else ""
        notes.append(f"{row['gate']}{of}: {row['message']}")
    if any(run.metrics.get("replanned") for run in result.runs):
        notes.append("workers were lost on the way: what was replanned is in summary.json, `replanned`")
    if any(row.sees_lengths for row in rows):
        notes.append("† is shown the true output lengths: a yardstick, not a schedule one can run")
    if any("‡" in header for header in _headers(result)):
        notes.append("‡ rests on modelled lengths or answers, not on recorded ones; labels in summary.json")
    return notes
