"""The risk bound: exact against enumeration, never more often wrong than it says, and the sizes it asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.aggregation.risk import (
    binomial_cdf,
    gross_p_value,
    net_p_value,
    questions_needed,
    score,
    upper_bound,
)


@settings(deadline=None)
@given(n=st.integers(1, 300), p=st.floats(0.001, 0.999), data=st.data())
def test_binomial_tail_equals_the_sum(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(-1, n))
    terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)]
    assert float(binomial_cdf(k, n, p)) == pytest.approx(math.fsum(terms), rel=1e-9, abs=1e-12)


def test_binomial_tail_at_the_ends() -> None:
    assert binomial_cdf([0, 3, -1, 2, 5], 5, [0.0, 1.0, 0.5, 1.0, 1.0]).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]


def trinomial(n: int, lost: float, gained: float) -> np.ndarray:
    """Chance of (losses, gains), shape (n + 1, n + 1)."""
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    rest = np.maximum(n - b - c, 0)
    ways = np.array(
        [[math.comb(n, i) * math.comb(n - i, j) for j in range(n + 1)] for i in range(n + 1)], float
    )
    return np.where(b + c <= n, ways * lost**b * gained**c * max(1 - lost - gained, 0.0) ** rest, 0.0)


@pytest.mark.parametrize(("n", "bound", "level"), [(20, 0.05, 0.05), (30, 0.02, 0.1), (25, 0.1, 0.2)])
def test_net_test_holds_its_level_at_every_rate(n: int, bound: float, level: float) -> None:
    """Over all rates with a loss of the bound or more, "supported" is as rare as promised, and not much rarer."""
    rejected = np.zeros((n + 1, n + 1), bool)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            rejected[b, c] = net_p_value(n, b, c, bound) <= level
    rates = [(g, loss) for g in np.linspace(0, (1 - bound) / 2, 40) for loss in (bound, bound * 1.5)]
    sizes = [trinomial(n, g + loss, g)[rejected].sum() for g, loss in rates if 2 * g + loss <= 1]
    assert max(sizes) <= level
    assert max(sizes) > 0.6 * level


@settings(deadline=None, max_examples=60)
@given(n=st.integers(5, 400), bound=st.floats(0.001, 0.2), data=st.data())
def test_more_losses_never_help_and_more_gains_never_hurt(n: int, bound: float, data: st.DataObject) -> None:
    losses = data.draw(st.integers(0, n - 1))
    gains = data.draw(st.integers(0, n - 1 - losses))
    here = net_p_value(n, losses, gains, bound)
    assert score(n, losses + 1, gains, bound) > score(n, losses, gains, bound)
    assert score(n, losses, gains + 1, bound) < score(n, losses, gains, bound)
    assert net_p_value(n, losses + 1, gains, bound) >= here - 2e-3
    assert 0 < here <= 1


@pytest.mark.parametrize(("n", "supported"), [(2995, True), (2994, False)])
def test_gross_without_a_loss_needs_clopper_pearsons_n(n: int, supported: bool) -> None:
    """log(0.05) / log(1 - 0.001): 2,995 questions without one lost show 0.1 points at 95 %."""
    assert (gross_p_value(n, 0, 0.001) <= 0.05) is supported
    assert questions_needed(0, 0, 0.001, 0.95, 0.8) == 2995


def test_gains_make_up_for_size() -> None:
    assert net_p_value(350, 0, 0, 0.001) > 0.5
    assert net_p_value(350, 0, 4, 0.001) < 0.05
    assert net_p_value(3100, 0, 0, 0.001) < 0.05 < net_p_value(2900, 0, 0, 0.001)


def test_upper_bound_is_where_the_test_turns() -> None:
    high = upper_bound(500, 5, 3, 0.9)
    assert net_p_value(500, 5, 3, high + 2e-5) <= 0.1 < net_p_value(500, 5, 3, high - 2e-4)
    assert upper_bound(500, 5, None, 0.9) == pytest.approx(0.01844, abs=2e-4)  # Clopper-Pearson
    assert upper_bound(500, 0, 60, 0.9) == 0


def test_questions_needed_gives_the_power_it_states() -> None:
    lost, gained, bound = 0.004, 0.012, 0.002
    n = questions_needed(lost - gained, lost + gained, bound, 0.95, 0.8)
    assert n is not None
    draws = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=200)
    power = np.mean([net_p_value(n, b, c, bound) <= 0.05 for b, c, _ in draws.tolist()])
    assert power == pytest.approx(0.8, abs=0.08)
    assert questions_needed(0.002, 0.01, 0.002, 0.95, 0.8) is None


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="6 lost and 5 gained of 10"):
        net_p_value(10, 6, 5, 0.1)
