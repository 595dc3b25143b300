"""A session's profiled cost, read number by number, against numpy on the whole sweep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.schedulers.base import SessionCost


@st.composite
def costs(draw: st.DrawFn) -> SessionCost:
    """A sweep of up to ten sizes, with when four shares of each had ended."""
    sizes = sorted(draw(st.sets(st.integers(2, 5000), max_size=9)) | {1})
    seconds = sorted(draw(st.floats(0.01, 1e4)) for _ in sizes)
    shares = [[*sorted(draw(st.floats(0, 1)) for _ in range(3)), 1.0] for _ in sizes]
    return SessionCost(
        30.0, np.array(sizes, np.float64), np.array(seconds), 100.0, 400.0, False, progress=np.array(shares)
    )


@settings(max_examples=200, deadline=None)
@given(costs(), st.floats(0.5, 1.0), st.floats(0.1, 1.0))
def test_it_is_read_as_numpy_interpolates(cost: SessionCost, part: float, share: float) -> None:
    for n in (part * cost.counts[-1], *cost.counts.tolist()):
        assert cost.predict_s(n) == np.interp(n, cost.counts, cost.generate_s)
        # when that share has ended, for each size, between the two shares around it
        grid = np.arange(5) / 4
        ended = [float(np.interp(share, grid, [0.0, *row])) for row in cost.progress.tolist()]
        wanted = float(np.interp(n, cost.counts, ended)) * cost.predict_s(n)
        assert cost.ended_s(n, share) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(costs())
def test_beyond_the_sweep_the_last_slope_goes_on(cost: SessionCost) -> None:
    last = cost.counts[-1]
    if len(cost.counts) == 1:
        assert cost.predict_s(2 * last) == cost.generate_s[-1]
        return
    slope = (cost.generate_s[-1] - cost.generate_s[-2]) / (last - cost.counts[-2])
    assert cost.predict_s(last + 10) == pytest.approx(cost.generate_s[-1] + 10 * slope)
    assert cost.predict_s(0) == cost.predict_s(-1) == 0


def test_what_was_not_profiled_tells_no_share() -> None:
    assert SessionCost(1.0, np.array([1.0]), np.array([5.0]), 10.0, 10.0, False).ended_s(1, 0.5) == 0
