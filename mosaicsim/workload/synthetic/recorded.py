"""The recorded routing: slots dealt at random, then exchanged until every target is met to the question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.workload.calls import Floats, Ints
from mosaicsim.workload.synthetic.agreement import MAJORITY, SLOTS, UNANIMOUS, buckets, routed_samples
from mosaicsim.workload.synthetic.spec import SyntheticSpec, TargetSpec

_PAIRS = 300
_ROUNDS = 1500
_CLOSE = 1e-4


@dataclass(frozen=True)
class Deal:
    """A routing and what each question adds to the sums: ``experts`` (n, 3); ``counts`` (n, 4), whether it is
    3:0 right, 3:0 wrong, 2:1 right or 2:1 wrong; ``tokens`` (n, experts), output tokens of its slots.
    """

    experts: Ints
    counts: Ints
    tokens: Ints

    @classmethod
    def of(cls, experts: Ints, question: Ints, answers: Ints, tokens: Ints) -> Deal:
        """Look up the answers and tokens that ``experts``, drawn for ``question``, gave."""
        sample = routed_samples(experts)
        bucket, right = buckets(answers[question[:, None], experts, sample])
        counts = [(bucket == b) & (right == r) for b in (UNANIMOUS, MAJORITY) for r in (True, False)]
        spent = np.zeros((len(experts), tokens.shape[1]), dtype=np.int64)
        length = tokens[question[:, None], experts, sample]
        for slot in range(SLOTS):
            spent[np.arange(len(experts)), experts[:, slot]] += length[:, slot]
        return cls(experts, np.stack(counts, axis=1).astype(np.int64), spent)

    def put(self, rows: Ints, other: Deal, at: int) -> None:
        """Overwrite row ``rows[at]`` by row ``at`` of ``other``."""
        row = rows[at]
        self.experts[row], self.counts[row], self.tokens[row] = (
            other.experts[at],
            other.counts[at],
            other.tokens[at],
        )


def record_routing(spec: SyntheticSpec, answers: Ints, tokens: Ints, rng: np.random.Generator) -> Ints:
    """Deal the slots so that buckets and plurality accuracy are exactly the targets; shape (n, 3).

    ``answers`` and ``tokens`` have shape (n, experts, samples). First the counts are brought to their
    targets, then, without touching them, each expert's mean tokens over its slots to its mean over the block:
    the published means are of routed calls.
    """
    slots = spec.slot_counts
    experts = rng.permutation(np.repeat(np.arange(len(slots)), slots)).reshape(-1, SLOTS)
    deal = Deal.of(experts, np.arange(len(experts)), answers, tokens)
    goal = _goal(spec.targets)
    _exchange(deal, answers, tokens, goal, None, rng)
    _exchange(deal, answers, tokens, deal.counts.sum(axis=0), tokens.mean(axis=(0, 2)) * slots, rng)
    return deal.experts


def _goal(targets: TargetSpec) -> Ints:
    right, also_right = targets.unanimous_correct, targets.majority_correct
    return np.array([right, targets.unanimous - right, also_right, targets.majority - also_right])


def _exchange(
    deal: Deal, answers: Ints, tokens: Ints, goal: Ints, spent: Floats | None, rng: np.random.Generator
) -> None:
    """Swap two slots at a time towards ``goal``; with ``spent`` keep the counts and approach those tokens.

    While counts are sought a swap that leaves the distance as it is is taken too, to cross plateaus.
    """
    have, used = deal.counts.sum(axis=0), deal.tokens.sum(axis=0)
    for _ in range(_ROUNDS):
        distance = _distance(have, goal, used, spent)
        if distance < _CLOSE:
            break
        one, two = rng.integers(0, len(deal.experts), (2, _PAIRS))
        one, two = one[one != two], two[one != two]
        if not len(one):
            break
        new_one, new_two = (
            Deal.of(new, at, answers, tokens)
            for new, at in zip(_swapped(deal.experts, one, two, rng), (one, two), strict=True)
        )
        more = new_one.counts + new_two.counts - deal.counts[one] - deal.counts[two]
        longer = new_one.tokens + new_two.tokens - deal.tokens[one] - deal.tokens[two]
        after = _distance(have + more, goal, used + longer, spent)
        best = int(np.argmin(after))
        if after[best] > distance or (spent is not None and after[best] == distance):
            continue
        deal.put(one, new_one, best)
        deal.put(two, new_two, best)
        have, used = have + more[best], used + longer[best]


def _distance(have: Ints, goal: Ints, used: Ints, spent: Floats | None) -> Floats:
    """Questions off target; with ``spent``, far away unless on target, else the share of tokens off."""
    off = np.abs(have - goal).sum(axis=-1).astype(np.float64)
    if spent is None:
        return np.asarray(off)
    return np.asarray(1e6 * off + np.abs(used - spent).sum(axis=-1) / spent.sum())


def _swapped(experts: Ints, one: Ints, two: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Rows ``one`` and ``two`` of the deal after exchanging a random slot of each."""
    rows = np.arange(len(one))
    i, j = rng.integers(0, SLOTS, (2, len(one)))
    new_one, new_two = experts[one], experts[two]
    new_one[rows, i], new_two[rows, j] = experts[two, j], experts[one, i]
    return new_one, new_two
