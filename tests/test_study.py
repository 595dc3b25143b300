"""Studies: determinism, honest boundaries, the bound, and figures that must agree with each other."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.aggregation.calibrated import Calibrated
from mosaicsim.analysis.study import simulate
from mosaicsim.errors import InfeasibleError, MosaicsimError, ProfileError, ScenarioError, TraceError
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.rehearsal import Rehearsal
from mosaicsim.scenario import load_scenario
from mosaicsim.schedulers import work_stealing
from mosaicsim.schedulers.base import Plan, Problem
from mosaicsim.schedulers.round_robin import RoundRobin
from mosaicsim.workload.ballots import Ballots, GateCalibration

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "scenarios" / "paper_mmlu_pro.yaml"
QUICK = [
    "replicates=1",
    "workload.questions=150",
    "workload.routing=recorded",
    "gates=[always, {plurality: {tau: 2/3}}]",
]


def test_same_seed_same_bytes() -> None:
    first, again = (simulate(load_scenario(PAPER, [*QUICK, "replicates=2"])).summary for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    other = simulate(load_scenario(PAPER, [*QUICK, "replicates=2", "seed=1"])).summary
    assert json.dumps(first) != json.dumps(other)


def test_replicates_differ_and_do_not_depend_on_how_many_there_are() -> None:
    two = simulate(load_scenario(PAPER, [*QUICK, "replicates=2", "schedulers=[greedy]"])).summary["runs"]
    one = simulate(load_scenario(PAPER, [*QUICK, "schedulers=[greedy]"])).summary["runs"]
    assert two[: len(one)] == one
    assert two[0]["expert_stage_s"] != two[len(one)]["expert_stage_s"]


def test_a_run_does_not_depend_on_its_company() -> None:
    """Sessions are remembered from run to run; that must not show."""
    alone = simulate(load_scenario(PAPER, [*QUICK, "schedulers=[ilp]"])).summary["runs"]
    among = simulate(load_scenario(PAPER, QUICK)).summary["runs"]
    for run in alone:
        (same,) = (r for r in among if (r["scheduler"], r["gate"]) == (run["scheduler"], run["gate"]))
        for figure in ("expert_stage_s", "makespan_s", "accuracy", "output_tokens", "lower_bound_s"):
            assert same[figure] == run[figure]


def test_figures_agree() -> None:
    result = simulate(load_scenario(PAPER, QUICK))
    for run in result.runs:
        m = run.metrics
        assert m["makespan_s"] == pytest.approx(m["expert_stage_s"] + m["aggregator_stage_s"])
        assert m["calls_finished"] == 450 + round(150 * (1 - m["skip_rate"]))
        assert m["output_tokens"] == run.calls["output_tokens"].sum()
        assert m["delta_pp_ci95"][0] <= m["delta_pp"] <= m["delta_pp_ci95"][1]
        assert m["lower_bound_s"] <= m["expert_stage_s"]
        assert 0 <= m["idle_fraction"] < 1
        assert sum(run.gpu_time.values()) == pytest.approx(4 * m["makespan_s"])
        assert run.calls["finish_s"].max() == pytest.approx(m["makespan_s"])


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["v0", "v1"]),
    st.integers(1, 2),
    st.sampled_from(["restart", "sleep"]),
    st.sampled_from([4500, 8000, 30_000]),
    st.booleans(),
    st.sampled_from(["[{device: a100, gpus: 4}]", "[{device: h100, gpus: 1}, {device: l40s, gpus: 2}]"]),
    st.sampled_from(["[]", "[{worker: 0, at_s: 90, down_s: 60}, {worker: 1, at_s: 300}]"]),
)
def test_no_run_beats_the_lower_bound(
    seed: int, policy: str, slots: int, change: str, blocks: int, cancel: bool, hosts: str, failures: str
) -> None:
    """Over seeds, step policies, KV pressure, sharing, sleep, cancels, mixed clusters and lost workers."""
    scenario = load_scenario(
        PAPER,
        [
            f"seed={seed}",
            "replicates=1",
            "workload.questions=40",
            "workload.routing=recorded",
            f"engine.policy={policy}",
            f"engine.num_gpu_blocks={blocks}",
            "engine.max_num_seqs=32",
            f"cluster.experts_per_worker={slots}",
            f"cluster.session_change={change}",
            f"gates=[{{plurality: {{tau: 2/3, cancel_pending: {cancel}}}}}]",
            f"cluster.hosts={hosts}",
            f"failures.scripted={failures}",
            "aggregator.tp=1",
            "schedulers=[round_robin, data_parallel, greedy, ilp, oracle, "
            "{work_stealing: {start: round_robin, scenes: 0}}, "
            "{work_stealing: {start: data_parallel, scenes: 0, migrate: true, label: moving}}]",
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.0)
        runs = simulate(scenario).runs
    for run in runs:
        assert run.metrics["lower_bound_s"] <= run.metrics["expert_stage_s"] * (1 + 1e-12)


@pytest.mark.parametrize(("host_ms", "memory", "slots"), [(0, 0.9, 1), (0, 0.55, 1), (60, 0.9, 2)])
def test_engines_share_workers_where_the_host_takes_most_of_the_time(
    host_ms: int, memory: float, slots: int
) -> None:
    """What the GPU would idle for is another's; without host time two only halve the KV cache."""
    scenario = load_scenario(
        PAPER,
        [
            "replicates=1",
            "workload.questions=60",
            "workload.routing=recorded",
            f"engine.host_base_ms={host_ms}",
            f"engine.gpu_memory_utilization={memory}",
            "engine.host_per_sequence_ms=0",
            "cluster.experts_per_worker=2",
            "cluster.hosts=[{device: a100-80g, gpus: 2}]",
            "aggregator={model: llama-3.1-8b, tp: 1, load_s: 45}",
            "gates=[{plurality: {tau: 2/3}}]",
            "schedulers=[{work_stealing: {start: greedy, scenes: 1}}]",
        ],
    )
    (run,) = simulate(scenario).runs
    assert run.plan_info["sessions_per_worker"] == slots
    assert run.metrics["lower_bound_s"] <= run.metrics["expert_stage_s"]


