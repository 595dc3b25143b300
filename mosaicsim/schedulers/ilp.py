"""ilp, the paper's MOSAIC policy: equations (4)-(10), solved to a proven gap.

Departures, none of which changes the optimum: experts without calls are dropped (1 <= sum Y has no meaning
for them), HiGHS starts from a local search of ours, calls are continuous in the solver and rounded after;
the gap reported is that of the rounded plan.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mosaicsim.schedulers.balance import require_slots
from mosaicsim.schedulers.base import Plan, Problem, SchedulerOptions, SessionCost
from mosaicsim.schedulers.makespan import MakespanModel
from mosaicsim.schedulers.shares import require_workers, slice_calls
from mosaicsim.workload.calls import Ints


class IlpOptions(SchedulerOptions):
    """Options of ``ilp``."""

    max_models_per_worker: int = Field(2, ge=1, description="K: most experts one worker may load")
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="R_m for every expert; null: floor(That_m / l_m), at least 1, at most the workers",
    )
    cost: Literal["linear", "affine"] = Field(
        "linear", description="linear: tau_m a call (the paper); affine: a session also has a fixed part"
    )
    gap: float = Field(0.01, ge=0, lt=1, description="relative gap at which the solver may stop")
    node_limit: int = Field(2000, ge=1, description="most branch-and-bound nodes")
    time_limit_s: float = Field(
        120.0, gt=0, description="guard only: a plan that hits it depends on the machine"
    )


class Ilp:
    """Minimises the latest ``sum of load + tau_m * calls`` over who loads what and takes how many calls."""

    name: ClassVar[str] = "ilp"
    summary: ClassVar[str] = (
        "integer program over loads and call counts, with a proven gap (the paper's MOSAIC)"
    )
    Options: ClassVar[type[SchedulerOptions]] = IlpOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: IlpOptions) -> None:
        """Take the options."""
        self.options = options

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`.

        ``info`` holds objective, best_bound, gap, nodes, status, greedy_s (the start) and sessions. Raises
        InfeasibleError, naming the least K that works, if the experts do not fit.
        """
        require_workers(problem)
        if not len(problem.call_ids):
            return Plan((), max((worker.backlog_s for worker in problem.workers), default=0.0))
        counts = problem.counts()
        active = counts.nonzero()[0]
        require_slots(len(active), len(problem.workers), self.options.max_models_per_worker)
        found, info = self._optimise(self._model(problem, active, counts[active]))
        shares = np.zeros((len(counts), len(problem.workers)), np.int64)
        shares[active] = found
        return Plan(slice_calls(problem, shares.tolist()), float(info["objective"]), info)

    def _model(self, problem: Problem, active: Ints, calls: Ints) -> MakespanModel:
        """Price the experts that have calls."""
        n_workers = len(problem.workers)
        price = linear_cost if self.options.cost == "linear" else affine_cost
        rows = [(problem.costs[m], n) for m, n in zip(active.tolist(), calls.tolist(), strict=True)]
        lines = np.array([[price(cost, n, n_workers) for cost in costs] for costs, n in rows])
        loads = np.array([[cost.load_s for cost in costs] for costs, _ in rows])
        limit = self.options.max_replicas
        replicas = [limit or max(replica_limit(c, n, n_workers) for c in costs) for costs, n in rows]
        return MakespanModel(
            calls=calls,
            fixed_s=loads + lines[..., 0],
            slope_s=lines[..., 1],
            backlog_s=np.array([worker.backlog_s for worker in problem.workers]),
            replicas=np.minimum(replicas, np.minimum(calls, n_workers)),
            per_worker=self.options.max_models_per_worker,
        )

    def _optimise(self, model: MakespanModel) -> tuple[Ints, dict[str, float | int | str]]:
        """Shares within the gap, or the best found within the limits, and how they were found."""
        # PuLP takes a second to import, and listing the policies must not pay for it.
        from mosaicsim.schedulers.milp import solve

        options = self.options
        shares = model.start()
        objective = start_s = float(model.finish_s(shares).max())
        bound, nodes, status, gap = 0.0, 0, "optimal", 1.0
        # Rounding may cost up to a call a worker; where that leaves the gap open, ask for half of it.
        for asked in dict.fromkeys((options.gap, options.gap / 2)):
            found = solve(model, shares, asked, options.node_limit, options.time_limit_s)
            rounded = model.round(found.shares, found.used)
            if (rounded_s := float(model.finish_s(rounded).max())) < objective:
                shares, objective = rounded, rounded_s
            bound, nodes, status = max(bound, found.best_bound_s), nodes + found.nodes, found.status
            gap = max(objective - bound, 0.0) / objective if objective else 0.0
            if gap <= options.gap or status != "optimal":
                break
        return shares, {
            "objective": objective,
            "best_bound": min(bound, objective),
            "gap": gap,
            "nodes": nodes,
            # the solver was done, but whole calls leave more of a gap than was asked for
            "status": "rounded" if status == "optimal" and gap > options.gap else status,
            "greedy_s": start_s,
            "sessions": int((shares > 0).sum()),
        }


def replica_limit(cost: SessionCost, n_calls: int, n_workers: int) -> int:
    """The paper's R_m = clamp(1, floor(That_m / l_m), N); N where loading is free."""
    if cost.load_s <= 0:
        return n_workers
    return int(min(max(cost.predict_s(n_calls) // cost.load_s, 1), n_workers))


def linear_cost(cost: SessionCost, n_calls: int, n_workers: int) -> tuple[float, float]:
    """The paper's tau_m = That_m / N_m, with That_m read off the profiling sweep; no fixed part."""
    del n_workers
    return 0.0, cost.predict_s(n_calls) / n_calls


def affine_cost(cost: SessionCost, n_calls: int, n_workers: int) -> tuple[float, float]:
    """Fixed part and slope: least squares over even splits on 1..N workers (beyond the paper).

    However few calls a session has, it lasts as long as its longest; tau_m alone prices that floor at zero.
    """
    sizes = np.array([max(n_calls / parts, 1.0) for parts in range(1, max(n_workers, 2) + 1)])
    seconds = np.array([cost.predict_s(size) for size in sizes])
    spread = sizes - sizes.mean()
    if not spread.any():
        return linear_cost(cost, n_calls, n_workers)
    slope = min(max(float(spread @ seconds / (spread @ spread)), 0.0), float(seconds.mean() / sizes.mean()))
    return float(seconds.mean() - slope * sizes.mean()), slope
