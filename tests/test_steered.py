"""Steered runs: nothing is lost or run twice, the gate's word is the paper's, calls that move stay whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import CONFIG, SPEC, make_workload, problem_maker

from mosaicsim.aggregation.base import ASK
from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.executors.base import Executor
from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.executors.rehearsal import Rehearsal
from mosaicsim.executors.session import EngineSpec
from mosaicsim.executors.simulated import Failure, SimulatedCluster, SimulatedExecutor
from mosaicsim.hardware.latency import HostOverhead
from mosaicsim.runtime.events import CallsWithdrawn, Event
from mosaicsim.runtime.forecast import Forecast
from mosaicsim.runtime.job import Job
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import CANCELLED, FINISHED, PENDING
from mosaicsim.runtime.steered import SteeredRun
from mosaicsim.schedulers import work_stealing
from mosaicsim.schedulers.base import (
    AGGREGATING,
    Instances,
    Load,
    Problem,
    Sharing,
    Steering,
    WorkerView,
)
from mosaicsim.schedulers.registry import create
from mosaicsim.workload.calls import NO_ANSWER, Calibration, Ints, Workload

CANCELS: dict[str, Any] = {"tau": "2/3", "cancel_pending": True}
GATES: list[tuple[str, dict[str, Any]]] = [
    ("always", {}),
    ("plurality", {"tau": 1}),
    ("plurality", {"tau": "2/3"}),
    ("plurality", CANCELS),
]
STARTS = ["round_robin", "data_parallel", "greedy", "tail_ilp"]

failures = st.dictionaries(
    st.integers(0, 2),
    st.lists(
        st.tuples(st.floats(0.0, 40.0), st.one_of(st.none(), st.floats(0.1, 20.0))), min_size=1, max_size=2
    ),
    max_size=2,
)


class Seen(SteeredRun):
    """Keeps what was given back, and checks what sessions know of their calls."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.withdrawn: list[int] = []

    def handle(self, event: Event) -> None:
        if isinstance(event, CallsWithdrawn):
            self.withdrawn += event.call_ids.tolist()
        super().handle(event)
        self._check_jobs()

    def _check_jobs(self) -> None:
        """Every call is in one session at most, and sessions know what they have."""
        jobs = [
            *self._lanes.running.values(),
            *(job for lane in self._lanes.planned.values() for job in lane),
        ]
        calls = [call for job in jobs for call in job.calls]
        assert len(calls) == len(set(calls))
        asking = [job.workers for job in jobs if job.expert == AGGREGATING and not job.stopping]
        assert len(asking) == len(set(asking)), "no aggregator call waits behind others where its model is"
        for job in jobs:
            assert set(job.kept) <= set(job.calls)
            assert all(self._job_of[call] is job for call in job.calls)
            if job.number is not None:
                ended = (self.log.session == job.number) & (self.log.status == FINISHED)
                assert job.taken == ended.sum() + len(job.calls)


def calibrated(workload: Workload, seed: int = 1) -> Workload:
    """With calibration questions of the same make, whose answers and lengths are known."""
    rng, n, m = np.random.default_rng(seed), 40, len(workload.experts)
    told = workload.calibration
    lengths = np.stack([rng.choice(own, n) for own in told.output_tokens], axis=1)[:, :, None]
    return replace(
        workload,
        calibration=Calibration(
            told.output_tokens,
            told.prompt_tokens,
            category=tuple(np.zeros(len(own), np.int64) for own in told.output_tokens),
            answers=rng.integers(-1, 4, (n, m, 1)),
            lengths=lengths,
            question_category=np.zeros(n, np.int64),
            aggregator_output_tokens=rng.integers(1, 200, n),
            aggregator_prompt_tokens=np.full(n, 200),
        ),
    )


HOST = HostOverhead(base_s=0.006)


