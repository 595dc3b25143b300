"""What a rehearsal has the aggregator read and write: of the calls of each question, and of those that ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mosaicsim.aggregation.base import ASK, Gate
from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.analysis.study import _replicate
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.rehearsal import Rehearsal
from mosaicsim.executors.simulated import SimulatedCluster
from mosaicsim.policies import PolicyKind
from mosaicsim.runtime.pool import Pool
from mosaicsim.scenario import load_scenario
from mosaicsim.schedulers.base import Instances
from mosaicsim.workload.ballots import Ballots
from mosaicsim.workload.calls import Calibration, CallTable, Ints
from mosaicsim.workload.trace import read_trace

AGREED, DISPUTED = 0, 1
"""The two calibration questions, of a category each."""

NAMES = ("agreed", "disputed")

VISIBLE = np.array([[[10, 20], [300, 0]], [[1000, 4000], [9000, 0]]])
"""By question, expert and sample; the second expert was profiled once."""

LENGTHS = np.where(VISIBLE > 0, VISIBLE + 5, 0)

TWO_THIRDS = create_gate("plurality", {"tau": 2 / 3})
ALWAYS = create_gate("always", {})


def rehearsal(
    category: list[int],
    expert: list[int],
    sample: list[int],
    visible: Ints = VISIBLE,
    lengths: Ints = LENGTHS,
) -> Rehearsal:
    """Of questions with three calls each; the aggregator writes 50 where all agree, 700 where none does."""
    question = np.repeat(np.arange(len(category)), 3)
    calls = CallTable(
        question, np.array(expert), np.array(sample), np.full(len(question), 60), np.array(category)[question]
    )
    told = Calibration(
        output_tokens=(np.array([100]), np.array([900])),
        prompt_tokens=(np.array([60]), np.array([60])),
        answers=np.array([[[0, 0], [0, -1]], [[1, 2], [3, -1]]]),
        lengths=lengths,
        visible_tokens=visible,
        question_category=np.array([AGREED, DISPUTED]),
        aggregator_output_tokens=np.array([50, 700]),
        aggregator_prompt_tokens=np.array([80, 120]),
    )

    def cluster() -> SimulatedCluster:
        raise AssertionError("nothing is played")

    pool = Pool((), 1, 1, (), ())
    names = [NAMES[code] for code in category]
    return Rehearsal(cluster, pool, ("light", "reasoning"), names, calls, told, np.random.default_rng)


def test_the_aggregator_reads_what_the_experts_of_the_question_wrote() -> None:
    made = rehearsal([AGREED, DISPUTED, DISPUTED], [0, 0, 1, 0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0, 0, 0, 0])
    _, prompts = made.asked(ALWAYS)
    once = [80 + 10 + 20 + 300, 120 + 1000 + 4000 + 9000, 120 + 3 * 9000]
    assert prompts.tolist() == once * (len(prompts) // 3)


def test_what_was_not_profiled_counts_as_the_expert_s_mean() -> None:
    visible, lengths = VISIBLE.copy(), LENGTHS.copy()
    visible[AGREED, 1] = 0
    calls = [AGREED], [1, 1, 0], [0, 1, 0]
    _, said_nothing = rehearsal(*calls, visible).asked(ALWAYS)
    assert set(said_nothing.tolist()) == {80 + 0 + (0 + 9000) // 2 + 10}
    lengths[AGREED, 1] = 0
    _, prompts = rehearsal(*calls, visible, lengths).asked(ALWAYS)
    assert set(prompts.tolist()) == {80 + 2 * 9000 + 10}


@pytest.mark.parametrize(("gate", "lengths"), [(TWO_THIRDS, {700}), (ALWAYS, {50, 700})])
def test_only_calls_that_ask_count(gate: Any, lengths: set[int]) -> None:
    made = rehearsal([AGREED, DISPUTED] * 8, [0, 0, 1] * 16, [0, 1, 0] * 16)
    assert set(made.asked(gate)[0].tolist()) == lengths


def test_the_gate_is_told_the_category() -> None:
    class OfOneCategory:
        def decide_all(self, ballots: Ballots) -> Ints:
            return np.array([ASK if name == "disputed" else 0 for name in ballots.categories])

    made = rehearsal([AGREED, DISPUTED] * 8, [0, 0, 1] * 16, [0, 1, 0] * 16)
    assert set(made.asked(cast(Gate, OfOneCategory()))[0].tolist()) == {700}


@pytest.mark.parametrize("few", [[AGREED], [DISPUTED]])
def test_where_few_ask_all_calls_count(few: list[int]) -> None:
    made = rehearsal([AGREED, *few], [0, 0, 1] * 2, [0, 1, 0] * 2)
    assert made.asked(TWO_THIRDS)[0].tolist() == [50, 700 if few == [DISPUTED] else 50]


def aggregator_of(gates: str) -> Instances:
    """The aggregator as it is on GPQA under a gate."""
    path = Path(__file__).parent.parent / "scenarios" / "beyond_gpqa.yaml"
    scenario = load_scenario(path, ["replicates=1", "schedulers=[greedy]", f"gates=[{gates}]"])
    replicate = _replicate(scenario, Fleet(scenario), read_trace(scenario.workload.trace), 0)
    return replicate._instances(1, scenario.policies(PolicyKind.GATE)[0])[0]


def test_questions_that_ask_are_the_long_ones() -> None:
    """On GPQA: experts that are cut off do not agree, and all that they wrote is read."""
    few, all_of_them = aggregator_of("{plurality: {tau: 2/3}}"), aggregator_of("always")
    assert few.mean_prompt_tokens > 2.5 * all_of_them.mean_prompt_tokens
    assert few.costs[0].mean_output_tokens > 1.2 * all_of_them.costs[0].mean_output_tokens
    sizes: Ints = np.arange(4, 64, 10)
    assert all(few.costs[0].predict_s(n) > all_of_them.costs[0].predict_s(n) for n in sizes.tolist())
