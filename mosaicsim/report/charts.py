"""Charts that compare schedulers: GPU time by state, and speedups."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mosaicsim.analysis.result import BASELINE, Result
from mosaicsim.report.means import Row, baseline_of, best_of, gates_of, rows_of
from mosaicsim.report.style import (
    GREY,
    INK,
    STATES,
    axes_or_new,
    ink_on,
    key_above,
    lighter,
    percent,
    rows_only,
    say,
)


def gpu_time(result: Result, ax: Axes | None = None, *, gate: str | None = None) -> Axes:
    """GPU-seconds by state as a stacked bar a scheduler, mean over the replicates.

    ``gate`` is the first of the result unless given.
    """
    gate = gate or gates_of(result)[0]
    rows = rows_of(result, gate)
    ax = axes_or_new(ax, 1.5 + 0.36 * len(rows))
    most = max(sum(row.gpu_time().values()) for row in rows)
    for y, row in enumerate(rows):
        _stack(ax, y, row.gpu_time(), most)
    rows_only(ax, [_name(row) for row in rows])
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, most * 1.01)
    ax.set_xlabel(f"GPU-seconds from the start to the last answer, gate {gate}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    shown = [s for s in STATES if s != "down" or any(row.gpu_time()["down"] for row in rows)]
    lines = key_above(ax, [Patch(fc=STATES[s], ec=GREY, lw=0.5, label=s) for s in shown])
    say(ax, _waste(rows), room=lines)
    return ax


def _stack(ax: Axes, y: int, by_state: dict[str, float], most: float) -> None:
    """One bar; a share is written where it has room."""
    left, total = 0.0, sum(by_state.values())
    for state, colour in STATES.items():
        value = by_state[state]
        ax.barh(y, value, 0.72, left=left, color=colour, edgecolor=GREY, linewidth=0.5)
        if value > 0.035 * most:
            share = percent(value / total)
            ax.text(left + value / 2, y, share, ha="center", va="center", fontsize=7.5, color=ink_on(colour))
        left += value


def _waste(rows: list[Row]) -> str:
    best, base = best_of(rows), baseline_of(rows)
    text = f"GPUs idle {_idle_share(base or best):.0%} of the time under {(base or best).scheduler}"
    return text if base in (None, best) else f"{text}, {_idle_share(best):.0%} under {best.scheduler}"


def _idle_share(row: Row) -> float:
    by_state = row.gpu_time()
    return by_state["idle"] / sum(by_state.values())


def speedups(result: Result, ax: Axes | None = None) -> Axes:
    """How many times as fast as round_robin: the expert stage (of the first gate), and end to end by gate.

    Bars are means over the replicates, thin lines reach from the lowest to the highest. Raises ValueError
    where round_robin did not run beside another scheduler.
    """
    rows, gates = rows_of(result), gates_of(result)
    others = [row for row in rows if row.gate == gates[0] and row.scheduler != BASELINE]
    if baseline_of(rows) is None or not others:
        raise ValueError(f"a speedup needs {BASELINE} and another scheduler")
    shades = [lighter(STATES["decode"], 0.25 + 0.5 * i / max(1, len(gates) - 1)) for i in range(len(gates))]
    pitch = len(gates) + 1.7
    ax = axes_or_new(ax, 1.6 + len(others) * 0.2 * pitch)
    for i, first in enumerate(others):
        _bar(ax, i * pitch, first, "expert_stage_speedup", STATES["decode"])
        of_scheduler = [row for row in rows if row.scheduler == first.scheduler]
        for j, (row, shade) in enumerate(zip(of_scheduler, shades, strict=True)):
            _bar(ax, i * pitch + 1 + j, row, "speedup", shade)
    rows_only(ax, [_name(row) for row in others], [i * pitch + len(gates) / 2 for i in range(len(others))])
    ax.set_ylim(len(others) * pitch - 0.9, -0.8)
    ax.axvline(1, color=INK, linewidth=0.9)
    ax.set_xlim(0, 1.1 * ax.dataLim.x1)
    spread = "; thin line: range of the replicates" if len(result.workloads) > 1 else ""
    ax.set_xlabel(f"times as fast as {BASELINE} under the same gate{spread}")
    say(ax, _gain(rows), room=key_above(ax, _speedup_key(rows, gates, shades)))
    return ax


def _bar(ax: Axes, y: float, row: Row, metric: str, colour: str) -> None:
    values = row.values(metric)
    ax.barh(y, values.mean(), 0.86, color=colour, linewidth=0)
    ax.plot([values.min(), values.max()], [y, y], color=INK, linewidth=0.9, solid_capstyle="butt")
    ax.annotate(
        f"{values.mean():.2f}x", (values.max(), y), xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=7.5, color=INK, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
    )  # fmt: skip


def _speedup_key(rows: list[Row], gates: list[str], shades: list[str]) -> list[Patch]:
    """One patch a shade; the expert stage is told by its gate where gates change it, by cancelling calls."""
    by_scheduler: dict[str, set[float | None]] = {}
    for row in rows:
        by_scheduler.setdefault(row.scheduler, set()).add(row.mean("expert_stage_speedup"))
    of_gate = f", {gates[0]}" if any(len(found) > 1 for found in by_scheduler.values()) else ""
    key = [Patch(color=STATES["decode"], label=f"expert stage{of_gate}")]
    return key + [
        Patch(color=shade, label=f"end to end, {gate}") for gate, shade in zip(gates, shades, strict=True)
    ]


def _gain(rows: list[Row]) -> str:
    best = best_of(rows)
    if best.scheduler == BASELINE:
        return f"No scheduler is faster than {BASELINE}"
    stage, whole = best.mean("expert_stage_speedup"), best.mean("speedup")
    return (
        f"{best.scheduler} runs the expert stage {stage:.2f}x as fast as {BASELINE}, "
        f"everything {whole:.2f}x with {best.gate}"
    )


def _name(row: Row) -> str:
    return row.scheduler + ("\n(sees lengths)" if row.sees_lengths else "")
