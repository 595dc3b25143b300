"""What ``work_stealing`` makes of loads that weights read ahead shorten, and what a takeover saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scheduling import problem, sweep
from worlds import SPEC

from mosaicsim.errors import InfeasibleError
from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.schedulers.base import Instances, Load, Plan, Problem, Rehearsed, Scheduler
from mosaicsim.schedulers.registry import create
from mosaicsim.schedulers.work_stealing import WorkStealing, _Draft, _Held, _read_ahead, balanced


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


class Told:
    """Plays that take what the plan says, and count."""

    def __init__(self) -> None:
        self.played = 0

    def play(self, scheduler: Scheduler, plan: Plan, problem: Problem, scene: int) -> Rehearsed:
        self.played += 1
        return Rehearsed(0.0, float(plan.info["plays_s"]) + scene)


def draft(formula_s: float, plays_s: float, stages: str, hold: str = "queue") -> _Draft:
    """A draft that the formula expects to take so long, and that does take so long."""
    info: dict[str, float | int | str] = {
        "reserved": 0,
        "stages": stages,
        "hold": hold,
        "plays_s": plays_s,
    }
    return _Draft(Plan((), 0.0, info), _Held.none(), Instances(1, (), (), 0.0), Rehearsed(0.0, formula_s))


def test_a_way_to_share_is_not_judged_by_the_draft_that_the_formula_takes_for_the_best() -> None:
    alone = [draft(100.0, 1800.0, "early"), draft(110.0, 1350.0, "waves")]
    shared = [draft(105.0, 1700.0, "early"), draft(115.0, 1750.0, "waves")]
    policy, told = create("work_stealing", {"scenes": 3}), Told()
    assert isinstance(policy, WorkStealing)
    given = replace(problem([4], [[sweep(1.0, 1.0)] * 4]), rehearsal=told)
    assert policy._best_way(given, [alone, shared]) == alone
    assert told.played == 4 + 2 * 2


def test_what_is_held_back_alone_is_not_played_to_choose_a_way() -> None:
    """Drafts that differ in nothing else differ little, and every play costs as much as a run."""
    ways = [[draft(100.0, 900.0, "one"), draft(90.0, 950.0, "one", hold="all")], [draft(80.0, 1000.0, "one")]]
    policy, told = create("work_stealing", {"scenes": 2}), Told()
    assert isinstance(policy, WorkStealing)
    given = replace(problem([4], [[sweep(1.0, 1.0)] * 4]), rehearsal=told)
    assert policy._best_way(given, ways) == ways[0]
    assert told.played == 2 + 2
    assert not ways[0][0].plays


@pytest.mark.parametrize(("shared_s", "way"), [(996.0, 0), (980.0, 1)])
def test_sharing_has_to_gain_more_than_noise(shared_s: float, way: int) -> None:
    ways = [[draft(100.0, 1000.0, "one")], [draft(90.0, shared_s, "one")]]
    policy = create("work_stealing", {"scenes": 1})
    assert isinstance(policy, WorkStealing)
    given = replace(problem([4], [[sweep(1.0, 1.0)] * 4]), rehearsal=Told())
    assert policy._best_way(given, ways) == ways[way]


def test_a_draft_that_cannot_be_played_is_not_taken() -> None:
    """A call of a scene may not fit the memory that a way leaves to an engine."""

    class Tight(Told):
        def play(self, scheduler: Scheduler, plan: Plan, problem: Problem, scene: int) -> Rehearsed:
            if plan.info["stages"] == "early":
                raise InfeasibleError("a call needs more tokens of KV cache than the engine has")
            return super().play(scheduler, plan, problem, scene)

    tight, roomy = draft(100.0, 500.0, "early"), draft(200.0, 900.0, "waves")
    policy = create("work_stealing", {"scenes": 2})
    assert isinstance(policy, WorkStealing)
    given = replace(problem([4], [[sweep(1.0, 1.0)] * 4]), rehearsal=Tight())
    assert policy._best(given, [tight, roomy]) == roomy
    assert policy._best_way(given, [[tight], [roomy]]) == [roomy]
