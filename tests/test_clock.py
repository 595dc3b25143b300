"""Seconds of another host's clock become ours."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.executors.clock import ClockOffset
from mosaicsim.executors.messages import CallResult, EngineTime, Heartbeat, Hello, Ready, Results

seconds = st.floats(0, 1e6)
offsets = st.floats(-1e6, 1e6)
delays = st.floats(1e-5, 0.5)


class Host:
    """A clock ``offset`` behind ours, asked over a way that takes its time there and back."""

    def __init__(self, offset: float, trips: list[tuple[float, float]]) -> None:
        self.now_s, self._offset, self._trips = 2e6, offset, iter(trips)

    def now(self) -> float:
        return self.now_s

    def ask(self) -> float:
        there, back = next(self._trips)
        self.now_s += there
        answer = self.now_s - self._offset
        self.now_s += back
        return answer


@given(offset=offsets, trips=st.lists(st.tuples(delays, delays), min_size=1, max_size=20))
def test_the_offset_is_within_its_error_and_no_worse_than_the_shortest_trip(
    offset: float, trips: list[tuple[float, float]]
) -> None:
    host = Host(offset, trips)
    measured = ClockOffset.measure(host.ask, len(trips), host.now)
    rounding = 1e-8  # of seconds in the millions
    assert abs(measured.seconds - offset) <= measured.error_s + rounding
    assert measured.error_s <= min(map(sum, trips)) / 2 + rounding


@given(there=offsets, here=offsets, moments=st.lists(seconds, min_size=5, max_size=5))
def test_messages_of_hosts_with_different_clocks_agree(
    there: float, here: float, moments: list[float]
) -> None:
    """The same moments, told by two hosts whose clocks are apart, are the same once converted."""
    origin = 3e6  # of a clock that reads zero before anything happens on either host
    told = [
        Results(
            at_s=origin + moments[4] - offset,
            session=3,
            results=(
                CallResult(7, *(origin + m - offset for m in moments[:3]), 5, 0, "text", -1.5, "stop"),
                CallResult(8, -1.0, -1.0, origin + moments[3] - offset, 0, 0, "", math.nan, "cancelled"),
            ),
            time=EngineTime(1.0, 2.0, 3.0, tail_since_s=origin + moments[3] - offset),
        )
        for offset in (there, here)
    ]
    a, b = (
        ClockOffset(offset, 0.0).convert(message) for offset, message in zip((there, here), told, strict=True)
    )
    assert isinstance(a, Results)
    assert isinstance(b, Results)
    for one, other, moment in [
        (a.at_s, b.at_s, moments[4]),
        (a.results[0].start_s, b.results[0].start_s, moments[0]),
        (a.results[0].first_token_s, b.results[0].first_token_s, moments[1]),
        (a.results[0].finish_s, b.results[0].finish_s, moments[2]),
        (a.results[1].finish_s, b.results[1].finish_s, moments[3]),
        (a.time.tail_since_s, b.time.tail_since_s, moments[3]),
    ]:
        assert math.isclose(one, origin + moment, abs_tol=1e-6)
        assert math.isclose(one, other, abs_tol=1e-6)


@given(offset=offsets)
def test_what_is_no_moment_stays_as_it_is(offset: float) -> None:
    clock = ClockOffset(offset, 0.0)
    never = CallResult(8, -1.0, -1.0, 2e6, 3, 1, "t", -0.5, "cancelled")
    results = clock.convert(Results(2e6, 3, (never,), EngineTime(1.0, 2.0, 3.0)))
    assert isinstance(results, Results)
    assert results.results == (replace(never, finish_s=2e6 + offset),)
    assert results.time == EngineTime(1.0, 2.0, 3.0, math.inf)
    assert clock.convert(Heartbeat(2e6, 3, EngineTime(tail_since_s=1e6))) == Heartbeat(
        2e6 + offset, 3, EngineTime(tail_since_s=1e6 + offset)
    )
    assert clock.convert(Hello(2e6, 99)) == Hello(2e6 + offset, 99)
    assert clock.convert(Ready(2e6, 3, {"a": 1})) == Ready(2e6 + offset, 3, {"a": 1})
