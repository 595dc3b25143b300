"""What every GPU did under every scheduler, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from mosaicsim.analysis.result import BASELINE, Result, Run
from mosaicsim.report.bars import AGGREGATOR_NAME, Bar, Part, bars_of
from mosaicsim.report.facts import experts_of
from mosaicsim.report.means import gates_of
from mosaicsim.report.style import (
    AGGREGATOR,
    GREY,
    INK,
    RULE,
    axes_or_new,
    expert_colours,
    ink_on,
    key_above,
    lighter,
    rows_only,
    say,
    seconds,
    text_points,
    width_of,
)

TEXT_SIZE = 8.0
"""Points; rows that are thinner than that have smaller labels."""


@dataclass(frozen=True)
class _Layout:
    """Sizes of a chart of ``n_runs`` panels: the height of a row in inches, the rest in rows."""

    n_runs: int
    n_workers: int

    @property
    def row_inches(self) -> float:
        """Rows get thinner where there are many."""
        return max(0.11, min(0.235, 16 / (self.n_runs * self.n_workers)))

    @property
    def panel(self) -> float:
        """A panel with its own line above and some room below."""
        return self.n_workers + 0.38 / self.row_inches

    def top(self, panel: int) -> float:
        """Where the first GPU's row of a panel begins."""
        return panel * self.panel + 0.25 / self.row_inches

    @property
    def label_size(self) -> float:
        """Points of the labels in rows and beside them."""
        return min(TEXT_SIZE - 1, 0.7 * 72 * self.row_inches)

    @property
    def height(self) -> float:
        """Inches of the figure."""
        return 1.6 + self.n_runs * self.panel * self.row_inches


def gantt(result: Result, ax: Axes | None = None, *, gate: str | None = None, replicate: int = 0) -> Axes:
    """Rows of GPUs, a panel a scheduler: loading hatched, generating solid, its tail lighter, idle blank.

    ``gate`` is the first of the result unless given. A dashed line marks the makespan of each panel.
    """
    gate = gate or gates_of(result)[0]
    runs, experts = result.of_replicate(replicate, gate), result.workloads[replicate].experts
    ax, lines = draw_panels(runs, experts, result.workers, ax, experts_of(result))
    say(ax, _finding(runs), f"gate {gate}, replicate {replicate}, one row a GPU", room=lines)
    return ax


def draw_panels(
    runs: Sequence[Run],
    experts: Sequence[str],
    workers: tuple[str, ...],
    ax: Axes | None = None,
    coloured: Sequence[str] = (),
) -> tuple[Axes, int]:
    """A panel a run with its key, and the lines that the key takes above the axes.

    ``experts`` are those of the runs' workload; ``coloured``, if given, all that need a colour of their own.
    """
    layout = _Layout(len(runs), len(workers))
    ax = axes_or_new(ax, layout.height)
    ax.set_xlim(0, max(run.metrics["makespan_s"] for run in runs) * 1.07)
    ax.set_ylim(layout.top(len(runs) - 1) + layout.n_workers + 0.2, 0)
    colours = expert_colours(coloured or experts) | {AGGREGATOR_NAME: AGGREGATOR}
    panels = [bars_of(run, experts) for run in runs]
    for i, (run, bars) in enumerate(zip(runs, panels, strict=True)):
        for bar in bars:
            _draw(ax, bar, layout.top(i), colours[bar.name], layout.label_size)
        _frame(ax, run, layout.top(i), layout.n_workers)
    _axes(ax, workers, layout)
    lines = key_above(ax, _state_key())
    ran = {bar.name for bars in panels for bar in bars}
    lines += key_above(
        ax, [Patch(fc=c, label=name) for name, c in colours.items() if name in ran], lift=lines
    )
    return ax, lines


