"""Drawing and dealing slots: the sampling that routers share, all questions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mosaicsim.errors import InfeasibleError
from mosaicsim.workload.calls import Bools, Floats, Ints


@dataclass(frozen=True)
class Popularity:
    """How unevenly slots fall on the experts of a pool; ``max_min`` is inf where one has no slot."""

    max_min: float
    cv: float


def popularity(counts: Ints) -> Popularity:
    """Skew of slot counts, shape (experts,): largest over smallest, and standard deviation over mean."""
    low, mean = int(counts.min()), float(counts.mean())
    return Popularity(
        max_min=float(counts.max() / low) if low else float("inf"),
        cv=float(counts.std() / mean) if mean else 0.0,
    )


def draw_weighted(weights: Floats, k: int, replacement: bool, rng: np.random.Generator) -> Ints:
    """k draws a question by ``weights`` (questions, experts), not normalised; shape (questions, k).

    Raises InfeasibleError: fewer than k experts have weight and a repeat is not allowed.
    """
    if replacement:
        edges = np.cumsum(weights, axis=1)
        points = rng.random((len(weights), k)) * edges[:, -1:]
        drawn = (points[:, :, None] >= edges[:, None, :]).sum(axis=2)
        return np.asarray(np.minimum(drawn, weights.shape[1] - 1))
    pool = int((weights > 0).sum(axis=1).min(initial=weights.shape[1]))
    if pool < k:
        raise InfeasibleError(
            f"cannot draw k = {k} different experts from a pool of {pool} (replacement: false)"
        )
    # Gumbel top-k is sampling without replacement by weight, all questions at once.
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + rng.gumbel(size=weights.shape)
    return np.argsort(-keys, axis=1)[:, :k]


def deal(counts: Ints, experts: Sequence[str], k: int, replacement: bool, rng: np.random.Generator) -> Ints:
    """Give expert e exactly ``counts[e]`` of the slots, at random; shape (sum of counts / k, k).

    Raises InfeasibleError: without repeats, an expert has more slots than there are questions.
    """
    slots = np.repeat(np.arange(len(counts)), counts)
    if replacement:
        return rng.permutation(slots).reshape(-1, k)
    n_questions, most = len(slots) // k, int(np.argmax(counts))
    if counts[most] > n_questions:
        raise InfeasibleError(
            f"expert '{experts[most]}' has {counts[most]:,} slots but there are {n_questions:,} questions, "
            "so some question must draw it twice (replacement: false)"
        )
    # Slot j of the sorted slots goes to question j mod n: a run of at most n equal slots never meets itself.
    table = rng.permutation(slots.reshape(k, n_questions).T)
    for _ in range(20 * k):
        _trade(table, rng)
    return rng.permuted(table, axis=1)


def _trade(table: Ints, rng: np.random.Generator) -> None:
    """Pair questions at random; each pair swaps one slot where neither then repeats an expert.

    Such swaps keep the counts and reach every assignment that has them.
    """
    pairs = rng.permutation(len(table))[: len(table) // 2 * 2].reshape(-1, 2)
    ours, theirs = rng.integers(table.shape[1], size=(2, len(pairs)))
    left, right = table[pairs[:, 0], ours], table[pairs[:, 1], theirs]
    blocked: Bools = (table[pairs[:, 0]] == right[:, None]).any(axis=1)
    blocked |= (table[pairs[:, 1]] == left[:, None]).any(axis=1)
    free = ~blocked
    table[pairs[free, 0], ours[free]] = right[free]
    table[pairs[free, 1], theirs[free]] = left[free]


def whole_slots(shares: Floats, n_slots: int) -> Ints:
    """Round shares to whole slots that add up to ``n_slots``, by largest remainder: each within one slot."""
    exact = shares * n_slots
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: n_slots - int(counts.sum())]] += 1
    return counts
