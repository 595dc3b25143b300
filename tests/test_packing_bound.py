"""The packing bound: no placement of calls on hosts that obeys its rules is shorter, and it is not idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.schedulers.packing_bound import ExpertNeeds, packing_bound
from mosaicsim.workload.calls import Ints


def needs(load_s: float, calls: list[tuple[float, float, float]]) -> ExpertNeeds:
    """Calls as (work, lean, lead)."""
    work, lean, lead = np.array(sorted(calls, key=lambda call: -call[2])).T
    return ExpertNeeds(load_s, load_s, work, lean, lead)


def makespan(experts: list[ExpertNeeds], hosts: list[Ints], n_workers: int) -> float:
    """The latest worker, each host as long as its longest lead and all its calls need."""
    busy = np.zeros(n_workers)
    for expert, host in zip(experts, hosts, strict=True):
        for w in np.unique(host):
            own = host == w
            led = expert.lead_s[own].max() + expert.lean_s[own].sum()
            busy[w] += expert.load_s + max(led, expert.work_s[own].sum())
    return float(busy.max())


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_placement_beats_the_bound(data: st.DataObject) -> None:
    draw = data.draw
    n_workers = draw(st.integers(1, 4))
    seconds = st.floats(0.0, 10.0)
    call = st.tuples(seconds, seconds, st.one_of(st.just(8.0), seconds))
    experts = [
        needs(draw(st.floats(0.0, 5.0)), draw(st.lists(call, min_size=1, max_size=8)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    hosts = [np.array([draw(st.integers(0, n_workers - 1)) for _ in expert.work_s]) for expert in experts]
    stage = makespan(experts, hosts, n_workers)
    assert packing_bound(experts, n_workers, stage / 3) <= stage * (1 + 1e-9)


def test_the_longest_call_pays_its_own_steps_and_the_others_ride_along() -> None:
    alone = needs(10.0, [(20.0, 5.0, 100.0), *[(2.0, 1.0, 3.0)] * 30])
    assert packing_bound([alone], 1, 1.0) == pytest.approx(10 + 100 + 5 + 30, rel=1e-4)


def test_an_expert_is_loaded_by_each_worker_it_needs() -> None:
    """Two experts of 300 s each cannot share three workers with two loads: one of them takes a second."""
    large = [needs(50.0, [(1.0, 1.0, 0.0)] * 300)] * 2
    assert packing_bound(large, 3, 1.0) == pytest.approx((600 + 4 * 50) / 3, rel=1e-4)


def test_long_calls_that_one_worker_cannot_hold_lead_on_several() -> None:
    """Ten calls with a lead of 50 s and 10 s each: on two workers of 100 s they pay the lead twice."""
    long = needs(0.0, [(12.0, 10.0, 50.0)] * 10)
    assert packing_bound([long], 2, 1.0) == pytest.approx((2 * 50 + 100) / 2, rel=1e-4)


def test_a_lead_that_fits_nowhere_is_too_long() -> None:
    """Load and lead take 45 s, with the call's own part 46 s."""
    assert 45 - 1e-3 <= packing_bound([needs(5.0, [(1.0, 1.0, 40.0)])], 4, 1.0) <= 46


def test_nothing_to_do_takes_no_time() -> None:
    assert packing_bound([needs(0.0, [(0.0, 0.0, 0.0)])], 2, 0.0) == 0.0
