"""The scenarios of the published MMLU-Pro outputs: they resolve, and run on a block of the same shape.

The outputs are not shipped, so the block is made up: the real experts and categories, small and random.
"""

from __future__ import annotations

import csv
import pathlib
import runpy

import numpy as np
import pytest

from mosaicsim.analysis.result import Result
from mosaicsim.analysis.study import simulate
from mosaicsim.executors.fleet import Fleet
from mosaicsim.scenario import Scenario, load_scenario
from mosaicsim.workload.importers import ImportOptions, import_trace
from mosaicsim.workload.trace import write_trace

ROOT = pathlib.Path(__file__).parent.parent
CATEGORIES = {
    "real_mmlu_pro_thinking": ("psychology", "law", "math"),
    "real_mmlu_pro_instruct": ("biology", "business", "law", "math"),
}
CANCEL = "plurality(tau=0.667, cancel)"
HEADER = (
    "query_id,dataset,skill,expert,expert_class,prompt_tokens,generated_tokens,answer,gold,correct,capped"
)


def block(path: pathlib.Path, experts: list[str], categories: tuple[str, ...], n_questions: int = 60) -> None:
    """A CSV of the published files' shape; a thinking expert writes ten times as much and is right more often."""
    rng = np.random.default_rng(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for q in range(n_questions):
            for e, expert in enumerate(experts):
                thinks = "think(" in expert
                right = rng.random() < (0.7 if thinks else 0.2 + 0.05 * e)
                answer = "A" if right else rng.choice(list("BCDEFGHIJ"))
                tokens = int(rng.lognormal(7 if thinks else 4.5, 0.8)) + 1
                kind = "reasoning" if thinks else "instruct"
                skill = categories[q % len(categories)]
                writer.writerow(
                    [q, "mmlu_pro", skill, expert, kind, 150 + q, tokens, answer, "A", int(right), 0]
                )


@pytest.fixture(scope="module", params=sorted(CATEGORIES))
def scenario(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A shipped scenario on a made-up block of its experts."""
    folder, name = tmp_path_factory.mktemp("real"), request.param
    shipped = ROOT / "scenarios" / f"{name}.yaml"
    block(folder / "block.csv", list(load_scenario(shipped).experts), CATEGORIES[name])
    trace = import_trace(str(folder / "block.csv"), ImportOptions(conflicting="drop"))
    write_trace(str(folder / "block.parquet"), trace.table, trace.metadata)
    return load_scenario(shipped, [f"workload.trace={folder / 'block.parquet'}", "replicates=1"])


@pytest.fixture(scope="module")
def result(scenario: Scenario) -> Result:
    """The scenario, run as shipped."""
    return simulate(scenario)


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_expert_fits_its_workers_as_shipped(name: str) -> None:
    scenario = load_scenario(ROOT / "scenarios" / f"{name}.yaml")
    assert scenario.workload.trace.startswith(str(ROOT / "traces" / "imported"))
    fleet = Fleet(scenario)
    for expert in scenario.experts:
        assert fleet.engine_of(expert, (0,)).config.num_gpu_blocks > 0
    assert fleet.engine_of("aggregator", (0, 1, 2, 3)).load_s > 0


def test_all_schedulers_and_gates_run(scenario: Scenario, result: Result) -> None:
    assert len(result.runs) == len(scenario.schedulers) * len(scenario.gates) == 28
    assert all(run.metrics["lower_bound_s"] <= run.metrics["expert_stage_s"] for run in result.runs)


def test_no_question_draws_an_expert_twice(result: Result) -> None:
    drawn = result.workloads[0].calls.expert.reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())


def test_figures_of_the_aggregator_are_labelled_modelled(result: Result) -> None:
    labels = result.summary["labels"]
    assert {labels[name] for name in ("aggregator_stage", "accuracy", "delta_pp")} == {"modelled"}


def test_cancelling_changes_no_answer_and_saves_tokens(result: Result) -> None:
    """At tau = 2/3 the third answer cannot turn a vote of two."""
    for run in result.runs:
        if run.gate != CANCEL:
            continue
        plain = next(
            r for r in result.runs if (r.scheduler, r.gate) == (run.scheduler, "plurality(tau=0.667)")
        )
        for metric in ("skip_rate", "accuracy", "delta_pp"):
            assert run.metrics[metric] == plain.metrics[metric]
        assert run.metrics["output_tokens"] < plain.metrics["output_tokens"]


def test_the_tables_of_the_docs_are_made(result: Result) -> None:
    script = runpy.run_path(str(ROOT / "plots" / "real_traces.py"))
    made = dict(script["tables"](result))
    assert all(len({line.count("|") for line in lines if "|" in line}) == 1 for lines in made.values())
    assert [line.split(" | ")[0] for line in made["Agreement"][2:5]] == ["| 3:0", "| 2:1", "| 1:1:1"]
    gates = made["Gates (all but the share skipped is modelled)"]
    assert len(gates) == 2 + 4
    assert "reference" in gates[2]
