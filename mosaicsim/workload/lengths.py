"""Output lengths of one expert: a lognormal cut at max_tokens, with a point mass ("loops") on the cap.

Measured output lengths of LLMs are close to lognormal within a model, except for generations that repeat
themselves until max_tokens stops them (TIGER-AI-Lab/MMLU-Pro eval_results, Apache-2.0: Llama-3.1-8B-Instruct
loops on 8.5 % of questions at a cap of 2048).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mosaicsim.errors import TraceError
from mosaicsim.workload.calls import Floats, Ints

_SIGMA_RANGE = (1e-3, 4.0)
_BISECTIONS = 60


class LengthSpec(BaseModel):
    """Targets for one expert's output tokens, loops included.

    ``mean`` in tokens, ``cv`` = standard deviation / mean, ``loop_share`` the share of calls that run into
    ``cap`` (max_tokens) because they loop.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: float = Field(gt=0)
    cv: float = Field(gt=0)
    loop_share: float = Field(default=0.0, ge=0, lt=1)
    cap: int = Field(ge=1)


@dataclass(frozen=True)
class CensoredLognormal:
    """``loop_share`` of the calls are ``cap`` long, the others min(exp(N(mu, sigma)), cap), at least 1."""

    mu: float
    sigma: float
    loop_share: float
    cap: int

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """Draw ``n`` independent lengths, shape (n,)."""
        tokens = _to_tokens(np.exp(rng.normal(self.mu, self.sigma, n)), self.cap)
        tokens[rng.random(n) < self.loop_share] = self.cap
        return tokens

    @property
    def share_at_cap(self) -> float:
        """Share of calls that are ``cap`` long: the loops, and the lognormal's own tail beyond it."""
        beyond = _phi((self.mu - math.log(self.cap)) / self.sigma)
        return self.loop_share + (1 - self.loop_share) * beyond

    def quantiles_below_cap(self, n: int, mean: float) -> Ints:
        """The ``n`` mid-point quantiles of the calls shorter than ``cap``, ascending; shape (n,).

        They are scaled together until their mean is ``mean``, which mid-points of a heavy tail miss a little.
        """
        below = (1 - self.share_at_cap) / (1 - self.loop_share)
        scores = normal_scores(round(n / below))[:n]
        body = np.exp(self.mu + self.sigma * scores)
        low, high = 0.1, 10.0
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            if _to_tokens(middle * body, self.cap - 1).mean() < mean:
                low = middle
            else:
                high = middle
        return _to_tokens(high * body, self.cap - 1)


@lru_cache(maxsize=256)
def fit_lengths(spec: LengthSpec) -> CensoredLognormal:
    """Solve for the mu and sigma that give the spec's mean and cv, loops and cap included.

    Both are monotone (the mean in mu, the cv in sigma), so two nested bisections find them.
    Raises TraceError: no censored lognormal has these moments.
    """
    body_mean = (spec.mean - spec.loop_share * spec.cap) / (1 - spec.loop_share)
    if not 1 <= body_mean < spec.cap:
        raise TraceError(
            f"mean {spec.mean:g} tokens is out of reach with loop_share {spec.loop_share:g} at cap "
            f"{spec.cap}: the calls that do not loop would have to average {body_mean:.0f} tokens "
            "(accepted: 1 to cap)"
        )
    second = (spec.cv**2 + 1) * spec.mean**2
    low, high = _SIGMA_RANGE
    floor, ceiling = (_second_moment(spec, body_mean, sigma) for sigma in _SIGMA_RANGE)
    if not floor <= second <= ceiling:
        raise TraceError(
            f"cv {spec.cv:g} is out of reach with mean {spec.mean:g}, loop_share {spec.loop_share:g} "
            f"and cap {spec.cap} (accepted: {_cv(floor, spec.mean):.3f} to {_cv(ceiling, spec.mean):.3f})"
        )
    for _ in range(_BISECTIONS):
        sigma = (low + high) / 2
        if _second_moment(spec, body_mean, sigma) < second:
            low = sigma
        else:
            high = sigma
    return CensoredLognormal(_mu_of(body_mean, high, spec.cap), high, spec.loop_share, spec.cap)


def sample_lengths(spec: LengthSpec, n: int, rng: np.random.Generator) -> Ints:
    """Draw ``n`` independent output lengths with the spec's mean, cv and loops; shape (n,), each 1 to cap."""
    return fit_lengths(spec).sample(n, rng)


@lru_cache(maxsize=64)
def normal_scores(n: int) -> Floats:
    """Standard normal quantiles at (i + 1/2) / n, ascending; shape (n,). Read-only: it is shared."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / n) for i in range(n // 2)])
    scores = np.concatenate([half, np.zeros(n % 2), -half[::-1]])
    scores.setflags(write=False)
    return scores


def to_normal(values: Floats) -> Floats:
    """Replace each value by the normal score of its rank; same shape."""
    flat = values.ravel()
    scores = np.empty(flat.size)
    scores[np.argsort(flat, kind="stable")] = normal_scores(flat.size)
    return scores.reshape(values.shape)


def _to_tokens(lengths: Floats, cap: int) -> Ints:
    return np.clip(np.rint(lengths), 1, cap).astype(np.int64)


def _cv(second: float, mean: float) -> float:
    return math.sqrt(max(second / mean**2 - 1, 0.0))


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _moment(mu: float, sigma: float, cap: int, power: int) -> float:
    """E[min(X, cap)^power] of a lognormal X, in closed form."""
    z = (math.log(cap) - mu) / sigma
    below = math.exp(power * mu + (power * sigma) ** 2 / 2) * _phi(z - power * sigma)
    return below + float(cap) ** power * _phi(-z)


def _mu_of(mean: float, sigma: float, cap: int) -> float:
    """The mu for which a lognormal cut at ``cap`` has this mean."""
    low, high = math.log(mean) - sigma**2, math.log(cap) + 6 * sigma + 1
    low = min(low, math.log(mean) - 1)
    for _ in range(_BISECTIONS):
        mu = (low + high) / 2
        if _moment(mu, sigma, cap, 1) < mean:
            low = mu
        else:
            high = mu
    return high


def _second_moment(spec: LengthSpec, body_mean: float, sigma: float) -> float:
    body = _moment(_mu_of(body_mean, sigma, spec.cap), sigma, spec.cap, 2)
    return spec.loop_share * float(spec.cap) ** 2 + (1 - spec.loop_share) * body
