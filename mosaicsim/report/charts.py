"""Charts that compare schedulers: GPU time by state, and speedups."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mosaicsim.analysis.result import Result
from mosaicsim.report.means import BASELINE, Row, baseline_of, best_of, gates_of, rows_of
from mosaicsim.report.style import GREY, INK, STATES, axes_or_new, ink_on, key_above, lighter, rows_only, say


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
    lines = key_above(ax, [Patch(fc=c, ec=GREY, lw=0.5, label=state) for state, c in STATES.items()])
    say(ax, _waste(rows), room=lines)
    return ax


def _stack(ax: Axes, y: int, by_state: dict[str, float], most: float) -> None:
    """One bar; a share is written where it has room."""
    left, total = 0.0, sum(by_state.values())
    for state, colour in STATES.items():
        value = by_state[state]
        ax.barh(y, value, 0.72, left=left, color=colour, edgecolor=GREY, linewidth=0.5)
        if value > 0.035 * most:
            share = f"{value / total:.0%}"
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
    """How many times as fast as round_robin: the expert stage, and end to end under each gate.

    Bars are means over the replicates, thin lines reach from the lowest to the highest. Raises ValueError
    where round_robin did not run.
    """
    rows, gates = rows_of(result), gates_of(result)
    if baseline_of(rows) is None:
        raise ValueError(f"no speedups without {BASELINE}")
    schedulers = [row for row in rows if row.gate == gates[0] and row.scheduler != BASELINE]
    shades = {
        gate: lighter(STATES["decode"], 0.25 + 0.5 * i / max(1, len(gates) - 1))
        for i, gate in enumerate(gates)
    }
    lines = len(gates) + 1
    ax = axes_or_new(ax, 1.6 + len(schedulers) * (0.2 * lines + 0.14))
    for i, scheduler in enumerate(schedulers):
        top = i * (lines + 0.7)
        _bar(ax, top, scheduler, "expert_stage_speedup", STATES["decode"])
        for j, gate in enumerate(gates):
            row = next(r for r in rows if (r.scheduler, r.gate) == (scheduler.scheduler, gate))
            _bar(ax, top + 1 + j, row, "speedup", shades[gate])
    rows_only(
        ax,
        [_name(row) for row in schedulers],
        [i * (lines + 0.7) + (lines - 1) / 2 for i in range(len(schedulers))],
    )
    ax.set_ylim(len(schedulers) * (lines + 0.7) - 0.9, -0.8)
    ax.axvline(1, color=INK, linewidth=0.9)
    ax.set_xlim(
        0, max(row.values(m).max() for row in rows for m in ("speedup", "expert_stage_speedup")) * 1.1
    )
    ax.set_xlabel(f"times as fast as {BASELINE} under the same gate; thin line: range of the replicates")
    handles = [Patch(color=STATES["decode"], label="expert stage")]
    handles += [Patch(color=shade, label=f"end to end, {gate}") for gate, shade in shades.items()]
    say(ax, _gain(rows), room=key_above(ax, handles))
    return ax


def _bar(ax: Axes, y: float, row: Row, metric: str, colour: str) -> None:
    values = row.values(metric)
    ax.barh(y, values.mean(), 0.86, color=colour, linewidth=0)
    ax.plot([values.min(), values.max()], [y, y], color=INK, linewidth=0.9, solid_capstyle="butt")
    ax.annotate(
        f"{values.mean():.2f}x", (values.max(), y), xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=7.5, color=INK,
    )  # fmt: skip


def _gain(rows: list[Row]) -> str:
    best = best_of(rows, "makespan_s")
    stage, whole = best.mean("expert_stage_speedup"), best.mean("speedup")
    return (
        f"{best.scheduler} runs the expert stage {stage:.2f}x as fast as {BASELINE}, "
        f"end to end {whole:.2f}x with {best.gate}"
    )


def _name(row: Row) -> str:
    return row.scheduler + ("\n(sees lengths)" if row.sees_lengths else "")
