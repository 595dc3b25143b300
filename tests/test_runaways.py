"""What a rehearsal makes of calls that never stop: an expectation, against drawing them by the thousand."""

from __future__ import annotations

import numpy as np
import pytest

from mosaicsim.executors.runaways import Runaways, are_runaways, without
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


def test_questions_on_which_experts_ran_away_are_prone_to_it() -> None:
    aggregator, lengths = model(100, 0, 1), RNG(1).integers(500, 1500, (100, 3, 2))
    lengths[:10, 0, 0] = 30_000
    lengths[90:, 2] = 0
    experts = tuple(lengths[:, m].ravel() for m in range(3))
    told = Calibration(experts, experts, lengths=lengths, aggregator_output_tokens=aggregator)
    found = Runaways.of(told)
    assert found.chance_on(np.arange(10)) == pytest.approx(10 * found.chance)
    assert found.chance_on(np.arange(10, 100)) == 0
    assert found.chance_on(np.arange(0)) == found.chance


def sampled(ends: Floats, makespan_s: float, chance: float) -> Floats:
    drawn = np.where(RNG(4).random((40_000, len(ends))) < chance, ends, 0.0).max(axis=1)
    return np.maximum(drawn, makespan_s)


def test_the_expectation_is_the_mean_of_runs_in_which_some_do() -> None:
    ends, fear = RNG(3).uniform(800, 1400, 40), Runaways(0.03, 100_000, np.zeros(0))
    runs = sampled(ends, 950.0, 0.03)
    found = fear.expected_makespan_s(950.0, ends, 0.03)
    assert found == pytest.approx(runs.mean(), abs=4 * runs.std() / np.sqrt(len(runs)))
    assert found > 1000
    assert fear.expected_makespan_s(950.0, ends - 200, 0.03) < found
    assert fear.expected_makespan_s(950.0, ends[:0], 0.03) == 950


def test_a_play_draws_other_lengths_in_their_place() -> None:
    seen = model(200, 6, 5)
    drawn = RNG(7).choice(seen, 1000)
    played = without(seen, drawn, RNG(8))
    assert are_runaways(drawn).any()
    assert not are_runaways(played).any()
    kept = ~are_runaways(drawn)
    assert (played[kept] == drawn[kept]).all()
