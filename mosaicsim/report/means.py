"""Runs of one scheduler under one gate, taken together over the replicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.analysis.result import BASELINE, Result, Run
from mosaicsim.workload.calls import Floats


@dataclass(frozen=True)
class Row:
    """The replicates of one (scheduler, gate): a row of the table, a bar of a chart."""

    scheduler: str
    gate: str
    runs: tuple[Run, ...]

    @property
    def sees_lengths(self) -> bool:
        """Whether the scheduler was told the true output lengths."""
        return self.runs[0].sees_lengths

    def values(self, metric: str) -> Floats:
        """A metric of each replicate that has it, shape (at most replicates,)."""
        found = (run.metrics.get(metric) for run in self.runs)
        return np.array([value for value in found if value is not None], np.float64)

    def mean(self, metric: str) -> float | None:
        """Mean over the replicates; None where none has the metric."""
        values = self.values(metric)
        return float(values.mean()) if len(values) else None

    def half_range(self, metric: str) -> float | None:
        """Half the distance from the lowest to the highest replicate; None for fewer than two."""
        values = self.values(metric)
        return float(np.ptp(values)) / 2 if len(values) > 1 else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Mean ends of an interval metric such as ``delta_pp_ci95``; None where no replicate has it."""
        ends = [run.metrics[metric] for run in self.runs if run.metrics.get(metric) is not None]
        if not ends:
            return None
        low, high = np.mean(ends, axis=0)
        return float(low), float(high)

    def gpu_time(self) -> dict[str, float]:
        """Mean GPU-seconds by state."""
        return {
            state: float(np.mean([run.gpu_time[state] for run in self.runs]))
            for state in self.runs[0].gpu_time
        }


def rows_of(result: Result, gate: str | None = None) -> list[Row]:
    """A Row a (gate, scheduler), gate by gate, both in scenario order; of one gate when given."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in result.runs:
        groups.setdefault((run.gate, run.scheduler), []).append(run)
    gates = gates_of(result)
    rows = [Row(scheduler, of, tuple(runs)) for (of, scheduler), runs in groups.items()]
    return [row for row in sorted(rows, key=lambda r: gates.index(r.gate)) if gate in (None, row.gate)]


def gates_of(result: Result) -> list[str]:
    """Labels of the gates, in scenario order."""
    return list(dict.fromkeys(run.gate for run in result.runs))


def best_of(rows: list[Row], metric: str = "makespan_s") -> Row:
    """The row with the lowest mean; one that sees true lengths only if there is no other."""
    return min(rows, key=lambda row: (row.sees_lengths, row.mean(metric) or 0.0))


def baseline_of(rows: list[Row]) -> Row | None:
    """The row the speedups refer to, or None where round_robin did not run."""
    return next((row for row in rows if row.scheduler == BASELINE), None)
