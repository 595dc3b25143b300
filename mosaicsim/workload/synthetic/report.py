"""What was asked of a synthetic trace beside what came out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import TypedDict

import numpy as np

from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.lengths import fit_lengths
from mosaicsim.workload.synthetic.agreement import (
    BUCKETS,
    CORRECT,
    MAJORITY,
    UNANIMOUS,
    buckets,
    expect_tokens,
)
from mosaicsim.workload.synthetic.block import Block


class Figure(TypedDict):
    """One line of the report: ``target`` is None where the figure is only observed, or a range.

    ``recorded`` is on the recorded routing (or the whole block, for figures that need no routing),
    ``redrawn`` the average over random routings with the same slot counts, None where it does not apply.
    """

    figure: str
    target: float | tuple[float, float] | None
    recorded: float | None
    redrawn: float | None
    source: str


def report(block: Block) -> dict[str, object]:
    """The fitted numbers and a :class:`Figure` for each target and each measured property."""
    figures = [*_lengths(block), *_coupling(block)]
    if block.deal is not None:
        figures = [*_agreement(block), *_accuracy(block), *_tokens_by_bucket(block), *figures]
    model = block.model
    return {
        "questions": len(block.answers),
        "fitted": {
            "level": round(model.level, 4),
            "spread": round(model.spread, 4),
            "popular": round(model.popular, 4),
            "popular_spread": round(model.popular_spread, 4),
            "disagreement_reasoning": round(block.reasoning_coupling, 4),
        },
        "figures": figures,
    }


def _figure(
    block: Block,
    figure: str,
    source: str,
    target: float | tuple[float, float] | None,
    recorded: float | None,
    redrawn: float | None = None,
) -> Figure:
    """Round, and look the source up in the spec by the name of the figure's family."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(float(value), 4)

    kept = target if target is None or isinstance(target, tuple) else rounded(target)
    where = block.spec.sources.get(source, "modelled")
    return Figure(
        figure=figure, target=kept, recorded=rounded(recorded), redrawn=rounded(redrawn), source=where
    )


def _agreement(block: Block) -> list[Figure]:
    bucket, _ = buckets(block.routed(block.answers))
    targets = block.spec.targets
    share = block.expected.share.mean(axis=0)
    wanted = np.array([targets.unanimous, targets.majority, targets.split]) / targets.questions
    return [
        _figure(block, f"share of {name}", "agreement", wanted[b], (bucket == b).mean(), share[b])
        for b, name in enumerate(BUCKETS)
    ]


def _accuracy(block: Block) -> list[Figure]:
    """Accuracies of the plurality and of the aggregator, by bucket, and what the gate gains."""
    targets, right = block.spec.targets, block.aggregator_right
    overall = targets.aggregator_correct / targets.questions
    late_gain = targets.gain_tau_two_thirds - targets.gain_tau_1
    return [
        _figure(block, "aggregator accuracy", "accuracy", overall, right.mean(), right.mean()),
        *_bucket_accuracy(block, UNANIMOUS, targets.unanimous, targets.unanimous_correct, targets.gain_tau_1),
        *_bucket_accuracy(block, MAJORITY, targets.majority, targets.majority_correct, late_gain),
        _gain(block, "1", UNANIMOUS, targets.gain_tau_1),
        _gain(block, "2/3", MAJORITY, targets.gain_tau_two_thirds),
    ]


def _bucket_accuracy(block: Block, b: int, size: int, wins: int, gain: int) -> list[Figure]:
    """Accuracy inside bucket ``b``, of ``size`` questions; ``gain`` is the plurality's lead in questions."""
    bucket, plurality = buckets(block.routed(block.answers))
    inside, right = bucket == b, block.aggregator_right
    share, correct = block.expected.share[:, b], block.expected.correct[:, b]
    mass, size = max(float(share.sum()), 1e-9), max(size, 1)
    source = "accuracy_unanimous" if b == UNANIMOUS else "accuracy_majority"
    rows = (
        ("plurality", wins / size, plurality, float(correct.sum()) / mass),
        ("aggregator", (wins - gain) / size, right, float((share * right).sum()) / mass),
    )
    return [
        _figure(block, f"{who} accuracy in {BUCKETS[b]}", source, target, _mean(hits, inside), redrawn)
        for who, target, hits, redrawn in rows
    ]


def _gain(block: Block, tau: str, upto: int, gain: int) -> Figure:
    """Percentage points won when the plurality answers every bucket up to ``upto``."""
    bucket, plurality = buckets(block.routed(block.answers))
    right, skipped = block.aggregator_right, bucket <= upto
    recorded = int((plurality & skipped).sum()) - int((right & skipped).sum())
    expected = block.expected
    kept = expected.share[:, : upto + 1].sum(axis=1)
    redrawn = float(expected.correct[:, : upto + 1].sum()) - float((kept * right).sum())
    points = 100 / len(right)
    name = f"delta_pp at tau={tau}"
    return _figure(block, name, "delta_pp", gain * points, recorded * points, redrawn * points)


