"""Print what this project's policies gain over the paper's: the tables of docs/schedulers.md.

    python plots/beyond_paper.py [--part end_to_end] [--tasks gpqa,mmlu_pro] [--replicates 5] [--share 2]
    python plots/beyond_paper.py --cost-errors 1.5,2 --plot docs/images/cost_error.png

The paper is MOSAIC, arXiv 2606.03014: ``ilp``, a barrier, and its aggregator at TP=4. Accuracy and skips are
compared run by run with the paper's gate; by question in ``tests/test_steered.py``. All is simulated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mosaicsim.analysis.end_to_end_bound import bound_of_whole_run
from mosaicsim.analysis.result import Result, Run
from mosaicsim.analysis.stage_bound import bound_of_stage
from mosaicsim.analysis.study import simulate
from mosaicsim.executors.fleet import Fleet
from mosaicsim.policies import PolicyKind
from mosaicsim.scenario import Scenario, load_scenario

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
PARTS = ("stage", "end_to_end")
TASKS = ("mmlu_pro", "medmcqa", "gpqa")
ALWAYS, TAU_1 = "always", "plurality(tau=1)"
STEALING = "{work_stealing: {start: {tail_ilp: {scenes: 0}}, overlap: false, label: stealing, scenes: 2}}"
MIGRATING = STEALING.replace("label: stealing", "label: migrating, migrate: true")
TAU_TWO_THIRDS, CANCEL = "plurality(tau=0.667)", "plurality(tau=0.667, cancel)"
GATES = {"2/3": (TAU_TWO_THIRDS, CANCEL), "1": (TAU_1, TAU_1), "always": (ALWAYS, ALWAYS)}
"""Gates of the paper's runs and of this project's, which may cancel what cannot change the answer."""


def runs_of(result: Result, scheduler: str, gate: str) -> list[Run]:
    return [r for r in result.runs if (r.scheduler, r.gate) == (scheduler, gate)]


def mean(result: Result, scheduler: str, gate: str, figure: str) -> float:
    return float(np.mean([r.metrics[figure] for r in runs_of(result, scheduler, gate)]))


def same_answers(theirs: list[Run], ours: list[Run]) -> bool:
    """Whether cancelling, holding back and overlapping changed no run's accuracy or skips."""
    figures = ("accuracy", "skip_rate", "delta_pp")
    return all(a.metrics[f] == b.metrics[f] for a, b in zip(theirs, ours, strict=True) for f in figures)


def whole_run_bound(scenario: Scenario, result: Result, gate: str) -> float:
    """Mean over the replicates of what no run with this gate's answers can beat."""
    fleet = Fleet(scenario)
    judge = next(p for p in scenario.policies(PolicyKind.GATE) if p.label == gate).create()
    return float(np.mean([bound_of_whole_run(fleet, w, judge).seconds for w in result.workloads]))


def part(
    task: str, replicates: int, schedulers: tuple[str, ...], gates: tuple[str, ...], share: int = 1
) -> Scenario:
    """The task's scenario with these of its schedulers and gates only, by label.

    ``share`` engines may run on a GPU at a time.
    """
    overrides = [f"replicates={replicates}", f"cluster.experts_per_worker={share}"]
    whole = load_scenario(SCENARIOS / f"beyond_{task}.yaml", overrides)

    def kept(kind: PolicyKind, entries: list[Any], labels: tuple[str, ...]) -> list[Any]:
        return [e for e, p in zip(entries, whole.policies(kind), strict=True) if p.label in labels]

    return whole.model_copy(
        update={
            "schedulers": tuple(kept(PolicyKind.SCHEDULER, whole.schedulers, schedulers)),
            "gates": tuple(kept(PolicyKind.GATE, whole.gates, gates)),
        }
    )


