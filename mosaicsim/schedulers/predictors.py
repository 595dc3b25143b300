"""How long a call will be, as calibration data tell: what a scheduler may order calls by.

Every predictor sees a call's expert, category and prompt length, and the calibration calls; none sees its
own output. ``oracle`` is the exception and marks whoever uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy as np

from mosaicsim.errors import UserInputError
from mosaicsim.schedulers.base import Observed, OracleProblem, Problem
from mosaicsim.workload.calls import Bools, Calibration, Floats, Ints

PredictorName = Literal["mean", "quantile", "category", "regression", "oracle"]

QUANTILE = 0.9
"""What ``quantile`` predicts: the length that one call in ten exceeds."""

PRIOR_CALLS = 10.0
"""A category's mean counts as much as its calibration calls over these many at the expert's own mean."""


def predict_tokens(problem: Problem, predictor: PredictorName) -> Floats:
    """Predicted output tokens of every row of ``problem.calls``, shape (calls,).

    Without calibration data an expert's profiled mean stands for all. Raises UserInputError: ``oracle`` for a
    problem without lengths.
    """
    if predictor == "oracle":
        if not isinstance(problem, OracleProblem):
            raise UserInputError("predictor 'oracle' needs the true output lengths")
        return problem.output_tokens.astype(np.float64)
    calls, calibration = problem.calls, problem.calibration
    predicted = np.zeros(len(calls))
    for m, row in enumerate(problem.costs):
        own = calls.expert == m
        if calibration is None or m >= len(calibration.output_tokens):
            predicted[own] = row[0].mean_output_tokens if row else 0.0
        else:
            predicted[own] = _RULES[predictor](
                calibration, m, calls.category[own], calls.prompt_tokens[own].astype(np.float64)
            )
    return predicted


def _mean(calibration: Calibration, m: int, category: Ints, prompt: Floats) -> Floats:
    return np.full(len(category), calibration.output_tokens[m].mean())


def _quantile(calibration: Calibration, m: int, category: Ints, prompt: Floats) -> Floats:
    return np.full(len(category), np.quantile(calibration.output_tokens[m], QUANTILE))


def _category(calibration: Calibration, m: int, category: Ints, prompt: Floats) -> Floats:
    """The category's mean, shrunk to the expert's where few calibration calls stand behind it."""
    lengths = calibration.output_tokens[m].astype(np.float64)
    mean = float(lengths.mean())
    if m >= len(calibration.category):
        return np.full(len(category), mean)
    known = calibration.category[m]
    size = 1 + max(int(known.max(initial=0)), int(category.max(initial=0)))
    n, total = np.bincount(known, minlength=size), np.bincount(known, weights=lengths, minlength=size)
    shrunk: Floats = (total + PRIOR_CALLS * mean) / (n + PRIOR_CALLS)
    return shrunk[category]


def _regression(calibration: Calibration, m: int, category: Ints, prompt: Floats) -> Floats:
    """The category's mean, times a power of the prompt's length fitted by least squares within categories."""
    base = _category(calibration, m, calibration.category[m] if calibration.category else category, prompt)
    lengths, prompts = calibration.output_tokens[m], np.maximum(calibration.prompt_tokens[m], 1)
    if len(base) != len(lengths) or len(lengths) < 3:
        return _category(calibration, m, category, prompt)
    x, y = np.log(prompts), np.log(np.maximum(lengths, 1)) - np.log(base)
    spread = x - x.mean()
    power = float(spread @ (y - y.mean()) / max(float(spread @ spread), 1e-9))
    scale: Floats = (np.maximum(prompt, 1) / np.exp(x.mean())) ** power
    return _category(calibration, m, category, prompt) * scale


_RULES: dict[str, Callable[[Calibration, int, Ints, Floats], Floats]] = {
    "mean": _mean,
    "quantile": _quantile,
    "category": _category,
    "regression": _regression,
}


class Informed:
    """Lengths predicted from what a question's other calls turned out to be, as far as they have ended.

    Experts that disagree, or write more than they use to, foretell long answers of the others. Two
    coefficients an expert, of the log-length over its category's mean, by least squares over calibration
    questions: the share of pairs of ended answers that differ, and the ended calls' mean log-length over
    their own predictions.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._base = np.log(np.maximum(predict_tokens(problem, "category"), 1.0))
        self._k = len(problem.calls) // (int(problem.calls.question.max(initial=0)) + 1)
        experts = range(len(problem.experts))
        light = [m for m in experts if problem.costs[m] and not problem.costs[m][0].reasoning]
        self._fits = [_fit(problem, m, [e for e in light if e != m]) for m in experts]

    def tokens(self, observed: Observed) -> Floats:
        """Predicted output tokens of every call, shape (calls,), given what has ended."""
        ended = observed.output_tokens > 0
        surprise = np.where(ended, np.log(np.maximum(observed.output_tokens, 1)) - self._base, 0.0)
        rows = ended.reshape(-1, self._k)
        differ = _differing(observed.answer.reshape(-1, self._k), rows)
        mean = surprise.reshape(-1, self._k).sum(axis=1) / np.maximum(rows.sum(axis=1), 1)
        fits = np.array(self._fits)[self._problem.calls.expert]
        shift = (
            fits[:, 0] * (rows.sum(axis=1) > 1).repeat(self._k)
            + fits[:, 1] * differ.repeat(self._k)
            + fits[:, 2] * mean.repeat(self._k)
        )
        tokens: Floats = np.exp(self._base + shift)
        return tokens


