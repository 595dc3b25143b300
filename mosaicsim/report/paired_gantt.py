"""Real runs and their replays one above the other, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes

from mosaicsim.analysis.result import Run
from mosaicsim.report.gantt import draw_panels
from mosaicsim.report.style import say


def paired_gantt(
    pairs: Sequence[tuple[Run, Run]], experts: Sequence[str], workers: tuple[str, ...], ax: Axes | None = None
) -> Axes:
    """Two panels a scheduler: the real run, and below it the same sessions simulated."""
    runs = [_named(run, kind) for pair in pairs for run, kind in zip(pair, ("real", "replay"), strict=True)]
    ax, lines = draw_panels(runs, experts, workers, ax)
    gate, replicate = pairs[0][0].gate, pairs[0][0].replicate
    detail = (
        f"gate {gate}, replicate {replicate}, first repeat; replay: the same sessions and lengths simulated"
    )
    say(ax, _finding(pairs), detail, room=lines)
    return ax


def _named(run: Run, kind: str) -> Run:
    return replace(run, scheduler=f"{run.scheduler}, {kind}")


def _finding(pairs: Sequence[tuple[Run, Run]]) -> str:
    errors = {
        real.scheduler: replayed.metrics["makespan_s"] / real.metrics["makespan_s"] - 1
        for real, replayed in pairs
    }
    said = ", ".join(f"{error:+.1%} under {name}" for name, error in errors.items())
    return f"The simulated makespan is off by {said}"
