"""What ``work_stealing`` makes of loads that weights read ahead shorten, and what a takeover saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scheduling import problem, sweep
from worlds import SPEC

from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.schedulers.base import Load
from mosaicsim.schedulers.work_stealing import _read_ahead, balanced


def test_a_profile_tells_what_a_prefetch_spares() -> None:
    lengths = np.full(8, 20)
    cost = profile_sessions(SPEC, lengths, lengths, 8, False, np.random.default_rng(0))
    assert (cost.load_s, cost.disk_s) == (SPEC.load_s, SPEC.disk_s)


def test_a_plan_counts_one_read_a_worker() -> None:
    """Every worker waits for the first it runs; the least of those is all they have in common."""
    slow, quick = replace(sweep(1.0, 1.0), disk_s=20.0), replace(sweep(1.0, 1.0), disk_s=15.0)
    given = problem([4, 4, 0], [[slow] * 4, [quick] * 4, [replace(quick, disk_s=1.0)] * 4])
    ahead = _read_ahead(given)
    assert [row[0].load_s for row in ahead.costs] == [22.0, 27.0, 41.0]
    assert [w.backlog_s for w in ahead.workers] == [15.0] * 4


@pytest.mark.parametrize(("load_there_s", "saving_s"), [(40.0, 60.0), (15.0, 35.0)])
def test_taking_all_of_a_session_spares_the_load_it_would_have_had(
    load_there_s: float, saving_s: float
) -> None:
    """A worker is busy for 200 s, of which 20 s are a planned session's; its load may lack the disk part."""
    cost = replace(sweep(0.0, 20.0, load_s=40.0), disk_s=25.0)
    load = Load(0, 0, 1, 200.0, load_there_s, cost, cost, 40.0, 0.0, False, 1)
    n, saved_s = balanced(load)
    assert n == 1
    assert saved_s == pytest.approx(20.0 + load_there_s)
    assert saved_s == pytest.approx(saving_s)
