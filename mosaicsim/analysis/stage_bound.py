"""The higher lower bound of an expert stage without a gate; apart because HiGHS takes its time over it."""

from __future__ import annotations

from mosaicsim.analysis.bound import expert_engines, shares_prefixes
from mosaicsim.executors.fleet import Fleet
from mosaicsim.schedulers.assignment_bound import ROUNDS, assignment_bound
from mosaicsim.workload.calls import Workload


def bound_of_stage(fleet: Fleet, workload: Workload, *, rounds: int = ROUNDS) -> float:
    """Seconds no schedule of all expert calls can beat that leaves started ones where they are.

    The more ``rounds`` of prices, the higher, and the longer it takes.
    """
    return assignment_bound(
        workload.calls,
        workload.outcomes.output_tokens,
        expert_engines(fleet, workload),
        prefix_caching=shares_prefixes(fleet, workload),
        slots=fleet.pool.slots,
        rounds=rounds,
    )