def run(
    workload: Workload,
    gate: tuple[str, dict[str, Any]],
    options: dict[str, Any],
    *,
    planned: dict[int, list[Failure]] | None = None,
    slots: int = 1,
    tp: int = 1,
    seats: int = 16,
    at_once: int | None = None,
    spec: EngineSpec = SPEC,
    executor: Executor | None = None,
    kind: type[SimulatedExecutor] = SimulatedExecutor,
) -> tuple[Seen, float]:
    """One steered run on three workers, in simulation unless an executor is given.

    With ``slots`` sessions to a worker, half of an iteration is the host's.
    """
    policy, judge = create("work_stealing", options), create_gate(*gate)
    assert isinstance(policy, Steering)
    workers = tuple(WorkerView(i, f"gpu{i}", "made") for i in range(3))
    pool = Pool(workers, slots, tp, ((0, 1, 2),), (1.0,), at_once)
    spec = replace(spec, config=replace(spec.config, max_num_seqs=seats))
    spec = replace(spec, host=HOST) if slots > 1 else spec
    told = workload.calibration
    cost = profile_sessions(
        spec,
        told.aggregator_output_tokens,
        told.aggregator_prompt_tokens,
        60,
        False,
        np.random.default_rng(5),
    )
    groups: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,)) if tp == 1 else ((0, 1, 2),)
    problem_of = problem_maker(workload, policy)

    def cluster() -> SimulatedCluster:
        return SimulatedCluster(lambda name, group, parts: spec, hosts=(0, 0, 0), slots=slots)

    bare = problem_of(np.arange(len(workload.calls)), workers)
    instances = (Instances(tp, groups, (cost,) * len(groups), 200.0),)
    problem: Problem = replace(
        bare,
        calibration=told,
        gate=judge,
        instances=instances,
        sharings=(Sharing(slots, bare.costs, instances),) if slots > 1 else (),
        rehearsal=Rehearsal(
            cluster, pool, workload.experts, workload.categories, workload.calls, told, np.random.default_rng
        ),
    )
    steered = Seen(workload, pool, policy.plan(problem), policy, judge, problem_of)
    executor = executor or kind(
        replace(cluster(), failures=planned or {}),
        np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens]),
        np.concatenate([workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER)]),
        reactive=True,
    )
    return steered, executor.run(steered)


def agreed(votes: list[int], gate: tuple[str, dict[str, Any]]) -> set[int]:
    """The answers the paper's gate may accept: those that enough of all k calls gave, by its definition."""
    if gate[0] == "always":
        return set()
    tau = {1: 1.0, "2/3": 2 / 3}[gate[1]["tau"]]
    counts = {v: votes.count(v) for v in votes if v != NO_ANSWER}
    return {v for v, n in counts.items() if n >= tau * len(votes) - 1e-9 and n == max(counts.values())}


