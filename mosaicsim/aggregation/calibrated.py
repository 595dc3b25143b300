"""A gate that chooses its own threshold: skipping the aggregator loses less accuracy than a stated bound.

Calibration questions are dealt to two parts. The first measures what a vote is worth (``evidence.py``),
which gives every question a leading answer and its log-odds, and lists candidate thresholds on these. The
second decides: a threshold is *supported* when the hypothesis that its loss exceeds the bound is rejected
(``risk.py``). That is Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei, arXiv 2110.01052) with
its fixed-sequence testing: the first part says where to begin; from there thresholds are tested one by one
towards more skipping until one fails, each at the whole level, and the last supported one is used. Where the
first part shows several places to begin, they share the level (Bonferroni). Order and places come from the
first part only (as in Pareto testing, Laufer-Goldshtein, Fisch, Barzilay and Jaakkola, ICLR 2023), so the
chance that the threshold used loses more than the bound is at most 1 - confidence, over the draw of the
calibration questions.

Where none is supported the gate asks always and says how many questions it would take. The statement rests
on calibration and evaluated questions coming alike (the router draws both), and on the aggregator being the
same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mosaicsim.aggregation import risk
from mosaicsim.aggregation.base import ASK, Decision, GateOptions, Verdict
from mosaicsim.aggregation.evidence import Evidence, measure
from mosaicsim.workload.ballots import Ballot, Ballots, GateCalibration
from mosaicsim.workload.calls import Bools, Floats, Ints

THRESHOLDS = 20
"""At most so many candidates, evenly spaced in the share of questions they skip."""

PROMISING = 0.01
"""A threshold with this p-value, were the second part like the first, is one to begin testing at."""

POWER = 0.8
"""Chance to be supported that the number of questions needed is stated for."""


class CalibratedOptions(GateOptions):
    """Options of ``calibrated``."""

    bound_pp: float = Field(
        0.1, gt=0, lt=100, description="accuracy that may be lost against full aggregation, in points"
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="how sure the calibration questions must make of the bound"
    )
    loss: Literal["net", "gross"] = Field(
        "net", description="net: questions lost less questions gained; gross: gains count for nothing"
    )
    per_category: bool = Field(
        True, description="measure an expert's reliability in each category that has min_sample questions"
    )
    min_sample: int = Field(
        30,
        ge=1,
        description="questions a category needs for reliabilities of its own; also their prior's weight",
    )
    confidences: Literal["recorded", "any", "never"] = Field(
        "recorded",
        description="weigh votes by the confidence of their call, where it has one; any: modelled ones too",
    )
    learn_share: float = Field(
        0.2, gt=0, lt=1, description="share of the calibration questions that weights and order are learnt on"
    )
    cancel_pending: bool = Field(
        False, description="cancel the calls of a question that can no longer change an accepted answer"
    )


@dataclass(frozen=True)
class Rule:
    """Accept the leading answer where its log-odds reach ``threshold``."""

    evidence: Evidence
    threshold: float


@dataclass(frozen=True)
class Outcome:
    """What a rule does to n calibration questions: how many it skips, loses and gains."""

    n: int
    skipped: int
    losses: int
    gains: int

    def p_value(self, options: CalibratedOptions) -> float:
        """Of the hypothesis that the rule loses more than the bound."""
        bound = options.bound_pp / 100
        if options.loss == "gross":
            return risk.gross_p_value(self.n, self.losses, bound)
        return risk.net_p_value(self.n, self.losses, self.gains, bound)

    def upper_pp(self, options: CalibratedOptions) -> float:
        """Upper confidence bound of the loss of a rule that is supported, in points."""
        gains = self.gains if options.loss == "net" else None
        bound = options.bound_pp / 100
        return 100 * risk.upper_bound(self.n, self.losses, gains, options.confidence, bound)

    def needed(self, options: CalibratedOptions) -> int | None:
        """About how many questions would support the rule, were its rates these; None: no number."""
        gains = self.gains if options.loss == "net" else 0
        loss, discordant = (self.losses - gains) / self.n, (self.losses + gains) / self.n
        return risk.questions_needed(loss, discordant, options.bound_pp / 100, options.confidence, POWER)


class Calibrated:
    """Accept the leading answer of a weighted vote where calibration questions support it.

    Before it is fitted it supports no skip. ``info`` says what was supported, and on what.
    """

    name = "calibrated"
    summary = "skip where calibration questions show that the accuracy lost stays under a bound"
    Options = CalibratedOptions

    def __init__(
        self, options: CalibratedOptions, rule: Rule | None = None, info: dict[str, Any] | None = None
    ):
        self._options, self._rule = options, rule
        self.info = info or {}
        self.cancels = options.cancel_pending

    @property
    def label(self) -> str:
        """See Gate: ``calibrated(0.1 pp)``, with what differs from the defaults."""
        o, default = self._options, CalibratedOptions()
        parts = [f"{o.bound_pp:g} pp"]
        parts += [f"{o.confidence:g}"] if o.confidence != default.confidence else []
        parts += [o.loss] if o.loss != default.loss else []
        parts += ["pooled"] if not o.per_category else []
        parts += [f"{o.confidences} confidences"] if o.confidences != default.confidences else []
        parts += ["cancel"] if o.cancel_pending else []
        return o.label or f"calibrated({', '.join(parts)})"

    def fit(self, calibration: GateCalibration) -> Calibrated:
        """See FittedGate."""
        rule, info = choose(calibration, self._options)
        return Calibrated(self._options, rule, info)

    def decide(self, ballot: Ballot) -> Decision:
        """Accept as soon as no pending call can change the answer; ask as soon as none can make it one."""
        if self._rule is None:
            return Decision(Verdict.WAIT if ballot.pending else Verdict.ASK)
        if not ballot.pending:
            answer = int(self.decide_all(_alone(ballot))[0])
            return Decision(Verdict.ASK) if answer == ASK else Decision(Verdict.ACCEPT, answer)
        outlook = self._rule.evidence.outlook(ballot)
        if outlook.worst >= self._rule.threshold:
            return Decision(Verdict.ACCEPT, outlook.answer)
        return Decision(Verdict.ASK if outlook.best < self._rule.threshold else Verdict.WAIT)

    def decide_all(self, ballots: Ballots) -> Ints:
        """See Gate."""
        if self._rule is None:
            return np.full(len(ballots), ASK, np.int64)
        standing = self._rule.evidence.standing(ballots)
        return np.where(standing.log_odds >= self._rule.threshold, standing.answer, ASK)


def _alone(ballot: Ballot) -> Ballots:
    """A finished question as a batch of one."""
    return Ballots(
        np.array([ballot.answers], np.int64),
        np.array([ballot.experts], np.int64),
        np.array([ballot.confidences], np.float64),
        (ballot.category,),
    )


def choose(calibration: GateCalibration, options: CalibratedOptions) -> tuple[Rule | None, dict[str, Any]]:
    """The rule that calibration questions support and skips most, if there is one, and what led to it."""
    learning, testing = _deal(calibration, options.learn_share)
    evidence = measure(
        learning,
        options.min_sample if options.per_category else None,
        use_confidence=options.confidences == "any"
        or (options.confidences == "recorded" and not calibration.confidences_modelled),
    )
    learnt, tested = _Scored.of(learning, evidence), _Scored.of(testing, evidence)
    thresholds = _candidates(learnt.log_odds)
    sequences = _sequences(learnt, thresholds, len(testing), options)
    level = (1 - options.confidence) / max(len(sequences), 1)
    supported = min(
        (
            threshold
            for sequence in sequences
            for threshold in takewhile(lambda t: tested.outcome(t).p_value(options) <= level, sequence)
        ),
        default=None,
    )
    info = _describe(calibration, learnt, tested, thresholds, supported, options)
    return (None if supported is None else Rule(evidence, supported)), info


def _deal(calibration: GateCalibration, share: float) -> tuple[GateCalibration, GateCalibration]:
    """Every so many-th question to the first part, so that both are spread over the categories."""
    steps = np.floor(np.arange(1, len(calibration) + 1) * share)
    first = np.diff(steps, prepend=0) > 0
    return calibration.take(np.flatnonzero(first)), calibration.take(np.flatnonzero(~first))


@dataclass(frozen=True)
class _Scored:
    """The leading answers of calibration questions, and how they did against the aggregator."""

    log_odds: Floats
    right: Bools
    aggregator_right: Bools

    @classmethod
    def of(cls, calibration: GateCalibration, evidence: Evidence) -> _Scored:
        standing = evidence.standing(calibration.ballots)
        voted = calibration.ballots.answers == standing.answer[:, None]
        right = (voted & calibration.correct).any(axis=1)
        return cls(standing.log_odds, right, calibration.aggregator_correct)

    def outcome(self, threshold: float) -> Outcome:
        skipped = self.log_odds >= threshold
        return Outcome(
            len(skipped),
            int(skipped.sum()),
            int((skipped & ~self.right & self.aggregator_right).sum()),
            int((skipped & self.right & ~self.aggregator_right).sum()),
        )

    def __add__(self, other: _Scored) -> _Scored:
        return _Scored(
            np.append(self.log_odds, other.log_odds),
            np.append(self.right, other.right),
            np.append(self.aggregator_right, other.aggregator_right),
        )


def _candidates(log_odds: Floats) -> list[float]:
    """Thresholds between the log-odds that occur, from skipping little to skipping all that was answered."""
    found = np.sort(log_odds[np.isfinite(log_odds)])[::-1]
    if not len(found):
        return []
    at = np.unique(np.ceil(np.arange(1, THRESHOLDS + 1) / THRESHOLDS * len(found)).astype(int)) - 1
    below = [found[found < found[i] - 1e-9].max(initial=found[i] - 2.0) for i in at]
    return sorted({float((found[i] + b) / 2) for i, b in zip(at, below, strict=True)}, reverse=True)


def _sequences(
    learnt: _Scored, thresholds: list[float], n: int, options: CalibratedOptions
) -> list[list[float]]:
    """The thresholds that n questions are to test: one or several sequences, which share the level.

    A threshold is promising when its p-value would be low were the n questions like the learnt ones. A
    sequence begins at the strictest of each run of promising thresholds, as losses need not grow with
    skipping; where none is promising there is one, from the best.
    """
    if not thresholds:
        return []

    def expected(threshold: float) -> Outcome:
        seen = learnt.outcome(threshold)
        scale = n / seen.n
        return Outcome(n, round(seen.skipped * scale), round(seen.losses * scale), round(seen.gains * scale))

    p_values = [expected(threshold).p_value(options) for threshold in thresholds]
    promising = [p <= PROMISING for p in p_values]
    starts = [i for i, here in enumerate(promising) if here and not (i and promising[i - 1])]
    return [thresholds[start:] for start in starts or [int(np.argmin(p_values))]]


def _describe(
    calibration: GateCalibration,
    learnt: _Scored,
    tested: _Scored,
    thresholds: list[float],
    supported: float | None,
    options: CalibratedOptions,
) -> dict[str, Any]:
    """What was supported, or what it would take."""
    modelled = " (aggregator modelled)" if calibration.aggregator == "modelled" else ""
    n, asked = len(calibration), f"{options.bound_pp:g} pp at {options.confidence:.0%}"
    info: dict[str, Any] = {
        "supported": supported is not None,
        "bound_pp": options.bound_pp,
        "confidence": options.confidence,
        "aggregator": calibration.aggregator,
        "calibration_questions": n,
        "testing_questions": len(tested.right),
    }
    if supported is not None:
        outcome = tested.outcome(supported)
        share, upper = outcome.skipped / outcome.n, outcome.upper_pp(options)
        info |= {
            "threshold": supported,
            "testing_skipped": outcome.skipped,
            "testing_losses": outcome.losses,
            "testing_gains": outcome.gains,
            "loss_upper_pp": upper,
            "message": f"skips {share:.1%} of {outcome.n:,} test questions, {outcome.losses} lost and "
            f"{outcome.gains} gained: loses at most {upper:.2g} pp at {options.confidence:.0%}{modelled}",
        }
        return info
    whole = [(learnt + tested).outcome(threshold).needed(options) for threshold in thresholds]
    # a rule that would have passed but was not reached would need no more than there are: not to be promised
    wanted = [math.ceil(count / (1 - options.learn_share)) for count in whole if count is not None]
    least = min((count for count in wanted if count > n), default=None)
    why = f"each loses as much on these {n:,} calibration questions"
    if least is not None:
        why = f"at the rates of these {n:,} calibration questions it takes about {least:,}"
    return info | {"questions_needed": least, "message": f"no rule is supported at {asked}: {why}{modelled}"}
