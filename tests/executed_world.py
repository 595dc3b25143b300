"""What `mosaicsim execute` would leave behind had its engines been the simulator's: a result folder with journals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from real_scenario import PROFILE
from scribe import Scribe
from trace_samples import columns, metadata, table

from mosaicsim.analysis.result import Result, Run
from mosaicsim.analysis.study import Replicate, _replicate, any_fitted, summarise
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.messages import CallRequest, CallResult
from mosaicsim.executors.session import EngineSpec
from mosaicsim.executors.simulated import SimulatedExecutor
from mosaicsim.hardware.latency import StepTables
from mosaicsim.policies import Policy, PolicyKind
from mosaicsim.report.folder import JOURNALS, OUTPUT_FILE, write_result
from mosaicsim.report.outputs import SCHEMA
from mosaicsim.runtime.journal import Journal
from mosaicsim.runtime.runlog import CANCELLED, PENDING, RunLog
from mosaicsim.runtime.steered import orchestrate
from mosaicsim.scenario import Scenario, resolved
from mosaicsim.schedulers.registry import create
from mosaicsim.streams import Streams
from mosaicsim.workload.asked import calibrated
from mosaicsim.workload.calls import NO_ANSWER, Workload
from mosaicsim.workload.trace import read_trace, write_trace

EXPERTS = ("a", "b", "c")
RESOLVED: dict[str, object] = {
    "device": "simulated",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 512,
    "block_size": 32,
    "num_gpu_blocks": 400,
    "prefix_caching": False,
}
"""Other settings than the scenario's, as an engine may choose."""


def write_world(folder: Path, **changes: Any) -> Path:
    """A scenario with a trace to evaluate and another to calibrate with."""
    for name, seed in (("evaluated", 0), ("calibration", 1)):
        values = columns(24, EXPERTS, seed=seed)
        values["question_id"] = np.char.add(name, values["question_id"])
        write_trace(folder / f"{name}.parquet", table(values), metadata())
    (folder / "cpu.yaml").write_text(yaml.safe_dump(PROFILE))
    scenario = {
        "name": "world",
        "workload": {
            "trace": "evaluated.parquet",
            "calibration": {"trace": "calibration.parquet"},
            "k": 3,
            "routing": {"uniform": {"resample": True}},
            "aggregator_calls": "recorded",
        },
        "cluster": {"hosts": [{"device": "cpu", "gpus": 3}], "workers_at_once": 2},
        "experts": {name: {"model": "tiny"} for name in EXPERTS},
        "aggregator": {"model": "tiny"},
        "engine": {"version": "none", "num_gpu_blocks": 1000},
        "profiles": ["cpu.yaml"],
        "schedulers": ["round_robin", "ilp"],
        "gates": [{"plurality": {"tau": "2/3"}}],
    }
    path = folder / "world.yaml"
    path.write_text(yaml.safe_dump(scenario | changes))
    return path


class Slowed(Fleet):
    """A fleet whose engines step, and load, so many times slower than the profile says."""

    def __init__(self, scenario: Scenario, steps: float, loads: float) -> None:
        self.steps, self.loads = steps, loads
        self._slowed: dict[int, EngineSpec] = {}
        super().__init__(scenario, dict.fromkeys((*EXPERTS, "aggregator"), RESOLVED))

    def engine_of(self, name: str, workers: tuple[int, ...], slots: int = 1) -> EngineSpec:
        spec = super().engine_of(name, workers, slots)
        if id(spec) not in self._slowed:
            self._slowed[id(spec)] = replace(
                spec,
                tables=scaled(spec.tables, self.steps),
                load_s=spec.load_s * self.loads,
                disk_s=spec.disk_s * self.loads,
            )
        return self._slowed[id(spec)]


def scaled(tables: StepTables, factor: float) -> StepTables:
    return StepTables(
        [s * factor for s in tables.decode_base],
        tables.decode_context * factor,
        [s * factor for s in tables.mixed_base],
        [s * factor for s in tables.prefill],
        tables.mixed_context * factor,
    )


