"""The paper's MMLU-Pro figures (arXiv 2606.03014), on the shipped scenario, mean of its three replicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mosaicsim.analysis.result import Result
from mosaicsim.analysis.study import simulate
from mosaicsim.scenario import load_scenario

ROOT = Path(__file__).parent.parent
TWO_THIRDS = "plurality(tau=0.667)"


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario(ROOT / "scenarios" / "paper_mmlu_pro.yaml"))


@pytest.fixture(scope="module")
def means(result: Result) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["scheduler"], m["gate"]): m for m in result.summary["means"]}


@pytest.mark.parametrize(
    ("scheduler", "gate", "figure", "paper"),
    [
        ("round_robin", "always", "expert_stage_s", 2635),
        ("data_parallel", "always", "expert_stage_s", 2441),
        ("ilp", "always", "expert_stage_s", 1602),
        ("round_robin", "always", "makespan_s", 4150),
        ("ilp", TWO_THIRDS, "makespan_s", 2428),
        ("ilp", "always", "expert_stage_speedup", 1.69),
        ("ilp", TWO_THIRDS, "end_to_end_speedup", 1.71),
        ("round_robin", "always", "aggregator_stage_s", 1514.7),
        ("round_robin", TWO_THIRDS, "aggregator_stage_s", 870.5),
    ],
)
def test_within_ten_percent(
    means: dict[tuple[str, str], dict[str, Any]], scheduler: str, gate: str, figure: str, paper: float
) -> None:
    assert means[scheduler, gate][figure] == pytest.approx(paper, rel=0.10)


@pytest.mark.parametrize(("gate", "paper"), [("plurality(tau=1)", 0.457), (TWO_THIRDS, 0.846)])
def test_skip_rates_within_one_point(
    means: dict[tuple[str, str], dict[str, Any]], gate: str, paper: float
) -> None:
    assert means["ilp", gate]["skip_rate"] == pytest.approx(paper, abs=0.01)


def test_round_robin_leaves_the_gpus_idle_as_in_the_paper(
    means: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert means["round_robin", "always"]["idle_fraction"] == pytest.approx(0.45, abs=0.03)


def test_knowing_the_lengths_helps(means: dict[tuple[str, str], dict[str, Any]]) -> None:
    blind = min(m["expert_stage_s"] for m in means.values() if m["scheduler"] != "oracle")
    assert means["oracle", "always"]["expert_stage_s"] < blind


def test_the_ilp_proves_its_gap(result: Result) -> None:
    plans = [p for p in result.summary["plans"] if p["scheduler"] == "ilp"]
    assert plans
    for plan in plans:
        assert plan["best_bound"] <= plan["objective"]
        assert plan["gap"] <= 0.01


def test_table_three_is_routed_exactly(result: Result) -> None:
    table_3 = {"LlamaR1": 1070, "QwenR1": 1428, "Gemma": 1632, "Exaone": 547, "GLM": 667, "Qwen": 956}
    for workload in result.summary["workloads"]:
        assert workload["popularity"]["calls"] == table_3
        assert workload["popularity"]["max_over_min"] == pytest.approx(2.98, abs=0.01)


@pytest.mark.parametrize("name", ["paper_medmcqa", "paper_gpqa"])
def test_predictions_use_mmlu_pro_s_constants(name: str) -> None:
    """Nothing is fitted on the other two datasets: engine, models and cluster are MMLU-Pro's, to the letter."""
    fitted = load_scenario(ROOT / "scenarios" / "paper_mmlu_pro.yaml")
    other = load_scenario(ROOT / "scenarios" / f"{name}.yaml")
    for section in (
        "engine",
        "experts",
        "aggregator",
        "cluster",
        "schedulers",
        "gates",
        "seed",
        "replicates",
    ):
        assert getattr(other, section) == getattr(fitted, section)
