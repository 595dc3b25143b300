"""The lower bound of a run, from the calls it finished and the engines it could have used."""

from __future__ import annotations

import numpy as np

from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.session import EngineSpec
from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.workload.calls import Bools, Workload

SPEEDS_BEHIND = 0.05
"""By so much speeds of engines that share a GPU may be out of date: they are set anew now and then only."""


def bound_of_run(fleet: Fleet, workload: Workload, finished: Bools, *, calls_stay: bool = True) -> float:
    """Seconds no schedule of the finished expert calls can beat; ``finished`` has shape (calls,).

    A call that a gate cancelled is not part of the work, whatever it cost. ``calls_stay``: of the schedules
    that leave a started call on its worker.
    """
    bound = expert_stage_lower_bound(
        workload.calls,
        workload.outcomes.output_tokens,
        expert_engines(fleet, workload),
        finished=np.flatnonzero(finished),
        prefix_caching=shares_prefixes(fleet, workload),
        slots=fleet.pool.slots,
        calls_stay=calls_stay,
    )
    return bound.seconds


def expert_engines(fleet: Fleet, workload: Workload) -> list[list[EngineLimits]]:
    """What bounds each expert's engine on each worker; it may have all the worker's memory."""
    workers, shared = fleet.pool.workers, fleet.pool.slots > 1
    return [
        [limits_of(fleet.engine_of(name, (w.index,)), shared=shared) for w in workers]
        for name in workload.experts
    ]


def shares_prefixes(fleet: Fleet, workload: Workload) -> bool:
    """Whether engines of the experts find prompts that they have computed for another call."""
    worker = fleet.pool.workers[0].index
    return any(fleet.engine_of(name, (worker,)).config.prefix_caching for name in workload.experts)


def limits_of(spec: EngineSpec, *, shared: bool = False) -> EngineLimits:
    """What bounds an engine, from what it is.

    Of one that may have others beside it on its worker only the GPU's time counts, since their hosts' may
    overlap, less what the simulated speeds may be behind.
    """
    return EngineLimits(
        tables=spec.gpu_tables(1 - SPEEDS_BEHIND) if shared else spec.tables,
        load_s=spec.load_s,
        disk_s=spec.disk_s,
        kv_capacity_tokens=spec.config.num_gpu_blocks * spec.config.block_size,
        max_num_seqs=spec.config.max_num_seqs,
        mixes_prefill=spec.config.policy == "v1",
        keeps_blocks=spec.config.prefix_caching,
        block_size=spec.config.block_size,
    )