def _mean(values: Bools | Ints | Floats, where: Bools) -> float | None:
    return float(values[where].mean()) if where.any() else None


def _tokens_by_bucket(block: Block) -> list[Figure]:
    bucket, _ = buckets(block.routed(block.answers))
    per_question = block.routed(block.tokens).mean(axis=1)
    target = block.spec.targets.tokens_by_bucket or (None, None, None)
    redrawn = expect_tokens(block.answers, block.tokens, block.spec.slot_counts)
    return [
        _figure(
            block,
            f"mean expert tokens in {name}",
            "tokens_by_bucket",
            target[b],
            _mean(per_question, bucket == b),
            redrawn[b],
        )
        for b, name in enumerate(BUCKETS)
    ]


def _lengths(block: Block) -> list[Figure]:
    lines = []
    for m, (name, expert) in enumerate(block.spec.experts.items()):
        tokens, source = block.tokens[:, m], f"lengths.{name}"
        spread = tokens.std() / tokens.mean()
        at_cap = fit_lengths(expert.lengths).share_at_cap
        loops = block.cut[:, m].mean()
        lines += [
            _figure(block, f"{name} mean output tokens", source, expert.lengths.mean, tokens.mean()),
            _figure(block, f"{name} cv", f"cv.{name}", expert.lengths.cv, spread),
            _figure(block, f"{name} share at cap", "share_at_cap", at_cap, loops),
        ]
        if block.deal is not None and (block.deal == m).any():
            routed = block.routed(block.tokens)[block.deal == m].mean()
            lines.append(
                _figure(block, f"{name} mean output tokens, routed", source, expert.lengths.mean, routed)
            )
    target, tokens = block.spec.aggregator.lengths, block.aggregator_tokens
    at_cap = fit_lengths(target).share_at_cap
    return [
        *lines,
        _figure(block, "aggregator mean output tokens", "aggregator", target.mean, tokens.mean()),
        _figure(block, "aggregator cv", "aggregator", target.cv, tokens.std() / tokens.mean()),
        _figure(block, "aggregator share at cap", "aggregator", at_cap, block.aggregator_cut.mean()),
    ]


def _coupling(block: Block) -> list[Figure]:
    """Correlations between experts; targets are the ranges that real traces show."""
    wrong = block.answers[:, :, 0] != CORRECT
    tokens = block.tokens[:, :, 0]
    thinks = [e.reasoning for e in block.spec.experts.values()]
    pairs = list(combinations(range(len(thinks)), 2))
    kinds = {
        "instruct-instruct": [p for p in pairs if not thinks[p[0]] and not thinks[p[1]]],
        "reasoning-instruct": [p for p in pairs if thinks[p[0]] != thinks[p[1]]],
        "reasoning-reasoning": [p for p in pairs if thinks[p[0]] and thinks[p[1]]],
    }
    ranges = {
        "instruct-instruct": (0.57, 0.73),
        "reasoning-instruct": (0.06, 0.47),
        "reasoning-reasoning": (0.2, 0.7),
    }
    source = "correlations"
    lines = [
        _figure(block, f"Spearman of lengths, {kind}", source, ranges[kind], _spearman(tokens, of))
        for kind, of in kinds.items()
        if of
    ]
    for name, kind in (("instruct", False), ("reasoning", True)):
        of = np.array(thinks) == kind
        if of.any():
            ratio = _wrong_over_right(block, of)
            lines.append(_figure(block, f"wrong over right length, {name}", source, (1.1, 1.6), ratio))
    phi = _mean_of(_correlation(wrong[:, a], wrong[:, b]) for a, b in pairs)
    same = _mean_of(_same_wrong(block, a, b) for a, b in pairs)
    return [
        *lines,
        _figure(block, "error correlation phi", source, (0.33, 0.42), phi),
        _figure(block, "same wrong answer, given both wrong", source, 0.37, same),
    ]


def _spearman(tokens: Ints, pairs: list[tuple[int, int]]) -> float | None:
    ranks = np.argsort(np.argsort(tokens, axis=0, kind="stable"), axis=0, kind="stable")
    return _mean_of(_correlation(ranks[:, a], ranks[:, b]) for a, b in pairs)


def _correlation(a: Ints | Bools, b: Ints | Bools) -> float | None:
    """Pearson's correlation; None where a side does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a * 1) and np.ptp(b * 1) else None


def _mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values there are; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _wrong_over_right(block: Block, of: Bools) -> float | None:
    """Mean over experts of the mean length of wrong answers over that of right ones."""
    ratios = []
    for m in np.flatnonzero(of):
        wrong = block.answers[:, m] != CORRECT
        if wrong.any() and not wrong.all():
            ratios.append(float(block.tokens[:, m][wrong].mean() / block.tokens[:, m][~wrong].mean()))
    return _mean_of(ratios)


def _same_wrong(block: Block, a: int, b: int) -> float | None:
    one, two = block.answers[:, a, 0], block.answers[:, b, 0]
    both = (one > CORRECT) & (two > CORRECT)
    return float((one == two)[both].mean()) if both.any() else None
