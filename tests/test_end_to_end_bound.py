"""The end-to-end bound: no run with the gate's answers beats it, and a chain alone meets it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steered import CANCELS, GATES, HOST, calibrated
from test_steered import run as steer
from worlds import CONFIG, SPEC, make_workload, run

from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.analysis.bound import limits_of
from mosaicsim.analysis.end_to_end_bound import (
    EndToEndBound,
    Engines,
    bound_of_whole_run,
    deciding_sets,
    end_to_end_lower_bound,
)
from mosaicsim.analysis.study import simulate
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.session import EngineSpec
from mosaicsim.policies import PolicyKind
from mosaicsim.scenario import load_scenario
from mosaicsim.schedulers import work_stealing
from mosaicsim.workload.calls import AggregatorCalls, Ints, Workload


def bound(
    workload: Workload,
    gate: tuple[str, dict[str, Any]],
    *,
    slots: int = 1,
    tp: int = 1,
    seats: int = 16,
    spec: EngineSpec = SPEC,
) -> EndToEndBound:
    """Of the world that ``test_steered.run`` makes: three workers alike."""
    spec = replace(spec, config=replace(spec.config, max_num_seqs=seats), host=HOST)
    engine = limits_of(spec, shared=slots > 1)
    groups = [(0,), (1,), (2,)] if tp == 1 else [(0, 1, 2)]
    caching = spec.config.prefix_caching
    engines = Engines([[engine] * 3] * len(workload.experts), [(g, engine) for g in groups], slots, caching)
    return end_to_end_lower_bound(workload, create_gate(*gate), engines)


def answered(answers: list[int], output: list[int], aggregation: int) -> Workload:
    """One question with these answers and lengths."""
    made = make_workload(1, n_experts=3)
    columns: list[Ints] = [np.array(answers), np.array(output), np.array([0, 1, 2])]
    outcomes = replace(made.outcomes, answer=columns[0], output_tokens=columns[1])
    return replace(
        made,
        calls=replace(made.calls, expert=columns[2]),
        outcomes=outcomes,
        aggregator=AggregatorCalls(np.array([200]), np.array([aggregation]), np.array([True])),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["round_robin", "greedy", "data_parallel"]),
    st.sampled_from(GATES),
    st.fixed_dictionaries({name: st.booleans() for name in ("cascade", "overlap", "steal")}),
    st.integers(1, 2),
    st.sampled_from([1, 3]),
    st.sampled_from([2, 16]),
    st.integers(1, 14),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_no_run_beats_it(
    start: str,
    gate: tuple[str, dict[str, Any]],
    options: dict[str, Any],
    slots: int,
    tp: int,
    seats: int,
    questions: int,
    n_experts: int,
    seed: int,
) -> None:
    workload = calibrated(make_workload(questions, n_experts=n_experts, seed=seed, answers=2))
    given = {"start": start, "scenes": 0, **options}
    _, makespan = steer(workload, gate, given, slots=slots, tp=tp, seats=seats)
    assert bound(workload, gate, slots=slots, tp=tp, seats=seats).seconds <= makespan * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["round_robin", "data_parallel"]),
    st.sampled_from(GATES),
    st.sampled_from(["v0", "v1"]),
    st.integers(1, 14),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_no_run_that_moves_started_calls_beats_it(
    start: str,
    gate: tuple[str, dict[str, Any]],
    policy: Literal["v0", "v1"],
    questions: int,
    n_experts: int,
    seed: int,
) -> None:
    """Without caches that keep blocks."""
    workload = calibrated(make_workload(questions, n_experts=n_experts, seed=seed, answers=2))
    given = {"start": start, "scenes": 0, "migrate": True}
    spec = replace(SPEC, config=replace(CONFIG, policy=policy, prefix_caching=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.1)
        _, makespan = steer(workload, gate, given, spec=spec)
    assert bound(workload, gate, spec=spec).seconds <= makespan * (1 + 1e-9)


@pytest.mark.parametrize("gate", ["always", "{plurality: {tau: 2/3, cancel_pending: true}}"])
def test_no_run_of_a_scenario_beats_its_bound(gate: str) -> None:
    scenario = load_scenario(
        Path(__file__).parent.parent / "scenarios" / "beyond_gpqa.yaml",
        ["replicates=1", f"gates=[{gate}]", "schedulers=[{work_stealing: {start: greedy, scenes: 0}}]"],
    )
    result = simulate(scenario)
    (judge,) = scenario.policies(PolicyKind.GATE)
    found = bound_of_whole_run(Fleet(scenario), result.workloads[0], judge.create()).seconds
    assert 0.4 * result.runs[0].metrics["makespan_s"] < found < result.runs[0].metrics["makespan_s"]


def test_no_run_with_a_barrier_beats_it() -> None:
    workload = make_workload(60, answers=3)
    _, makespan = run(workload, "greedy", ("plurality", {"tau": "2/3"}))
    assert 0.3 * makespan < bound(workload, ("plurality", {"tau": "2/3"})).seconds < makespan


def test_a_chain_alone_takes_what_the_bound_says() -> None:
    """A long call that disagrees, then a long aggregation, are the run; every step could be a cheaper one
    after a preemption, and the aggregator's load could lie beside."""
    workload = calibrated(answered([0, 1, 2], [20, 2000, 20], 1500))
    options = {"start": "greedy", "scenes": 0, "cascade": False}
    _, makespan = steer(workload, ("plurality", CANCELS), options)
    chain = bound(workload, ("plurality", CANCELS)).chain_s
    assert 0.7 * (makespan - SPEC.load_s) <= chain <= makespan


def test_a_long_call_that_is_not_needed_bounds_nothing() -> None:
    gate = "plurality", CANCELS
    needless, needed = answered([1, 1, 1], [20, 20, 2000], 10), answered([1, 2, 1], [20, 20, 2000], 10)
    assert bound(needless, gate).chain_s < 0.3 * bound(needed, gate).chain_s
    # without cancelling it runs in any case
    assert bound(needless, ("plurality", {"tau": "2/3"})).chain_s == pytest.approx(
        bound(needed, gate).chain_s
    )


def test_of_a_question_the_cheapest_deciding_set_counts() -> None:
    gate = "plurality", CANCELS
    all_alike, two = answered([1, 1, 1], [500, 500, 20], 10), answered([1, 2, 1], [500, 500, 20], 10)
    shortest_two = answered([1, 2, 1], [500, 20, 20], 10)
    assert bound(all_alike, gate).work_s < bound(two, gate).work_s * (1 + 1e-9)
    assert bound(shortest_two, gate).work_s <= bound(two, gate).work_s


@pytest.mark.parametrize(
    ("answers", "gate", "sets"),
    [
        ([1, 1, 2], CANCELS, [(0, 1), (0, 1, 2)]),
        ([1, 1, 2], {"tau": "2/3"}, [(0, 1, 2)]),
        ([1, 1, 2], {"tau": 1, "cancel_pending": True}, []),
        ([0, 1, 2], CANCELS, []),
        ([-1, 1, 1], CANCELS, [(1, 2), (0, 1, 2)]),
    ],
)
def test_deciding_sets(answers: list[int], gate: dict[str, Any], sets: list[tuple[int, ...]]) -> None:
    workload = answered(answers, [10, 10, 10], 10)
    assert deciding_sets(workload, create_gate("plurality", gate), 0) == sets