def end_to_end(task: str, replicates: int, share: int, gates: list[str]) -> list[dict[str, Any]]:
    """A row a gate: this project's best policy against the paper's, with the same answers.

    The paper runs one model on a GPU at a time; in this project's runs ``share`` may.
    """
    pairs = [GATES[gate] for gate in gates]
    paper = simulate(part(task, replicates, ("ilp",), tuple(theirs for theirs, _ in pairs)))
    scenario = part(task, replicates, ("steered",), tuple(ours for _, ours in pairs), share)
    result = simulate(scenario)
    rows = []
    for theirs, ours in pairs:
        mosaic_s, ours_s = (
            mean(paper, "ilp", theirs, "makespan_s"),
            mean(result, "steered", ours, "makespan_s"),
        )
        runs = zip(runs_of(paper, "ilp", theirs), runs_of(result, "steered", ours), strict=True)
        gains = [a.metrics["makespan_s"] / b.metrics["makespan_s"] for a, b in runs]
        shared = [r.plan_info["sessions_per_worker"] != 1 for r in runs_of(result, "steered", ours)]
        rows.append(
            {
                "task": task,
                "gate": ours,
                "mosaic_s": mosaic_s,
                "ours_s": ours_s,
                "gain": mosaic_s / ours_s,
                "gains": gains,
                "share": share,
                "shared": sum(shared),
                "expert_stage_gain": mean(paper, "ilp", theirs, "expert_stage_s")
                / mean(result, "steered", ours, "expert_stage_s"),
                "bound_s": whole_run_bound(scenario, result, ours),
                "same_answers": same_answers(runs_of(paper, "ilp", theirs), runs_of(result, "steered", ours)),
            }
        )
    return rows


def stages(task: str, replicates: int) -> dict[str, Any]:
    """The expert stage without a gate, over the paper's and over the bound."""
    overrides = [
        f"replicates={replicates}",
        "gates=[always]",
        f"schedulers=[ilp, tail_ilp, {STEALING}, oracle]",
    ]
    scenario = load_scenario(SCENARIOS / f"beyond_{task}.yaml", overrides)
    result, fleet = simulate(scenario), Fleet(scenario)
    bound = float(np.mean([bound_of_stage(fleet, w) for w in result.workloads]))
    rows: dict[str, Any] = {"task": task, "replicates": replicates, "bound_s": bound}
    for name in ("ilp", "tail_ilp", "stealing", "oracle"):
        stage = rows[f"{name}_stage_s"] = mean(result, name, ALWAYS, "expert_stage_s")
        rows[f"{name}_over_bound"] = stage / bound
        rows[f"{name}_over_ilp"] = rows["ilp_stage_s"] / stage
        rows[f"{name}_prediction_error"] = mean(result, name, ALWAYS, "prediction_error")
    return rows


def degradation(task: str, replicates: int, factors: list[float]) -> list[dict[str, Any]]:
    """The expert stage of each policy with costs off by a factor, over its own with right costs."""
    rows: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    for factor in (1.0, *factors):
        overrides = [f"replicates={replicates}", f"workload.cost_error={factor}", "gates=[always]"]
        overrides.append(
            f"schedulers=[ilp, {{greedy: {{label: greedy}}}}, tail_ilp, {STEALING}, {MIGRATING}]"
        )
        result = simulate(load_scenario(SCENARIOS / f"beyond_{task}.yaml", overrides))
        for name in ("ilp", "greedy", "tail_ilp", "stealing", "migrating"):
            stage = mean(result, name, ALWAYS, "expert_stage_s")
            base.setdefault(name, stage)
            rows.append(
                {
                    "task": task,
                    "factor": factor,
                    "policy": name,
                    "stage_s": stage,
                    "loss": stage / base[name] - 1,
                }
            )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 3.2), squeeze=False, sharey=True)
    for ax, task in zip(axes[0], tasks, strict=True):
        for name in dict.fromkeys(row["policy"] for row in rows):
            own = [row for row in rows if row["task"] == task and row["policy"] == name]
            ax.plot([r["factor"] for r in own], [100 * r["loss"] for r in own], marker="o", label=name)
        ax.axhline(10, color="grey", linewidth=0.8, linestyle="--")
        ax.set_title(task)
        ax.set_xlabel("lengths told wrong by a factor")
    axes[0][0].set_ylabel("expert stage longer by, %")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def table(head: str, rows: list[list[str]]) -> None:
    """A Markdown table, if there are rows."""
    if rows:
        columns = head.split("; ")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("".join(f"| {' | '.join(row)} |\n" for row in rows))