def test_a_plan_is_made_where_no_draft_can_be_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration calls may be larger than any to come; the formula then has to do."""

    def too_large(*args: object) -> None:
        raise InfeasibleError("a call needs more tokens of KV cache than the engine has")

    monkeypatch.setattr(Rehearsal, "play", too_large)
    overrides = ["replicates=1", "workload.questions=20", "workload.routing=recorded", "gates=[always]"]
    scenario = load_scenario(PAPER, [*overrides, "schedulers=[{work_stealing: {start: greedy, scenes: 2}}]"])
    (run,) = simulate(scenario).runs
    assert 0 < run.plan_info["predicted_makespan_s"] < inf
    assert run.metrics["calls_finished"] == 4 * 20  # each question asks the aggregator as well


def test_the_bound_is_reached_by_a_call_alone() -> None:
    """One question, one call, one GPU: load, prefill and decode are all there is, so the bound is tight."""
    scenario = load_scenario(
        PAPER,
        [
            "replicates=1",
            "workload.questions=1",
            "workload.k=1",
            "workload.routing=uniform",
            "schedulers=[greedy]",
            "gates=[always]",
            "cluster.hosts=[{device: a100-80g, gpus: 1}]",
            "aggregator.tp=1",
        ],
    )
    run = simulate(scenario).runs[0].metrics
    assert 0.95 * run["expert_stage_s"] <= run["lower_bound_s"] <= run["expert_stage_s"]


def test_the_bound_allows_for_weights_read_ahead() -> None:
    """Two calls of two models on one GPU: nothing but the second read is hidden, so the bound is tight."""
    scenario = load_scenario(
        PAPER.with_name("beyond_gpqa.yaml"),
        [
            "replicates=1",
            "workload.questions=2",
            "workload.k=1",
            "workload.routing={fixed_counts: {counts: {LlamaR1: 1, QwenR1: 1}}}",
            "schedulers=[ilp, {work_stealing: {start: ilp, scenes: 0}}]",
            "gates=[always]",
            "cluster.hosts=[{device: a100-80g, gpus: 1}]",
            "aggregator={model: llama-3.1-8b}",
        ],
    )
    paper, ahead = (run.metrics for run in simulate(scenario).runs)
    engines = Fleet(scenario)
    hidden_s = [engines.engine_of(name, (0,)).disk_s for name in ("LlamaR1", "QwenR1")]
    saved_s = paper["expert_stage_s"] - ahead["expert_stage_s"]
    assert any(saved_s == pytest.approx(disk_s) for disk_s in hidden_s)
    assert 0.98 * ahead["expert_stage_s"] <= ahead["lower_bound_s"] <= ahead["expert_stage_s"]


def test_speedups_are_over_the_policy_whatever_its_label() -> None:
    overrides = [*QUICK, "schedulers=[{round_robin: {label: rr}}, greedy]", "gates=[{always: {label: full}}]"]
    for run in simulate(load_scenario(PAPER, overrides)).runs:
        assert run.metrics["delta_pp_ci95"] == [0.0, 0.0]
        if run.scheduler == "rr":
            assert run.metrics["speedup"] == run.metrics["end_to_end_speedup"] == 1.0
        else:
            assert run.metrics["expert_stage_speedup"] > 1


def test_cancelling_saves_time_and_is_bounded_by_what_finished() -> None:
    plain, saving = (
        simulate(
            load_scenario(
                PAPER,
                [
                    *QUICK,
                    "schedulers=[ilp]",
                    f"gates=[{{plurality: {{tau: 2/3, cancel_pending: {cancel}}}}}]",
                ],
            )
        ).runs[0]
        for cancel in (False, True)
    )
    assert saving.metrics["calls_cancelled"] > 0
    assert saving.metrics["output_tokens"] < plain.metrics["output_tokens"]
    assert saving.metrics["skip_rate"] == plain.metrics["skip_rate"]
    assert saving.metrics["accuracy"] == plain.metrics["accuracy"]
    assert saving.metrics["expert_stage_s"] <= plain.metrics["expert_stage_s"]


def test_a_mixed_cluster_runs_and_uses_every_worker() -> None:
    result = simulate(
        load_scenario(
            PAPER,
            [
                *QUICK,
                "cluster.hosts=[{device: a100-80g, gpus: 2}, {device: h100, gpus: 2}]",
                "aggregator.tp=2",
                "schedulers=[greedy, data_parallel]",
            ],
        )
    )
    assert result.workers == ("gpu0", "gpu1", "gpu2", "gpu3")
    for run in result.runs:
        expert = run.timeline["stage"] == "expert"
        assert set(run.timeline["worker"][expert].tolist()) == {0, 1, 2, 3}


def test_sampled_failures_are_seeded_and_survived() -> None:
    overrides = [*QUICK, "schedulers=[greedy]", "failures.mtbf_s=400", "failures.down_s=60"]
    first, again = (simulate(load_scenario(PAPER, overrides)).summary for _ in range(2))
    assert first == again
    calm = simulate(load_scenario(PAPER, [*QUICK, "schedulers=[greedy]"])).summary
    assert first["runs"][0]["expert_stage_s"] > calm["runs"][0]["expert_stage_s"]
    assert first["runs"][0]["accuracy"] == calm["runs"][0]["accuracy"]


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["workload.trace=nowhere.parquet"], TraceError, "nowhere.parquet"),
        (["experts.Gemma.model=gema-2-9b"], ProfileError, "unknown model 'gema-2-9b' (did you mean 'gemma-2-9b'?)"),
        (["cluster.hosts.0.device=a10-80g"], ProfileError, "cluster.hosts.0.device: unknown device 'a10-80g' (did you mean 'a100-80g'?)"),
        (["aggregator.tp=8"], ScenarioError, "aggregator.tp: 8 GPUs of one device on one host asked for, the cluster has at most 4"),
        (["cluster.hosts=[{device: a100, gpus: 2}, {device: h100, gpus: 2}]"], ScenarioError, "the cluster has at most 2"),
        (["experts={Gemma: {model: gemma-2-9b}}"], ScenarioError, "the trace has an expert 'QwenR1' without an entry"),
        (["schedulers=[{ilp: {max_models_per_worker: 1}}]"], InfeasibleError, "max_models_per_worker"),
        (["engine.num_gpu_blocks=100"], InfeasibleError, "tokens of KV cache, the engine has 1600"),
        (["failures.scripted=[{worker: 9, at_s: 1}]"], ScenarioError, "failures.scripted.0.worker: 9"),
        (["profiles=[none.yaml]"], ProfileError, "none.yaml"),
        (["engine.version=vllm-v2"], ProfileError, "unknown engine 'vllm-v2'"),
        (["workload.calibration={questions: 9999}"], ScenarioError, "calibration takes 9,999 questions"),
        (["workload.k=4"], MosaicsimError, ""),
        (["workload.questions=99999"], ScenarioError, "workload.questions: 99,999, but"),
        (["experts.Gema.model=gemma-2-9b"], ScenarioError, "experts.Gema: the trace has no such expert (did you mean 'Gemma'?)"),
        (["experts.Gemma.model=qwen2.5-32b", "cluster.hosts.0.device=l40s"], ProfileError, "experts.Gemma: qwen2.5-32b on l40s: weights of"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said(overrides: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        simulate(load_scenario(PAPER, [*QUICK, *overrides]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def reachable(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Everything that can be got at from ``thing`` through attributes and containers."""
    if id(thing) in seen or isinstance(thing, (str, int, float, type)):
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, (tuple, list)):
        for item in thing:
            yield from reachable(item, seen)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from reachable(getattr(thing, field.name), seen)


