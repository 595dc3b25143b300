"""What every GPU did under every scheduler, on one time axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from mosaicsim.analysis.result import Result, Run
from mosaicsim.report.facts import experts_of
from mosaicsim.report.means import BASELINE, gates_of
from mosaicsim.report.style import (
    AGGREGATOR,
    GREY,
    INK,
    RULE,
    axes_or_new,
    expert_colours,
    ink_on,
    lighter,
    rows_only,
    say,
    seconds,
    text_points,
    width_of,
)

HEAD, GAP = 1.1, 0.55
"""Room for a panel's own line, and below a panel, in rows."""

LABEL_SIZE = 7.0


@dataclass(frozen=True)
class _Span:
    """One state of one session on one worker."""

    worker: int
    session: int
    name: str
    state: str
    start_s: float
    end_s: float


def gantt(result: Result, ax: Axes | None = None, *, gate: str | None = None, replicate: int = 0) -> Axes:
    """Panels of GPU rows, a panel a scheduler: loading hatched, generating solid, the tail lighter, idle blank.

    ``gate`` is the first of the result unless given. A dashed line marks the makespan of each panel.
    """
    gate = gate or gates_of(result)[0]
    runs, n_workers = result.of_replicate(replicate, gate), len(result.workers)
    ax = axes_or_new(ax, _height(len(runs), n_workers))
    longest = max(run.metrics["makespan_s"] for run in runs)
    ax.set_xlim(0, longest * 1.005)
    colours = expert_colours(experts_of(result)) | {"aggregator": AGGREGATOR}
    labels, at, tops = [], [], []
    for panel, run in enumerate(runs):
        top = panel * (HEAD + n_workers + GAP) + HEAD
        _draw(ax, run, _spans(run, result.workloads[replicate].experts), top, n_workers, colours)
        labels += result.workers
        at += [top + worker + 0.5 for worker in range(n_workers)]
        tops.append(top)
    rows_only(ax, labels, at)
    ax.tick_params(axis="y", labelsize=_label_size(n_workers), labelcolor=GREY, pad=3)
    ax.set_ylim(tops[-1] + n_workers + 0.2, 0)
    ax.set_xlabel("seconds since the start")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.legend(
        handles=_key(), ncols=5, loc="upper left", bbox_to_anchor=(0, -0.55 / _height(len(runs), n_workers)),
        frameon=False, fontsize=8, handlelength=1.6, columnspacing=1.4, borderaxespad=0, borderpad=0,
    )  # fmt: skip
    say(ax, _finding(runs), f"gate {gate}, replicate {replicate}; one row a GPU")
    return ax


def _height(n_runs: int, n_workers: int) -> float:
    """Inches: rows get thinner where there are many."""
    rows = n_runs * (HEAD + n_workers + GAP)
    return 1.5 + rows * max(0.1, min(0.235, 20 / rows))


def _label_size(n_workers: int) -> float:
    return 7.5 if n_workers <= 8 else 6.0


def _spans(run: Run, experts: tuple[str, ...]) -> list[_Span]:
    columns = run.timeline
    names = np.array([*experts, "aggregator"])[columns["expert"]]  # -1, the aggregator, is the last
    rows = zip(
        *(columns[key].tolist() for key in ("worker", "session")),
        names.tolist(),
        *(columns[key].tolist() for key in ("state", "start_s", "end_s")),
        strict=True,
    )
    return [_Span(*row) for row in rows]


def _draw(
    ax: Axes, run: Run, spans: list[_Span], top: float, n_workers: int, colours: dict[str, str]
) -> None:
    """One scheduler's panel."""
    for span in spans:
        colour, whole = colours[span.name], span.name == "aggregator"
        room = 0.0 if whole else 0.08
        look = {
            "load": {"facecolor": "white", "edgecolor": lighter(colour, 0.25), "hatch": "//////", "linewidth": 0},
            "generate": {"facecolor": colour, "linewidth": 0},
            "tail": {"facecolor": lighter(colour, 0.55), "linewidth": 0},
        }[span.state]
        corner, size = (span.start_s, top + span.worker + room), (span.end_s - span.start_s, 1 - 2 * room)
        ax.add_patch(Rectangle(corner, *size, **look))
    for name, start, end, row, rows in _bars(spans):
        _label_bar(ax, name, start, end, top + row + rows / 2, colours[name])
    makespan, foot = run.metrics["makespan_s"], top + n_workers
    ax.plot([0, makespan], [foot, foot], color=RULE, linewidth=0.6, zorder=0)
    ax.plot([makespan, makespan], [top - 0.1, foot + 0.1], color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
    _head(ax, run, top)


def _head(ax: Axes, run: Run, top: float) -> None:
    """The panel's own line: who, and how long each stage took."""
    metrics = run.metrics
    name = run.scheduler + (" (sees true lengths)" if run.sees_lengths else "")
    text = (
        f"expert stage {seconds(metrics['expert_stage_s'])}, GPUs idle {metrics['idle_fraction']:.0%} of it"
        f" · with the aggregator {seconds(metrics['makespan_s'])}"
    )
    shared = {"va": "bottom", "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(name, (0, top), xytext=(0, 2), fontsize=8.5, fontweight="bold", color=INK, **shared)
    after = text_points(name, 8.5) * 1.12 + 9
    ax.annotate(text, (0, top), xytext=(after, 2), fontsize=8, color=GREY, **shared)


def _bars(spans: list[_Span]) -> Iterator[tuple[str, float, float, int, int]]:
    """(name, start, end, first row, rows) of what a session generated; the aggregator's GPUs are one bar."""
    found: dict[tuple[int, int], list[_Span]] = {}
    for span in spans:
        if span.state != "load":
            found.setdefault((span.session, -1 if span.name == "aggregator" else span.worker), []).append(span)
    for bar in found.values():
        rows = [span.worker for span in bar]
        start, end = min(span.start_s for span in bar), max(span.end_s for span in bar)
        yield bar[0].name, start, end, min(rows), max(rows) - min(rows) + 1


def _label_bar(ax: Axes, name: str, start: float, end: float, middle: float, colour: str) -> None:
    """Write the name on the bar, where it is wide enough."""
    low, high = ax.get_xlim()
    points = (end - start) / (high - low) * width_of(ax) * 72 * 0.9
    if text_points(name, LABEL_SIZE) + 6 < points:
        ax.annotate(
            name, (start, middle), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=LABEL_SIZE, color=ink_on(colour),
        )  # fmt: skip


def _key() -> list[Patch]:
    grey = "#777777"
    return [
        Patch(facecolor="white", edgecolor=grey, hatch="//////", linewidth=0, label="load the model"),
        Patch(facecolor=grey, label="generate"),
        Patch(facecolor=lighter(grey, 0.55), label="tail (batch nearly empty)"),
        Patch(facecolor="white", edgecolor=RULE, label="idle"),
        Patch(facecolor=AGGREGATOR, label="aggregator"),
    ]


def _finding(runs: list[Run]) -> str:
    """Who is first, by how much."""
    best = min(runs, key=lambda run: (run.sees_lengths, run.metrics["makespan_s"]))
    base = next((run for run in runs if run.scheduler == BASELINE), None)
    took = seconds(best.metrics["makespan_s"])
    if base is None or base is best:
        return f"{best.scheduler} is done first, after {took}"
    return (
        f"{best.scheduler} is done after {took}, {BASELINE} after {seconds(base.metrics['makespan_s'])}: "
        f"idle GPU time in the expert stage falls from {base.metrics['idle_fraction']:.0%} "
        f"to {best.metrics['idle_fraction']:.0%}"
    )
