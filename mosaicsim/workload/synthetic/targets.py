"""Fitting the answer model to its targets, and choosing questions so that targets are met to the question."""

from __future__ import annotations

import numpy as np

from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.lengths import fit_lengths
from mosaicsim.workload.synthetic.agreement import MAJORITY, SPLIT, UNANIMOUS, Expected, expect
from mosaicsim.workload.synthetic.answers import AnswerModel, Draws, draw_answers
from mosaicsim.workload.synthetic.spec import SyntheticSpec, TargetSpec

_FIT_QUESTIONS = 6000
_FIT_STEPS = 12
_STEP = 0.08
_DAMPING = 1e-5
_EXACT = 1000.0
_PAIRS = 6000
ROUNDS = 400


def fit_answers(spec: SyntheticSpec, rng: np.random.Generator) -> AnswerModel:
    """Find the four numbers of the model whose redraws give the target shares; damped Gauss-Newton.

    Targets are the shares of 3:0 and 1:1:1 and the plurality's accuracy within 3:0 and 2:1, on one set of
    random numbers so that differences are smooth. Where they cannot all be met the closest model is kept:
    choosing questions does the rest, and the trace's report shows what was achieved.
    """
    draws = Draws.make(spec, _FIT_QUESTIONS, rng)
    targets = spec.targets
    goal = _target_sums(targets) / targets.questions

    def miss(point: Floats) -> Floats:
        expected = expect(draw_answers(spec, _model(point), draws).answers, spec.slot_counts)
        return np.asarray(_features(expected).mean(axis=0) - goal)

    point = np.array([0.4, np.log(1.8), -0.3, np.log(1.0)])
    error = miss(point)
    for _ in range(_FIT_STEPS):
        slope = np.stack([(miss(point + step) - error) / _STEP for step in np.eye(4) * _STEP], axis=1)
        move = -np.linalg.solve(slope.T @ slope + _DAMPING * np.eye(4), slope.T @ error)
        move = np.clip(move, -0.5, 0.5)
        trials = [(float(np.abs(miss(point + f * move)).sum()), f) for f in (1.0, 0.4, 0.1)]
        best, factor = min(trials)
        if best >= np.abs(error).sum():
            break
        point = point + factor * move
        error = miss(point)
    return _model(point)


def _features(expected: Expected) -> Floats:
    """What a question adds to each target, shape (n, 4)."""
    share, correct = expected.share, expected.correct
    return np.stack(
        [share[:, UNANIMOUS], share[:, SPLIT], correct[:, UNANIMOUS], correct[:, MAJORITY]], axis=1
    )


def _target_sums(targets: TargetSpec) -> Floats:
    """The targets that :func:`_features` add up to, in questions; shape (4,)."""
    correct = (targets.unanimous_correct, targets.majority_correct)
    return np.array([targets.unanimous, targets.split, *correct], dtype=np.float64)


def _model(point: Floats) -> AnswerModel:
    """Level as it is, spreads by their logarithms, popularity by its logit."""
    level, spread, popular, popular_spread = point
    bounded = min(max(float(popular), -4.0), 4.0)
    return AnswerModel(
        float(level),
        float(np.exp(spread)),
        float(1 / (1 + np.exp(-bounded))),
        float(np.exp(min(popular_spread, 1.5))),
    )


def swap_to_targets(
    chosen: Bools,
    groups: Ints,
    features: Floats,
    sums: Floats,
    rng: np.random.Generator,
    rounds: int = ROUNDS,
) -> Bools:
    """Exchange chosen rows for others of the same group until the chosen features add up to ``sums``.

    ``chosen`` and ``groups`` have shape (n,), ``features`` (n, f), ``sums`` (f,). Each round tries random
    pairs and keeps the best; the group sizes of the chosen rows never change.
    """
    chosen = chosen.copy()
    left = sums - features[chosen].sum(axis=0)
    for _ in range(rounds):
        distance = np.abs(left).sum()
        if distance < 0.02:
            break
        inside, outside = _pairs(chosen, groups, rng)
        if not len(inside):
            break
        after = np.abs(left - features[outside] + features[inside]).sum(axis=1)
        best = int(np.argmin(after))
        if after[best] < distance:
            chosen[inside[best]], chosen[outside[best]] = False, True
            left = left - features[outside[best]] + features[inside[best]]
    return chosen


def _pairs(chosen: Bools, groups: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Random pairs of a chosen and an unchosen row of the same group."""
    inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    if not len(inside) or not len(outside):
        return inside[:0], outside[:0]
    a, b = rng.choice(inside, _PAIRS), rng.choice(outside, _PAIRS)
    same = groups[a] == groups[b]
    return a[same], b[same]


def choose_questions(
    spec: SyntheticSpec,
    category: Ints,
    expected: Expected,
    cut: Bools,
    sizes: list[int],
    rng: np.random.Generator,
) -> Ints:
    """Choose ``sizes[c]`` candidates of each category so that redraws give the target shares on average.

    ``cut`` (n, experts, samples) marks calls that run into the cap; each expert gets its share of them.
    Returns the chosen rows in random order.
    """
    chosen = np.zeros(len(category), dtype=np.bool_)
    for group, size in enumerate(sizes):
        chosen[rng.permutation(np.flatnonzero(category == group))[:size]] = True
    calls = sum(sizes) * spec.samples
    at_cap = [round(fit_lengths(e.lengths).share_at_cap * calls) for e in spec.experts.values()]
    features = np.concatenate([_features(expected), cut.sum(axis=2)], axis=1)
    sums = np.concatenate([_target_sums(spec.targets), at_cap])
    return rng.permutation(np.flatnonzero(swap_to_targets(chosen, category, features, sums, rng)))
