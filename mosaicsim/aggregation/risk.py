"""How sure a calibration sample makes us that skipping the aggregator loses less than a bound.

Of n calibration questions a rule answers some without the aggregator. Each is a pair: the rule's answer and
the aggregator's. A question is *lost* where only the aggregator is right, *gained* where only the rule is.
The loss of the rule is the chance of a lost question less that of a gained one, the fall of accuracy against
full aggregation, and the hypothesis to be rejected is that it exceeds the bound. That is a test of
non-inferiority of two proportions on matched pairs, with the bound as its margin.

Lost, gained and the rest are trinomial. :func:`net_p_value` is the unconditional exact test: outcomes are
ordered by Tango's score statistic (Statistics in Medicine 17, 1998), and the p-value is the largest chance,
over all rates of gained questions, of an outcome at least as good as the one seen while the loss equals the
bound (Hsueh, Liu and Chen, Biometrics 57, 2001). The largest is taken over a confidence set of that rate
whose error is added to the p-value (Berger and Boos, JASA 89, 1994), and bounded from above between the
points of a grid, so that no grid has to be trusted. A loss above the bound only makes good outcomes rarer:
equality is the worst case.

:func:`gross_p_value` sets no gains against losses: its binomial tail is what Clopper and Pearson's bound
inverts. Neither assumes more than that calibration and evaluated questions are drawn alike.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mosaicsim.workload.calls import Floats, Ints

NUISANCE_ERROR = 1e-3
"""Berger and Boos's beta: the chance that the confidence set misses the rate of gained questions."""

GRID_STEP = 0.03
"""Step of the grid over that rate, of the square root of its count, whose standard deviation is a half."""

_TAIL = 1e-12


