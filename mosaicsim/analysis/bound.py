"""The lower bound of a run, from the calls it finished and the engines it could have used.

Weights may be read ahead while a worker is busy (``Executor.prefetch``): a load then lacks its disk part. But
no session is ready before its weights have been read and its engine has started, one after the other. So
where every read takes d seconds or more, nothing generates in the first d seconds of a run, and the run
without them, each load shorter by its disk part, is one that the bounds of loads without the disk part hold
for: what they say, and d, holds for the whole run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.session import EngineSpec
from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.workload.calls import Bools, Workload


def bound_of_run(fleet: Fleet, workload: Workload, finished: Bools) -> float:
    """Seconds no schedule of the finished expert calls can beat; ``finished`` has shape (calls,).

    A call that a gate cancelled is not part of the work, whatever it cost.
    """
    if not finished.any():
        return 0.0
    bound = expert_stage_lower_bound(
        workload.calls,
        workload.outcomes.output_tokens,
        expert_engines(fleet, workload),
        finished=np.flatnonzero(finished),
        prefix_caching=shares_prefixes(fleet, workload),
        slots=fleet.pool.slots,
    )
    return bound.seconds + first_read_s(fleet, workload)


def expert_engines(fleet: Fleet, workload: Workload) -> list[list[EngineLimits]]:
    """What bounds each expert's engine on each worker, its weights read ahead."""
    workers = fleet.pool.workers
    return [[read_ahead(fleet.engine_of(name, (w.index,))) for w in workers] for name in workload.experts]


def first_read_s(fleet: Fleet, workload: Workload, others: Iterable[EngineSpec] = ()) -> float:
    """Seconds for which nothing can generate: the least read of the experts called, and of ``others``."""
    called = [workload.experts[m] for m in np.unique(workload.calls.expert).tolist()]
    specs = [fleet.engine_of(name, (w.index,)) for name in called for w in fleet.pool.workers]
    return min((spec.disk_s for spec in (*specs, *others)), default=0.0)


def read_ahead(spec: EngineSpec) -> EngineLimits:
    """What bounds an engine whose weights are in the host's memory already."""
    return replace(limits_of(spec), load_s=spec.load_s - spec.disk_s)


def shares_prefixes(fleet: Fleet, workload: Workload) -> bool:
    """Whether engines of the experts find prompts that they have computed for another call."""
    worker = fleet.pool.workers[0].index
    return any(fleet.engine_of(name, (worker,)).config.prefix_caching for name in workload.experts)


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
