"""What a rehearsal makes of calls that never stop: an expectation, against drawing them by the thousand."""

from __future__ import annotations

import numpy as np
import pytest
from scheduling import sweep

from mosaicsim.executors.runaways import Runaways, are_runaways, without
from mosaicsim.workload.calls import Calibration, Ints

RNG = np.random.default_rng
ALONE = sweep(20.0, 0.1)


def model(n: int, seed: int, runaways: int = 0, longest: int = 30_000) -> Ints:
    lengths = RNG(seed).integers(500, 1500, n)
    lengths[:runaways] = longest
    return lengths


def calibration(aggregator: Ints, *experts: Ints) -> Calibration:
    prompts = tuple(np.full(len(own), 100) for own in experts)
    return Calibration(experts, prompts, aggregator_output_tokens=aggregator)


def test_the_chance_lies_between_the_aggregator_s_own_and_that_of_all() -> None:
    found = Runaways.of(calibration(model(100, 0, 2), model(400, 1, 1), model(500, 2)))
    assert found == Runaways((0.02 + 0.003) / 2, 30_000)


def test_an_aggregator_not_seen_to_run_away_may_still_as_others_do() -> None:
    found = Runaways.of(calibration(model(100, 0), model(300, 1, 4, longest=20_000)))
    assert found == Runaways(0.005, 20_000)


@pytest.mark.parametrize("told", [calibration(model(50, 0), model(50, 1)), Calibration((), ())])
def test_where_no_call_is_out_of_line_none_is_feared(told: Calibration) -> None:
    assert Runaways.of(told).expected_makespan_s(700.0, np.array([1.0, 2.0]), ALONE) == 700


def test_the_expectation_is_the_mean_of_runs_in_which_some_do() -> None:
    starts, fear, rng = RNG(3).uniform(500, 900, 40), Runaways(0.03, 100_000), RNG(4)
    alone_s = fear.tokens * ALONE.predict_s(1) / ALONE.mean_output_tokens
    drawn = np.where(rng.random((40_000, 40)) < fear.chance, starts + alone_s, 0.0).max(axis=1)
    sampled = np.maximum(drawn, 950.0)
    error_s = sampled.std() / np.sqrt(len(sampled))
    found = fear.expected_makespan_s(950.0, starts, ALONE)
    assert found == pytest.approx(sampled.mean(), abs=4 * error_s)
    assert found > 960


def test_calls_that_start_sooner_have_less_to_fear() -> None:
    fear, starts = Runaways(0.01, 30_000), RNG(5).uniform(100, 900, 50)
    late = fear.expected_makespan_s(950.0, starts, ALONE)
    assert fear.expected_makespan_s(950.0, starts - 100, ALONE) < late
    assert fear.expected_makespan_s(950.0, starts[:0], ALONE) == 950


def test_a_play_draws_other_lengths_in_their_place() -> None:
    seen = model(200, 6, 5)
    drawn = RNG(7).choice(seen, 1000)
    played = without(seen, drawn, RNG(8))
    assert are_runaways(drawn).any()
    assert not are_runaways(played).any()
    kept = ~are_runaways(drawn)
    assert (played[kept] == drawn[kept]).all()