@lru_cache(maxsize=8)
def _log_factorials(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def binomial_cdf(k: npt.ArrayLike, n: npt.ArrayLike, p: npt.ArrayLike) -> Floats:
    """Chance of at most ``k`` of ``n`` events of chance ``p``; the arguments broadcast, k < 0 gives 0."""
    k, n, p = np.broadcast_arrays(np.asarray(k), np.asarray(n), np.asarray(p, np.float64))
    inside = (k >= 0) & (k < n) & (p > 0) & (p < 1)
    below: Floats = np.where((k >= 0) & ((p <= 0) | (k >= n)), 1.0, 0.0)
    if inside.any():
        k, n, p = k[inside], n[inside], p[inside]
        below[inside] = _incomplete_beta((n - k).astype(float), k + 1.0, 1 - p, _log_beta(k, n))
    return below


def _log_beta(k: Ints, n: Ints) -> Floats:
    """Logarithm of 1 / B(n - k, k + 1)."""
    table = _log_factorials(int(n.max()))
    return np.asarray(table[n] - table[n - k - 1] - table[k])


def _incomplete_beta(a: Floats, b: Floats, x: Floats, log_inverse_beta: Floats) -> Floats:
    """Regularised incomplete beta I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    swap = x > (a + 1) / (a + b + 2)
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    at = np.where(swap, 1 - x, x)
    front = np.exp(log_inverse_beta + first * np.log(at) + second * np.log1p(-at)) / first
    part = front * _fraction(first, second, at)
    return np.asarray(np.clip(np.where(swap, 1 - part, part), 0.0, 1.0))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    c, d = np.ones_like(x), 1 - (a + b) * x / (a + 1)
    d = 1 / _off_zero(d)
    value = d.copy()
    for m in range(1, 2000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _off_zero(1 + step * d)
            c = _off_zero(1 + step / c)
            value *= c * d
        if (np.abs(c * d - 1) < 1e-13).all():
            break
    return value


def _off_zero(x: Floats) -> Floats:
    return np.where(np.abs(x) < 1e-300, 1e-300, x)


def gross_p_value(n: int, losses: int, bound: float) -> float:
    """p-value of "the chance of a lost question exceeds ``bound``", from ``losses`` of ``n``."""
    return float(binomial_cdf(losses, n, bound))


def score(n: int, losses: npt.ArrayLike, gains: npt.ArrayLike, bound: float) -> Floats:
    """Tango's score statistic of the loss against ``bound``: the lower, the less the rule loses."""
    losses, gains = np.asarray(losses, np.float64), np.asarray(gains, np.float64)
    b = -losses - gains + (2 * n - losses + gains) * bound
    c = -gains * bound * (1 - bound)
    rate = (np.sqrt(b * b - 8 * n * c) - b) / (4 * n)
    variance = n * (2 * rate + bound * (1 - bound))
    return np.asarray((losses - gains - n * bound) / np.sqrt(np.maximum(variance, 1e-300)))


@lru_cache(maxsize=65_536)
def net_p_value(n: int, losses: int, gains: int, bound: float) -> float:
    """p-value of "lost less gained questions exceed ``bound``", from counts of ``n`` questions."""
    if losses + gains > n or min(losses, gains) < 0:
        raise ValueError(f"{losses} lost and {gains} gained of {n} questions")
    if losses - gains >= n * bound:
        return 1.0
    low, high = _confidence_set(n, gains)
    high = min(high, (1 - bound) / 2)
    if low >= high:
        return NUISANCE_ERROR
    first, last = math.sqrt(n * low), math.sqrt(n * high)
    rates = np.clip(np.linspace(first, last, 2 + int((last - first) / GRID_STEP)) ** 2 / n, low, high)
    most = _most_losses(n, losses, gains, bound, _support(n, low, high))
    # between two points: the fewest losses and the most gains that any rate there can have
    return min(1.0, float(_chance(n, rates[:-1] + bound, rates[1:], most).max()) + NUISANCE_ERROR)


@lru_cache(maxsize=65_536)
def _confidence_set(n: int, count: int) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval of a rate, at NUISANCE_ERROR."""
    level = NUISANCE_ERROR / 2
    low = _rate_where(count - 1, n, 1 - level)[0] if count else 0.0
    return low, _rate_where(count, n, level)[1] if count < n else 1.0


def _rate_where(count: int, n: int, chance: float) -> tuple[float, float]:
    """Rates close around the one at which at most ``count`` of ``n`` happen with ``chance``."""
    low, high = 0.0, 1.0
    for _ in range(7):
        rates = np.linspace(low, high, 66)
        above = int((binomial_cdf(count, n, rates) > chance).sum())  # the chance falls as the rate grows
        low, high = float(rates[above - 1]), float(rates[above])
    return low, high


def _support(n: int, low: float, high: float) -> Ints:
    """Counts of gained questions that matter at rates from ``low`` to ``high``: all but 1e-12 to a side."""
    spread = math.sqrt(-2 * math.log(_TAIL))
    first = n * low - spread * math.sqrt(n * low)
    # Bernstein's bound of the upper tail
    last = n * high + spread * math.sqrt(n * high) + spread**2 / 3
    return np.arange(max(0, math.floor(first)), min(n, math.ceil(last)) + 1)


def _most_losses(n: int, losses: int, gains: int, bound: float, counts: Ints) -> tuple[Ints, Ints]:
    """For each count of gained questions, the most lost ones that are as good as what was seen; -1: none."""
    seen = float(score(n, losses, gains, bound)) + 1e-9
    low, high = np.full(len(counts), -1), n - counts
    while (low < high).any():
        middle = (low + high + 1) // 2
        good = score(n, middle, counts, bound) <= seen
        low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
    return counts, np.maximum.accumulate(low)


def _chance(n: int, lost: Floats, gained: Floats, most: tuple[Ints, Ints]) -> Floats:
    """Chance of the outcomes in ``most`` at each pair of rates, (rates,), and of all that was left out."""
    counts, limit = most
    table = _log_factorials(n)
    log_choose = table[n] - table[counts] - table[n - counts]
    gained = np.clip(gained, 1e-300, 1 - 1e-15)[:, None]
    pmf = np.exp(log_choose + counts * np.log(gained) + (n - counts) * np.log1p(-gained))
    seen = np.where(pmf > _TAIL, limit, -1)  # what is left out comes back as len(counts) * _TAIL
    tail = binomial_cdf(seen, n - counts, np.minimum(lost[:, None] / (1 - gained), 1.0))
    return np.asarray((pmf * tail).sum(axis=1) + (len(counts) + 2) * _TAIL)


def upper_bound(n: int, losses: int, gains: int | None, confidence: float, at_most: float = 1.0) -> float:
    """Upper confidence bound of the loss, not below 0; of the gross one where ``gains`` is None.

    ``at_most`` is a bound that is known to hold at this confidence; the result is within a hundredth of it.
    """

    def p_value(bound: float) -> float:
        return gross_p_value(n, losses, bound) if gains is None else net_p_value(n, losses, gains, bound)

    low, high = 0.0, at_most
    if p_value(1e-6) <= 1 - confidence:
        return 0.0
    while high - low > min(at_most / 100, 1e-4):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= 1 - confidence else (middle, high)
    return high


def questions_needed(
    loss: float, discordant: float, bound: float, confidence: float, power: float
) -> int | None:
    """About how many questions reject ``bound`` with chance ``power``, at rates of net loss and of discord.

    None: no number does. By the normal approximation (Connor, Biometrics 43, 1987, for matched pairs), and at
    least what it takes to see a discordant question; where there is none, the binomial's
    log(1 - confidence) / log(1 - bound), which is exact.
    """
    if loss >= bound:
        return None
    if discordant == 0:
        return math.ceil(math.log(1 - confidence) / math.log1p(-bound))
    quantile = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    normal = (discordant - loss**2) * (quantile / (bound - loss)) ** 2
    return math.ceil(max(normal, math.log(1 - confidence) / math.log1p(-discordant)))
