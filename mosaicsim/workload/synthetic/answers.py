"""The answer model: who answers what on a question, given how hard it is.

A question has a difficulty d ~ N(category's, 1). Expert m answers correctly with probability
sigmoid(level + ability_m - spread * d), else with the question's popular distractor with probability
sigmoid(logit(popular) + popular_spread * N(0, 1)), else with any other wrong option. An expert's modal
answer is one such draw; each of its samples repeats the modal answer with probability ``self_consistency``
and is a fresh draw otherwise. The shared difficulty correlates errors between experts; the popular distractor
lets them agree on a wrong answer, on some questions much more than on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.workload.calls import Floats, Ints
from mosaicsim.workload.synthetic.agreement import CORRECT
from mosaicsim.workload.synthetic.spec import SyntheticSpec, apportion


@dataclass(frozen=True)
class AnswerModel:
    """The fitted numbers. ``level`` and ``spread`` of the chance to be right; ``popular`` (a probability) and
    ``popular_spread`` of the popular distractor; the levels are medians, both spreads are on the logit scale.
    """

    level: float
    spread: float
    popular: float
    popular_spread: float


@dataclass(frozen=True)
class Candidates:
    """n questions drawn from the model. ``category`` (n,) indexes the spec's categories.

    ``logit`` (n, experts) is of answering correctly; ``answers`` (n, experts, samples) holds 0 for the
    correct option, 1 for the popular distractor, up to options - 1 for the others.
    """

    category: Ints
    difficulty: Floats
    logit: Floats
    answers: Ints


@dataclass(frozen=True)
class Draws:
    """The random numbers behind n candidates, kept apart so that a fit can reuse them."""

    category: Ints
    difficulty: Floats
    lure: Floats
    keep: Floats
    modal: Floats
    fresh: Floats

    @classmethod
    def make(cls, spec: SyntheticSpec, n: int, rng: np.random.Generator) -> Draws:
        """Draw for ``n`` questions whose categories stand exactly in the spec's proportions."""
        shares = apportion([c.weight for c in spec.categories.values()], n)
        category = rng.permutation(np.repeat(np.arange(len(shares)), shares)).astype(np.int64)
        shift = np.array([c.difficulty for c in spec.categories.values()])
        pool = (n, len(spec.experts))
        return cls(
            category=category,
            difficulty=rng.standard_normal(n) + shift[category],
            lure=rng.standard_normal(n),
            keep=rng.random((*pool, spec.samples)),
            modal=rng.random((3, *pool)),
            fresh=rng.random((3, *pool, spec.samples)),
        )


def draw_answers(spec: SyntheticSpec, model: AnswerModel, draws: Draws) -> Candidates:
    """Turn random numbers into candidate questions under the model."""
    ability = np.array([e.ability for e in spec.experts.values()])
    logit = model.level + ability - model.spread * draws.difficulty[:, None]
    right = sigmoid(logit)
    options = spec.answers.options
    popular = sigmoid(np.log(model.popular / (1 - model.popular)) + model.popular_spread * draws.lure)
    modal = _choose(draws.modal, right, popular[:, None], options)
    fresh = _choose(draws.fresh, right[:, :, None], popular[:, None, None], options)
    kept = draws.keep < spec.answers.self_consistency
    answers = np.where(kept, modal[:, :, None], fresh)
    return Candidates(draws.category, draws.difficulty, logit, answers)


def _choose(uniform: Floats, right: Floats, popular: Floats, options: int) -> Ints:
    """Answer codes from uniforms of shape (3, ...): is it right, is it popular, which other."""
    other = 2 + np.floor(uniform[2] * (options - 2)).astype(np.int64)
    wrong = np.where(uniform[1] < popular, 1, other)
    return np.where(uniform[0] < right, CORRECT, wrong)


def sigmoid(x: Floats) -> Floats:
    """The logistic function, of any shape."""
    return np.asarray(1 / (1 + np.exp(-x)))