def _differing(answers: Ints, ended: Bools) -> Floats:
    """Share of the pairs of ended answers that differ, shape (questions,); 0 where there is no pair."""
    both = ended[:, :, None] & ended[:, None, :] & ~np.eye(answers.shape[1], dtype=np.bool_)
    same = (answers[:, :, None] == answers[:, None, :]) & (answers[:, :, None] >= 0)
    pairs = both.sum(axis=(1, 2))
    differing: Floats = 1 - (both & same).sum(axis=(1, 2)) / np.maximum(pairs, 1)
    return np.where(pairs, differing, 0.0)


def _fit(problem: Problem, m: int, others: list[int]) -> tuple[float, float, float]:
    """Level, weight of disagreement and weight of surprise, from two other experts a calibration question."""
    calibration = problem.calibration
    if calibration is None or not len(calibration.lengths) or len(others) < 2:
        return 0.0, 0.0, 0.0
    lengths, answers = calibration.lengths[:, :, 0], calibration.answers[:, :, 0]
    logs = np.log(np.maximum(lengths, 1)) - np.log(np.maximum(_cell_means(calibration), 1.0))
    rows, targets = [], []
    for a, b in combinations(others, 2):
        known = (lengths[:, [m, a, b]] > 0).all(axis=1)
        differ = ((answers[:, a] != answers[:, b]) | (answers[:, a] < 0)).astype(np.float64)
        rows.append(np.stack([np.ones(len(logs)), differ, (logs[:, a] + logs[:, b]) / 2], axis=1)[known])
        targets.append(logs[known, m])
    x, y = np.concatenate(rows), np.concatenate(targets)
    if len(y) < LEAST_FITTED:
        return 0.0, 0.0, 0.0
    level, disagreement, surprise = np.linalg.lstsq(x, y, rcond=None)[0].tolist()
    return level, disagreement, surprise


LEAST_FITTED = 50
"""Below so many calibration questions no coefficient is fitted."""


def _cell_means(calibration: Calibration) -> Floats:
    """Predicted tokens of every (calibration question, expert), as ``category`` predicts them."""
    prompt = np.zeros(len(calibration.question_category))
    columns = [
        _category(calibration, m, calibration.question_category, prompt)
        for m in range(calibration.lengths.shape[1])
    ]
    return np.stack(columns, axis=1)