def test_a_blind_scheduler_is_shown_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy in round_robin's place walks through all it was handed, as a plug-in could."""
    shown: list[Problem] = []
    plan_for_real = RoundRobin.plan

    def spy(self: RoundRobin, problem: Problem) -> Plan:
        shown.append(problem)
        return plan_for_real(self, problem)

    monkeypatch.setattr(RoundRobin, "plan", spy)
    result = simulate(load_scenario(PAPER, [*QUICK, "schedulers=[round_robin]"]))
    outcomes = result.workloads[0].outcomes
    secrets = [outcomes.output_tokens, outcomes.visible_tokens, outcomes.answer, outcomes.correct]
    arrays = [a for p in shown for a in reachable(p, set()) if isinstance(a, np.ndarray)]
    assert len(arrays) > 5
    for array in arrays:
        for secret in secrets:
            assert not np.shares_memory(array, secret)
            assert array.shape != secret.shape or not np.array_equal(array, secret)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ["schedulers", "aggregation", "runtime"])
def test_policies_and_orchestrator_know_no_clock(package: str) -> None:
    for path in (ROOT / "mosaicsim" / package).glob("*.py"):
        clocks = imports_of(path) & {
            "simpy",
            "asyncio",
            "time",
            "datetime",
            "threading",
            "vllm",
            "ray",
            "socket",
        }
        assert not clocks, f"{path.name} imports {clocks}"


