"""How firmly the paper's MMLU-Pro walls fix the calibrated constants: vary them, print each wall's error.

    python benchmarks/calibration.py [--trace-seeds 2]

Varies the length CV of the reasoning experts and the host time of an iteration around the values of
``traces/mmlu_pro.yaml`` and ``scenarios/paper_mmlu_pro.yaml``; traces are generated anew in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from mosaicsim.analysis.study import simulate
from mosaicsim.scenario import load_scenario
from mosaicsim.workload.synthetic.generate import generate, generator
from mosaicsim.workload.synthetic.spec import SyntheticSpec, load_spec
from mosaicsim.workload.trace import write_trace

ROOT = Path(__file__).resolve().parent.parent
PAPER_S = {"round_robin": 2635.2, "data_parallel": 2441.0, "ilp": 1602.0}
CHOSEN = (1.2, 3.0, 0.11)
POINTS = [CHOSEN, *((cv, *CHOSEN[1:]) for cv in (0.9, 1.1, 1.3, 1.5)), (1.2, 0.0, 0.15), (1.2, 10.0, 0.1)]


def with_cv(spec: SyntheticSpec, cv: float, seed: int) -> SyntheticSpec:
    """The spec with another length CV of its reasoning experts, and another seed."""
    experts = {
        name: e.model_copy(update={"lengths": e.lengths.model_copy(update={"cv": cv})}) if e.reasoning else e
        for name, e in spec.experts.items()
    }
    return spec.model_copy(update={"experts": experts, "seed": seed})


def walls(spec: SyntheticSpec, host_base_ms: float, host_per_sequence_ms: float, folder: Path) -> list[float]:
    """Expert stage of each scheduler of PAPER_S, mean of the scenario's replicates, seconds."""
    for name, calibration in (("trace", False), ("calibration", True)):
        write_trace(
            folder / f"{name}.parquet", *generate(spec, generator(spec.seed), calibration=calibration)
        )
    scenario = load_scenario(
        ROOT / "scenarios" / "paper_mmlu_pro.yaml",
        [
            f"workload.trace={folder / 'trace.parquet'}",
            f"workload.calibration.trace={folder / 'calibration.parquet'}",
            f"engine.host_base_ms={host_base_ms}",
            f"engine.host_per_sequence_ms={host_per_sequence_ms}",
            f"schedulers=[{', '.join(PAPER_S)}]",
            "gates=[always]",
        ],
    )
    means = {m["scheduler"]: m["expert_stage_s"] for m in simulate(scenario).summary["means"]}
    return [means[name] for name in PAPER_S]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace-seeds", type=int, default=2, help="traces generated for each point")
    options = parser.parse_args()
    shipped = load_spec(ROOT / "traces" / "mmlu_pro.yaml")
    print("| length CV | host ms | host ms a sequence | RR | DP | ILP | RR / ILP (paper: 1.64 to 1.69) |")
    print("|---|---|---|---|---|---|---|")
    for cv, base, each in POINTS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = np.mean(
                [
                    walls(with_cv(shipped, cv, seed), base, each, Path(folder))
                    for seed in range(options.trace_seeds)
                ],
                axis=0,
            )
        errors = [f"{s / paper - 1:+.1%}" for s, paper in zip(seconds, PAPER_S.values(), strict=True)]
        print(f"| {cv} | {base} | {each} | {' | '.join(errors)} | {seconds[0] / seconds[2]:.2f} |")


if __name__ == "__main__":
    main()
