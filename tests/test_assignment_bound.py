"""The assignment bound: no engine beats it, and it is tight where the model says all there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.analysis.stage_bound import bound_of_stage
from mosaicsim.analysis.study import simulate
from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.executors.fleet import Fleet
from mosaicsim.hardware.latency import HingeLatency, HostOverhead, StepTables, TwoRegimeLatency
from mosaicsim.scenario import load_scenario
from mosaicsim.schedulers import step_prices
from mosaicsim.schedulers.assignment_bound import assignment_bound
from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.schedulers.hosted_calls import HostedCalls
from mosaicsim.schedulers.linear_model import LinearModel
from mosaicsim.workload.calls import CallTable, Ints

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"

STEPS_ONLY = TwoRegimeLatency(1.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.0).compile(64, 300, HostOverhead())
"""A decode step takes a second, whatever is in it; a prefilled token 0.01 s."""


def table(expert: list[int], prompt: list[int]) -> CallTable:
    n = len(expert)
    return CallTable(np.arange(n), np.array(expert), np.zeros(n, np.int64), np.array(prompt))


def limits(tables: StepTables, load_s: float, blocks: int, seqs: int, size: int = 4) -> EngineLimits:
    return EngineLimits(tables, load_s, size * blocks, seqs, mixes_prefill=False, block_size=size)


def generate_s(limit: EngineLimits, prompt: Ints, output: Ints, budget: int = 300) -> float:
    """Seconds that a real engine takes for calls queued in this order."""
    size = limit.block_size
    config = EngineConfig("v0", limit.max_num_seqs, budget, size, limit.kv_capacity_tokens // size)
    engine = Engine(config, limit.tables)
    engine.add(prompt.tolist(), output.tolist())
    engine.advance()
    return engine.clock


@st.composite
def step_tables(draw: st.DrawFn, seqs: int) -> StepTables:
    """Steps dear or cheap beside tokens; recomputed tokens dear, cheap or free; linear, or with a floor."""

    def one_of(*values: float) -> float:
        return draw(st.sampled_from(values))

    host = HostOverhead(one_of(0.0, 0.01), one_of(0.0, 0.001))
    if draw(st.booleans()):
        floor_s, token_s = one_of(0.02, 1.0), one_of(0.001, 0.1)
        hinge = HingeLatency(floor_s, 0.01, token_s, 0.001, one_of(0.0, 1e-4), one_of(0.0, 1e-5))
        return hinge.compile(seqs, 300, host)
    decode = one_of(0.0, 0.02, 1.0), one_of(0.0, 0.002, 1.0), one_of(0.0, 1e-5, 1e-3)
    mixed = one_of(0.0, 0.02, 0.5), 0.0, one_of(0.0, 1e-4, 0.01), 1e-5
    return TwoRegimeLatency(*decode, *mixed).compile(seqs, 300, host)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_engine_run_beats_the_bound(data: st.DataObject) -> None:
    """Any calls in any order, in one session of a load or two, in caches ample or starved, on workers alike."""
    draw = data.draw
    n_experts, n_workers, seqs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    n, longest = draw(st.integers(1, 40)), draw(st.sampled_from([3, 28, 90]))
    engines = [
        limits(
            draw(step_tables(seqs)),
            draw(st.sampled_from([0.0, 0.1, 5.0])),
            draw(st.sampled_from([31, 40, 80, 300])),
            seqs,
        )
        for _ in range(n_experts)
    ]
    expert, worker, session = (
        np.array([draw(st.integers(0, most)) for _ in range(n)]) for most in (n_experts - 1, n_workers - 1, 1)
    )
    if draw(st.booleans()):
        session[:] = 0
    length = st.one_of(st.integers(1, longest), st.just(longest))
    output = np.array([draw(length) for _ in range(n)])
    prompt = np.array([draw(st.integers(1, 30)) for _ in range(n)])
    order = np.argsort(output * draw(st.sampled_from([-1, 0, 1])), kind="stable")

    busy = np.zeros(n_workers)
    for w, m in set(zip(worker.tolist(), expert.tolist(), strict=True)):
        busy[w] += engines[m].load_s
        for s in (0, 1):
            own = order[((worker == w) & (expert == m) & (session == s))[order]]
            busy[w] += generate_s(engines[m], prompt[own], output[own], budget=40)
    calls, rows = table(expert.tolist(), prompt.tolist()), [[limit] * n_workers for limit in engines]
    with pytest.MonkeyPatch.context() as patch:
        # whatever prices are found are valid; one example in hundreds would look for better ones for a minute
        patch.setattr(step_prices, "MOST_COLUMNS", 10)
        bound = assignment_bound(calls, output, rows, node_limit=50, rounds=1)
    assert bound <= busy.max() * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    output=st.lists(st.sampled_from([1, 2, 12, 25, 60, 90]), min_size=1, max_size=6),
    blocks=st.sampled_from([24, 30, 48]),
    load_s=st.sampled_from([0.0, 10.0]),
    data=st.data(),
)
def test_not_even_the_best_placement_beats_the_bound(
    output: list[int], blocks: int, load_s: float, data: st.DataObject
) -> None:
    """Every way to place a few calls of two experts on two workers, in two orders."""
    n = len(output)
    expert = [data.draw(st.integers(0, 1)) for _ in range(n)]
    limit, tokens = limits(STEPS_ONLY, load_s, blocks, 4), np.array(output)
    best = inf
    for placed in product((0, 1), repeat=n):
        busy = np.zeros(2)
        for w, m in set(zip(placed, expert, strict=True)):
            own = np.array([i for i in range(n) if (placed[i], expert[i]) == (w, m)])
            orders = tokens[own], np.sort(tokens[own])[::-1]
            busy[w] += load_s + min(generate_s(limit, np.full(len(own), 3), order) for order in orders)
        best = min(best, busy.max())
    bound = assignment_bound(table(expert, [3] * n), tokens, [[limit] * 2] * 2)
    assert bound <= best * (1 + 1e-9)


def test_it_knows_all_of_three_calls_on_two_workers() -> None:
    """Two of three experts share a worker; in aggregate there is room for each half."""
    limit, output = limits(STEPS_ONLY, 10.0, 300, 4), np.full(3, 101)
    calls, engines = table([0, 1, 2], [4] * 3), [[limit] * 2] * 3
    alone_s = 10 + generate_s(limit, np.array([4]), output[:1])
    assert alone_s == pytest.approx(110.04)
    assert assignment_bound(calls, output, engines) == pytest.approx(2 * alone_s, rel=1e-3)
    assert expert_stage_lower_bound(calls, output, engines).seconds < 1.6 * alone_s


def test_a_batch_that_fits_is_known_to_the_second() -> None:
    """The longest call pays all the steps, every call its tokens and prompt."""
    tables = TwoRegimeLatency(0.02, 0.001, 1e-5, 0.0, 0.0, 0.001, 0.0).compile(64, 300, HostOverhead())
    limit, output = limits(tables, 20.0, 2000, 64), np.array([1, 2, 30, 31, 45, 250, 301])
    prompt = np.array([5, 60, 3, 3, 9, 12, 7])
    bound = assignment_bound(table([0] * 7, prompt.tolist()), output, [[limit]])
    assert bound == pytest.approx(20 + generate_s(limit, prompt, output), rel=1e-5)


def test_equal_calls_pay_for_a_cache_that_fills_from_empty() -> None:
    """20 calls fill 1,000 tokens in 49 steps; what they attend after that takes a full cache."""
    limit, output = limits(STEPS_ONLY, 0.0, 1000, 64, size=1), np.full(20, 301)
    bound = assignment_bound(table([0] * 20, [1] * 20), output, [[limit]], rounds=0)
    after = 20 * sum(1 + g for g in range(50, 301))
    assert bound == pytest.approx(20 * 0.01 + 49 + after / 1000, rel=1e-3)
    assert bound > 1.001 * expert_stage_lower_bound(table([0] * 20, [1] * 20), output, [[limit]]).seconds
    assert bound <= generate_s(limit, np.ones(20, np.int64), output)


def test_tokens_that_come_out_of_free_recomputation_take_no_step() -> None:
    tables = TwoRegimeLatency(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0).compile(2, 100, HostOverhead())
    limit, prompt, output = limits(tables, 1.0, 20, 2, size=1), np.array([10, 2]), np.array([8, 9])
    engine_s = 1 + generate_s(limit, prompt, output, budget=100)
    assert engine_s < 1 + 7 + 8
    assert assignment_bound(table([0, 0], prompt.tolist()), output, [[limit]]) <= engine_s


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"mixes_prefill": True}, {}),
        ({"keeps_blocks": True}, {}),
        ({}, {"prefix_caching": True}),
        ({}, {"slots": 2}),
        ({"unlike": True}, {}),
    ],
)
def test_it_is_the_other_bound_where_the_model_is_not_made_for_the_engines(
    changes: dict[str, bool], options: dict[str, int]
) -> None:
    limit, output = limits(STEPS_ONLY, 10.0, 300, 4), np.full(3, 101)
    unlike = changes.pop("unlike", False)
    limit = replace(limit, **changes)
    row = [limit, replace(limit, load_s=11.0) if unlike else limit]
    calls = table([0, 1, 2], [4] * 3)
    known = expert_stage_lower_bound(calls, output, [row] * 3, **options).seconds
    assert assignment_bound(calls, output, [row] * 3, **options) == known


def test_only_finished_calls_count() -> None:
    limit, output = limits(STEPS_ONLY, 10.0, 300, 4), np.full(3, 101)
    calls, engines = table([0, 1, 2], [4] * 3), [[limit] * 2] * 3
    assert assignment_bound(calls, output, engines, finished=np.array([0, 2])) <= 111
    assert assignment_bound(calls, output, engines, finished=np.zeros(0, np.int64)) == 0.0


def hosted(output: list[int], size: int = 4) -> HostedCalls:
    prompt = np.array([3.0 + 5 * (i % 4) for i in range(len(output))])
    return HostedCalls(prompt, np.sort(np.array(output)) - 1.0, limits(STEPS_ONLY, 0.0, 100, 8, size))


@given(
    output=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    m=st.integers(0, 45),
    size=st.integers(1, 7),
)
def test_blocks_after_are_summed_token_by_token(output: list[int], m: int, size: int) -> None:
    calls = hosted(output, size)
    for i, (p, d) in enumerate(zip(calls.prompt_tokens.tolist(), calls.decodes.tolist(), strict=True)):
        counted = sum(-(-int(p + g) // size) * size for g in range(m + 1, int(d) + 1))
        assert calls.blocks_after(m)[i] == pytest.approx(counted)
        first = sum(-(-int(p + g) // size) * size for g in range(1, m + 1))
        assert calls.most_blocks(m) >= first


@given(output=st.lists(st.integers(1, 400), min_size=1, max_size=40), most=st.integers(2, 12))
def test_classes_have_every_call_once_and_part_between_lengths(output: list[int], most: int) -> None:
    calls = hosted(output)
    parts = calls.classes(most)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(output)))
    for sooner, later in pairwise(parts):
        assert calls.decodes[sooner.stop - 1] < calls.decodes[later.start]
    assert len(set(calls.decodes[parts[-1]].tolist())) == 1


@given(
    output=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    cost=st.lists(st.floats(0, 100), min_size=40, max_size=40),
)
def test_no_call_costs_less_than_its_line(output: list[int], cost: list[float]) -> None:
    calls = hosted(output)
    parts, costs = calls.classes(3), np.array(cost[: len(output)])
    for part, at_none, a_second in zip(parts, *calls.lines(costs, parts), strict=True):
        line = at_none / (part.stop - part.start) + a_second * calls.lean_s[part]
        assert (line <= costs[part] + 1e-6).all()


def test_a_linear_model_is_bounded_from_below() -> None:
    """Two items of 3 and one of 2 in two bins of equal height: 5, and 4 if they could be cut."""
    model = LinearModel()
    height, x = model.variable(), [model.variable(binary=True) for _ in range(3)]
    sizes = (3.0, 3.0, 2.0)
    model.at_least([(height, 1.0), *((v, -s) for v, s in zip(x, sizes, strict=True))])
    model.at_least([(height, 1.0), *zip(x, sizes, strict=True)], sum(sizes))
    assert model.minimise(height, 0.0, 100, 60.0).bound == pytest.approx(5.0)
    model.equal([(height, 1.0), (height, 1.0)], 6.0)
    assert model.minimise(height, 0.0, 100, 60.0).bound == -inf


def test_no_schedule_of_a_scenario_beats_its_stage_bound() -> None:
    scenario = load_scenario(
        SCENARIOS / "beyond_gpqa.yaml",
        ["replicates=1", "gates=[always]", "schedulers=[greedy, oracle, {work_stealing: {scenes: 0}}]"],
    )
    result = simulate(scenario)
    stages = [run.metrics["expert_stage_s"] for run in result.runs]
    bound = bound_of_stage(Fleet(scenario), result.workloads[0], rounds=0)
    known = max(run.metrics["lower_bound_s"] for run in result.runs)
    assert 1.015 * known < bound <= min(stages)


def test_prices_raise_the_bound_where_lengths_are_unlike() -> None:
    """Calls of all lengths on two workers: those that fill the caches stay in the way of the rest."""
    tables = TwoRegimeLatency(1.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0).compile(64, 300, HostOverhead())
    limit, output = limits(tables, 10.0, 3_000, 64, size=1), np.array([20 * i for i in range(4, 58)])
    calls, engines = table([0] * 54, [10] * 54), [[limit] * 2]
    unpriced, priced = (assignment_bound(calls, output, engines, rounds=rounds) for rounds in (0, 2))
    dealt = [np.sort(output[i::2])[::-1] for i in (0, 1)]
    run_s = 10 + max(generate_s(limit, np.full(27, 10), own) for own in dealt)
    assert 1.005 * unpriced < priced <= run_s