def _axes(ax: Axes, workers: tuple[str, ...], layout: _Layout) -> None:
    panels, rows = range(layout.n_runs), range(layout.n_workers)
    rows_only(ax, workers * layout.n_runs, [layout.top(i) + row + 0.5 for i in panels for row in rows])
    ax.tick_params(axis="y", labelsize=layout.label_size, labelcolor=GREY, pad=3)
    ax.set_xlabel("seconds since the start")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _draw(ax: Axes, bar: Bar, top: float, colour: str, label_size: float) -> None:
    """One bar, and its name on the first part that is wide enough, if one is."""
    for part in bar.parts:
        corner, width = (part.start_s, top + bar.top), part.end_s - part.start_s
        patch = Rectangle(corner, width, bar.bottom - bar.top, facecolor=_fill(part, colour), linewidth=0)
        if part.state == "load":
            patch.set(hatch="//////", edgecolor=lighter(colour, 0.25))
        ax.add_patch(patch)
    label_size *= min(1.0, 1.3 * (bar.bottom - bar.top))  # a lane is thinner than a row
    low, high = ax.get_xlim()
    needed_s = (text_points(bar.name, label_size) + 6) * (high - low) / (width_of(ax) * 72 * 0.9)
    part_with_room = next(
        (p for p in bar.parts if p.state != "load" and p.end_s - p.start_s > needed_s), None
    )
    if bar.label_at is not None and part_with_room:
        ax.annotate(
            bar.name, (part_with_room.start_s, top + bar.label_at), xytext=(3, -0.5),
            textcoords="offset points", va="center", fontsize=label_size,
            color=ink_on(_fill(part_with_room, colour)),
        )  # fmt: skip


def _fill(part: Part, colour: str) -> str:
    return {"load": "white", "generate": colour, "tail": lighter(colour, 0.55)}[part.state]


def _frame(ax: Axes, run: Run, top: float, n_workers: int) -> None:
    """What a panel has beside its bars: its own line above, a rule below, and the makespan."""
    makespan, foot = run.metrics["makespan_s"], top + n_workers
    ax.plot([0, makespan], [foot, foot], color=RULE, linewidth=0.6, zorder=0)
    ax.plot([makespan, makespan], [top - 0.1, foot + 0.1], color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
    _note(ax, _length(makespan), (makespan, top + n_workers / 2), 4, color=INK)
    name = run.scheduler + (" (sees true lengths)" if run.sees_lengths else "")
    stage, idle = _length(run.metrics["expert_stage_s"]), run.metrics["idle_fraction"]
    _note(ax, name, (0, top), 0, color=INK, above=True, bold=True)
    after = text_points(name, TEXT_SIZE) * 1.2 + 8
    _note(ax, f"expert stage {stage}, GPUs idle {idle:.0%} of it", (0, top), after, color=GREY, above=True)


def _length(value: float) -> str:
    """Seconds, with a decimal where a run is so short that one matters."""
    return f"{value:.1f} s" if value < 100 else seconds(value)


def _note(
    ax: Axes,
    text: str,
    at: tuple[float, float],
    right: float,
    *,
    color: str,
    above: bool = False,
    bold: bool = False,
) -> None:
    """Text ``right`` points beside, or also just above, a place in the data."""
    ax.annotate(
        text, at, xytext=(right, 2 if above else 0), textcoords="offset points", fontsize=TEXT_SIZE,
        va="bottom" if above else "center", color=color, fontweight="bold" if bold else "normal",
        annotation_clip=False,
    )  # fmt: skip


def _state_key() -> list[Patch]:
    grey = "#777777"
    return [
        Patch(facecolor="white", edgecolor=grey, hatch="//////", linewidth=0, label="load the model"),
        Patch(facecolor=grey, label="generate"),
        Patch(facecolor=lighter(grey, 0.55), label="tail: less than a quarter of the batch"),
        Patch(facecolor="white", edgecolor=RULE, label="idle"),
    ]


def _finding(runs: list[Run]) -> str:
    """Who is first, by how much."""
    best = min(runs, key=lambda run: (run.sees_lengths, run.metrics["makespan_s"]))
    base = next((run for run in runs if run.scheduler == BASELINE), None)
    took = seconds(best.metrics["makespan_s"])
    if base is None or base is best:
        others = f", the least of {len(runs)} schedulers" if len(runs) > 1 else ""
        return f"{best.scheduler} takes {took}{others}"
    idle = " to ".join(f"{run.metrics['idle_fraction']:.0%}" for run in (base, best))
    return (
        f"{best.scheduler} takes {took}, {BASELINE} {seconds(base.metrics['makespan_s'])}; "
        f"GPU idle time in the expert stage goes from {idle}"
    )
