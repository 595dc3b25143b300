"""Whole runs: every call ends once, in order, under any scheduler, gate, failure and sharing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import AGGREGATOR, make_workload, problem_maker, run

from mosaicsim.aggregation.base import ASK
from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.simulated import Failure
from mosaicsim.runtime.orchestrator import Orchestrator
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import CANCELLED, FINISHED, PENDING
from mosaicsim.schedulers.base import WorkerView, check_plan
from mosaicsim.schedulers.registry import create

SCHEDULERS = ["round_robin", "data_parallel", "greedy", "ilp", "oracle"]
GATES: list[tuple[str, dict[str, Any]]] = [
    ("always", {}),
    ("plurality", {"tau": 1}),
    ("plurality", {"tau": "2/3"}),
    ("plurality", {"tau": "2/3", "cancel_pending": True}),
]

failures = st.dictionaries(
    st.integers(0, 2),
    st.lists(
        st.tuples(st.floats(0.0, 40.0), st.one_of(st.none(), st.floats(0.1, 20.0))), min_size=1, max_size=2
    ),
    max_size=2,
)


def check(orchestrator: Orchestrator, makespan: float, n_calls: int, slots: int = 1) -> None:
    """Conservation and causality, and that workers never run more sessions than they may."""
    for worker in range(3):
        edges = [(end, -1) for _, end in held(orchestrator, worker)]
        edges += [(start, 1) for start, _ in held(orchestrator, worker)]
        running = np.cumsum([change for _, change in sorted(edges)])
        assert not len(running) or running.max() <= slots
    log = orchestrator.log
    asked = n_calls + np.flatnonzero(orchestrator.accepted == ASK)
    assert (log.status[:n_calls] != PENDING).all()
    assert (log.status[asked] == FINISHED).all()
    skipped = np.setdiff1d(np.arange(n_calls, log.n_calls), asked)
    assert (log.status[skipped] == PENDING).all()
    done = log.status == FINISHED
    assert (log.start_s[done] <= log.first_token_s[done]).all()
    assert (log.first_token_s[done] <= log.finish_s[done]).all()
    assert log.finish_s.max() <= makespan
    for number in np.unique(log.session[log.session >= 0]):
        usage = log.sessions[number].usage
        assert usage is not None
        mine = done & (log.session == number)
        assert (log.start_s[mine] >= usage.ready_s - 1e-9).all()
        assert (log.finish_s[mine] <= usage.end_s + 1e-9).all()
    # the barrier: no aggregator call starts before the last expert call has ended
    if len(asked):
        assert log.start_s[asked].min() >= log.finish_s[:n_calls].max()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEDULERS), st.sampled_from(GATES), st.integers(1, 3), failures)
def test_no_more_workers_are_busy_than_may_be(
    scheduler: str, gate: tuple[str, dict[str, Any]], at_once: int, failing: dict[int, Any]
) -> None:
    workload = make_workload(20)
    planned = {
        w: [Failure(at, 5.0 if down is None else down) for at, down in plan[:1]]
        for w, plan in failing.items()
    }
    orchestrator, makespan = run(workload, scheduler, gate, at_once=at_once, failures=planned)
    check(orchestrator, makespan, len(workload.calls))
    edges = [(end, -1) for worker in range(3) for _, end in held(orchestrator, worker)]
    edges += [(start, 1) for worker in range(3) for start, _ in held(orchestrator, worker)]
    assert np.cumsum([change for _, change in sorted(edges)]).max() <= at_once


def test_a_gate_sees_the_confidence_that_each_call_brought() -> None:
    made, confidence = make_workload(20), np.linspace(0.1, 0.9, 60)
    workload = replace(made, outcomes=replace(made.outcomes, confidence=confidence))
    orchestrator, _ = run(workload, "greedy", ("always", {}))
    np.testing.assert_array_equal(orchestrator._ballots().confidences, confidence.reshape(20, 3))
    assert orchestrator._ballot(3).confidences == tuple(confidence[9:12])


class Cut(Exception):
    """The run is cut short here."""


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEDULERS), st.sampled_from(GATES), st.integers(1, 60))
def test_a_run_cut_short_goes_on_with_what_is_left(
    scheduler: str, gate: tuple[str, dict[str, Any]], events: int
) -> None:
    """No call that ended is run again, none is missing, and the gate decides as it would have."""
    workload, logs, seen = make_workload(20), [], 0

    def cut(orchestrator: Orchestrator, event: object) -> None:
        nonlocal seen
        seen += 1
        if seen == events and not orchestrator.finished:
            logs.append(orchestrator.log)
            raise Cut

    try:
        run(workload, scheduler, gate, watch=cut)
    except Cut:
        (log,) = logs
        before = log.status.copy()
        times = log.finish_s.copy()
        whole, _ = run(workload, scheduler, gate)
        orchestrator, _ = run(workload, scheduler, gate, log=log)
        ended = before != PENDING
        np.testing.assert_array_equal(log.status[ended], before[ended])
        np.testing.assert_array_equal(log.finish_s[ended], times[ended])
        n = len(workload.calls)
        assert (log.status[:n] != PENDING).all()
        np.testing.assert_array_equal(orchestrator.accepted, whole.accepted)
        asked = n + np.flatnonzero(orchestrator.accepted == ASK)
        assert (log.status[asked] == FINISHED).all()


def held(orchestrator: Orchestrator, worker: int) -> list[tuple[float, float]]:
    rows = [r for r in orchestrator.log.sessions.values() if worker in r.spec.workers and r.usage]
    return sorted((r.usage.load_start_s, r.usage.end_s) for r in rows if r.usage)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("gate", GATES, ids=str)
def test_every_call_ends_once(scheduler: str, gate: tuple[str, dict[str, Any]]) -> None:
    workload = make_workload(60)
    orchestrator, makespan = run(workload, scheduler, gate)
    check(orchestrator, makespan, len(workload.calls))
    for worker in range(3):
        intervals = held(orchestrator, worker)
        assert all(a[1] <= b[0] for a, b in pairwise(intervals)), "one model at a time"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SCHEDULERS),
    st.sampled_from(GATES),
    failures,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_nothing_is_lost_when_workers_are(
    scheduler: str,
    gate: tuple[str, dict[str, Any]],
    planned: dict[int, list[tuple[float, float | None]]],
    slots: int,
    n_experts: int,
    seed: int,
) -> None:
    workload = make_workload(12, n_experts=n_experts, seed=seed)
    plan = {}
    for worker, moments in planned.items():
        at, plan[worker] = 0.0, []
        for gap, down in moments:
            at += gap
            plan[worker].append(Failure(at, down))
            if down is None:
                break
            at += down
    orchestrator, makespan = run(workload, scheduler, gate, failures=plan, slots=slots)
    check(orchestrator, makespan, len(workload.calls), slots)


def test_finished_calls_survive_a_lost_worker_and_run_once() -> None:
    workload = make_workload(60)
    undisturbed, _ = run(workload, "round_robin")
    middle = float(np.median(undisturbed.log.finish_s[: len(workload.calls)]))
    orchestrator, makespan = run(workload, "round_robin", failures={1: [Failure(middle, None)]})
    check(orchestrator, makespan, len(workload.calls))
    lost = [n for n, row in orchestrator.log.sessions.items() if row.lost]
    assert lost
    before = orchestrator.log.finish_s[np.isin(orchestrator.log.session, lost)]
    assert len(before)
    assert (before <= middle).all()
    later = [row for row in orchestrator.log.sessions.values() if row.started_s >= middle]
    assert all(1 not in row.spec.workers for row in later)


def test_losing_every_worker_for_good_is_an_error() -> None:
    with pytest.raises(MosaicsimError, match="give failures a down_s"):
        run(make_workload(60), "greedy", failures={w: [Failure(5.0, None)] for w in range(3)})


def test_a_plan_that_a_lost_worker_makes_infeasible_falls_back_and_says_so() -> None:
    """Five experts, three workers, two models each: two workers are too few for the ilp's K."""
    workload = make_workload(40, n_experts=5)
    orchestrator, makespan = run(
        workload, "ilp", n_workers=3, failures={0: [Failure(1.0, None)], 1: [Failure(1.5, None)]}
    )
    check(orchestrator, makespan, len(workload.calls))
    assert any("by greedy: " in note for note in orchestrator.log.notes)


