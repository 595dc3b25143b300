"""Figures of one run, from its log."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mosaicsim.aggregation.base import ASK
from mosaicsim.analysis.result import Columns
from mosaicsim.runtime.events import SessionUsage
from mosaicsim.runtime.runlog import FINISHED, PENDING, RunLog
from mosaicsim.workload.calls import Bools, Ints, Workload

Intervals = list[tuple[float, float]]


def question_correct(workload: Workload, accepted: Ints, status: npt.NDArray[np.int8]) -> Bools:
    """Whether each question was answered right, shape (questions,).

    ``accepted`` is the gate's answer code or ``ASK``, where the aggregator's answer counts; ``status`` has
    shape (calls,): a cancelled call's answer is unknown.
    """
    k = len(workload.calls) // workload.n_questions
    answer = workload.outcomes.answer.reshape(-1, k)
    right = (answer == accepted[:, None]) & workload.outcomes.correct.reshape(-1, k)
    right &= (status[: len(workload.calls)] == FINISHED).reshape(-1, k)
    return np.where(accepted == ASK, workload.aggregator.correct, right.any(axis=1))


def paired_delta(ours: Bools, baseline: Bools) -> tuple[float, tuple[float, float]]:
    """Difference of two accuracies on the same questions in percentage points, with its 95 % interval.

    Only discordant questions carry information. The interval is Wald's after adding half a question to each
    of the four cells (Agresti and Min, Statistics in Medicine 24, 2005): it holds its level for few of them.
    """
    n = len(ours)
    gained, lost = int((ours & ~baseline).sum()), int((~ours & baseline).sum())
    n_adjusted = n + 2
    centre = (gained - lost) / n_adjusted
    spread = np.sqrt(((gained + lost + 1) / n_adjusted - centre**2) / n_adjusted)
    low, high = centre - 1.959964 * spread, centre + 1.959964 * spread
    return 100 * (gained - lost) / n, (float(100 * low), float(100 * high))


def worker_intervals(log: RunLog, stage: str, n_workers: int) -> list[Intervals]:
    """When each worker was held by a session of a stage, overlaps merged, ascending."""
    held: list[Intervals] = [[] for _ in range(n_workers)]
    for row in log.sessions.values():
        if row.stage == stage and row.usage is not None:
            for worker in row.spec.workers:
                held[worker].append((row.usage.load_start_s, row.usage.end_s))
    return [_merged(sorted(intervals)) for intervals in held]


def _merged(intervals: Intervals) -> Intervals:
    merged: Intervals = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def busy_s(held: list[Intervals]) -> float:
    """Worker-seconds in merged intervals."""
    return sum(end - start for intervals in held for start, end in intervals)


def gpu_time(log: RunLog, n_workers: int, makespan_s: float) -> dict[str, float]:
    """GPU-seconds by state over the makespan; a tensor-parallel session counts on each of its GPUs.

    Where experts share a GPU a load beside generation costs no GPU time: ``load`` is what a GPU was held for
    without generating.
    """
    spent = dict.fromkeys(("prefill", "decode", "tail"), 0.0)
    for row in log.sessions.values():
        usage, gpus = row.usage, len(row.spec.workers)
        if usage is not None:
            spent["prefill"] += gpus * usage.prefill_s
            spent["decode"] += gpus * usage.decode_s
            spent["tail"] += gpus * usage.tail_s
    held = sum(busy_s(worker_intervals(log, stage, n_workers)) for stage in ("expert", "aggregator"))
    down = down_s(log, makespan_s)
    load = max(0.0, held - sum(spent.values()))
    return {"load": load, **spent, "down": down, "idle": n_workers * makespan_s - held - down}


def down_s(log: RunLog, until_s: float) -> float:
    """Worker-seconds up to ``until_s`` in which a worker was lost."""
    return sum(max(0.0, min(end, until_s) - start) for _, start, end in log.down)


def timeline(log: RunLog, experts: tuple[str, ...]) -> Columns:
    """One row a worker and interval of constant state: load, generate, tail."""
    rows: list[tuple[int, str, int, int, str, float, float]] = []
    for number, row in log.sessions.items():
        if row.usage is None:
            continue
        expert = experts.index(row.spec.expert) if row.spec.expert in experts else -1
        for worker in row.spec.workers:
            for state, (start, end) in zip(
                ("load", "generate", "tail"), pairwise(_edges(row.usage)), strict=True
            ):
                if end > start:
                    rows.append((worker, row.stage, number, expert, state, start, end))
    names = ("worker", "stage", "session", "expert", "state", "start_s", "end_s")
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


def _edges(usage: SessionUsage) -> tuple[float, float, float, float]:
    tail = min(max(usage.tail_start_s, usage.ready_s), usage.end_s)
    return usage.load_start_s, usage.ready_s, tail, usage.end_s


def call_columns(log: RunLog, workload: Workload) -> Columns:
    """One row a call that was started or cancelled; the aggregator's calls have expert -1."""
    n, questions = len(workload.calls), np.arange(workload.n_questions)
    calls = workload.calls
    worker = np.array([log.sessions[s].spec.workers[0] for s in sorted(log.sessions)] or [-1])
    columns = {
        "stage": np.repeat(["expert", "aggregator"], [n, len(questions)]),
        "question": np.concatenate([calls.question, questions]),
        "expert": np.concatenate([calls.expert, np.full(len(questions), -1)]),
        "sample": np.concatenate([calls.sample, np.zeros(len(questions), np.int64)]),
        "worker": np.where(log.session >= 0, worker[log.session], -1),
        "session": log.session,
        "start_s": log.start_s,
        "first_token_s": log.first_token_s,
        "finish_s": log.finish_s,
        "prompt_tokens": np.concatenate([calls.prompt_tokens, workload.aggregator.prompt_tokens]),
        "output_tokens": log.output_tokens,
        "preemptions": log.preemptions,
        "status": log.status,
    }
    ended = log.status != PENDING
    return {name: column[ended] for name, column in columns.items()}


def popularity(workload: Workload) -> dict[str, Any]:
    """Calls of each expert and how uneven they are: max/min over experts with calls, and CV over all."""
    counts = workload.calls.counts(len(workload.experts))
    drawn = counts[counts > 0]
    return {
        "calls": dict(zip(workload.experts, counts.tolist(), strict=True)),
        "max_over_min": float(drawn.max() / drawn.min()),
        "cv": float(counts.std() / counts.mean()),
    }


def agreement(workload: Workload) -> dict[str, dict[str, float]]:
    """Questions by how many of their k answers coincide ("3", "2", "1"; "0": no answer at all).

    For each size of the largest group: share of the questions, and mean output tokens a call.
    """
    k = len(workload.calls) // workload.n_questions
    answer = workload.outcomes.answer.reshape(-1, k)
    same = (answer[:, :, None] == answer[:, None, :]) & (answer >= 0)[:, :, None]
    largest = same.sum(axis=2).max(axis=1)
    tokens = workload.outcomes.output_tokens.reshape(-1, k).mean(axis=1)
    return {
        str(size): {
            "share": float((largest == size).mean()),
            "mean_output_tokens": float(tokens[largest == size].mean()),
        }
        for size in range(k, -1, -1)
        if (largest == size).any()
    }
