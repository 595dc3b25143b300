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


def replay(
    log: RunLog, workload: Workload, at_once: int | None = None, n_workers: int = 3, slots: int = 1
) -> tuple[RunLog, float]:
    handler = Replay(log, workload, at_once)
    cluster = SimulatedCluster(lambda name, workers, slots: SPEC, (0,) * n_workers, slots=slots)
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
    st.sampled_from([1, 2]),
)
def test_a_replayed_run_is_the_run(
    scheduler: str,
    gate: tuple[str, dict[str, Any]],
    at_once: int | None,
    n_experts: int,
    seed: int,
    tp: int,
    slots: int,
) -> None:
    workload = make_workload(20, n_experts=n_experts, seed=seed)
    if at_once is not None:
        tp = 1
    orchestrator, makespan = run(workload, scheduler, gate, at_once=at_once, tp=tp, slots=slots)
    recorded = orchestrator.log
    replayed, again = replay(recorded, workload, at_once, slots=slots)

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


def test_weights_that_were_read_ahead_are_so_again() -> None:
    """The same plan, with and without: only the load of the session marked is shorter, by its disk part."""
    workload = make_workload(60)
    recorded = run(workload, "round_robin", n_workers=1)[0].log
    plain, later = replay(recorded, workload, n_workers=1)
    marked = max(recorded.sessions)
    recorded.sessions[marked].prefetched = True
    ahead, sooner = replay(recorded, workload, n_workers=1)
    for number, row in ahead.sessions.items():
        other = plain.sessions[number].usage
        assert row.usage is not None
        assert other is not None
        saved_s = (other.ready_s - other.load_start_s) - (row.usage.ready_s - row.usage.load_start_s)
        assert saved_s == pytest.approx(SPEC.disk_s if number == marked else 0.0)
    assert later - sooner == pytest.approx(SPEC.disk_s)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["round_robin", "ilp"]), st.sampled_from(GATES), st.floats(0.0, 30.0), st.integers(0, 2)
)
def test_a_run_that_lost_a_worker_is_replayed_with_every_call_that_ran(
    scheduler: str, gate: tuple[str, dict[str, Any]], fails_at: float, worker: int
) -> None:
    workload = make_workload(20)
    failures = {worker: [Failure(fails_at, 5.0)]}
    recorded = run(workload, scheduler, gate, failures=failures)[0].log
    replayed, _ = replay(recorded, workload)
    ran = recorded.start_s >= 0
    np.testing.assert_array_equal(replayed.status == FINISHED, ran)
    np.testing.assert_array_equal(replayed.session[ran], recorded.session[ran])


def test_a_barrier_is_seen_where_workers_waited() -> None:
    """Experts after one another on all workers: each waits for all of the one before, and so it is replayed."""
    workload = make_workload(30)
    recorded = run(workload, "data_parallel")[0].log
    steps = steps_of(recorded, workload)
    experts = {step.epoch: {s.spec.expert for s in steps if s.epoch == step.epoch} for step in steps}
    assert list(experts.values()) == [{"e0"}, {"e1"}, {"e2"}, {"aggregator"}]


def test_without_barriers_only_a_worker_s_own_order_holds() -> None:
    workload = make_workload(30, n_experts=5)
    recorded = run(workload, "round_robin")[0].log
    steps = steps_of(recorded, workload)
    assert {step.epoch for step in steps if step.stage == "expert"} == {0}
