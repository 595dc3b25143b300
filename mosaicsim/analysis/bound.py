"""The lower bound of a run, from the calls it finished and the engines it could have used."""

from __future__ import annotations

import numpy as np

from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.session import EngineSpec
from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.workload.calls import Bools, Workload


def bound_of_run(fleet: Fleet, workload: Workload, finished: Bools) -> float:
    """Seconds no schedule of the finished expert calls can beat; ``finished`` has shape (calls,).

    A call that a gate cancelled is not part of the work, whatever it cost.
    """
    engines, prefix_caching = [], False
    for name in workload.experts:
        specs = [fleet.engine_of(name, (w.index,)) for w in fleet.pool.workers]
        prefix_caching = specs[0].config.prefix_caching
        engines.append([limits_of(spec) for spec in specs])
    bound = expert_stage_lower_bound(
        workload.calls,
        workload.outcomes.output_tokens,
        engines,
        finished=np.flatnonzero(finished),
        prefix_caching=prefix_caching,
        slots=fleet.pool.slots,
    )
    return bound.seconds


def limits_of(spec: EngineSpec) -> EngineLimits:
    """What bounds an engine, from what it is."""
    return EngineLimits(
        tables=spec.tables,
        load_s=spec.load_s,
        kv_capacity_tokens=spec.config.num_gpu_blocks * spec.config.block_size,
        max_num_seqs=spec.config.max_num_seqs,
        mixes_prefill=spec.config.policy == "v1",
        keeps_blocks=spec.config.prefix_caching,
        block_size=spec.config.block_size,
    )
