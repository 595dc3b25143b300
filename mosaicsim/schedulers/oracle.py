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
    SessionCost,
)
from mosaicsim.schedulers.shares import Table, deal_evenly, require_workers
from mosaicsim.workload.calls import Ints


class OracleOptions(SchedulerOptions):
    """Options of ``oracle``."""

    max_models_per_worker: int | None = Field(
        None, ge=1, description="most experts one worker may load; null: no limit"
    )


class Oracle:
    """List scheduling over true token work, the longest calls of every session queued first.

    With the longest calls first a session's tail runs beside the rest of its work, so that it lasts as long
    as its tokens at the saturated rate or as its longest call alone, whichever is longer. Each shard gets its
    share of every length, so token work is balanced and no worker's KV cache holds all the long calls.
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
        table = _token_table(problem, ranked)
        balance = Balance(table, backlog, [len(backlog)] * len(table), self.options.max_models_per_worker)
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


def _token_table(problem: OracleProblem, ranked: list[Ints]) -> Table:
    """Session seconds by true tokens: the sweep's saturated rate, floored by the expert's longest call."""
    table: Table = []
    for calls, costs in zip(ranked, problem.costs, strict=True):
        lengths = problem.output_tokens[calls]
        n = np.arange(1, len(calls) + 1)
        mean, longest = (lengths.mean(), lengths.max()) if len(calls) else (0.0, 0.0)
        row = []
        for cost in costs:
            rate, alone = _seconds_per_token(cost)
            seconds: list[float] = (cost.load_s + np.maximum(rate * mean * n, alone * longest)).tolist()
            row.append([0.0, *seconds])
        table.append(row)
    return table


def _seconds_per_token(cost: SessionCost) -> tuple[float, float]:
    """Seconds a token costs at the sweep's last slope (a full batch) and in its first point (one call)."""
    alone = cost.generate_s[0] / (cost.counts[0] * cost.mean_output_tokens)
    if len(cost.counts) < 2:
        return float(alone), float(alone)
    slope = (cost.generate_s[-1] - cost.generate_s[-2]) / (cost.counts[-1] - cost.counts[-2])
    return float(max(slope, 0.0) / cost.mean_output_tokens), float(alone)
