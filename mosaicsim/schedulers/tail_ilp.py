"""tail_ilp: the integer program with sessions priced tail and all, and plans tried before one is taken.

The cost of n calls bends: the longest runs at small-batch speed however few there are. The program takes a
fixed part and a slope from the profiled curve *at the size each expert is cut to*, and solves again until
the sizes settle. Then the plan is rehearsed on calibration questions, and what a worker took longer than
priced goes back into the prices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mosaicsim.schedulers.balance import require_slots
from mosaicsim.schedulers.base import Plan, PlannedSession, Problem, SchedulerOptions
from mosaicsim.schedulers.makespan import MakespanModel
from mosaicsim.schedulers.predictors import PredictorName, predict_tokens
from mosaicsim.schedulers.shares import deal_evenly, require_workers
from mosaicsim.workload.calls import Floats, Ints


class TailIlpOptions(SchedulerOptions):
    """Options of ``tail_ilp``."""

    max_models_per_worker: int | None = Field(
        None, ge=1, description="K: most experts one worker may load; null: no limit"
    )
    predictor: PredictorName = Field(
        "category", description="what lengths are predicted by, to order and deal an expert's calls"
    )
    order: Literal["longest_first", "fcfs"] = Field(
        "longest_first", description="order of calls in a session: by predicted length, or as they came"
    )
    scenes: int = Field(
        6, ge=0, description="rehearsals of each plan on calibration questions; 0: the profiled curve alone"
    )
    rounds: int = Field(4, ge=1, description="plans tried, each with prices corrected by the one before")
    objective: Literal["mean", "quantile"] = Field(
        "mean", description="what of the rehearsed makespans is least: their mean, or their 90 % quantile"
    )
    gap: float = Field(0.005, ge=0, lt=1, description="relative gap at which the solver may stop")
    node_limit: int = Field(2000, ge=1, description="most branch-and-bound nodes of a solve")
    time_limit_s: float = Field(
        60.0, gt=0, description="guard only: a plan that hits it depends on the machine"
    )


MOST_REFITS = 6
"""Solves in which fixed parts and slopes follow the sizes; they settle in two or three."""

STEP = 0.5
"""How much of what a rehearsal took longer than priced goes into the next prices."""


@dataclass(frozen=True)
class _Tried:
    """A plan and how it was found; ``value_s`` is what plans are compared by."""

    shares: Ints
    sessions: tuple[PlannedSession, ...]
    value_s: float
    info: dict[str, float | int | str]


class TailIlp:
    """Minimises the latest ``sum of load + fixed + slope * calls``, the curve's line at the sizes chosen."""

    name: ClassVar[str] = "tail_ilp"
    summary: ClassVar[str] = (
        "integer program with sessions priced as the profile bends, rehearsed on calibration questions"
    )
    Options: ClassVar[type[SchedulerOptions]] = TailIlpOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: TailIlpOptions) -> None:
        """Take the options; ``oracle`` as predictor sees lengths and marks the row."""
        self.options = options
        if options.predictor == "oracle":
            self.sees_lengths = True  # type: ignore[misc]  # this one object does

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`.

        ``info`` holds objective, best_bound and gap of the program the plan is from, its refits, and the
        rounds. Raises InfeasibleError, naming the least K that works, if the experts do not fit.
        """
        require_workers(problem)
        if not len(problem.call_ids):
            return Plan((), max((worker.backlog_s for worker in problem.workers), default=0.0))
        active = problem.counts().nonzero()[0]
        require_slots(len(active), len(problem.workers), self.options.max_models_per_worker)
        way = predict_tokens(problem, self.options.predictor)
        scenes = self.options.scenes if self._can_rehearse(problem) else 0
        factor = np.ones((len(active), len(problem.workers)))
        tried: list[_Tried] = []
        for _ in range(self.options.rounds if scenes else 1):
            shares, info = self._solve(problem, active, factor)
            sessions = self._sessions(problem, active, shares, way)
            if not scenes:
                return Plan(sessions, float(info["objective"]), info)
            value, ends = self._rehearse(problem, sessions, range(scenes))
            tried.append(_Tried(shares, sessions, value, info))
            factor = _corrected(problem, active, shares, factor, ends)
        best = min(tried, key=lambda t: t.value_s)
        # the least of several is biased low: what is promised comes from scenes that chose nothing
        promised, _ = self._rehearse(problem, best.sessions, range(scenes, 2 * scenes), mean=True)
        return Plan(best.sessions, promised, best.info | {"rounds": len(tried), "rehearsed_s": best.value_s})

    def _can_rehearse(self, problem: Problem) -> bool:
        return problem.rehearsal is not None and len(problem.call_ids) == len(problem.calls)

    def _solve(
        self, problem: Problem, active: Ints, factor: Floats
    ) -> tuple[Ints, dict[str, float | int | str]]:
        """Shares by the program, refitted until the sizes settle; shape (active experts, workers)."""
        # PuLP takes a second to import, and listing the policies must not pay for it.
        from mosaicsim.schedulers.milp import solve

        counts = problem.counts()[active]
        n_workers = len(problem.workers)
        sizes = np.repeat(np.maximum(counts / min(2, n_workers), 1.0)[:, None], n_workers, axis=1)
        best: tuple[float, Ints] | None = None
        info: dict[str, float | int | str] = {}
        for refit in range(MOST_REFITS):
            model = _model(problem, active, sizes, factor, self.options.max_models_per_worker)
            start = model.start()
            found = solve(model, start, self.options.gap, self.options.node_limit, self.options.time_limit_s)
            rounded = model.round(found.shares, found.used)
            if model.finish_s(start).max() < model.finish_s(rounded).max():
                rounded = start
            objective = float(model.finish_s(rounded).max())
            true_s = float(_curve_s(problem, active, rounded, factor).max())
            if best is None or true_s < best[0]:
                best = true_s, rounded
                info = {
                    "objective": objective,
                    "best_bound": min(found.best_bound_s, objective),
                    "gap": max(objective - found.best_bound_s, 0.0) / objective if objective else 0.0,
                    "nodes": found.nodes,
                    "status": found.status,
                    "curve_s": true_s,
                    "sessions": int((rounded > 0).sum()),
                }
            info["refits"] = refit
            # an expert's typical shard stands in where it has none
            used = np.where(rounded > 0, rounded, np.nan)
            typical = np.nanmean(used, axis=1, keepdims=True)
            following = np.where(rounded > 0, rounded, typical)
            if np.abs(following - sizes).max() < 0.02 * counts.max():
                break
            sizes = following
        assert best is not None
        return best[1], info

    def _sessions(
        self, problem: Problem, active: Ints, shares: Ints, way: Floats
    ) -> tuple[PlannedSession, ...]:
        """Deal every expert's calls: each shard its share of long ones, and the longest queued first."""
        sessions = []
        for m, row in zip(active.tolist(), shares.tolist(), strict=True):
            calls = problem.calls_of(m)
            ranked = calls[np.argsort(-way[calls], kind="stable")]
            for worker, own in zip(problem.workers, deal_evenly(ranked, row), strict=True):
                if len(own):
                    queued = np.sort(own) if self.options.order == "fcfs" else own
                    sessions.append(PlannedSession(worker.index, m, queued))
        return tuple(sessions)

    def _rehearse(
        self, problem: Problem, sessions: tuple[PlannedSession, ...], scenes: range, *, mean: bool = False
    ) -> tuple[float, Floats]:
        """The objective over some scenes, and the mean second at which each worker ended."""
        assert problem.rehearsal is not None
        # gate and aggregator do not matter here: the expert stage is played alone
        alone = replace(problem, gate=None)
        plays = [problem.rehearsal.play(self, Plan(sessions, 0.0), alone, scene) for scene in scenes]
        backlog = np.array([w.backlog_s for w in problem.workers])
        ends = np.array([play.worker_s for play in plays]) + backlog
        makespans = ends.max(axis=1)
        if mean or self.options.objective == "mean":
            return float(makespans.mean()), ends.mean(axis=0)
        return float(np.quantile(makespans, 0.9)), ends.mean(axis=0)


def _model(
    problem: Problem, active: Ints, sizes: Floats, factor: Floats, per_worker: int | None
) -> MakespanModel:
    counts = problem.counts()[active]
    rows = [problem.costs[m] for m in active.tolist()]
    lines = np.array(
        [
            [c.line_around(n) for c, n in zip(row, own, strict=True)]
            for row, own in zip(rows, sizes, strict=True)
        ]
    )
    loads = np.array([[c.load_s for c in row] for row in rows])
    return MakespanModel(
        calls=counts,
        fixed_s=loads + lines[..., 0] * factor,
        slope_s=lines[..., 1] * factor,
        backlog_s=np.array([worker.backlog_s for worker in problem.workers]),
        replicas=np.minimum(counts, len(problem.workers)),
        per_worker=len(active) if per_worker is None else per_worker,
    )


def _curve_s(problem: Problem, active: Ints, shares: Ints, factor: Floats) -> Floats:
    """Finish time of each worker by the curve itself; shape (workers,)."""
    ends = np.array([worker.backlog_s for worker in problem.workers])
    for i, m in enumerate(active.tolist()):
        for w, n in enumerate(shares[i].tolist()):
            if n:
                cost = problem.costs[m][w]
                ends[w] += cost.load_s + cost.predict_s(n) * factor[i, w]
    return ends


def _corrected(problem: Problem, active: Ints, shares: Ints, factor: Floats, ends: Floats) -> Floats:
    """Prices of the sessions of workers that ended later than priced go up, of the others down."""
    priced = _curve_s(problem, active, shares, factor)
    ratio = np.where(priced > 0, ends / np.maximum(priced, 1e-9), 1.0)
    reasoning = np.array([problem.costs[m][0].reasoning for m in active.tolist()])
    step = np.where(shares > 0, 1 + STEP * (ratio - 1), 1.0)
    # long experts are priced worst; where a worker has none, all it has
    blamed = np.where((shares > 0) & reasoning[:, None], True, False)
    blamed |= (shares > 0) & ~blamed.any(axis=0)
    updated = np.where(blamed, factor * step, factor)
    # a shard that moves takes its expert's mean correction with it
    mean = np.array([row[b].mean() if b.any() else 1.0 for row, b in zip(updated, blamed, strict=True)])
    return np.where(blamed, 0.5 * updated + 0.5 * mean[:, None], mean[:, None])
