"""Parity: a finished run's log, replayed with its recorded plan, gives the same sequence at the same times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SPEC, make_workload, run

from mosaicsim.executors.simulated import Failure, SimulatedCluster, SimulatedExecutor
from mosaicsim.runtime.replay import Replay, replayed_tokens, steps_of
from mosaicsim.runtime.runlog import CANCELLED, FINISHED, RunLog
from mosaicsim.workload.calls import Workload

SCHEDULERS = ["round_robin", "data_parallel", "greedy", "ilp", "oracle"]
GATES: list[tuple[str, dict[str, Any]]] = [
    ("always", {}),
    ("plurality", {"tau": "2/3"}),
    ("plurality", {"tau": "2/3", "cancel_pending": True}),
]


def replay(log: RunLog, workload: Workload, at_once: int | None = None, n_workers: int = 3) -> tuple[RunLog, float]:
    handler = Replay(log, workload, at_once)
    cluster = SimulatedCluster(lambda name, workers: SPEC, (0,) * n_workers)
    makespan = SimulatedExecutor(cluster, replayed_tokens(log)).run(handler)
    return handler.log, makespan


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SCHEDULERS),
    st.sampled_from(GATES),
    st.sampled_from([None, 1, 2, 3]),
    st.integers(1, 5),
    st.integers(0, 10_000),
    st.sampled_from([1, 3]),
)
def test_a_replayed_run_is_the_run(
    scheduler: str, gate: tuple[str, dict[str, Any]], at_once: int | None, n_experts: int, seed: int, tp: int
) -> None:
    workload = make_workload(20, n_experts=n_experts, seed=seed)
    if at_once is not None:
        tp = 1
    orchestrator, makespan = run(workload, scheduler, gate, at_once=at_once, tp=tp)
    recorded = orchestrator.log
    replayed, again = replay(recorded, workload, at_once)

    begun = [(n, row.spec.workers, row.spec.expert) for n, row in sorted(recorded.sessions.items())]
    assert [(n, row.spec.workers, row.spec.expert) for n, row in replayed.sessions.items()] == begun
    done = recorded.status == FINISHED
    assert (replayed.status[done] == FINISHED).all()
    assert again == pytest.approx(makespan, rel=1e-9)
    for name in ("start_s", "first_token_s", "finish_s"):
        ours, theirs = getattr(replayed, name)[done], getattr(recorded, name)[done]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    cut = (recorded.status == CANCELLED) & (recorded.output_tokens > 0)
    np.testing.assert_allclose(replayed.finish_s[cut], recorded.finish_s[cut], rtol=1e-9)
    for number, row in recorded.sessions.items():
        usage, other = row.usage, replayed.sessions[number].usage
        assert usage is not None
        assert other is not None
        assert (usage.load_start_s, usage.ready_s, usage.end_s) == pytest.approx(
            (other.load_start_s, other.ready_s, other.end_s), rel=1e-9
        )
