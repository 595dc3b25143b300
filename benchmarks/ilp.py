"""How long the ILP takes to prove its gap: ``python benchmarks/ilp.py --experts 64 --workers 32 --json``.

One instance drawn from a seed: a third of the experts reason (a long tail and 1.2-2 s a call, as QwenR1 and
LlamaR1 on an A100), the others answer at once (0.1-0.25 s a call, as Gemma). Popularity is lognormal with
sigma 1: the most popular of 6 experts gets about 10 times the calls of the least, of 64 about 80 times.
Loads take 38-47 s (the paper's range); 1050 calls an expert on average (MMLU-Pro's 6300 over 6). K is
``max(2, ceil(E / W) + 1)``. One core: HiGHS runs with one thread.
"""

from __future__ import annotations

import json
import time

import click
import numpy as np

from mosaicsim.schedulers.base import Problem, SessionCost, WorkerView
from mosaicsim.schedulers.ilp import Ilp, IlpOptions
from mosaicsim.workload.calls import CallTable

CALLS_PER_EXPERT = 1050


def session_cost(rng: np.random.Generator, reasoning: bool) -> SessionCost:
    """Make a sweep with the shape of a measured one: a tail that small sessions pay too, then a slope."""
    tails_s, slopes_s = ((400, 800), (1.2, 2.0)) if reasoning else ((15, 40), (0.1, 0.25))
    tail_s, slope_s = rng.uniform(*tails_s), rng.uniform(*slopes_s)
    counts = np.array([1.0, 16.0, 64.0, 256.0, 1024.0])
    return SessionCost(
        load_s=rng.uniform(38, 47),
        counts=counts,
        generate_s=tail_s * (1 - np.exp(-counts / 40)) + slope_s * counts,
        mean_output_tokens=3400.0 if reasoning else 300.0,
        max_output_tokens=32768.0 if reasoning else 4096.0,
        reasoning=reasoning,
    )


def instance(experts: int, workers: int, seed: int) -> Problem:
    """Draw a pool, its popularity and its costs; the workers are alike."""
    rng = np.random.default_rng(seed)
    reasons = rng.permutation(experts) < max(1, experts // 3)
    popularity = rng.lognormal(0.0, 1.0, experts)
    counts = np.maximum(
        1, np.rint(popularity / popularity.sum() * experts * CALLS_PER_EXPERT).astype(np.int64)
    )
    expert = rng.permutation(np.repeat(np.arange(experts), counts))
    n = len(expert)
    return Problem(
        experts=tuple(f"expert{m}" for m in range(experts)),
        calls=CallTable(np.arange(n), expert, np.zeros(n, np.int64), np.full(n, 200)),
        call_ids=np.arange(n),
        workers=tuple(WorkerView(w, f"gpu{w}", "A100-80G") for w in range(workers)),
        costs=tuple((session_cost(rng, bool(r)),) * workers for r in reasons),
    )


@click.command()
@click.option("--experts", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--gap", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="relative gap to prove"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def main(experts: int, workers: int, seed: int, gap: float, as_json: bool) -> None:
    """Time one solve to a proven gap; the model's build and the local search are in it, imports are not."""
    import mosaicsim.schedulers.milp  # noqa: F401 - PuLP's import is not the solve

    problem = instance(experts, workers, seed)
    scheduler = Ilp(IlpOptions(max_models_per_worker=max(2, -(-experts // workers) + 1), gap=gap))
    start = time.perf_counter()
    info = scheduler.plan(problem).info
    solve_s = time.perf_counter() - start
    row = {"experts": experts, "workers": workers, "seed": seed, "solve_s": round(solve_s, 4), **info}
    if as_json:
        click.echo(json.dumps(row))
        return
    click.echo(
        "  ".join(
            f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
        )
    )


if __name__ == "__main__":
    main()