def test_streams_are_independent() -> None:
    from mosaicsim.streams import Streams

    streams = Streams(3, 1)
    assert streams("a").random() == streams("a").random()
    draws = {
        Streams(s, r)(name).random() for s in (3, 4) for r in (0, 1) for name in ("routing", "failures.0")
    }
    assert len(draws) == 8
    assert np.isfinite(list(draws)).all()


# gates that are fitted

SPLIT = [
    "replicates=2",
    "workload.routing=recorded",
    "workload.calibration={share: 0.7}",
    "schedulers=[round_robin, greedy]",
]
LENIENT = "{calibrated: {bound_pp: 3}}"


def test_a_fitted_gate_says_what_it_chose_and_keeps_to_it() -> None:
    result = simulate(load_scenario(PAPER, [*SPLIT, f"gates=[always, {LENIENT}, calibrated]"]))
    fits = result.summary["gates"]
    assert [(fit["gate"], fit["replicate"]) for fit in fits] == [
        (gate, replicate)
        for replicate in (0, 1)
        for gate in ("calibrated(3 pp)", "calibrated(0.1 pp)")
    ]  # fmt: skip
    assert fits[0]["calibration_questions"] == 1470
    for fit in fits:
        (run,) = (
            r
            for r in result.runs
            if (r.gate, r.replicate, r.scheduler) == (fit["gate"], fit["replicate"], "greedy")
        )
        assert run.gate_info["message"] == fit["message"]
        assert (run.metrics["skip_rate"] > 0) is fit["supported"]
        if fit["supported"]:
            assert fit["loss_upper_pp"] <= fit["bound_pp"]
            tested = fit["testing_skipped"] / fit["testing_questions"]
            assert run.metrics["skip_rate"] == pytest.approx(tested, abs=0.08)
    assert fits[0]["supported"]


