"""Metrics against hand counts and an independent computation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import SPEC, make_workload, run

from mosaicsim.aggregation.base import ASK
from mosaicsim.analysis.metrics import (
    agreement,
    busy_s,
    call_columns,
    gpu_time,
    paired_delta,
    popularity,
    question_correct,
    timeline,
    worker_intervals,
)
from mosaicsim.executors.simulated import Failure
from mosaicsim.runtime.runlog import CANCELLED, FINISHED


def test_accuracy_of_accepted_and_aggregated_questions() -> None:
    workload = make_workload(50, answers=2)
    n = len(workload.calls)
    status = np.full(n + 50, FINISHED, np.int8)
    accepted = np.full(50, ASK)
    accepted[:25] = 0
    correct = question_correct(workload, accepted, status)
    answers = workload.outcomes.answer.reshape(-1, 3)
    for q in range(50):
        expected = workload.aggregator.correct[q] if q >= 25 else 0 in answers[q]  # answer 0 is right
        assert correct[q] == expected


def test_a_cancelled_call_does_not_vouch_for_an_answer() -> None:
    workload = make_workload(1, answers=1)
    status = np.full(len(workload.calls) + 1, CANCELLED, np.int8)
    assert not question_correct(workload, np.array([0]), status)[0]


def test_paired_delta_counts_discordant_questions() -> None:
    ours = np.array([True] * 60 + [False] * 40)
    baseline = np.array([True] * 55 + [False] * 10 + [True] * 3 + [False] * 32)
    delta, (low, high) = paired_delta(ours, baseline)
    assert delta == pytest.approx(100 * (5 - 3) / 100)
    assert low < delta < high


def test_paired_interval_of_equal_answers_still_has_width() -> None:
    same = np.ones(2000, bool)
    delta, (low, high) = paired_delta(same, same)
    assert delta == 0
    assert -0.2 < low < 0 < high < 0.2


def test_paired_interval_holds_its_level() -> None:
    """True difference +1 pp, few discordant questions: 95 % of intervals cover it."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(800):
        u = rng.random(1000)
        low, high = paired_delta(u < 0.03, (u >= 0.03) & (u < 0.05))[1]
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / 800 <= 0.98


@given(
    st.sampled_from(["round_robin", "greedy", "data_parallel"]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.floats(1.0, 30.0),
    st.integers(0, 99),
)
def test_gpu_time_adds_up(scheduler: str, tp: int, slots: int, fails_at: float, seed: int) -> None:
    """With tensor-parallel groups, shared GPUs and a worker that is away for a while."""
    orchestrator, makespan = run(
        make_workload(15, seed=seed), scheduler, tp=tp, slots=slots, failures={1: [Failure(fails_at, 4.0)]}
    )
    by_state = gpu_time(orchestrator.log, 3, makespan)
    assert sum(by_state.values()) == pytest.approx(3 * makespan)
    assert min(by_state.values()) >= -1e-9


def test_idle_time_counts_lost_sessions_as_held() -> None:
    orchestrator, makespan = run(make_workload(30), "round_robin", failures={1: [Failure(6.0, None)]})
    held = worker_intervals(orchestrator.log, "expert", 3)
    assert held[1][-1][1] == 6.0
    assert busy_s(held) <= 3 * orchestrator.expert_stage_s
    assert sum(gpu_time(orchestrator.log, 3, makespan).values()) == pytest.approx(3 * makespan)


def test_a_lost_worker_is_down_and_not_idle() -> None:
    orchestrator, makespan = run(make_workload(30), "round_robin", failures={1: [Failure(6.0, 5.0)]})
    assert gpu_time(orchestrator.log, 3, makespan)["down"] == pytest.approx(5.0)
    forever, longer = run(make_workload(30), "round_robin", failures={1: [Failure(6.0, None)]})
    assert gpu_time(forever.log, 3, longer)["down"] == pytest.approx(longer - 6.0)


def test_shared_workers_are_busy_once() -> None:
    orchestrator, _ = run(make_workload(40, n_experts=4), "round_robin", n_workers=2, slots=2)
    held = worker_intervals(orchestrator.log, "expert", 2)
    assert all(a[1] < b[0] for worker in held for a, b in pairwise(worker))
    assert busy_s(held) <= 2 * orchestrator.expert_stage_s + 1e-9


def test_timeline_covers_each_session_once() -> None:
    workload = make_workload(30)
    orchestrator, _ = run(workload, "greedy", tp=3)
    rows = timeline(orchestrator.log, workload.experts)
    assert set(rows["state"].tolist()) <= {"load", "generate", "tail"}
    covered = (rows["end_s"] - rows["start_s"]).sum()
    held = sum(
        (r.usage.end_s - r.usage.load_start_s) * len(r.spec.workers)
        for r in orchestrator.log.sessions.values()
        if r.usage
    )
    assert covered == pytest.approx(held)
    loads = rows["state"] == "load"
    assert (rows["end_s"] - rows["start_s"])[loads] == pytest.approx(SPEC.load_s)


def test_call_columns_have_a_row_for_every_call_that_ended() -> None:
    workload = make_workload(40, answers=2)
    orchestrator, _ = run(workload, "greedy", ("plurality", {"tau": "2/3", "cancel_pending": True}))
    columns = call_columns(orchestrator.log, workload)
    rows = len(columns["status"])
    assert all(len(column) == rows for column in columns.values())
    assert rows == len(workload.calls) + (orchestrator.accepted == ASK).sum()
    finished = (columns["status"] == FINISHED) & (columns["stage"] == "expert")
    lengths = workload.outcomes.output_tokens.reshape(-1, 3)
    for q, s in zip(columns["question"][finished], columns["output_tokens"][finished], strict=True):
        assert s in lengths[q]


def test_popularity_and_agreement_by_hand() -> None:
    workload = make_workload(200, answers=3)
    shown = popularity(workload)
    counts = np.bincount(workload.calls.expert)
    assert shown["calls"] == {f"e{i}": int(c) for i, c in enumerate(counts)}
    assert shown["max_over_min"] == counts.max() / counts.min()
    buckets = agreement(workload)
    assert sum(b["share"] for b in buckets.values()) == pytest.approx(1)
    unanimous = [
        len(set(row)) == 1 and row[0] >= 0 for row in workload.outcomes.answer.reshape(-1, 3).tolist()
    ]
    assert buckets["3"]["share"] == pytest.approx(np.mean(unanimous))
