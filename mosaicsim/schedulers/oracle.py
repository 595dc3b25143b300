"""oracle: plans with the true output lengths, which no real scheduler has; every report marks its row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mosaicsim.errors import UserInputError
from mosaicsim.schedulers.balance import Balance
from mosaicsim.schedulers.base import (
    OracleProblem,
    Plan,
    PlannedSession,
    Problem,
    SchedulerOptions,
)
from mosaicsim.schedulers.shares import deal_evenly, profile_table, require_workers
from mosaicsim.workload.calls import Ints


class OracleOptions(SchedulerOptions):
    """Options of ``oracle``."""

    max_models_per_worker: int | None = Field(
        None, ge=1, description="most experts one worker may load; null: no limit"
    )


class Oracle:
    """List scheduling over true token work, the longest calls of every session queued first.

    A session is priced by a sweep over the true lengths (``OracleProblem.costs``). Its calls queue longest
    first, so that the tail begins as soon as it can, and every shard gets its share of every length, so that
    token work is balanced and no worker's KV cache holds all the long calls. It knows more than any real
    scheduler; it is not an optimum.
    """

    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = (
        "list scheduling with the true output lengths, longest calls first (not realisable)"
    )
    Options: ClassVar[type[SchedulerOptions]] = OracleOptions
    sees_lengths: ClassVar[bool] = True

    def __init__(self, options: OracleOptions) -> None:
        """Take the options."""
        self.options = options

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`.

        Raises UserInputError for a problem without lengths, InfeasibleError if the experts do not fit.
        """
        if not isinstance(problem, OracleProblem) or len(problem.output_tokens) != len(problem.calls):
            raise UserInputError(
                "scheduler 'oracle' needs the true output lengths and was handed a problem without them; "
                "only a simulated run of a trace can provide them"
            )
        require_workers(problem)
        backlog = [worker.backlog_s for worker in problem.workers]
        ranked = [_longest_first(problem, m) for m in range(len(problem.experts))]
        replicas = [len(backlog)] * len(problem.experts)
        balance = Balance(profile_table(problem), backlog, replicas, self.options.max_models_per_worker)
        if len(problem.call_ids):
            balance.place_whole_experts()
            balance = balance.relieved()
        sessions = tuple(
            PlannedSession(worker.index, m, calls)
            for m, row in enumerate(balance.shares)
            if len(ranked[m])
            for worker, calls in zip(problem.workers, deal_evenly(ranked[m], row), strict=True)
            if len(calls)
        )
        return Plan(sessions, max(balance.busy_s, default=0.0), {"sessions": len(sessions)})


def _longest_first(problem: OracleProblem, expert: int) -> Ints:
    calls = problem.calls_of(expert)
    return calls[np.argsort(-problem.output_tokens[calls], kind="stable")]