def test_a_fitted_gate_leaves_the_others_as_they_are() -> None:
    without, among = (
        simulate(load_scenario(PAPER, [*SPLIT, f"gates=[{gates}]"])).summary
        for gates in ("always, plurality", f"always, plurality, {LENIENT}")
    )
    assert "gates" not in without
    kept = [run for run in among["runs"] if not run["gate"].startswith("calibrated")]
    assert json.dumps(kept) == json.dumps(without["runs"])
    assert among["workloads"] == without["workloads"]


def test_cancelling_under_a_fitted_gate_changes_no_answer() -> None:
    gates = f"gates=[always, {LENIENT}, {{calibrated: {{bound_pp: 3, cancel_pending: true}}}}]"
    for run in simulate(load_scenario(PAPER, [*SPLIT, gates, "schedulers=[greedy]"])).runs:
        if run.gate == "calibrated(3 pp)":
            plain = run
        elif run.gate == "calibrated(3 pp, cancel)":
            assert run.metrics["calls_cancelled"] > 0
            for figure in ("skip_rate", "accuracy", "delta_pp", "delta_pp_ci95"):
                assert run.metrics[figure] == plain.metrics[figure]
            assert run.metrics["output_tokens"] < plain.metrics["output_tokens"]


def test_a_gate_is_shown_no_grade_of_an_evaluated_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy in the gate's place walks through all that it is fitted to and asked."""
    shown: list[Any] = []
    fit_for_real, judge_for_real = Calibrated.fit, Calibrated.decide_all

    def fit(self: Calibrated, calibration: GateCalibration) -> Calibrated:
        shown.append(calibration)
        return fit_for_real(self, calibration)

    def decide_all(self: Calibrated, ballots: Ballots) -> Any:
        shown.append(ballots)
        return judge_for_real(self, ballots)

    monkeypatch.setattr(Calibrated, "fit", fit)
    monkeypatch.setattr(Calibrated, "decide_all", decide_all)
    result = simulate(load_scenario(PAPER, [*QUICK, "schedulers=[greedy]", "gates=[calibrated]"]))
    workload = result.workloads[0]
    secrets = [workload.outcomes.correct, workload.aggregator.correct, workload.outcomes.output_tokens]
    arrays = [a for thing in shown for a in reachable(thing, set()) if isinstance(a, np.ndarray)]
    assert len(arrays) > 8
    for array in arrays:
        for secret in secrets:
            assert not np.shares_memory(array, secret)
            assert array.size != secret.size or not np.array_equal(array.ravel(), secret)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("{calibrated: {bound_pp: 0}}", "gates.0.calibrated.bound_pp: input should be greater than 0, got 0"),
        ("{calibrated: {bound: 1}}", "gates.0.calibrated.bound: unknown key (did you mean 'bound_pp'?)"),
        ("{calibrated: {confidence: 95}}", "gates.0.calibrated.confidence: input should be less than 1, got 95"),
        ("{calibrated: {confidences: yes}}", "gates.0.calibrated.confidences: expected a number or a text"),
    ],
)  # fmt: skip
def test_what_a_fitted_gate_cannot_be_is_said(gate: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(PAPER, [*QUICK, f"gates=[{gate}]"])
    assert said in str(caught.value)
