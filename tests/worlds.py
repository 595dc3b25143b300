"""Small workloads and fleets made from nothing, for tests that need a whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.executors.engine import EngineConfig
from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.executors.session import EngineSpec
from mosaicsim.executors.simulated import Failure, SimulatedCluster, SimulatedExecutor
from mosaicsim.hardware.latency import HostOverhead, TwoRegimeLatency
from mosaicsim.runtime.events import Event
from mosaicsim.runtime.orchestrator import AGGREGATOR, Orchestrator
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import PENDING, RunLog
from mosaicsim.schedulers.base import OracleProblem, Problem, Scheduler, WorkerView
from mosaicsim.schedulers.registry import create
from mosaicsim.workload.calls import (
    NO_ANSWER,
    AggregatorCalls,
    Calibration,
    CallTable,
    Ints,
    Outcomes,
    Workload,
)

LATENCY = TwoRegimeLatency(0.0112, 3.3e-5, 8e-8, 0.0083, 5e-5, 5.4e-5, 8.2e-8)
CONFIG = EngineConfig("v1", 16, 512, 16, 2000, prefix_caching=True)
SPEC = EngineSpec(CONFIG, LATENCY.compile(16, 512, HostOverhead()), load_s=3.0, disk_s=2.0, wake_s=0.4)
MEANS = (30, 300, 40, 250, 60)


def make_workload(
    n_questions: int, n_experts: int = 3, k: int = 3, seed: int = 0, answers: int = 4
) -> Workload:
    """A routed batch with uneven popularity; expert 1 and 3 write long answers."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, n_experts + 1) ** 1.0
    expert = rng.choice(n_experts, size=n_questions * k, p=popularity / popularity.sum())
    means = np.array(MEANS)[np.arange(n_experts) % len(MEANS)]
    output = np.clip(rng.lognormal(np.log(means[expert]), 0.6), 1, 3000).astype(np.int64)
    answer = rng.integers(-1, answers, n_questions * k)
    calibration = tuple(np.clip(rng.lognormal(np.log(m), 0.6, 60), 1, 3000).astype(np.int64) for m in means)
    prompt = np.repeat(rng.integers(10, 200, n_questions), k)
    return Workload(
        name="made",
        questions=tuple(f"q{i}" for i in range(n_questions)),
        categories=("c",) * n_questions,
        experts=tuple(f"e{i}" for i in range(n_experts)),
        calls=CallTable(
            np.repeat(np.arange(n_questions), k), expert, np.zeros(n_questions * k, np.int64), prompt
        ),
        outcomes=Outcomes(output, output, answer, answer == 0),
        aggregator=AggregatorCalls(
            np.full(n_questions, 200), rng.integers(1, 200, n_questions), rng.random(n_questions) < 0.6
        ),
        calibration=Calibration(calibration, tuple(np.full(60, 50) for _ in means)),
    )


def problem_maker(
    workload: Workload, scheduler: Scheduler
) -> Callable[[Ints, tuple[WorkerView, ...]], Problem]:
    """Problems as a study states them, with a profiling sweep over the calibration calls."""
    costs = [
        profile_sessions(SPEC, out, prompt, len(workload.calls), m % 2 == 1, np.random.default_rng(m))
        for m, (out, prompt) in enumerate(
            zip(workload.calibration.output_tokens, workload.calibration.prompt_tokens, strict=True)
        )
    ]

    def problem_of(call_ids: Ints, workers: tuple[WorkerView, ...]) -> Problem:
        shown = (
            workload.experts,
            workload.calls,
            call_ids,
            workers,
            tuple(tuple(cost for _ in workers) for cost in costs),
        )
        if scheduler.sees_lengths:
            return OracleProblem(*shown, output_tokens=workload.outcomes.output_tokens)
        return Problem(*shown)

    return problem_of


class Watched(Orchestrator):
    """An orchestrator that is looked at after every event."""

    watch: Callable[[Orchestrator, Event], None]

    def handle(self, event: Event) -> None:
        super().handle(event)
        self.watch(self, event)


def run(
    workload: Workload,
    scheduler: str,
    gate: tuple[str, dict[str, Any]] = ("always", {}),
    *,
    options: dict[str, Any] | None = None,
    n_workers: int = 3,
    slots: int = 1,
    tp: int = 1,
    failures: dict[int, list[Failure]] | None = None,
    keep_asleep: bool = False,
    reactive: bool | None = None,
    at_once: int | None = None,
    log: RunLog | None = None,
    watch: Callable[[Orchestrator, Event], None] | None = None,
) -> tuple[Orchestrator, float]:
    """One run in simulation; returns the orchestrator and the makespan."""
    policy, judge = create(scheduler, options or {}), create_gate(*gate)
    pool = Pool(
        tuple(WorkerView(i, f"gpu{i}", "made") for i in range(n_workers)),
        slots,
        tp,
        (tuple(range(n_workers)),),
        (1.0,),
        at_once,
    )
    problem_of = problem_maker(workload, policy)
    left = np.arange(len(workload.calls))
    if log is not None:
        left = left[log.status[left] == PENDING]
    plan = policy.plan(problem_of(left, pool.workers))
    orchestrator = (Watched if watch else Orchestrator)(
        workload, pool, plan, policy, judge, problem_of, fallback=create("greedy", {}), log=log
    )
    if isinstance(orchestrator, Watched) and watch:
        orchestrator.watch = watch
    known = workload.outcomes.confidence
    executor = SimulatedExecutor(
        SimulatedCluster(
            lambda name, workers, slots: SPEC,
            hosts=(0,) * n_workers,
            slots=slots,
            keep_asleep=keep_asleep,
            failures=failures or {},
        ),
        np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens]),
        np.concatenate([workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER)]),
        None if known is None else np.append(known, np.full(workload.n_questions, np.nan)),
        reactive=judge.cancels if reactive is None else reactive,
    )
    return orchestrator, executor.run(orchestrator)


__all__ = ["AGGREGATOR", "CONFIG", "LATENCY", "SPEC", "make_workload", "problem_maker", "run"]
