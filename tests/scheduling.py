"""Problems for the scheduler tests: MMLU-Pro as the paper measured it, and generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from mosaicsim.schedulers.base import OracleProblem, Plan, Problem, SessionCost, WorkerView
from mosaicsim.workload.calls import CallTable

# first-seen order, Table 3 (seed 0); tails and slopes chosen so that round-robin gives the paper's walls
EXPERTS = ("Gemma", "QwenR1", "Qwen", "LlamaR1", "Exaone", "GLM")
COUNTS = (1632, 1428, 956, 1070, 547, 667)
TAIL_SLOPE = ((20.0, 0.135), (600.0, 1.28), (15.0, 0.110), (600.0, 1.78), (20.0, 0.17), (15.0, 0.12))


def sweep(tail_s: float, slope_s: float, load_s: float = 42.0) -> SessionCost:
    """A session cost with a fixed tail that even a small session nearly pays, and a slope."""
    counts = 2.0 ** np.arange(12)
    return SessionCost(
        load_s=load_s,
        counts=counts,
        generate_s=tail_s * (1 - np.exp(-counts / 20)) + slope_s * counts,
        mean_output_tokens=3400.0 if tail_s > 100 else 300.0,
        max_output_tokens=32768.0 if tail_s > 100 else 4096.0,
        reasoning=tail_s > 100,
    )


def call_table(counts: Sequence[int]) -> CallTable:
    """Calls of every expert, shuffled by a fixed seed, one question each."""
    expert = np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(expert)
    return CallTable(np.arange(n), expert, np.zeros(n, np.int64), np.full(n, 200))


def problem(
    counts: Sequence[int] = COUNTS,
    costs: Sequence[Sequence[SessionCost]] | None = None,
    backlog_s: Sequence[float] = (0.0,) * 4,
    first_index: int = 0,
) -> Problem:
    """Calls over alike workers unless costs are given; worker indices start anywhere."""
    calls = call_table(counts)
    workers = tuple(WorkerView(first_index + 2 * w, f"gpu{w}", "d", s) for w, s in enumerate(backlog_s))
    if costs is None:
        costs = [[sweep(*TAIL_SLOPE[m % 6])] * len(workers) for m in range(len(counts))]
    names = tuple(EXPERTS[m] if len(counts) == 6 else f"expert{m}" for m in range(len(counts)))
    return Problem(names, calls, np.arange(len(calls)), workers, tuple(map(tuple, costs)))


def with_lengths(given: Problem, output_tokens: np.ndarray) -> OracleProblem:
    return OracleProblem(
        given.experts, given.calls, given.call_ids, given.workers, given.costs, output_tokens=output_tokens
    )


def walk(given: Problem, plan: Plan) -> float:
    """Makespan of a plan by the profiled costs, phases and backlogs included: the definition, plainly."""
    position = {worker.index: w for w, worker in enumerate(given.workers)}
    free = {worker.index: worker.backlog_s for worker in given.workers}
    barrier = 0.0
    for phase in sorted({s.phase for s in plan.sessions}):
        ends = []
        for s in (s for s in plan.sessions if s.phase == phase):
            cost = given.costs[s.expert][position[s.worker]]
            free[s.worker] = max(free[s.worker], barrier) + cost.load_s + cost.predict_s(len(s.call_ids))
            ends.append(free[s.worker])
        barrier = max(ends)
    return max(free.values())


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small pools on unlike workers with backlogs, experts without calls, and calls that are already done."""
    n_workers, n_experts = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(0, 60), min_size=n_experts, max_size=n_experts))
    backlog = draw(st.lists(st.sampled_from([0.0, 0.0, 35.0, 400.0]), min_size=n_workers, max_size=n_workers))
    speeds = draw(st.lists(st.sampled_from([1.0, 1.0, 0.4]), min_size=n_workers, max_size=n_workers))
    lines = [draw(st.tuples(st.sampled_from([0.0, 5.0, 200.0]), st.floats(0.01, 4.0))) for _ in counts]
    costs = [[sweep(tail * s, slope * s) for s in speeds] for tail, slope in lines]
    whole = problem(counts, costs, backlog, first_index=draw(st.integers(0, 3)))
    kept = np.array(draw(st.lists(st.booleans(), min_size=len(whole.calls), max_size=len(whole.calls))), bool)
    return Problem(whole.experts, whole.calls, whole.call_ids[kept], whole.workers, whole.costs)
