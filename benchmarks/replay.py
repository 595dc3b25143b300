"""Calls replayed per CPU second: 4 workers, round_robin, KV accounting, run log and gate on, one core.

    python benchmarks/replay.py --calls 1000000 --workload instruct --json

``instruct`` has four instruction-tuned experts whose sessions are not bound by KV; ``mmlu_pro`` has the
paper's six experts in the proportions of its Table 3, of which the reasoning ones run out of KV and preempt.
Lengths are independent draws from the distributions of ``traces/mmlu_pro.yaml``. The clock counts all from
plan to figures: every iteration, the run log, the gate, the aggregator stage, metrics and the lower bound. It
does not count the drawing of the lengths, the profiling sweep and a warm-up run of 999 calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np

from mosaicsim.analysis.study import Replicate
from mosaicsim.executors.fleet import Fleet
from mosaicsim.policies import PolicyKind
from mosaicsim.scenario import load_scenario
from mosaicsim.streams import Streams
from mosaicsim.workload.calls import AggregatorCalls, Calibration, CallTable, Ints, Outcomes, Workload
from mosaicsim.workload.lengths import sample_lengths
from mosaicsim.workload.synthetic.spec import SyntheticSpec, load_spec

ROOT = Path(__file__).resolve().parent.parent
POOLS = {
    "instruct": ("Gemma", "Qwen", "Exaone", "GLM"),
    "mmlu_pro": ("Gemma", "QwenR1", "Qwen", "LlamaR1", "Exaone", "GLM"),
}
K = 3
CALIBRATION_CALLS = 512
WARM_UP_CALLS = 999


def make_workload(
    pool: tuple[str, ...], calls: int, spec: SyntheticSpec, rng: np.random.Generator
) -> Workload:
    """``calls`` (rounded down to whole questions) by Table 3's popularity, with Table 1's agreement."""
    questions = calls // K
    n = questions * K
    popularity = np.array([spec.experts[name].slots for name in pool], float)
    expert = rng.choice(len(pool), size=n, p=popularity / popularity.sum())
    output = np.zeros(n, np.int64)
    calibration: list[Ints] = []
    for m, name in enumerate(pool):
        lengths = spec.experts[name].lengths
        output[expert == m] = sample_lengths(lengths, int((expert == m).sum()), rng)
        calibration.append(sample_lengths(lengths, CALIBRATION_CALLS, rng))
    prompt = np.repeat(rng.integers(120, 600, questions), K)
    patterns = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2]])
    shares = np.array([spec.targets.unanimous, spec.targets.majority, spec.targets.split], float)
    answer = patterns[rng.choice(3, size=questions, p=shares / shares.sum())].ravel()
    return Workload(
        name="benchmark",
        questions=tuple(map(str, range(questions))),
        categories=("all",) * questions,
        experts=pool,
        calls=CallTable(np.repeat(np.arange(questions), K), expert, np.zeros(n, np.int64), prompt),
        outcomes=Outcomes(output, np.minimum(output, 400), answer, answer == 0),
        aggregator=AggregatorCalls(
            prompt_tokens=np.full(questions, 1200),
            output_tokens=sample_lengths(spec.experts["Qwen"].lengths, questions, rng),
            correct=rng.random(questions) < 0.63,
        ),
        calibration=Calibration(tuple(calibration), tuple(np.full(CALIBRATION_CALLS, 300) for _ in pool)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--workload", choices=tuple(POOLS), default="instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    scenario = load_scenario(
        ROOT / "scenarios" / "paper_mmlu_pro.yaml", ["schedulers=[round_robin]", "gates=[plurality]"]
    )
    streams = Streams(options.seed)
    spec = load_spec(ROOT / "traces" / "mmlu_pro.yaml")
    pool = POOLS[options.workload]
    scheduler, gate = scenario.policies(PolicyKind.SCHEDULER)[0], scenario.policies(PolicyKind.GATE)[0]
    small = make_workload(pool, WARM_UP_CALLS, spec, streams("warm-up"))
    Replicate(Fleet(scenario), small, streams, 0).run(scheduler, gate)
    workload = make_workload(pool, options.calls, spec, streams("benchmark"))
    replicate = Replicate(Fleet(scenario), workload, streams, 0)
    replicate.plan(scheduler)

    began = time.process_time()
    run = replicate.run(scheduler, gate)
    cpu_s = time.process_time() - began

    finished = run.metrics["calls_finished"]
    figures = {
        "calls": len(workload.calls),
        "aggregator_calls": finished - len(workload.calls),
        "calls_per_s": len(workload.calls) / cpu_s,
        "cpu_s": cpu_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "preemptions": run.metrics["preemptions"],
        "workload": options.workload,
        "makespan_s": run.metrics["makespan_s"],
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:16s} {value:,.1f}" if isinstance(value, float) else f"{name:16s} {value}")


if __name__ == "__main__":
    main()
