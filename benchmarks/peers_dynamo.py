"""NVIDIA's offline replay of one trace file; `peers.py` runs this with the Python of the peer's own venv.

Reads a job as JSON on stdin, ``{"trace", "trace_block_size", "replicas", "repeats", "engine": {...}}``, and
prints one JSON object: the CPU seconds (user and system, all threads) of each replay, those of loading the
trace, and the peer's own report.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

# Installed only in the peer's venv, so mypy cannot see it from ours.
from dynamo.mocker import MockEngineArgs  # type: ignore[import-not-found]  # in the peer's venv only
from dynamo.replay import run_trace_replay  # type: ignore[import-not-found]  # as above

ONE_MICROSECOND_MS = 1e-3
"""Where a replay is cut to see what loading the trace costs: before anything has been simulated."""


def replay(job: dict[str, Any], **options: float) -> tuple[float, dict[str, Any]]:
    """CPU seconds of one replay in virtual time, and its report."""
    engine = MockEngineArgs(**job["engine"])
    began = time.process_time()
    report = run_trace_replay(
        job["trace"],
        extra_engine_args=engine,
        num_workers=job["replicas"],
        replay_mode="offline",
        router_mode="round_robin",
        trace_block_size=job["trace_block_size"],
        **options,
    )
    return time.process_time() - began, report


def main() -> None:
    job = json.load(sys.stdin)
    load_cpu_s = min(replay(job, max_sim_time_ms=ONE_MICROSECOND_MS)[0] for _ in range(job["repeats"]))
    runs = [replay(job) for _ in range(job["repeats"])]
    outcome = {
        "version": version("ai-dynamo"),
        "load_cpu_s": load_cpu_s,
        "cpu_s": [cpu_s for cpu_s, _ in runs],
        "report": runs[-1][1],
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
