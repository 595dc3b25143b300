"""A made-up Result of any size, for tests of what is shown: plausible figures, no simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaicsim.analysis.result import Columns, Result, Run
from mosaicsim.workload.calls import AggregatorCalls, Calibration, CallTable, Ints, Outcomes, Workload

EXPERTS = ("Gemma", "QwenR1", "Qwen", "LlamaR1", "Exaone", "GLM")
MEAN_TOKENS = (291, 3734, 350, 3146, 420, 260)
SCHEDULERS = ("round_robin", "data_parallel", "ilp", "oracle")
GATES = ("always", "plurality(tau=1)", "plurality(tau=0.667)")
TOKENS_PER_S = 2200.0
LOAD_S = 42.0


def make_result(
    *,
    schedulers: tuple[str, ...] = SCHEDULERS,
    gates: tuple[str, ...] = GATES,
    n_workers: int = 4,
    n_experts: int = 6,
    n_questions: int = 200,
    replicates: int = 2,
    labels: dict[str, str] | None = None,
) -> Result:
    """A Result with every scheduler under every gate in every replicate."""
    workloads = tuple(
        make_workload(n_questions, n_experts, np.random.default_rng(replicate), labels or {})
        for replicate in range(replicates)
    )
    workers = tuple(f"gpu{w}" for w in range(n_workers))
    runs = [
        _run(workload, scheduler, gate, replicate, n_workers)
        for replicate, workload in enumerate(workloads)
        for gate in gates
        for scheduler in schedulers
    ]
    _compare(runs)
    counts = workloads[0].calls.counts(n_experts)
    summary = {
        "scenario": "made_up",
        "seed": 0,
        "replicates": replicates,
        "runs": [run.metrics for run in runs],
        "plans": [
            {"scheduler": scheduler, "replicate": replicate, **plan_info}
            for (scheduler, replicate), plan_info in {
                (run.scheduler, run.replicate): run.plan_info for run in runs
            }.items()
        ],
        "means": [],
        "workload": {"popularity": dict(zip(workloads[0].experts, counts.tolist(), strict=True))},
        "labels": labels or {},
    }
    scenario: dict[str, Any] = {
        "name": "made_up",
        "seed": 0,
        "cluster": {"hosts": [{"device": "A100-80G", "gpus": n_workers}]},
    }
    return Result(scenario, summary, workloads, workers, tuple(runs), {"simulate_s": 1.25})


def make_workload(
    n_questions: int, n_experts: int, rng: np.random.Generator, labels: dict[str, str] | None = None
) -> Workload:
    """Three calls a question, lognormal lengths, answers that agree about as often as people's."""
    names = tuple(EXPERTS[i % 6] + ("" if i < 6 else f"-{i // 6 + 1}") for i in range(n_experts))
    weights = rng.dirichlet(np.full(n_experts, 6.0))
    expert = rng.choice(n_experts, (n_questions, 3), p=weights)
    sample = np.stack([(expert[:, :j] == expert[:, j : j + 1]).sum(axis=1) for j in range(3)], axis=1)
    mean = np.array([MEAN_TOKENS[i % 6] for i in range(n_experts)])[expert.ravel()]
    tokens = np.clip(rng.lognormal(np.log(mean) - 0.3, 0.75), 8, 32768).astype(np.int64)
    correct = rng.random(3 * n_questions) < 0.6
    answer = np.where(correct, 0, rng.integers(1, 4, 3 * n_questions)).astype(np.int64)
    visible = np.minimum(tokens, 400)
    return Workload(
        name="made_up",
        questions=tuple(f"q{i}" for i in range(n_questions)),
        categories=tuple(("law", "math")[i % 2] for i in range(n_questions)),
        experts=names,
        calls=CallTable(
            np.repeat(np.arange(n_questions), 3),
            expert.ravel(),
            sample.ravel(),
            rng.integers(80, 400, 3 * n_questions),
        ),
        outcomes=Outcomes(tokens, visible, answer, correct),
        aggregator=AggregatorCalls(
            200 + visible.reshape(-1, 3).sum(axis=1),
            rng.integers(500, 3000, n_questions),
            rng.random(n_questions) < 0.63,
        ),
        calibration=Calibration((), ()),
        labels=labels or {},
    )


def _shares(workload: Workload, scheduler: str, n_workers: int) -> list[tuple[int, int, Ints]]:
    """Sessions (worker, expert, calls) in order: dealt whole, split over all, or longest work first."""
    calls, tokens = workload.calls, workload.outcomes.output_tokens
    of = {m: np.flatnonzero(calls.expert == m) for m in range(len(workload.experts))}
    present = [m for m in of if len(of[m])]
    if scheduler.startswith("round_robin"):
        return [(m % n_workers, m, of[m]) for m in present]
    if scheduler.startswith("data_parallel"):
        return [(w, m, of[m][w::n_workers]) for m in present for w in range(n_workers) if len(of[m]) > w]
    load, sessions = np.zeros(n_workers), []
    for m in sorted(present, key=lambda m: -tokens[of[m]].sum()):
        parts = max(1, round(n_workers * tokens[of[m]].sum() / tokens.sum()))
        for part in range(min(parts, len(of[m]))):
            worker, share = int(load.argmin()), of[m][part::parts]
            load[worker] += LOAD_S + tokens[share].sum() / TOKENS_PER_S
            sessions.append((worker, m, share))
    return sessions