def test_cancelling_pending_calls_saves_tokens_and_keeps_the_answers() -> None:
    workload = make_workload(80, answers=2)
    plain, _ = run(workload, "greedy", ("plurality", {"tau": "2/3"}))
    saving, _ = run(workload, "greedy", ("plurality", {"tau": "2/3", "cancel_pending": True}))
    n = len(workload.calls)
    assert (saving.log.status[:n] == CANCELLED).sum() > 0
    assert saving.log.output_tokens[:n].sum() < plain.log.output_tokens[:n].sum()
    assert saving.expert_stage_s <= plain.expert_stage_s
    np.testing.assert_array_equal(saving.accepted, plain.accepted)


def test_a_cancel_is_not_forgotten_with_the_worker() -> None:
    """A cancel sent while a session loads waits in its engine; losing the worker must not revive the call."""
    workload = make_workload(80, n_experts=5, answers=2)
    gate = ("plurality", {"tau": "2/3", "cancel_pending": True})
    calm, _ = run(workload, "round_robin", gate)
    (second,) = (r for r in calm.log.sessions.values() if r.spec.expert == "e3")
    assert second.usage is not None
    loading = (second.usage.load_start_s + 2 * second.usage.ready_s) / 3
    worker = second.spec.workers[0]
    orchestrator, makespan = run(workload, "round_robin", gate, failures={worker: [Failure(loading, None)]})
    check(orchestrator, makespan, len(workload.calls))
    log, votes = orchestrator.log, workload.outcomes.answer
    again = [r for r in log.sessions.values() if r.stage == "expert" and r.started_s >= loading]
    calls = np.concatenate([r.spec.call_ids for r in again])
    assert len(calls)
    moot = 0
    for call in second.spec.call_ids.tolist():
        others = [c for c in range(call // 3 * 3, call // 3 * 3 + 3) if c != call]
        agreed = votes[others[0]] == votes[others[1]] >= 0
        if agreed and (log.status[others] == FINISHED).all() and (log.finish_s[others] <= loading).all():
            moot += 1
            assert call not in calls
            assert log.status[call] == CANCELLED
    assert moot, "some call was decided while its session loaded"


def test_a_worker_that_is_back_takes_its_part() -> None:
    """All workers are away for a while and return one after another: the work is not left to the first."""
    workload = make_workload(60, n_experts=5)
    away = {w: [Failure(0.5, 2.0 + w)] for w in range(3)}
    orchestrator, makespan = run(workload, "greedy", failures=away)
    check(orchestrator, makespan, len(workload.calls))
    later = [r for r in orchestrator.log.sessions.values() if r.stage == "expert" and not r.lost]
    assert {r.spec.workers[0] for r in later} == {0, 1, 2}


def test_failures_faster_than_any_call_end_in_an_error() -> None:
    hopeless = {w: [Failure(1.0 + i, 0.5) for i in range(400)] for w in range(3)}
    with pytest.raises(MosaicsimError, match="failures come faster than a call takes"):
        run(make_workload(10), "greedy", failures=hopeless)


def test_a_scheduler_s_bad_plan_is_refused() -> None:
    workload = make_workload(10)
    policy = create("round_robin", {})
    workers = tuple(WorkerView(i, f"gpu{i}", "made") for i in range(2))
    problem = problem_maker(workload, policy)(np.arange(len(workload.calls)), workers)
    plan = policy.plan(problem)
    check_plan(plan, problem, "mine")
    first, *rest = plan.sessions
    for sessions, said in (
        (rest, "are to be placed once each"),
        ([first, *plan.sessions], "are to be placed once each"),
        ([replace(first, worker=9), *rest], "uses worker 9, which is not there"),
        ([replace(first, expert=first.expert + 1), *rest], "to another expert than theirs"),
    ):
        with pytest.raises(MosaicsimError, match=said):
            check_plan(replace(plan, sessions=tuple(sessions)), problem, "mine")


def test_data_parallel_waits_at_its_barriers() -> None:
    workload = make_workload(60)
    orchestrator, _ = run(workload, "data_parallel")
    rows = [r for r in orchestrator.log.sessions.values() if r.stage == "expert"]
    by_expert: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        assert row.usage is not None
        by_expert.setdefault(row.spec.expert, []).append((row.usage.load_start_s, row.usage.end_s))
    spans = list(by_expert.values())
    assert len(spans) == 3
    for earlier, later in pairwise(spans):
        assert max(end for _, end in earlier) <= min(start for start, _ in later)


@pytest.mark.parametrize(("tp", "instances"), [(1, 3), (2, 1), (3, 1)])
def test_the_aggregator_takes_groups_of_workers(tp: int, instances: int) -> None:
    orchestrator, _ = run(make_workload(30), "round_robin", tp=tp)
    rows = [r for r in orchestrator.log.sessions.values() if r.spec.expert == AGGREGATOR]
    assert len(rows) == instances
    assert all(len(r.spec.workers) == tp for r in rows)
    assert sum(len(r.spec.call_ids) for r in rows) == 30


def test_aggregator_instances_stay_on_one_island_and_share_by_speed() -> None:
    workers = tuple(WorkerView(i, f"gpu{i}", "made") for i in range(7))
    pool = Pool(workers, 1, 2, ((0, 1, 2), (3, 4, 5, 6)), (2.0, 1.0))

    def dealt(n_calls: int, alive: set[int]) -> list[tuple[tuple[int, ...], int]]:
        shares = pool.deal_aggregation(np.arange(n_calls), alive)
        ids = np.concatenate([np.zeros(0, np.int64), *(share for _, share in shares)])
        assert not shares or np.array_equal(np.sort(ids), np.arange(n_calls))
        return [(group, len(share)) for group, share in shares]

    assert dealt(40, set(range(7))) == [((0, 1), 20), ((3, 4), 10), ((5, 6), 10)]
    assert dealt(30, {0, 2, 4, 5, 6}) == [((0, 2), 20), ((4, 5), 10)]
    assert len(dealt(1, set(range(7)))) == 1
    assert dealt(5, {0, 3}) == []


def test_a_gate_that_skips_everything_needs_no_aggregator() -> None:
    workload = make_workload(30)
    agreed = replace(workload.outcomes, answer=np.zeros_like(workload.outcomes.answer))
    orchestrator, makespan = run(replace(workload, outcomes=agreed), "greedy", ("plurality", {"tau": 1}))
    assert (orchestrator.accepted == 0).all()
    assert makespan == orchestrator.expert_stage_s
    assert not any(row.spec.expert == AGGREGATOR for row in orchestrator.log.sessions.values())


def test_an_aggregator_worker_lost_in_the_middle_is_replaced() -> None:
    workload = make_workload(60)
    undisturbed, makespan = run(workload, "greedy")
    during = (undisturbed.expert_stage_s + makespan) / 2
    orchestrator, later = run(workload, "greedy", failures={2: [Failure(during, None)]})
    check(orchestrator, later, len(workload.calls))
    assert later > makespan


def test_stepping_and_running_through_agree() -> None:
    workload = make_workload(60)
    for scheduler in ("greedy", "data_parallel"):
        stepped, a = run(workload, scheduler, reactive=True)
        through, b = run(workload, scheduler, reactive=False)
        assert a == pytest.approx(b, rel=1e-9)
        np.testing.assert_allclose(stepped.log.finish_s, through.log.finish_s, rtol=1e-9)