def stage_row(r: dict[str, Any]) -> list[str]:
    policies = ("ilp", "tail_ilp", "stealing")
    return [
        r["task"],
        *(f"{r[f'{name}_stage_s']:,.0f}" for name in (*policies, "oracle")),
        f"{r['bound_s']:,.0f}",
        *(f"{r[f'{name}_over_ilp']:.2f}x" for name in policies[1:]),
        *(f"{r[f'{name}_over_bound']:.2f}x" for name in policies),
        *(f"{r[f'{name}_prediction_error']:+.1%}" for name in policies),
    ]


def run_row(r: dict[str, Any]) -> list[str]:
    return [
        r["task"],
        r["gate"],
        f"{r['mosaic_s']:,.0f}",
        f"{r['ours_s']:,.0f}",
        f"{r['gain']:.2f}x ({min(r['gains']):.2f} to {max(r['gains']):.2f})",
        f"{r['expert_stage_gain']:.2f}x",
        *([f"{r['shared']} of {len(r['gains'])}"] if r["share"] > 1 else []),
        f"{r['bound_s']:,.0f}",
        "yes" if r["same_answers"] else "NO",
    ]


def error_row(r: dict[str, Any]) -> list[str]:
    return [r["task"], f"{r['factor']:g}x", r["policy"], f"{r['stage_s']:,.0f}", f"{r['loss']:+.1%}"]


def show(stage: list[dict[str, Any]], whole: list[dict[str, Any]], errors: list[dict[str, Any]]) -> None:
    table(
        "task; ilp s; tail_ilp s; stealing s; oracle s; bound s; tail_ilp over ilp; stealing over ilp; "
        "ilp to bound; tail_ilp to bound; stealing to bound; "
        "ilp forecast; tail_ilp forecast; stealing forecast",
        [stage_row(r) for r in stage],
    )
    shared = "; GPUs shared" if any(r["share"] > 1 for r in whole) else ""
    table(
        f"task; gate; MOSAIC s; ours s; gain (each seed); expert stage{shared}; bound s; same answers",
        [run_row(r) for r in whole],
    )
    table("task; lengths off by; policy; expert stage s; lost", [error_row(r) for r in errors])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="of mmlu_pro, medmcqa, gpqa")
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--part", choices=[*PARTS, "both"], default="both", help="which tables")
    parser.add_argument("--gates", default=",".join(GATES), help="end to end: of 2/3, 1, always")
    parser.add_argument("--share", type=int, default=1, help="engines that may share a GPU end to end, ours")
    parser.add_argument("--cost-errors", default="", help="factors, as 1.5,2; none by default")
    parser.add_argument("--plot", type=Path, help="write the plot of the cost errors there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    tasks, n, gates = options.tasks.split(","), options.replicates, options.gates.split(",")
    factors = [float(f) for f in options.cost_errors.split(",") if f] or ([1.5, 2.0] if options.plot else [])
    errors = [row for task in tasks for row in degradation(task, n, factors)] if factors else []
    if options.plot:
        plot(errors, options.plot)
    parts = () if factors else PARTS if options.part == "both" else (options.part,)
    stage = [stages(task, n) for task in tasks] if "stage" in parts else []
    whole = (
        [row for task in tasks for row in end_to_end(task, n, options.share, gates)]
        if "end_to_end" in parts
        else []
    )
    if options.json:
        print(json.dumps({"stage": stage, "end_to_end": whole, "cost_errors": errors}, indent=2))
    else:
        show(stage, whole, errors)


if __name__ == "__main__":
    main()
