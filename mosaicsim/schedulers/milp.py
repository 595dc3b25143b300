"""The makespan MILP on PuLP and HiGHS; the only module that touches PuLP.

PuLP builds the model; HiGHS is then driven through its own handle, because PuLP 3.3 drops the warm start and
does not know HiGHS's node-limit status, and no PuLP tells the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import pulp

from mosaicsim.schedulers.makespan import MakespanModel
from mosaicsim.workload.calls import Bools, Floats, Ints

_STATUS = {
    highspy.HighsModelStatus.kOptimal: "optimal",
    highspy.HighsModelStatus.kSolutionLimit: "node_limit",
    highspy.HighsModelStatus.kTimeLimit: "time_limit",
}


@dataclass(frozen=True)
class MakespanSolution:
    """What the solver found: fractional calls and used pairs, and a bound no integer plan can beat.

    ``status`` is "optimal" (within the gap asked for), "node_limit" or "time_limit".
    """

    shares: Floats
    used: Bools
    best_bound_s: float
    nodes: int
    status: str


def solve(
    model: MakespanModel, incumbent: Ints, gap: float, node_limit: int, time_limit_s: float
) -> MakespanSolution:
    """Improve on ``incumbent`` (feasible shares) until the relative gap, or a limit, is reached.

    Calls are continuous in the model: the caller rounds. What makes 64 experts on 32 workers provable is the
    incumbent's makespan U. A plan better than U puts at most ``(U - backlog - fixed) / slope`` calls of an
    expert on a worker, which replaces N_m in X <= N_m Y, and so needs a least number of replicas. The
    bound is capped at U, since plans worse than U are cut off.
    """
    ceiling_s = float(model.finish_s(incumbent).max())
    most = _most_calls(model, ceiling_s)
    problem, calls, used, finish = _build(model, most)
    # One thread always: HiGHS's thread count is process-global and results must not depend on it.
    solver = pulp.HiGHS(
        msg=False, threads=1, gapRel=gap, timeLimit=time_limit_s, output_flag=False, mip_max_nodes=node_limit
    )
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs = problem.solverModel
    start = {var.name: float(n) for var, n in zip(calls.flat, incumbent.flat, strict=True)}
    start |= {var.name: float(n > 0) for var, n in zip(used.flat, incumbent.flat, strict=True)}
    start[finish.name] = ceiling_s
    # PuLP 4 leaves unused variables out of the solver's model and lists the others here.
    columns = getattr(problem, "exported_variables", problem.variables)()
    solution = highspy.HighsSolution()
    solution.col_value = [start[var.name] for var in columns]
    highs.setSolution(solution)
    highs.run()
    column = {var.name: i for i, var in enumerate(columns)}
    values, info, status = highs.getSolution().col_value, highs.getInfo(), highs.getModelStatus()
    return MakespanSolution(
        shares=_matrix(calls, column, values),
        used=_matrix(used, column, values) > 0.5,
        best_bound_s=min(float(info.mip_dual_bound), ceiling_s),
        nodes=int(info.mip_node_count),
        status=_STATUS.get(status, highs.modelStatusToString(status)),
    )


def _most_calls(model: MakespanModel, ceiling_s: float) -> Floats:
    """Most calls of an expert on a worker in a plan no worse than the ceiling; shape (experts, workers)."""
    room_s = np.maximum(ceiling_s - model.backlog_s - model.fixed_s, 0.0)
    fits = np.full(room_s.shape, np.inf)
    np.divide(room_s, model.slope_s, out=fits, where=model.slope_s > 0)
    return np.minimum(np.floor(fits + 1e-6), model.calls[:, None])


def _least_replicas(calls: int, most: Floats) -> int:
    """Fewest workers whose ``most`` add up to the expert's calls."""
    return 1 + int(np.searchsorted(np.cumsum(np.sort(most)[::-1]), calls - 1e-6))


def _build(model: MakespanModel, most: Floats) -> tuple[Any, Any, Any, Any]:
    """Equations (4)-(10) of the paper, tightened by ``most``: problem, X, Y and the makespan variable."""
    experts, workers = (range(n) for n in model.fixed_s.shape)
    problem = pulp.LpProblem("expert_stage", pulp.LpMinimize)
    finish = problem.add_variable("finish_s", lowBound=0)
    x = np.array([[problem.add_variable(f"x_{m}_{w}", 0, most[m, w]) for w in workers] for m in experts])
    y = np.array([[problem.add_variable(f"y_{m}_{w}", 0, 1, "Integer") for w in workers] for m in experts])
    problem += pulp.lpSum([finish])
    for m in experts:
        problem += pulp.lpSum(x[m]) == int(model.calls[m])
        problem += pulp.lpSum(y[m]) >= _least_replicas(int(model.calls[m]), most[m])
        problem += pulp.lpSum(y[m]) <= int(model.replicas[m])
        for w in workers:
            problem += x[m, w] - most[m, w] * y[m, w] <= 0
    for w in workers:
        load = [(y[m, w], model.fixed_s[m, w]) for m in experts] + [
            (x[m, w], model.slope_s[m, w]) for m in experts
        ]
        problem += pulp.lpSum(var * float(seconds) for var, seconds in load) - finish <= -float(
            model.backlog_s[w]
        )
        problem += pulp.lpSum(y[:, w]) <= model.per_worker
    return problem, x, y, finish


def _matrix(variables: Any, column: dict[str, int], values: list[float]) -> Floats:
    """Values of a matrix of variables."""
    return np.array([[values[column[var.name]] for var in row] for row in variables])
