"""data_parallel: every expert on all workers, one expert after another, with a barrier between them."""

from __future__ import annotations

from typing import ClassVar

from mosaicsim.schedulers.base import Plan, PlannedSession, Problem, SchedulerOptions, split_evenly
from mosaicsim.schedulers.shares import require_workers, session_s


class DataParallel:
    """The paper's DP: time = sum over experts of the slowest worker's load and generate."""

    name: ClassVar[str] = "data_parallel"
    summary: ClassVar[str] = (
        "each expert on all workers, calls split evenly, a barrier between experts (the paper's DP)"
    )
    Options: ClassVar[type[SchedulerOptions]] = SchedulerOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: SchedulerOptions) -> None:
        """Take the options; this policy has none of its own."""
        self.options = options

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`. Raises InfeasibleError without a worker."""
        require_workers(problem)
        sessions = []
        free_s = [worker.backlog_s for worker in problem.workers]
        barrier_s = 0.0
        for phase, m in enumerate(problem.counts().nonzero()[0].tolist()):
            shares = split_evenly(problem.calls_of(m), len(problem.workers))
            for w, (worker, calls) in enumerate(zip(problem.workers, shares, strict=True)):
                if len(calls):
                    sessions.append(PlannedSession(worker.index, m, calls, phase))
                    free_s[w] = max(free_s[w], barrier_s) + session_s(problem.costs[m][w], len(calls))
            barrier_s = max(free_s[w] for w, calls in enumerate(shares) if len(calls))
        return Plan(tuple(sessions), max(free_s, default=0.0))
