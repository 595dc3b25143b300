"""How three answers agree, and what to expect of that when the slots are dealt at random.

The fixed-counts router shuffles a list that holds expert m ``slot_counts[m]`` times and deals three to each
question. For one question the chance of each multiset of experts is then known exactly, so expectations over
all routings are sums over multisets (56 for six experts) instead of simulations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np

from mosaicsim.workload.calls import NO_ANSWER, Bools, Floats, Ints

SLOTS = 3
"""Experts drawn for a question (the paper's k)."""

UNANIMOUS, MAJORITY, SPLIT = 0, 1, 2
BUCKETS = ("3:0", "2:1", "1:1:1")
CORRECT = 0
"""Answer code of the correct option within the synthetic model; wrong options are 1, 2, ..."""


def buckets(answers: Ints) -> tuple[Ints, Bools]:
    """Agreement bucket of each question and whether its plurality is correct; ``answers`` has shape (n, 3).

    A missing answer agrees with nothing. In a 1:1:1 split there is no plurality, so it is not correct.
    """
    a, b, c = answers.T
    ab, ac, bc = (x == y for x, y in ((a, b), (a, c), (b, c)))
    first = (a != NO_ANSWER) & (ab | ac)
    second = (b != NO_ANSWER) & bc
    winner = np.where(first, a, np.where(second, b, NO_ANSWER))
    bucket = np.where(first & ab & ac, UNANIMOUS, np.where(first | second, MAJORITY, SPLIT))
    return bucket.astype(np.int64), winner == CORRECT


@dataclass(frozen=True)
class Expected:
    """Per question, averages over random routings; arrays of shape (n, 3), a column a bucket.

    ``share`` is the chance of landing in the bucket, ``correct`` of landing there with a correct plurality.
    """

    share: Floats
    correct: Floats


def picks(slot_counts: Ints) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """Each multiset of three experts that the counts allow: its probability and its (expert, sample) pairs.

    An expert drawn twice answers with its samples 0 and 1.
    """
    total = int(slot_counts.sum())
    for experts in combinations_with_replacement(range(len(slot_counts)), SLOTS):
        times = [experts.count(m) for m in sorted(set(experts))]
        ways = factorial(SLOTS) // prod(factorial(t) for t in times)
        drawn = prod(int(slot_counts[m]) - experts[:i].count(m) for i, m in enumerate(experts))
        if drawn > 0:
            chance = ways * drawn / prod(total - i for i in range(SLOTS))
            yield chance, [(m, experts[:i].count(m)) for i, m in enumerate(experts)]


def expect(answers: Ints, slot_counts: Ints) -> Expected:
    """Average each question over all random routings; ``answers`` has shape (n, experts, samples)."""
    share = np.zeros((len(answers), len(BUCKETS)))
    correct = np.zeros_like(share)
    rows = np.arange(len(answers))
    for chance, drawn in picks(slot_counts):
        bucket, right = buckets(np.stack([answers[:, m, s] for m, s in drawn], axis=1))
        share[rows, bucket] += chance
        correct[rows, bucket] += chance * right
    return Expected(share, correct)


def expect_tokens(answers: Ints, tokens: Ints, slot_counts: Ints) -> Floats:
    """Mean tokens of a call by the bucket its question lands in, over all random routings; shape (3,)."""
    mass, total = np.zeros(len(BUCKETS)), np.zeros(len(BUCKETS))
    for chance, drawn in picks(slot_counts):
        bucket, _ = buckets(np.stack([answers[:, m, s] for m, s in drawn], axis=1))
        length = np.mean([tokens[:, m, s] for m, s in drawn], axis=0)
        mass += chance * np.bincount(bucket, minlength=len(BUCKETS))
        total += chance * np.bincount(bucket, weights=length, minlength=len(BUCKETS))
    return total / np.maximum(mass, 1e-12)


def routed_samples(experts: Ints) -> Ints:
    """Sample index each slot uses: how often its expert was drawn before in the row; shape as ``experts``."""
    sample = np.zeros_like(experts)
    for slot in range(1, experts.shape[1]):
        sample[:, slot] = (experts[:, :slot] == experts[:, slot : slot + 1]).sum(axis=1)
    return sample