class _Known:
    def __init__(self, workload: Workload) -> None:
        self._answers = np.append(workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER))

    def request(self, call_id: int) -> CallRequest:
        return CallRequest(call_id, (), {})

    def take(self, result: CallResult) -> int:
        return int(self._answers[result.call_id]) if result.finished else NO_ANSWER


def execute_simulated(scenario: Scenario, folder: Path, *, steps: float = 1.0, loads: float = 1.0) -> Path:
    """Write the result folder ``folder`` of an execution whose engines are ``steps`` and ``loads`` times slower."""
    replicate = _asked(scenario)
    world, journals = Slowed(scenario, steps, loads), folder.with_name(f"{folder.name}.journals")
    runs: list[Run] = []
    rows: list[dict[str, Any]] = []
    for scheduler in scenario.policies(PolicyKind.SCHEDULER):
        for gate in scenario.policies(PolicyKind.GATE):
            path = journals / f"{len(runs):03d}-{scheduler.name}-{gate.name}.jsonl"
            run, more = _run(replicate, world, scheduler, gate, path)
            runs.append(run)
            rows += more
    result = Result(
        resolved(scenario), summarise(scenario, runs, [replicate.workload]), (replicate.workload,),
        world.worker_names, tuple(runs),
    )  # fmt: skip

    def add(partial: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        journals.rename(partial / JOURNALS)
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial / OUTPUT_FILE)

    write_result(result, folder, plots=False, more=add)
    return folder


def _asked(scenario: Scenario) -> Replicate:
    """The trace's calls with the calibration as a real run is told of it, its own names for the categories."""
    fleet, streams = Fleet(scenario), Streams(scenario.seed)
    routed = _replicate(scenario, fleet, read_trace(scenario.workload.trace), 0).workload
    workload = calibrated(
        routed,
        read_trace(scenario.workload.calibration.trace or ""),
        router=scenario.policies(PolicyKind.ROUTER)[0].create(),
        rng_streams=streams,
        for_gates=any_fitted(scenario),
    )
    return Replicate(fleet, workload, streams, 0)


def _run(
    replicate: Replicate, world: Fleet, scheduler: Policy, gate: Policy, path: Path
) -> tuple[Run, list[dict[str, Any]]]:
    workload, judge = replicate.workload, replicate.gate(gate)
    policy, plan = replicate.planned(scheduler, gate)
    orchestrator = orchestrate(
        workload, replicate._fleet.pool, plan, policy, judge, replicate._problem_for(policy, gate),
        fallback=create("greedy", {}),
    )  # fmt: skip
    executor = SimulatedExecutor(
        world.simulated(Streams(0)),
        np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens]),
        np.append(workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER)),
        reactive=True,
    )
    journal = Journal(path)
    makespan = executor.run(Scribe(orchestrator, Ledger(journal, _Known(workload)), resolved=RESOLVED))
    journal.close()
    run = replicate.describe(orchestrator, scheduler, gate, makespan, workload, None, None)
    return run, _outputs(orchestrator.log, workload, run)


def _outputs(log: RunLog, workload: Workload, run: Run) -> list[dict[str, Any]]:
    n, rows = len(workload.calls), []
    for call in np.flatnonzero(log.status != PENDING).tolist():
        own, question = call < n, call // 3 if call < n else call - n
        code = int(log.answer[call])
        rows.append(
            {
                "scheduler": run.scheduler,
                "gate": run.gate,
                "replicate": 0,
                "question_id": workload.questions[question],
                "stage": "expert" if own else "aggregator",
                "slot": call % 3 if own else None,
                "prompt_tokens": int(
                    workload.calls.prompt_tokens[call] if own else workload.aggregator.prompt_tokens[question]
                ),
                "visible_tokens": int(log.output_tokens[call]),
                "finish_reason": "cancelled" if log.status[call] == CANCELLED else "stop",
                "answer": None if code == NO_ANSWER else str(code),
                "correct": False,
            }
        )
    return rows


def figures_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