def _run(workload: Workload, scheduler: str, gate: str, replicate: int, n_workers: int) -> Run:
    calls, tokens = workload.calls, workload.outcomes.output_tokens
    n, clock = len(calls), np.zeros(n_workers)
    rows: list[tuple[int, str, int, int, str, float, float]] = []
    start, finish = np.zeros(n), np.zeros(n)
    worker_of, session_of = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for number, (worker, expert, share) in enumerate(_shares(workload, scheduler, n_workers)):
        ready = clock[worker] + LOAD_S
        tail = ready + tokens[share].sum() / TOKENS_PER_S
        end = tail + 0.3 * float(tokens[share].max()) / 60
        for state, lo, hi in (("load", clock[worker], ready), ("generate", ready, tail), ("tail", tail, end)):
            rows.append((worker, "expert", number, expert, state, float(lo), float(hi)))
        start[share], worker_of[share], session_of[share] = ready, worker, number
        finish[share] = ready + (end - ready) * tokens[share] / tokens[share].max()
        clock[worker] = end
    stage_s = float(clock.max())
    asked = np.flatnonzero(_asked(workload, gate))
    makespan = stage_s
    if len(asked):
        ready, end = (
            stage_s + LOAD_S,
            stage_s + LOAD_S + float(workload.aggregator.output_tokens[asked].sum()) / 4000,
        )
        number = len(rows) // 3
        for worker in range(n_workers):
            rows.append((worker, "aggregator", number, -1, "load", stage_s, ready))
            rows.append((worker, "aggregator", number, -1, "generate", ready, end))
        makespan = end
    timeline = _timeline(rows)
    gpu = _gpu_time(timeline, makespan * n_workers)
    aggregated = {
        "worker": np.zeros(len(asked), np.int64),
        "session": np.full(len(asked), len(rows) // 3),
        "start_s": np.full(len(asked), stage_s + LOAD_S),
        "finish_s": np.full(len(asked), makespan),
    }
    columns: Columns = {
        "stage": np.array(["expert"] * n + ["aggregator"] * len(asked)),
        "question": np.concatenate([calls.question, asked]),
        "expert": np.concatenate([calls.expert, np.full(len(asked), -1)]),
        "sample": np.concatenate([calls.sample, np.zeros(len(asked), np.int64)]),
        "worker": np.concatenate([worker_of, aggregated["worker"]]),
        "session": np.concatenate([session_of, aggregated["session"]]),
        "start_s": np.concatenate([start, aggregated["start_s"]]),
        "first_token_s": np.concatenate([start, aggregated["start_s"]]) + 0.1,
        "finish_s": np.concatenate([finish, aggregated["finish_s"]]),
        "prompt_tokens": np.concatenate([calls.prompt_tokens, workload.aggregator.prompt_tokens[asked]]),
        "output_tokens": np.concatenate([tokens, workload.aggregator.output_tokens[asked]]),
        "preemptions": np.zeros(n + len(asked), np.int64),
        "status": np.zeros(n + len(asked), np.int8),
    }
    skip = 1 - len(asked) / workload.n_questions
    metrics = {
        "scheduler": scheduler,
        "gate": gate,
        "replicate": replicate,
        "sees_lengths": scheduler.startswith("oracle"),
        "expert_stage_s": stage_s,
        "aggregator_stage_s": makespan - stage_s,
        "makespan_s": makespan,
        "idle_fraction": gpu["idle"] / (makespan * n_workers),
        "lower_bound_s": 0.8 * stage_s,
        "predicted_expert_stage_s": 0.91 * stage_s,
        "prediction_error": -0.09,
        "bound_distance": 0.25,
        "skip_rate": skip,
        "accuracy": 0.6319 - 0.007 * skip,
        "delta_pp": -0.7 * skip,
        "delta_pp_ci95": [-0.7 * skip - 0.8, -0.7 * skip + 0.8],
        "calls_finished": n + len(asked),
        "calls_cancelled": 0,
        "output_tokens": int(tokens.sum()),
        "preemptions": 0,
        "gpu_time": gpu,
        "replanned": [],
    }
    sees = scheduler.startswith("oracle")
    return Run(scheduler, gate, replicate, sees, metrics, columns, timeline, gpu, {"gap": 0.0})


def _asked(workload: Workload, gate: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    answers = workload.outcomes.answer.reshape(-1, 3)
    votes = (answers[:, :, None] == answers[:, None, :]).sum(axis=2).max(axis=1)
    needed = {"always": 4, "plurality(tau=1)": 3, "plurality(tau=0.667)": 2}[gate]
    return np.asarray(votes < needed)


def _timeline(rows: list[tuple[int, str, int, int, str, float, float]]) -> Columns:
    names = ("worker", "stage", "session", "expert", "state", "start_s", "end_s")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _gpu_time(timeline: Columns, total: float) -> dict[str, float]:
    seconds = timeline["end_s"] - timeline["start_s"]
    by_state = {s: float(seconds[timeline["state"] == s].sum()) for s in ("load", "generate", "tail")}
    return {
        "load": by_state["load"],
        "prefill": 0.1 * by_state["generate"],
        "decode": 0.9 * by_state["generate"],
        "tail": by_state["tail"],
        "down": 0.0,
        "idle": total - sum(by_state.values()),
    }


def _compare(runs: list[Run]) -> None:
    """Fill in the speedups over round_robin, None where it did not run."""
    base = {(r.gate, r.replicate): r.metrics for r in runs if r.scheduler == "round_robin"}
    for run in runs:
        other = base.get((run.gate, run.replicate))
        for key, of in (("speedup", "makespan_s"), ("expert_stage_speedup", "expert_stage_s")):
            run.metrics[key] = other[of] / run.metrics[of] if other else None
