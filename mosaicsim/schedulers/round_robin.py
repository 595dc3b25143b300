"""round_robin, the paper's baseline: one load per expert, dealt in first-seen order."""

from __future__ import annotations

from typing import ClassVar

from mosaicsim.schedulers.base import Plan, Problem, SchedulerOptions
from mosaicsim.schedulers.shares import require_workers, session_s, slice_calls


class RoundRobin:
    """Expert i, counting those that have calls in first-seen order, goes whole to worker i mod N."""

    name: ClassVar[str] = "round_robin"
    summary: ClassVar[str] = (
        "each expert whole to the next worker, in first-seen order (the paper's baseline)"
    )
    Options: ClassVar[type[SchedulerOptions]] = SchedulerOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: SchedulerOptions) -> None:
        """Take the options; this policy has none of its own."""
        self.options = options

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`. Raises InfeasibleError without a worker."""
        require_workers(problem)
        counts, n_workers = problem.counts(), len(problem.workers)
        shares = [[0] * n_workers for _ in counts]
        busy_s = [worker.backlog_s for worker in problem.workers]
        for i, m in enumerate(counts.nonzero()[0].tolist()):
            worker = i % n_workers
            shares[m][worker] = int(counts[m])
            busy_s[worker] += session_s(problem.costs[m][worker], int(counts[m]))
        return Plan(slice_calls(problem, shares), max(busy_s, default=0.0))
