"""greedy: longest processing time over whole experts, or list scheduling that splits them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mosaicsim.schedulers.balance import Balance
from mosaicsim.schedulers.base import Plan, Problem, SchedulerOptions
from mosaicsim.schedulers.shares import profile_table, require_workers, slice_calls


class GreedyOptions(SchedulerOptions):
    """Options of ``greedy``."""

    mode: Literal["lpt", "list"] = Field(
        "list", description="lpt: whole experts, longest first; list: then split the busiest worker's experts"
    )
    max_models_per_worker: int | None = Field(
        None, ge=1, description="most experts one worker may load; null: no limit"
    )


class Greedy:
    """Places experts by their profiled session time, in which load and tail are seen.

    ``lpt`` (Graham 1969) never splits. ``list`` goes on from there: as long as that lowers the busiest
    worker's finish time it moves or splits an expert, or swaps one for another. A shard pays its load and
    the fixed part of its session, so reasoning experts are split and light ones stay whole.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "longest expert first, then splitting and moving while the busiest worker gains"
    Options: ClassVar[type[SchedulerOptions]] = GreedyOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: GreedyOptions) -> None:
        """Take the options."""
        self.options = options

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`. Raises InfeasibleError if K is too small."""
        require_workers(problem)
        backlog = [worker.backlog_s for worker in problem.workers]
        replicas = [len(backlog)] * len(problem.experts)
        balance = Balance(profile_table(problem), backlog, replicas, self.options.max_models_per_worker)
        if len(problem.call_ids):
            balance.place_whole_experts()
            if self.options.mode == "list":
                balance = balance.relieved()
        sessions = slice_calls(problem, balance.shares)
        return Plan(sessions, max(balance.busy_s, default=0.0), {"sessions": len(sessions)})