def check(steered: Seen, makespan: float, workload: Workload, gate: tuple[str, dict[str, Any]]) -> None:
    """Conservation, causality, and the paper's gate's answer to every question."""
    log, n = steered.log, len(workload.calls)
    votes = workload.outcomes.answer.reshape(workload.n_questions, -1).tolist()
    for answer, row in zip(steered.accepted.tolist(), votes, strict=True):
        right = agreed(row, gate)
        assert answer in right if right else answer == ASK
    asked = n + np.flatnonzero(steered.accepted == ASK)
    assert (log.status[:n] != PENDING).all()
    assert (log.status[asked] == FINISHED).all()
    assert (log.status[np.setdiff1d(np.arange(n, log.n_calls), asked)] == PENDING).all()
    done = log.status == FINISHED
    assert (log.start_s[done] <= log.first_token_s[done]).all()
    assert (log.first_token_s[done] <= log.finish_s[done]).all()
    assert log.finish_s.max() <= makespan
    stayed = done.copy()
    assert steered.plan.course is not None
    if steered.plan.course.migrate:
        stayed[steered.withdrawn] = False
    for number in log.sessions:
        assert len(log.sessions[number].spec.call_ids) or steered.plan.course.migrate
        usage = log.sessions[number].usage
        assert usage is not None
        mine = done & (log.session == number)
        assert (log.start_s[mine & stayed] >= usage.ready_s - 1e-9).all()
        assert (log.finish_s[mine] >= usage.ready_s).all()
        assert (log.finish_s[mine] <= usage.end_s + 1e-9).all()
    lengths = np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens])
    np.testing.assert_array_equal(log.output_tokens[done], lengths[done])
    # an aggregator call reads what its own question's calls wrote
    k = n // workload.n_questions
    for call in asked.tolist():
        question = call - n
        assert log.start_s[call] >= log.finish_s[question * k : (question + 1) * k].max() - 1e-9


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("start", STARTS)
def test_every_call_ends_once_and_the_answers_are_the_gate_s(
    start: str, gate: tuple[str, dict[str, Any]]
) -> None:
    workload = calibrated(make_workload(40, answers=2))
    steered, makespan = run(workload, gate, {"start": start})
    check(steered, makespan, workload, gate)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(STARTS[:3]),
    st.sampled_from(GATES),
    st.fixed_dictionaries({name: st.booleans() for name in ("cascade", "overlap", "steal", "migrate")}),
    failures,
    st.integers(1, 2),
    st.sampled_from([2, 16]),
    st.integers(0, 1000),
)
def test_nothing_is_lost_when_workers_are(
    start: str,
    gate: tuple[str, dict[str, Any]],
    options: dict[str, Any],
    planned: dict[int, list[tuple[float, float | None]]],
    slots: int,
    seats: int,
    seed: int,
) -> None:
    workload = calibrated(make_workload(12, n_experts=4, seed=seed, answers=2))
    plan: dict[int, list[Failure]] = {}
    for worker, moments in planned.items():
        at, plan[worker] = 0.0, []
        for gap, down in moments:
            at += gap
            plan[worker].append(Failure(at, down))
            if down is None:
                break
            at += down
    given = {"start": start, "scenes": 0, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.1)
        steered, makespan = run(workload, gate, given, planned=plan, slots=slots, seats=seats)
    check(steered, makespan, workload, gate)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["round_robin", "greedy"]),
    st.sampled_from(GATES),
    st.sampled_from([2, 4]),
    st.integers(0, 1000),
)
def test_takeovers_leave_calls_alone_that_went_ahead_of_those_kept(
    start: str, gate: tuple[str, dict[str, Any]], seats: int, seed: int
) -> None:
    """Enough calls for takeovers, few sequences: released calls join sessions that keep others back."""
    workload = calibrated(make_workload(80, n_experts=4, seed=seed, answers=2))
    steered, makespan = run(workload, gate, {"start": start, "scenes": 0}, seats=seats)
    check(steered, makespan, workload, gate)


def moved(steered: Seen) -> int:
    """Expert calls that ran on another worker than the one they were planned for."""
    worker_of = {number: row.spec.workers[0] for number, row in steered.log.sessions.items()}
    planned = {call: s.worker for s in steered.plan.sessions for call in s.call_ids.tolist()}
    return sum(worker_of[int(steered.log.session[call])] != worker for call, worker in planned.items())


def test_an_idle_worker_takes_over_calls_that_wait() -> None:
    """Round-robin leaves a worker idle while another's long expert still has calls that wait."""
    workload = calibrated(make_workload(120))
    options = {"start": "round_robin", "scenes": 0, "overlap": False, "order": "fcfs"}
    helped, with_help = run(workload, ("always", {}), options, seats=4)
    alone, _ = run(workload, ("always", {}), {**options, "steal": False}, seats=4)
    check(helped, with_help, workload, ("always", {}))
    assert moved(helped) > 0
    assert moved(alone) == 0
    assert helped.expert_stage_s < 0.9 * alone.expert_stage_s


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["round_robin", "greedy"]), st.sampled_from(GATES), st.integers(0, 1000), failures)
def test_calls_that_move_once_started_are_whole(
    start: str,
    gate: tuple[str, dict[str, Any]],
    seed: int,
    planned: dict[int, list[tuple[float, float | None]]],
) -> None:
    """Two experts on three workers, no call of which waits, with workers that are lost on the way."""
    workload = calibrated(make_workload(20, n_experts=2, seed=seed, answers=2))
    options = {"start": start, "scenes": 0, "migrate": True, "overlap": False}
    plan = {w: [Failure(at, 5.0 if w else None)] for w, ((at, _), *_) in planned.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.1)
        steered, makespan = run(workload, gate, options, planned=plan, seats=16)
    check(steered, makespan, workload, gate)


