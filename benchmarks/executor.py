"""What the coordinator and the way to the workers cost in a real run.

python benchmarks/executor.py scenarios/smollm2.yaml --set workload.questions=100

Runs the scenario and reports the coordinator's CPU time a call, and the share of the workers' time that
passed between the engine's steps (taking commands, handing over calls, reporting results).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from mosaicsim.analysis.execution import execute
from mosaicsim.scenario import load_scenario


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    arguments = parser.parse_args()
    scenario = load_scenario(arguments.scenario, arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        execution = execute(scenario, Path(folder) / "work", lambda done, total, what: None)
    result, wall = execution.result, execution.result.wall
    calls = sum(run.metrics["calls_finished"] for run in result.runs)
    makespan = sum(run.metrics["makespan_s"] for run in result.runs)
    workers_s = wall["worker_steps_s"] + wall["worker_between_steps_s"]
    print(
        json.dumps(
            {
                "calls": calls,
                "runs_s": round(makespan, 1),
                "coordinator_cpu_ms_per_call": round(1e3 * wall["coordinator_cpu_s"] / calls, 3),
                "coordinator_cpu_share_pct": round(100 * wall["coordinator_cpu_s"] / makespan, 3),
                "between_steps_share_pct": round(100 * wall["worker_between_steps_s"] / workers_s, 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
