"""Print the tables of docs/reproduction.md: the paper's figures beside ours.

    python plots/reproduction.py

The paper is MOSAIC, arXiv 2606.03014. MMLU-Pro is what the constants were calibrated on; MedMCQA and GPQA are
predictions with the same constants.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mosaicsim.analysis.result import Result, Run
from mosaicsim.analysis.study import simulate
from mosaicsim.scenario import load_scenario

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
ALWAYS, TAU_1, TAU_TWO_THIRDS = "always", "plurality(tau=1)", "plurality(tau=0.667)"

WALLS = [
    ("RR makespan, s", "round_robin", ALWAYS, "expert_stage_s", 2635.2),
    ("DP makespan, s", "data_parallel", ALWAYS, "expert_stage_s", 2441),
    ("ILP makespan, s", "ilp", ALWAYS, "expert_stage_s", 1602),
    ("ILP over RR, expert stage", "ilp", ALWAYS, "expert_stage_speedup", 1.69),
    ("RR idle share", "round_robin", ALWAYS, "idle_fraction", 0.45),
    ("aggregator stage, all questions, s", "round_robin", ALWAYS, "aggregator_stage_s", 1514.7),
    ("aggregator stage, gate at 2/3, s", "round_robin", TAU_TWO_THIRDS, "aggregator_stage_s", 870.5),
    ("RR + full aggregation, s", "round_robin", ALWAYS, "makespan_s", 4149.9),
    ("ILP + gate at 2/3, s", "ilp", TAU_TWO_THIRDS, "makespan_s", 2427.6),
    ("end-to-end speedup", "ilp", TAU_TWO_THIRDS, "end_to_end_speedup", 1.71),
]
RR_WORKERS = [
    ("RR worker 0: Gemma, Exaone", 430),
    ("RR worker 1: QwenR1, GLM", 2620),
    ("RR worker 2: Qwen", 165),
    ("RR worker 3: LlamaR1", 2546),
]
GATES = {
    "paper_mmlu_pro": (63.19, (45.71, 0.24), (84.62, -0.62)),
    "paper_medmcqa": (59.69, (47.48, -0.04), (90.18, 0.32)),
    "paper_gpqa": (56.57, (37.37, 1.00), (87.37, 0.49)),
}


def runs_of(result: Result, scheduler: str, gate: str) -> list[Run]:
    return [r for r in result.runs if (r.scheduler, r.gate) == (scheduler, gate)]


def values(result: Result, scheduler: str, gate: str, figure: str) -> list[float]:
    return [float(r.metrics[figure]) for r in runs_of(result, scheduler, gate)]


def worker_ends(result: Result, worker: int) -> list[float]:
    """When a worker of round_robin ends its last expert session, for each replicate."""
    ends = []
    for run in runs_of(result, "round_robin", ALWAYS):
        mine = (run.timeline["worker"] == worker) & (run.timeline["stage"] == "expert")
        ends.append(float(run.timeline["end_s"][mine].max()))
    return ends


def shown(numbers: list[float]) -> str:
    mean = float(np.mean(numbers))
    digits = 2 if mean < 100 else 0
    low, high = min(numbers), max(numbers)
    return f"{mean:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def wall_table(result: Result) -> None:
    print("| figure | paper | ours, mean (range) of 3 seeds | error |")
    print("|---|---|---|---|")
    rows = [(name, paper, worker_ends(result, w)) for w, (name, paper) in enumerate(RR_WORKERS)]
    rows += [(name, paper, values(result, s, g, figure)) for name, s, g, figure, paper in WALLS]
    for name, paper, ours in rows:
        print(f"| {name} | {paper:,} | {shown(ours)} | {np.mean(ours) / paper - 1:+.1%} |")


def gate_table(results: dict[str, Result]) -> None:
    print(
        "| dataset, gate | skipped: paper | ours | delta pp: paper | ours [95 %] | accuracy: paper | ours |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (accuracy, *operating_points) in GATES.items():
        title = name.removeprefix("paper_")
        full = 100 * np.mean(values(results[name], "ilp", ALWAYS, "accuracy"))
        print(f"| {title}, always | 0 % | 0 % | | | {accuracy} % | {full:.2f} % |")
        for gate, (skipped, delta) in zip((TAU_1, TAU_TWO_THIRDS), operating_points, strict=True):
            runs = [r.metrics for r in runs_of(results[name], "ilp", gate)]
            low, high = np.mean([m["delta_pp_ci95"] for m in runs], axis=0)
            ours = (np.mean([m[f] for m in runs]) for f in ("skip_rate", "delta_pp", "accuracy"))
            skip, gain, right = ours
            print(
                f"| {title}, {gate} | {skipped} % | {100 * skip:.2f} % | {delta:+.2f} "
                f"| {gain:+.2f} [{low:+.2f}, {high:+.2f}] | {accuracy + delta:.2f} % | {100 * right:.2f} % |"
            )


def prediction_table(results: dict[str, Result]) -> None:
    print(
        "| dataset | scheduler | expert stage, s | over RR | idle | end to end over RR + full aggregation |"
    )
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        for scheduler in dict.fromkeys(r.scheduler for r in result.runs):
            stage = values(result, scheduler, ALWAYS, "expert_stage_s")
            speedup = np.mean(values(result, scheduler, ALWAYS, "expert_stage_speedup"))
            idle = np.mean(values(result, scheduler, ALWAYS, "idle_fraction"))
            whole = np.mean(values(result, scheduler, TAU_TWO_THIRDS, "end_to_end_speedup"))
            title = name.removeprefix("paper_")
            print(f"| {title} | {scheduler} | {shown(stage)} | {speedup:.2f}x | {idle:.1%} | {whole:.2f}x |")


def main() -> None:
    results = {name: simulate(load_scenario(SCENARIOS / f"{name}.yaml")) for name in GATES}
    wall_table(results["paper_mmlu_pro"])
    print()
    gate_table(results)
    print()
    prediction_table(results)


if __name__ == "__main__":
    main()
