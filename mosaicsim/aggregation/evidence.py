"""How much each vote says, measured on calibration calls: a weighted vote with odds.

An expert that is right with chance p, and wrong in K - 1 equally likely ways, moves the odds of its answer by
p (K - 1) / (1 - p); votes of independent experts multiply (Nitzan and Paroush, International Economic Review
23, 1982). So a vote weighs log p / (1 - p) + log(K - 1), never less than 0, with p of the expert in the
question's category where that was asked often enough, moved by the confidence of the call where it has one.

An expert drawn M times for one question is not M experts. Its votes together weigh as 1 + (M - 1) r, and r
is measured: how often two draws of one expert differ, over how often two experts do, from 0 (a repeat says
nothing new) to 0.9. The odds that come out are no probabilities, as experts err together: they put questions
in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mosaicsim.workload.ballots import Ballot, Ballots, GateCalibration, GradedCalls
from mosaicsim.workload.calls import NO_ANSWER, Floats, Ints

PRIOR_PAIRS = 20.0
"""Pairs of equal repeats assumed before any is seen: unless measured, a repeat says nothing new."""

_CONFIDENCE_RIDGE = 4.0
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Standing:
    """The leading answer of each question and its log-odds; NO_ANSWER and -inf where nobody answered."""

    answer: Ints
    log_odds: Floats


@dataclass(frozen=True)
class Evidence:
    """Weights of votes.

    ``log_odds`` (categories + 1, experts) of being right, the last row over all categories; ``categories``
    gives the row of those that have their own. ``answers`` is K, the number of answers there are to choose
    from, ``repeat`` r, ``slope`` the log-odds a unit of confidence adds, counted from ``mean_confidence``
    (experts,).
    """

    log_odds: Floats
    categories: dict[str, int]
    answers: int
    repeat: float
    slope: float
    mean_confidence: Floats

    def weights(self, ballots: Ballots) -> Floats:
        """Weight of each call's vote, shape (questions, k); also of calls that gave no answer."""
        row = np.array([self.categories.get(c, -1) for c in ballots.categories], np.int64)[:, None]
        above = ballots.confidences - self.mean_confidence[ballots.experts]
        log_odds = self.log_odds[row, ballots.experts] + self.slope * np.nan_to_num(above)
        draws = (ballots.experts[:, :, None] == ballots.experts[:, None, :]).sum(axis=2)
        share = (1 + (draws - 1) * self.repeat) / draws
        return np.asarray(np.maximum(log_odds + math.log(self.answers - 1), 0.0) * share)

    def standing(self, ballots: Ballots) -> Standing:
        """Who leads in each finished question, and by how much; ties go to the answer given first."""
        answers, given = ballots.answers, ballots.answers != NO_ANSWER
        same = (answers[:, :, None] == answers[:, None, :]) & given[:, :, None] & given[:, None, :]
        support = np.where(same, self.weights(ballots)[:, None, :], 0.0).sum(axis=2)
        support = np.where(given, support, -np.inf)
        first = support.argmax(axis=1)
        rows = np.arange(len(answers))
        votes = np.maximum(same.sum(axis=2), 1)
        rival = np.where(given & ~same[rows, first], np.exp(support) / votes, 0.0).sum(axis=1)
        proposed = (given / votes).sum(axis=1)
        rest = rival + np.maximum(self.answers - np.rint(proposed), 0.0)
        lead = support[rows, first]
        return Standing(
            np.where(given.any(axis=1), answers[rows, first], NO_ANSWER),
            np.where(given.any(axis=1), lead - np.log(np.maximum(rest, 1e-300)), -np.inf),
        )

    def outlook(self, ballot: Ballot) -> Outlook:
        """What the pending calls can still make of a question."""
        support, left = self._support(ballot)
        ranked = sorted(support.items(), key=lambda item: -item[1])
        unproposed = max(self.answers - len(support), 0)
        total = sum(math.exp(s) for _, s in ranked)
        best = max(
            [_log_ratio(s + left, total - math.exp(s) + unproposed) for _, s in ranked]
            + [_log_ratio(left, total + max(unproposed - 1, 0))]
        )
        if not ranked:
            return Outlook(NO_ANSWER, -math.inf, best + _TOLERANCE)
        answer, lead = ranked[0]
        rival = max(ranked[1][1] if len(ranked) > 1 else 0.0, 0.0)
        if lead <= rival + left + _TOLERANCE:
            return Outlook(NO_ANSWER, -math.inf, best + _TOLERANCE)
        # the pending votes do most harm together, behind the strongest rival or one nobody has proposed yet
        rest = total - math.exp(lead) + max(unproposed, len(ballot.pending))
        worst = _log_ratio(lead, rest + math.exp(rival) * math.expm1(left))
        return Outlook(answer, worst - _TOLERANCE, best + _TOLERANCE)

    def _support(self, ballot: Ballot) -> tuple[dict[int, float], float]:
        """Weight behind each answer so far, and the most that all pending calls can add."""
        pending = len(ballot.pending)
        answers = np.array([[*ballot.answers, *[NO_ANSWER] * pending]])
        experts = np.array([[*ballot.experts, *ballot.pending]])
        # a pending call may turn out to be fully confident
        surest = np.array([[*ballot.confidences, *[1.0] * pending]])
        weights = self.weights(Ballots(answers, experts, surest, (ballot.category,)))[0].tolist()
        support: dict[int, float] = {}
        for answer, weight in zip(ballot.answers, weights, strict=False):
            if answer != NO_ANSWER:
                support[answer] = support.get(answer, 0.0) + weight
        return support, sum(weights[len(ballot.answers) :])


