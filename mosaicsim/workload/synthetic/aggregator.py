"""The synthetic aggregator: whether it is right on each question, and how long it writes.

Its row belongs to the question, not to who was drawn: it leans to the answer that redraws of the question
usually agree on, and is right on exactly the target number of questions.
"""

from __future__ import annotations

import numpy as np

from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.lengths import fit_lengths, to_normal
from mosaicsim.workload.synthetic.agreement import MAJORITY, SPLIT, UNANIMOUS, Expected
from mosaicsim.workload.synthetic.coupling import place, top_share
from mosaicsim.workload.synthetic.spec import SyntheticSpec, TargetSpec
from mosaicsim.workload.synthetic.targets import ROUNDS, swap_to_targets

_ANSWER_NOISE = 0.15
_RECORDED_LEAN = 0.5
_LOOP_NOISE = 0.3
_ROWS_A_ROUND = 10


def answer(
    targets: TargetSpec,
    expected: Expected,
    bucket: Ints,
    plurality_right: Bools,
    rng: np.random.Generator,
    swap_rng: np.random.Generator,
) -> Bools:
    """Whether the aggregator is right, shape (n,), with the gate's gains exactly met on one routing.

    ``bucket`` and ``plurality_right`` (n,) are of that routing. Within each bucket the likeliest questions
    are right, as many as the gain demands; then questions of one bucket are exchanged until random redraws
    have the same gains on average.
    """
    wins = [int(np.sum(plurality_right & (bucket == b))) for b in (UNANIMOUS, MAJORITY)]
    gains = [targets.gain_tau_1, targets.gain_tau_two_thirds - targets.gain_tau_1]
    right_of = [win - gain for win, gain in zip(wins, gains, strict=True)]
    right_of.append(targets.aggregator_correct - sum(right_of))
    solvable = _solvable(expected, rng) + _RECORDED_LEAN * plurality_right
    right = np.zeros(len(bucket), dtype=np.bool_)
    for b, count in zip((UNANIMOUS, MAJORITY, SPLIT), right_of, strict=True):
        rows = np.flatnonzero(bucket == b)
        right[rows[np.argsort(-solvable[rows], kind="stable")[: max(count, 0)]]] = True
    sums = expected.correct[:, [UNANIMOUS, MAJORITY]].sum(axis=0) - np.array(gains)
    features, rounds = expected.share[:, [UNANIMOUS, MAJORITY]], max(ROUNDS, len(right) // _ROWS_A_ROUND)
    return swap_to_targets(right, bucket, features, sums, swap_rng, rounds)


def lengths(spec: SyntheticSpec, split: Floats, right: Bools, rng: np.random.Generator) -> tuple[Ints, Bools]:
    """Output tokens of every question's aggregator call and which ran into the cap; both of shape (n,).

    Questions the pool splits on run longer, and loops fall on the most split of them.
    """
    tie = spec.coupling.disagreement_aggregator
    noise = rng.standard_normal((2, len(split)))
    scores = tie * split + np.sqrt(1 - tie**2) * noise[0] + spec.coupling.wrong_shift * ~right
    target = spec.aggregator.lengths
    cut = top_share(split + _LOOP_NOISE * noise[1], fit_lengths(target).share_at_cap)
    return place(target, scores, cut), cut


def _solvable(expected: Expected, rng: np.random.Generator) -> Floats:
    """A noisy score of how likely the drawn experts are to agree on the right answer, shape (n,)."""
    agree_right = expected.correct.sum(axis=1) - 0.1 * to_normal(expected.share[:, SPLIT])
    return np.asarray(agree_right + _ANSWER_NOISE * rng.standard_normal(len(agree_right)))