def test_started_calls_go_to_an_idle_worker_where_that_pays() -> None:
    """One worker runs all calls, and its KV cache holds four. The others come back and load their model."""
    gone = {1: [Failure(1.0, 20.0)], 2: [Failure(1.0, 20.0)]}
    options = {"start": "round_robin", "scenes": 0, "overlap": False}
    small = replace(SPEC, config=replace(CONFIG, num_gpu_blocks=400))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "MEANS", (1500,))
        patch.setattr(worlds, "SPEC", small)
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 4.0)
        workload = calibrated(make_workload(5, n_experts=1))
        helped, with_help = run(
            workload, ("always", {}), {**options, "migrate": True}, spec=small, planned=gone
        )
        alone, _ = run(workload, ("always", {}), options, spec=small, planned=gone)
    check(helped, with_help, workload, ("always", {}))
    assert moved(helped) > 3
    rows = [helped.log.sessions[int(helped.log.session[call])] for call in helped.withdrawn]
    begun = helped.log.start_s[helped.withdrawn] < [row.started_s for row in rows]
    assert begun.any(), "some had started where they were"
    assert helped.expert_stage_s < alone.expert_stage_s


def test_the_last_calls_of_a_session_join_another_of_their_expert() -> None:
    """Aggregator calls wait behind the last calls of a session; these go on where their expert runs anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "MEANS", (1500,))
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 2.0)
        workload = calibrated(make_workload(15, n_experts=1))
        options = {"start": "data_parallel", "scenes": 0, "migrate": True}
        merging, makespan = run(workload, ("always", {}), options)
        patch.setattr(work_stealing, "LAST_CALLS", 0)
        staying, _ = run(workload, ("always", {}), options)
    check(merging, makespan, workload, ("always", {}))
    log = merging.log
    rows = [log.sessions[int(log.session[call])] for call in merging.withdrawn]
    joined = [call for call, row in zip(merging.withdrawn, rows, strict=True) if len(row.spec.call_ids)]
    assert 0 < len(joined) <= 2 * 8, "two of three sessions may end early"
    planned = {call: s.worker for s in merging.plan.sessions for call in s.call_ids.tolist()}
    assert all(log.sessions[int(log.session[call])].spec.workers[0] != planned[call] for call in joined)
    n = len(workload.calls)
    assert log.start_s[n:].min() < staying.log.start_s[n:].min() - 1, "the aggregator is there sooner"


@pytest.mark.parametrize(
    ("calls", "left_s", "behind", "others", "joined"),
    [
        (8, 60.0, 100, [40, 30, 50], 1),
        (9, 60.0, 100, [40, 30, 50], None),
        (8, 5.0, 100, [40, 30, 50], None),
        (8, 60.0, 30, [40, 30, 50], None),
        (8, 60.0, 100, [], None),
    ],
)
def test_calls_join_the_smallest_session_if_more_wait_than_that_slows_down(
    calls: int, left_s: float, behind: int, others: list[int], joined: int | None
) -> None:
    policy = create("work_stealing", {})
    assert isinstance(policy, Steering)
    assert policy.merge(calls, left_s, behind, others) == joined


class Clinging(SimulatedExecutor):
    """Gives no started call back, as an engine does not whose calls stop at some text."""

    def withdraw_calls(self, session: int, call_ids: Ints, *, started: bool = False) -> None:
        super().withdraw_calls(session, call_ids)


def test_a_session_that_gives_nothing_is_not_asked_again() -> None:
    options = {"start": "round_robin", "scenes": 0, "overlap": False, "migrate": True}
    small = replace(SPEC, config=replace(CONFIG, num_gpu_blocks=400))
    gone = {1: [Failure(1.0, 20.0)], 2: [Failure(1.0, 20.0)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "MEANS", (1500,))
        patch.setattr(worlds, "SPEC", small)
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 4.0)
        patch.setattr(work_stealing, "LEAST_SAVING_S", 1e9)
        workload = calibrated(make_workload(5, n_experts=1))
        steered, makespan = run(workload, ("always", {}), options, spec=small, planned=gone, kind=Clinging)
    check(steered, makespan, workload, ("always", {}))
    asked = [row for row in steered.log.sessions.values() if not len(row.spec.call_ids)]
    assert len(asked) == 1, "one worker loaded the model for nothing"


def test_running_sessions_take_each_other_s_waiting_calls() -> None:
    """Even halves of an expert do not take even times: without a barrier or an idle worker, calls change place."""
    workload = calibrated(make_workload(200, n_experts=1))
    options = {"start": "data_parallel", "scenes": 0, "overlap": False, "order": "fcfs"}
    free, makespan = run(workload, ("always", {}), options)
    bound, _ = run(workload, ("always", {}), {**options, "steal": False})
    check(free, makespan, workload, ("always", {}))
    assert moved(free) > 0
    assert moved(bound) == 0


def test_held_calls_save_tokens_and_keep_the_answers() -> None:
    workload = calibrated(make_workload(80, answers=2))
    saving, makespan = run(workload, ("plurality", CANCELS), {"start": "greedy"})
    plain, _ = run(workload, ("plurality", {"tau": "2/3"}), {"start": "greedy"})
    check(saving, makespan, workload, ("plurality", CANCELS))
    n = len(workload.calls)
    assert (saving.log.status[:n] == CANCELLED).sum() > 0
    assert saving.log.output_tokens[:n].sum() < plain.log.output_tokens[:n].sum()
    np.testing.assert_array_equal(saving.accepted, plain.accepted)


def test_the_aggregator_does_not_wait_for_the_last_question() -> None:
    workload = calibrated(make_workload(80))
    flowing, sooner = run(workload, ("always", {}), {"start": "greedy"})
    waiting, later = run(workload, ("always", {}), {"start": "greedy", "overlap": False})
    n = len(workload.calls)
    assert flowing.log.start_s[n:].min() < flowing.expert_stage_s
    assert waiting.log.start_s[n:].min() >= waiting.expert_stage_s
    assert sooner < later


@pytest.mark.parametrize("gate", [("always", {}), ("plurality", CANCELS)], ids=str)
def test_what_a_busy_worker_runs_next_is_read_ahead(gate: tuple[str, dict[str, Any]]) -> None:
    """Reading is 2 s of a load of 3 s: all sessions but the first of a worker do without, if there is time."""
    workload = calibrated(make_workload(80, n_experts=5))
    fixed = {"start": "round_robin", "scenes": 0, "steal": False, "cascade": False, "overlap": False}
    ahead, sooner = run(workload, gate, fixed)
    plain, later = run(workload, gate, {**fixed, "prefetch": False})
    check(ahead, sooner, workload, gate)
    np.testing.assert_array_equal(ahead.accepted, plain.accepted)
    assert sooner <= later - 2.0 + 1e-9
    assert not any(row.prefetched for row in plain.log.sessions.values())
    lanes: dict[int, list[tuple[str, bool, float]]] = {}
    for row in ahead.log.sessions.values():
        assert row.usage is not None
        load_s = row.usage.ready_s - row.usage.load_start_s
        lanes.setdefault(row.spec.workers[0], []).append((row.spec.expert, row.prefetched, load_s))
    for lane in lanes.values():
        assert lane[0][1:] == (False, pytest.approx(3.0))
        for (before, _, _), (expert, prefetched, load_s) in pairwise(lane):
            assert prefetched == (expert != before)
            assert load_s <= 3.0 + 1e-9 if prefetched else load_s == 0.0
    loads_s = [load_s for lane in lanes.values() for _, prefetched, load_s in lane if prefetched]
    assert len(loads_s) > 3
    assert min(loads_s) == pytest.approx(1.0)


@pytest.mark.parametrize("slots", [1, 2])
def test_what_was_read_ahead_is_there_when_it_is_wanted(slots: int) -> None:
    """Also where models share a worker, and another is read as soon as a session starts."""
    workload = calibrated(make_workload(400, n_experts=12))
    steered, _ = run(workload, ("always", {}), {"start": "round_robin", "scenes": 0}, slots=slots)
    loads_s = [
        row.usage.ready_s - row.usage.load_start_s
        for row in steered.log.sessions.values()
        if row.prefetched and row.usage is not None
    ]
    assert len(loads_s) > 5
    assert sum(load_s < 1.0 + 1e-6 for load_s in loads_s) > len(loads_s) / 2


def test_loads_are_predicted_as_they_will_be() -> None:
    """Full on an idle worker, without the disk part behind another session or once the weights are read."""
    workload = calibrated(make_workload(30))
    options = {"start": "greedy", "scenes": 0}
    plain, _ = run(workload, ("always", {}), {**options, "prefetch": False})
    assert plain._lanes.load_s((0,), 0, behind=True) == 3.0
    ahead, _ = run(workload, ("always", {}), options)
    ahead._lanes.holds, ahead._lanes.prefetched = {0: 1}, {(1,): 2}
    loads_s = [
        ahead._lanes.load_s((w,), m, behind=b)
        for w, m, b in [(0, 0, False), (0, 0, True), (0, 1, True), (1, 2, False)]
    ]
    assert loads_s == [3.0, 1.0, 0.0, 1.0]
    job = Job((2,), 0, {0: None}, number=7, started_s=10.0, load_s=1.0)
    assert ahead._lanes.loads_for_s(job, 10.25) == 0.75
    assert ahead._lanes.left_s(job, 10.25) == pytest.approx(0.75 + ahead._forecast.cost(0, (2,)).predict_s(1))


def test_no_aggregator_goes_ahead_of_a_worker_s_own_experts() -> None:
    """It would get every question that becomes ready from then on, while what was planned there waits."""
    workload = calibrated(make_workload(30))
    steered, _ = run(workload, ("always", {}), {"start": "greedy", "scenes": 0})
    offered: list[int] = []

    def relieve(loads: Sequence[Load]) -> None:
        offered[:] = [load.expert for load in loads]

    n = len(workload.calls)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steered._scheduler, "relieve", relieve)
        steered._lanes.planned[1] += [
            Job((1,), 1, dict.fromkeys(range(40))),
            Job((1,), AGGREGATING, {n: None}),
        ]
        for own, seen in [
            ([], [1, AGGREGATING]),
            ([Job((0,), AGGREGATING, {n + 1: None})], [1, AGGREGATING]),
            ([Job((0,), 0, {50: None})], [1]),
            ([Job((0,), 0, {50: None}), Job((0,), AGGREGATING, {n + 1: None})], [1]),
        ]:
            steered._lanes.planned[0] = deque(own)
            steered._takeovers.for_worker(0, set(), 0.0)
            assert offered == seen


def test_an_aggregator_call_counts_by_its_prompt_where_that_is_known() -> None:
    """Before a real run it is not: a call then counts as one, not as one that reads nothing."""
    workload = calibrated(make_workload(30))
    steered, _ = run(workload, ("always", {}), {"start": "greedy", "scenes": 0})
    assert steered.plan.course is not None
    prompts = np.where(np.arange(30) == 0, 0, np.where(np.arange(30) == 1, 800, 200))
    told = replace(workload, aggregator=replace(workload.aggregator, prompt_tokens=prompts))
    forecast = Forecast(told, steered._lanes._pool, steered._forecast._profiled, steered.plan.course)
    unknown, long, usual = (forecast.weight(len(workload.calls) + q) for q in (0, 1, 2))
    assert unknown == usual == 1.0
    assert long > 1.5


def test_a_lost_worker_s_weights_are_not_counted_on() -> None:
    """It comes back to a host that may have lost them: every first session there loads in full."""
    workload = calibrated(make_workload(120, n_experts=5))
    options = {"start": "round_robin", "scenes": 0, "steal": False, "overlap": False}
    steered, _ = run(workload, ("always", {}), options, planned={0: [Failure(6.0, 2.0)]})
    after = [r for r in steered.log.sessions.values() if r.spec.workers == (0,) and r.started_s >= 8.0]
    assert any(r.prefetched for r in steered.log.sessions.values())
    assert after
    assert not after[0].prefetched
    assert after[0].usage is not None
    assert after[0].usage.ready_s - after[0].usage.load_start_s == pytest.approx(3.0)


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_workers_than_may_are_busy_at_once(at_once: int) -> None:
    workload = calibrated(make_workload(30))
    steered, _ = run(workload, ("always", {}), {"start": "greedy", "scenes": 0}, at_once=at_once)
    edges = []
    for row in steered.log.sessions.values():
        assert row.usage is not None
        edges += [(row.usage.end_s, -1), (row.usage.load_start_s, 1)]
    running = np.cumsum([change for _, change in sorted(edges)])
    assert running.max() <= at_once


def test_the_aggregator_as_one_group_of_all_workers() -> None:
    workload = calibrated(make_workload(30))
    steered, makespan = run(workload, ("always", {}), {"start": "greedy", "scenes": 0}, tp=3)
    check(steered, makespan, workload, ("always", {}))
    groups = {r.spec.workers for r in steered.log.sessions.values() if r.stage == "aggregator"}
    assert groups == {(0, 1, 2)}
