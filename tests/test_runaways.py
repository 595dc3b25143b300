"""What a rehearsal makes of calls that never stop: an expectation, against drawing them by the thousand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_steered import SPEC, calibrated, run
from worlds import make_workload

from mosaicsim.executors.runaways import (
    Runaways,
    are_runaways,
    expected_makespan_s,
    runaway_ends_s,
    without,
)
from mosaicsim.workload.calls import Calibration, Floats, Ints

RNG = np.random.default_rng


def model(n: int, seed: int, runaways: int = 0, longest: int = 30_000) -> Ints:
    lengths = RNG(seed).integers(500, 1500, n)
    lengths[:runaways] = longest
    return lengths


def calibration(aggregator: Ints, *experts: Ints) -> Calibration:
    prompts = tuple(np.full(len(own), 100) for own in experts)
    return Calibration(experts, prompts, aggregator_output_tokens=aggregator)


def test_the_chance_lies_between_the_aggregator_s_own_and_that_of_all() -> None:
    found = Runaways.of(calibration(model(100, 0, 2), model(400, 1, 1), model(500, 2)))
    assert (found.chance, found.tokens) == ((0.02 + 0.003) / 2, 30_000)


def test_an_aggregator_not_seen_to_run_away_may_still_as_others_do() -> None:
    found = Runaways.of(calibration(model(100, 0), model(300, 1, 4, longest=20_000)))
    assert (found.chance, found.tokens) == (0.005, 20_000)


@pytest.mark.parametrize("told", [calibration(model(50, 0), model(50, 1)), Calibration((), ())])
def test_where_no_call_is_out_of_line_none_is_feared(told: Calibration) -> None:
    assert Runaways.of(told).chance == 0


def sampled(ends: Floats, makespan_s: float, chance: float) -> Floats:
    drawn = np.where(RNG(4).random((40_000, len(ends))) < chance, ends, 0.0).max(axis=1)
    return np.maximum(drawn, makespan_s)


def test_the_expectation_is_the_mean_of_runs_in_which_some_do() -> None:
    ends = RNG(3).uniform(800, 1400, 40)
    runs = sampled(ends, 950.0, 0.03)
    found = expected_makespan_s(950.0, ends, 0.03)
    assert found == pytest.approx(runs.mean(), abs=4 * runs.std() / np.sqrt(len(runs)))
    assert found > 1000
    assert expected_makespan_s(950.0, ends - 200, 0.03) < found
    assert expected_makespan_s(950.0, ends[:0], 0.03) == 950


def test_a_call_that_runs_away_ends_about_when_it_is_said_to() -> None:
    """Against runs in which it does; what others do after it starts may change a little."""
    workload, gate, tokens = calibrated(make_workload(30, seed=3)), ("plurality", {"tau": 1}), 3000
    steered, _ = run(workload, gate, {"scenes": 0})
    n = len(workload.calls)
    asked = np.flatnonzero(steered.log.start_s[n:] >= 0)
    alone_s = SPEC.tables.decode_s(1, tokens / 2)
    said = runaway_ends_s(steered.log, n + asked, lambda group: alone_s, tokens)
    for question, end_s in list(zip(asked.tolist(), said.tolist(), strict=True))[::5]:
        output = workload.aggregator.output_tokens.copy()
        output[question] = tokens
        longer = replace(workload, aggregator=replace(workload.aggregator, output_tokens=output))
        again, makespan = run(longer, gate, {"scenes": 0})
        assert again.log.finish_s[n + question] == pytest.approx(end_s, rel=0.1)
        assert makespan == pytest.approx(end_s, rel=0.1)


def test_a_play_draws_other_lengths_in_their_place() -> None:
    seen = model(200, 6, 5)
    drawn = RNG(7).choice(seen, 1000)
    played = without(seen, drawn, RNG(8))
    assert are_runaways(drawn).any()
    assert not are_runaways(played).any()
    kept = ~are_runaways(drawn)
    assert (played[kept] == drawn[kept]).all()
