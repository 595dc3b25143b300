"""The offline profiling sweep: how long an expert generates for n calls, measured on calibration calls.

This is what a scheduler knows of the future. In simulation the sweep runs on the simulated engine with the
calibration set's lengths; it never sees the calls that are evaluated.
"""

from __future__ import annotations

import numpy as np

from mosaicsim.executors.engine import Engine
from mosaicsim.executors.session import EngineSpec
from mosaicsim.hardware.sharing import rates
from mosaicsim.schedulers.base import SessionCost
from mosaicsim.workload.calls import Floats, Ints

LEAST_DRAWS, LEAST_CALLS = 3, 64
"""A point of the sweep is averaged over so many sessions, and over more of them while they are small."""

SHARES = 20
"""Shares of a session's calls for which the sweep tells when they have ended."""

LARGEST_SESSION = 4096
"""Beyond it a session is in steady state: schedulers extend the sweep by its last slope."""


def profile_sessions(
    spec: EngineSpec,
    output_tokens: Ints,
    prompt_tokens: Ints,
    most_calls: int,
    reasoning: bool,
    rng: np.random.Generator,
    *,
    longest_first: bool = False,
    slots: int = 1,
) -> SessionCost:
    """Sweep the session size over powers of two up to ``most_calls`` (at most LARGEST_SESSION).

    ``output_tokens`` and ``prompt_tokens``, shape (calibration calls,), are aligned. Sessions run in random
    order, or ``longest_first``, as only one who knows the lengths can. Where ``slots`` sessions share a
    worker, seconds are a session's part of what so many like it take together; so is the load, while which
    the others generate.
    """
    counts = _sizes(min(most_calls, LARGEST_SESSION))
    by_length = np.argsort(output_tokens, kind="stable")
    output, prompt = output_tokens[by_length], prompt_tokens[by_length]
    sessions = [_mean_session(spec, output, prompt, n, None if longest_first else rng) for n in counts]
    part = _part(spec, output, prompt, counts[-1], slots) if slots > 1 else 1.0
    seconds = [ended_s[-1] * part for ended_s in sessions]
    return SessionCost(
        load_s=spec.load_s / slots,
        counts=np.array(counts, np.float64),
        # a larger session is never shorter; what says otherwise is the luck of the draw
        generate_s=np.maximum.accumulate(seconds),
        mean_output_tokens=float(output_tokens.mean()),
        max_output_tokens=float(output_tokens.max()),
        reasoning=reasoning,
        sequences=spec.config.max_num_seqs,
        progress=np.array([ended_s / ended_s[-1] for ended_s in sessions]),
        disk_s=spec.disk_s / slots,
    )


def _sizes(most_calls: int) -> list[int]:
    """1, 2, 4, ... and the largest session, with room before it: its slope is what larger sessions cost."""
    sizes, n = [], 1
    while 1.5 * n < most_calls:
        sizes.append(n)
        n *= 2
    return [*sizes, max(1, most_calls)]


def _part(spec: EngineSpec, output: Ints, prompt: Ints, n: int, slots: int) -> float:
    """Seconds of a worker, for a second of each of ``slots`` engines that share it, per engine.

    By what a session of n calls takes of the GPU, whose iterations are the same without the host's time.
    """
    rows = (np.arange(n) * len(output) / n).astype(np.int64)
    ends = []
    for tables in (spec.tables, spec.gpu_tables()):
        engine = Engine(spec.config, tables)
        engine.add(prompt[rows].tolist(), output[rows].tolist())
        engine.advance()
        ends.append(max(engine.finish))
    return 1 / (slots * rates([ends[1] / ends[0]] * slots)[0])


def _mean_session(
    spec: EngineSpec, output: Ints, prompt: Ints, n: int, rng: np.random.Generator | None
) -> Floats:
    """Mean seconds until each share of n of the calls (ascending in length) has ended; shape (SHARES,).

    The calls run in random order or longest first.

    Calls are drawn systematically, evenly spaced in length from a random start: every session has its share
    of long calls, so that what differs between draws is mainly when the longest ones get their turn.
    """
    draws = max(LEAST_DRAWS, LEAST_CALLS // n) if rng else 1
    total = np.zeros(SHARES)
    for _ in range(draws):
        start = rng.random() if rng else 0.5
        rows = ((np.arange(n) + start) * len(output) / n).astype(np.int64)
        rows = rng.permutation(rows) if rng else rows[::-1]
        engine = Engine(spec.config, spec.tables)
        engine.add(prompt[rows].tolist(), output[rows].tolist())
        engine.advance()
        ended = np.sort(engine.finish)
        total += ended[np.ceil(np.arange(1, SHARES + 1) * n / SHARES).astype(np.int64) - 1]
    return total / draws
