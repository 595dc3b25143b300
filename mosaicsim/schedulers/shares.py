"""Shares: how many calls of each expert each worker takes, and what that costs.

Every policy decides an integer matrix ``shares[m][w]`` first; which calls those are is a matter of slicing
the workload. A :data:`Table` turns a share into seconds, so that one search serves any cost view.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaicsim.errors import InfeasibleError
from mosaicsim.schedulers.base import PlannedSession, Problem, SessionCost
from mosaicsim.workload.calls import Ints

Table = list[list[list[float]]]
"""``table[m][w][n]``: seconds of a session of n calls of expert m on worker w, load included; 0 for n = 0."""


def require_workers(problem: Problem) -> None:
    """Raise InfeasibleError when calls are left and no worker is."""
    if len(problem.call_ids) and not problem.workers:
        raise InfeasibleError(f"no worker is left to run {len(problem.call_ids)} calls")


def session_s(cost: SessionCost, n_calls: int) -> float:
    """Seconds of one session by its profile: load and generate."""
    return cost.load_s + cost.predict_s(n_calls) if n_calls else 0.0


def profile_table(problem: Problem) -> Table:
    """Tabulate the profiled session costs, with the fixed part of a session in them.

    A dip in a measured sweep is noise: a session is never priced below a smaller one.
    """
    counts = problem.counts()
    tabulated: dict[tuple[int, int], list[float]] = {}
    for m, row in enumerate(problem.costs):
        for cost in row:
            if (m, id(cost)) not in tabulated:
                tabulated[m, id(cost)] = _tabulate(cost, int(counts[m]))
    return [[tabulated[m, id(cost)] for cost in row] for m, row in enumerate(problem.costs)]


def _tabulate(cost: SessionCost, n_max: int) -> list[float]:
    """Price 0..n_max calls; a sweep is piecewise linear, so its knots say everything."""
    if not n_max:
        return [0.0]
    knots = np.unique(np.append(cost.counts[cost.counts < n_max], [1.0, n_max]))
    generate = np.interp(np.arange(1, n_max + 1), knots, [cost.predict_s(k) for k in knots])
    seconds: list[float] = (cost.load_s + np.maximum.accumulate(generate)).tolist()
    return [0.0, *seconds]


def slice_calls(problem: Problem, shares: Sequence[Sequence[int]]) -> tuple[PlannedSession, ...]:
    """Cut each expert's calls, in workload order, into one slice a worker; sessions in first-seen order.

    Neighbouring calls stay together, and with them the identical prompts of an expert drawn twice.
    """
    sessions = []
    for m, row in enumerate(shares):
        calls, start = problem.calls_of(m), 0
        for worker, n in zip(problem.workers, row, strict=True):
            if n:
                sessions.append(PlannedSession(worker.index, m, calls[start : start + n]))
                start += n
    return tuple(sessions)


def deal_evenly(ranked: Ints, row: Sequence[int]) -> list[Ints]:
    """Deal ranked calls so that share w gets ``row[w]`` of them, spread evenly over the ranks, best first."""
    turns = np.concatenate([(np.arange(n) + 0.5) / n for n in row if n])
    owners = np.repeat(np.arange(len(row)), row)[np.argsort(turns, kind="stable")]
    return [ranked[owners == w] for w in range(len(row))]