@dataclass(frozen=True)
class Outlook:
    """The answer that stays ahead however the pending calls vote (NO_ANSWER: none does), and its log-odds.

    ``worst`` is the least its log-odds can become, ``best`` the most those of any answer can.
    """

    answer: int
    worst: float
    best: float


def _log_ratio(log_numerator: float, denominator: float) -> float:
    return log_numerator - math.log(denominator) if denominator > 0 else math.inf


def measure(calibration: GateCalibration, min_sample: int | None, *, use_confidence: bool = True) -> Evidence:
    """The weights the calibration calls support.

    A category has reliabilities of its own when at least ``min_sample`` of the questions are in it, with the
    expert's overall reliability counted as so many calls more; None: no category has.
    """
    calls, n_experts = calibration.calls, len(calibration.experts)
    overall = _shares(calls, n_experts)
    rows: list[Floats] = []
    categories: dict[str, int] = {}
    names = np.array(calibration.ballots.categories, dtype=np.str_)
    for name in sorted(set(calibration.ballots.categories)):
        inside = names == name
        if min_sample is not None and inside.sum() >= min_sample:
            categories[name] = len(rows)
            rows.append(_shares(calls.take(inside[calls.question]), n_experts, overall, min_sample))
    log_odds = np.log(np.stack([*rows, overall]) / (1 - np.stack([*rows, overall])))
    own = np.array([categories.get(name, -1) for name in names.tolist()], np.int64)
    slope, mean = 0.0, np.zeros(n_experts)
    if use_confidence and np.isfinite(calls.confidence).any():
        slope, mean = _confidence_slope(calls, log_odds[own[calls.question], calls.expert], n_experts)
    return Evidence(log_odds, categories, _answers(calls), _repeat(calibration), slope, mean)


def _shares(calls: GradedCalls, n_experts: int, prior: Floats | float = 0.5, weight: float = 2.0) -> Floats:
    """Share of right calls of each expert, shape (experts,), with ``weight`` calls of ``prior`` added."""
    right = np.bincount(calls.expert, calls.correct, n_experts)
    return np.asarray((right + weight * prior) / (np.bincount(calls.expert, minlength=n_experts) + weight))


def _answers(calls: GradedCalls) -> int:
    """How many answers there are to choose from: the effective number of those given (inverse Simpson)."""
    given = calls.answer[calls.answer != NO_ANSWER]
    shares = np.bincount(given) / max(len(given), 1)
    return max(2, round(1 / float((shares**2).sum()))) if len(given) else 2


def _repeat(calibration: GateCalibration) -> float:
    """r: how often two draws of one expert differ, over how often draws of two experts do; at most 0.9."""
    answers, experts = calibration.ballots.answers, calibration.ballots.experts
    differ, pairs = np.zeros(2), np.zeros(2)
    for i in range(answers.shape[1]):
        for j in range(i):
            given = (answers[:, i] != NO_ANSWER) & (answers[:, j] != NO_ANSWER)
            same_expert = experts[:, i] == experts[:, j]
            for which, rows in enumerate((given & same_expert, given & ~same_expert)):
                pairs[which] += rows.sum()
                differ[which] += (rows & (answers[:, i] != answers[:, j])).sum()
    between = (differ[1] + 1) / (pairs[1] + 1)
    return float(min(0.9, differ[0] / (pairs[0] + PRIOR_PAIRS) / between))


def _confidence_slope(calls: GradedCalls, log_odds: Floats, n_experts: int) -> tuple[float, Floats]:
    """Slope of a ridge logistic regression on confidence beside the log-odds, at least 0; and the means."""
    known = np.isfinite(calls.confidence)
    counts = np.bincount(calls.expert[known], minlength=n_experts)
    mean = np.bincount(calls.expert[known], calls.confidence[known], n_experts) / np.maximum(counts, 1)
    above = (calls.confidence - mean[calls.expert])[known]
    right, offset, slope = calls.correct[known], log_odds[known], 0.0
    for _ in range(25):
        chance = 1 / (1 + np.exp(-offset - slope * above))
        gradient = float(((right - chance) * above).sum()) - slope / _CONFIDENCE_RIDGE
        slope += gradient / (float((chance * (1 - chance) * above**2).sum()) + 1 / _CONFIDENCE_RIDGE)
    return max(slope, 0.0), np.asarray(mean)
