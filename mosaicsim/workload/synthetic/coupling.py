"""What ties the lengths of one question together: a Gaussian copula over every expert's own distribution.

Each call gets a standard normal score: how much the pool disagrees on the question, a factor shared by the
experts of a class, the expert's own part, noise between samples, the category and a shift when wrong. Ranks
of the scores are then replaced by quantiles of the expert's censored lognormal, so the marginals hold
whatever the coupling. (Measured: Spearman 0.57-0.73 between instruct models, 0.06-0.47 between a reasoning
and an instruct model, wrong answers 1.1-1.6 times as long; MMLU-Pro eval_results, Apache-2.0.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.workload.calls import NO_ANSWER, Bools, Floats, Ints
from mosaicsim.workload.lengths import LengthSpec, fit_lengths, to_normal
from mosaicsim.workload.synthetic.agreement import (
    CORRECT,
    MAJORITY,
    SPLIT,
    UNANIMOUS,
    Expected,
    expect_tokens,
)
from mosaicsim.workload.synthetic.answers import Candidates
from mosaicsim.workload.synthetic.spec import SyntheticSpec

_STRONGEST = 0.95
_COUPLING_BISECTIONS = 7
_MAJORITY_WEIGHT = 0.75
_JITTER = 0.025


@dataclass(frozen=True)
class LengthDraws:
    """Random numbers behind the scores: ``jitter`` (n,) a question, ``factor`` (n, 2) a class, ``own``
    (n, experts), ``repeat`` a call (all normal), and ``missing``, uniform, for answers that cut-off calls
    lose.
    """

    jitter: Floats
    factor: Floats
    own: Floats
    repeat: Floats
    missing: Floats

    @classmethod
    def make(cls, shape: tuple[int, ...], rng: np.random.Generator) -> LengthDraws:
        """Draw for answers of shape (n, experts, samples)."""
        n, experts, _ = shape
        return cls(
            jitter=rng.standard_normal(n),
            factor=rng.standard_normal((n, 2)),
            own=rng.standard_normal((n, experts)),
            repeat=rng.standard_normal(shape),
            missing=rng.random(shape),
        )


def disagreement(expected: Expected, draws: LengthDraws) -> Floats:
    """Normal score of how split a question's redraws are, shape (n,); a little noise breaks its many ties."""
    split = _MAJORITY_WEIGHT * expected.share[:, MAJORITY] + expected.share[:, SPLIT]
    return to_normal(split + _JITTER * draws.jitter)


def length_scores(
    spec: SyntheticSpec, pool: Candidates, split: Floats, draws: LengthDraws, reasoning_coupling: float
) -> Floats:
    """Scores of every call, shape (n, experts, samples); a higher score is a longer output."""
    coupling = spec.coupling
    thinks = np.array([e.reasoning for e in spec.experts.values()])
    tie = np.where(thinks, reasoning_coupling, coupling.disagreement_instruct)
    common = np.where(thinks, coupling.class_factor_reasoning, coupling.class_factor_instruct)
    factor = draws.factor[:, thinks.astype(np.int64)]
    rest = np.sqrt(common) * factor + np.sqrt(1 - common) * draws.own
    shift = np.array([c.length for c in spec.categories.values()])[pool.category]
    between = tie * split[:, None] + np.sqrt(1 - tie**2) * rest + shift[:, None]
    noise = np.sqrt(coupling.repeat_share) * draws.repeat
    wrong = coupling.wrong_shift * (pool.answers != CORRECT)
    return np.asarray(np.sqrt(1 - coupling.repeat_share) * between[:, :, None] + noise + wrong)


def fit_coupling(spec: SyntheticSpec, pool: Candidates, split: Floats, draws: LengthDraws) -> float:
    """The tie of reasoning lengths to disagreement that gives the target ratio of 1:1:1 to 3:0 tokens."""
    target = spec.targets.tokens_by_bucket
    if target is None:
        return spec.coupling.disagreement_reasoning
    low, high = 0.0, _STRONGEST
    for _ in range(_COUPLING_BISECTIONS):
        tie = (low + high) / 2
        scores = length_scores(spec, pool, split, draws, tie)
        cut = cut_calls(spec, scores)
        answers = lose_answers(spec, pool.answers, cut, draws)
        found = expect_tokens(answers, place_lengths(spec, scores, cut), spec.slot_counts)
        if found[SPLIT] / found[UNANIMOUS] < target[SPLIT] / target[UNANIMOUS]:
            low = tie
        else:
            high = tie
    return (low + high) / 2


def cut_calls(spec: SyntheticSpec, scores: Floats) -> Bools:
    """Which calls run into max_tokens: each expert's highest scores, as many as its lengths say."""
    cut = np.zeros(scores.shape, dtype=np.bool_)
    for m, expert in enumerate(spec.experts.values()):
        cut[:, m] = top_share(scores[:, m], fit_lengths(expert.lengths).share_at_cap)
    return cut


def lose_answers(spec: SyntheticSpec, answers: Ints, cut: Bools, draws: LengthDraws) -> Ints:
    """Answers after some of the cut-off calls (``missing_if_cut`` of them) turn out to have none."""
    return np.where(cut & (draws.missing < spec.answers.missing_if_cut), NO_ANSWER, answers)


def top_share(scores: Floats, share: float) -> Bools:
    """Mark the ``share`` highest scores (rounded to a whole number of them); same shape."""
    order = np.argsort(scores.ravel(), kind="stable")
    mark = np.zeros(scores.size, dtype=np.bool_)
    mark[order[scores.size - round(share * scores.size) :]] = True
    return mark.reshape(scores.shape)


def place_lengths(spec: SyntheticSpec, scores: Floats, cut: Bools) -> Ints:
    """Output tokens of every call, shape as ``scores``; each expert's mean is its target's."""
    tokens = np.empty(scores.shape, dtype=np.int64)
    for m, expert in enumerate(spec.experts.values()):
        tokens[:, m] = place(expert.lengths, scores[:, m], cut[:, m])
    return tokens


def place(spec: LengthSpec, scores: Floats, cut: Bools) -> Ints:
    """Give the calls cut off the cap and the others the quantile at their score's rank; same shape.

    The mean is the spec's whatever the number of cut-off calls; the cv too when that number is as expected.
    """
    body = ~cut
    n_cut = int(cut.sum())
    tokens = np.full(scores.shape, spec.cap, dtype=np.int64)
    if n_cut < scores.size:
        mean = max((spec.mean * scores.size - spec.cap * n_cut) / (scores.size - n_cut), 1.0)
        placed = np.empty(scores.size - n_cut, dtype=np.int64)
        order = np.argsort(scores[body], kind="stable")
        placed[order] = fit_lengths(spec).quantiles_below_cap(len(placed), mean)
        tokens[body] = placed
    return tokens
