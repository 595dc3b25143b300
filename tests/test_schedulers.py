"""What every policy must do, and what each is known for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from scheduling import COUNTS, EXPERTS, problem, problems, walk, with_lengths

from mosaicsim.errors import InfeasibleError, ScenarioError
from mosaicsim.schedulers.base import Plan, Problem
from mosaicsim.schedulers.registry import BUILT_IN, create
from mosaicsim.schedulers.shares import session_s

BLIND = ["round_robin", "data_parallel", "greedy_lpt", "greedy_list", "ilp", "ilp_affine"]


def make(name: str):
    policy, _, variant = name.partition("_") if name.startswith(("greedy", "ilp")) else (name, "", "")
    options = {"greedy": {"mode": variant}, "ilp": {"cost": variant or "linear"}}.get(policy, {})
    if policy == "ilp":
        options["max_models_per_worker"] = 6
    return create(policy, options)


def by_worker(plan: Plan, given_problem: Problem) -> list[list[str]]:
    return [
        [given_problem.experts[s.expert] for s in plan.sessions if s.worker == w.index]
        for w in given_problem.workers
    ]


@pytest.mark.parametrize("name", [*BLIND, "oracle"])
@settings(max_examples=25, deadline=None)
@given(given_problem=problems())
def test_every_call_left_is_placed_exactly_once(name: str, given_problem: Problem) -> None:
    if name == "oracle":
        given_problem = with_lengths(given_problem, np.arange(1, len(given_problem.calls) + 1))
    plan = make(name).plan(given_problem)
    placed = [s.call_ids for s in plan.sessions]
    assert sorted(np.concatenate([np.zeros(0, np.int64), *placed])) == given_problem.call_ids.tolist()
    for session in plan.sessions:
        assert len(session.call_ids)
        assert session.worker in [w.index for w in given_problem.workers]
        assert (given_problem.calls.expert[session.call_ids] == session.expert).all()


@pytest.mark.parametrize("name", BLIND[:4])
@settings(max_examples=25, deadline=None)
@given(given_problem=problems())
def test_the_prediction_is_the_plan_walked_by_profile(name: str, given_problem: Problem) -> None:
    plan = make(name).plan(given_problem)
    assert plan.predicted_s == pytest.approx(walk(given_problem, plan))


@pytest.mark.parametrize("name", [*BLIND, "oracle"])
def test_a_plan_depends_only_on_the_problem(name: str) -> None:
    asked = with_lengths(problem(), np.arange(sum(COUNTS)) % 4000 + 1)
    first, again = make(name).plan(asked), make(name).plan(asked)
    assert first.predicted_s == again.predicted_s
    assert first.info == again.info
    assert [(s.worker, s.call_ids.tolist()) for s in first.sessions] == [
        (s.worker, s.call_ids.tolist()) for s in again.sessions
    ]


def test_round_robin_deals_as_in_the_paper() -> None:
    asked = problem()
    plan = make("round_robin").plan(asked)
    assert by_worker(plan, asked) == [["Gemma", "Exaone"], ["QwenR1", "GLM"], ["Qwen"], ["LlamaR1"]]
    assert plan.predicted_s == pytest.approx(2650, rel=0.03)  # the paper measures 2635-2663 s


def test_round_robin_skips_experts_without_calls() -> None:
    asked = problem([4, 0, 158, 429, 3, 0])
    assert by_worker(make("round_robin").plan(asked), asked) == [["Gemma"], ["Qwen"], ["LlamaR1"], ["Exaone"]]


def test_data_parallel_runs_one_expert_at_a_time_everywhere() -> None:
    asked = problem()
    plan = make("data_parallel").plan(asked)
    assert [s.phase for s in plan.sessions] == [m for m in range(6) for _ in range(4)]
    sizes = [[len(s.call_ids) for s in plan.sessions if s.phase == m] for m in range(6)]
    assert all(max(row) - min(row) <= 1 for row in sizes)


def test_data_parallel_leaves_workers_out_when_calls_are_few() -> None:
    plan = make("data_parallel").plan(problem([2, 5]))
    assert [len(s.call_ids) for s in plan.sessions] == [1, 1, 2, 1, 1, 1]


def test_lpt_keeps_experts_whole_and_list_beats_it() -> None:
    lpt, split = make("greedy_lpt").plan(problem()), make("greedy_list").plan(problem())
    assert sorted(EXPERTS[s.expert] for s in lpt.sessions) == sorted(EXPERTS)
    assert split.predicted_s < 0.8 * lpt.predicted_s


def test_list_splits_reasoning_experts_and_not_light_ones() -> None:
    plan = make("greedy_list").plan(problem())
    hosts = {name: sum(EXPERTS[s.expert] == name for s in plan.sessions) for name in EXPERTS}
    assert hosts["QwenR1"] > 1
    assert {hosts[n] for n in ("Qwen", "Exaone", "GLM")} == {1}


@pytest.mark.parametrize("name", ["greedy_lpt", "greedy_list", "ilp", "oracle"])
def test_a_busy_worker_gets_less(name: str) -> None:
    lengths = np.where(np.isin(problem().calls.expert, [1, 3]), 3400, 300)
    asked = with_lengths(problem(backlog_s=(0, 0, 1000.0, 0)), lengths)
    plan = make(name).plan(asked)
    generate_s = [
        sum(
            session_s(asked.costs[s.expert][0], len(s.call_ids)) for s in plan.sessions if s.worker == w.index
        )
        for w in asked.workers
    ]
    assert generate_s[2] < 0.6 * max(generate_s)
    assert plan.predicted_s < make(name).plan(with_lengths(problem(), lengths)).predicted_s + 500


def test_slices_keep_the_order_of_the_workload_and_neighbours_together() -> None:
    asked = problem()
    for m in range(6):
        slices = [s.call_ids for s in make("greedy_list").plan(asked).sessions if s.expert == m]
        assert np.concatenate(slices).tolist() == asked.calls_of(m).tolist()


@pytest.mark.parametrize("name", [*BLIND, "oracle"])
def test_nothing_left_is_an_empty_plan_and_no_worker_left_is_an_error(name: str) -> None:
    asked = with_lengths(problem(), np.ones(sum(COUNTS), np.int64))
    idle = with_lengths(
        Problem(asked.experts, asked.calls, np.zeros(0, np.int64), asked.workers, asked.costs),
        asked.output_tokens,
    )
    assert make(name).plan(idle).sessions == ()
    alone = with_lengths(
        Problem(asked.experts, asked.calls, asked.call_ids, (), ((),) * 6), asked.output_tokens
    )
    with pytest.raises(InfeasibleError, match="no worker is left to run 6300 calls"):
        make(name).plan(alone)


def test_greedy_says_what_limit_would_work() -> None:
    with pytest.raises(InfeasibleError, match=r"max_models_per_worker: 1 .* 6 experts .* 4 workers; .* is 2"):
        create("greedy", {"max_models_per_worker": 1}).plan(problem())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ipl", {}, r"unknown scheduler 'ipl' \(did you mean 'ilp'\?\); accepted: round_robin, data_"),
        ("ilp", {"time_limit": 3}, r"schedulers\.ilp\.time_limit: .*did you mean 'time_limit_s'"),
        ("ilp", {"gap": float("nan")}, r"schedulers\.ilp\.gap: .*nan"),
        ("ilp", {"max_models_per_worker": 0}, r"schedulers\.ilp\.max_models_per_worker: .*1, got 0"),
        ("greedy", {"mode": "fast"}, r"schedulers\.greedy\.mode: .*'lpt' or 'list', got 'fast'"),
    ],
)
def test_wrong_names_and_options_are_explained(name: str, options: dict, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        create(name, options)


def test_the_registry_imports_no_solver_and_no_clock() -> None:
    heavy = "{'pulp', 'highspy', 'simpy', 'asyncio', 'vllm', 'pyarrow', 'matplotlib'}"
    code = f"import sys, mosaicsim.schedulers.registry; sys.exit(str({heavy} & set(sys.modules)) != 'set()')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_the_classes_own() -> None:
    assert {name: policy.name for name, policy in BUILT_IN.items()} == {name: name for name in BUILT_IN}
    assert [name for name, policy in BUILT_IN.items() if policy.sees_lengths] == ["oracle"]
