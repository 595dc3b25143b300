"""Prices by decode step: no call pays less than is said, no engine takes fewer steps than calls pay for."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import HingeLatency, HostOverhead, TwoRegimeLatency
from mosaicsim.schedulers import step_prices
from mosaicsim.schedulers.bounds import EngineLimits
from mosaicsim.schedulers.hosted_calls import HostedCalls
from mosaicsim.schedulers.step_prices import FINER, StepPrices, fitted_prices

PREFILL_S = 0.01
STEPS_ONLY = TwoRegimeLatency(1.0, 0.0, 0.0, 0.0, 0.0, PREFILL_S, 0.0).compile(64, 300, HostOverhead())
"""A decode step takes a second, whatever is in it; a prefilled token 0.01 s."""


DEAR_PREFILL = TwoRegimeLatency(1.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0).compile(64, 300, HostOverhead())


def hosted(prompt: list[int], output: list[int], blocks: int, size: int, seqs: int) -> HostedCalls:
    """Calls on one host, shortest first."""
    limit = EngineLimits(STEPS_ONLY, 0.0, size * blocks, seqs, mixes_prefill=False, block_size=size)
    order = np.argsort(output, kind="stable")
    return HostedCalls(np.array(prompt, float)[order], np.array(output, float)[order] - 1.0, limit)


def steps_taken(calls: HostedCalls, order: list[int]) -> float:
    """Decode steps of a real engine, and recomputed tokens in steps, for calls queued in this order."""
    engine, size = calls.engine, calls.engine.block_size
    config = EngineConfig("v0", engine.max_num_seqs, 10_000, size, engine.kv_capacity_tokens // size)
    real = Engine(config, engine.tables)
    prompt, output = calls.prompt_tokens[order].astype(int), calls.decodes[order].astype(int) + 1
    real.add(prompt.tolist(), output.tolist())
    real.advance()
    return real.clock - calls.rate * float(calls.prompt_tokens.sum())


def price(prices: StepPrices, calls: HostedCalls, step: int) -> tuple[float, float]:
    """Price of a token of KV cache and of a sequence in a decode step, the first of which is 1."""
    cell = (step - 1) // prices.width
    if cell >= len(prices.token):
        return 1 / calls.engine.kv_capacity_tokens, 0.0
    return float(prices.token[cell]), float(prices.sequence[cell])


def least_paid_step_by_step(prices: StepPrices, calls: HostedCalls) -> list[float]:
    """What each call pays at least, over every offset and preemption one by one."""
    horizon, size = prices.width * len(prices.token) + 1, calls.engine.block_size
    found = []
    for p, d in zip(
        calls.prompt_tokens.astype(int).tolist(), calls.decodes.astype(int).tolist(), strict=True
    ):
        best = [0.0] * horizon  # paid so far at each offset; offsets beyond the horizon cost the same
        for g in range(1, d + 1):
            blocks = -(-(p + g) // size) * size
            recomputed = PREFILL_S * (p + g)
            least, decoded = inf, []
            for o in range(horizon):
                token, sequence = price(prices, calls, g + o)
                least = min(least, best[o])  # preempted at this offset or before
                decoded.append(min(best[o] + token * blocks + sequence, least + recomputed))
            best = decoded
        found.append(min(best))
    return found


@st.composite
def price_lists(draw: st.DrawFn, cache: float, seqs: int) -> StepPrices:
    """Prices that rise, fall and jump, in cells as narrow as can be and wider."""
    cells = draw(st.integers(1, 8))
    level = st.sampled_from([0.0, 0.3, 1.0, 4.0])
    token = np.array([draw(level) for _ in range(cells)]) / cache
    sequence = np.array([draw(st.sampled_from([0.0, 0.5])) for _ in range(cells)]) / seqs
    return StepPrices(FINER * draw(st.integers(1, 3)), token, sequence)


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), output=lengths, size=st.sampled_from([1, 4]))
def test_no_call_pays_less_than_is_said(data: st.DataObject, output: list[int], size: int) -> None:
    prompt = [data.draw(st.integers(1, 30)) for _ in output]
    calls = hosted(prompt, output, 400 // size, size, 8)
    prices = data.draw(price_lists(400.0, 8))
    paid, least = least_paid_step_by_step(prices, calls), prices.least_paid(calls)
    assert (least <= np.array(paid) + 1e-9).all()


def test_what_is_said_is_nearly_what_is_paid() -> None:
    """Where prices rise slowly, in cells as narrow as the lattice, rounding costs next to nothing."""
    output = [5, 17, 40, 64, 100, 121]
    calls = hosted([10] * len(output), output, 200, 1, 8)
    prices = StepPrices(FINER, np.minimum(np.arange(40) / 30, 1.0) / 200, np.zeros(40))
    paid, least = np.array(least_paid_step_by_step(prices, calls)), prices.least_paid(calls)
    assert (least >= 0.97 * paid - 0.05).all()
    assert paid[-1] > 20


@settings(max_examples=40, deadline=None)
@given(data=st.data(), output=st.lists(st.integers(1, 80), min_size=1, max_size=16))
def test_no_engine_takes_fewer_steps_than_its_calls_pay_for(data: st.DataObject, output: list[int]) -> None:
    """Any prices, any order, caches ample and starved."""
    draw, size = data.draw, data.draw(st.sampled_from([1, 4]))
    prompt = [draw(st.integers(1, 30)) for _ in output]
    seqs = draw(st.integers(1, 12))
    calls = hosted(prompt, output, draw(st.sampled_from([112, 200, 600])) // size, size, seqs)
    order = draw(st.permutations(range(len(output))))
    prices = draw(price_lists(float(calls.engine.kv_capacity_tokens), seqs))
    if draw(st.booleans()):
        fitted = fitted_prices(calls, np.ones(len(output)), float(calls.decodes[-1]))
        assert fitted is not None
        prices = fitted
    excess = float(prices.excess(calls, calls.decodes[-1:])[0])
    assert steps_taken(calls, list(order)) >= prices.least_paid(calls).sum() - excess - 1e-6


def test_prices_know_that_calls_which_fill_the_cache_stay_in_the_way() -> None:
    """Lengths all over: what fills the cache at first has to end, or be recomputed, before others can run."""
    output = [20 * i for i in range(4, 31)]
    calls = hosted([10] * len(output), output, 3_000, 1, 64)
    calls = replace(calls, engine=replace(calls.engine, tables=DEAR_PREFILL))
    prices = fitted_prices(calls, np.ones(len(output)), float(calls.decodes[-1]))
    assert prices is not None
    priced = prices.least_paid(calls).sum() - float(prices.excess(calls, calls.decodes[-1:])[0])
    known = max(m + calls.blocks_after(float(m)).sum() / 3_000 for m in range(600))
    best = min(steps_taken(calls, order) for order in (list(range(27)), list(range(27))[::-1]))
    assert 1.01 * known < priced <= best


def test_the_excess_is_the_most_that_more_steps_take_in() -> None:
    calls = hosted([1], [9], 100, 1, 4)
    prices = StepPrices(4, np.array([0.0, 0.03, 0.005]), np.zeros(3))
    # edges at 0, 4, 8, 12: 0, -4, 4, 2 beyond as many steps; then none
    found = prices.excess(calls, np.array([0.0, 5.0, 10.0, 12.0, 99.0]))
    assert found == pytest.approx([4.0, 4.0, 3.0, 2.0, 2.0])


@pytest.mark.parametrize("case", ["no calls", "free recomputing", "free steps"])
def test_nothing_is_priced_where_prices_say_nothing(case: str) -> None:
    free = TwoRegimeLatency(1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0).compile(8, 100, HostOverhead())
    idle = TwoRegimeLatency(0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0).compile(8, 100, HostOverhead())
    tables = {"no calls": STEPS_ONLY, "free recomputing": free, "free steps": idle}[case]
    n = 0 if case == "no calls" else 3
    limit = EngineLimits(tables, 0.0, 100, 8, mixes_prefill=False)
    calls = HostedCalls(np.full(n, 5.0), np.full(n, 20.0), limit)
    assert fitted_prices(calls, np.ones(n), 20.0 if n else 0.0) is None


def test_calls_that_are_sooner_recomputed_than_decoded_are_refused() -> None:
    """Those of long prompts are dear to recompute, those of short ones are not."""
    tables = TwoRegimeLatency(1.0, 3.0, 0.0, 0.0, 0.0, 0.2, 0.0).compile(8, 300, HostOverhead())
    limit = EngineLimits(tables, 0.0, 300, 8, mixes_prefill=False)
    long, mixed = (HostedCalls(np.array([100.0, p]), np.full(2, 20.0), limit) for p in (100.0, 1.0))
    prices = StepPrices(4, np.full(5, 1 / 300), np.zeros(5))
    assert (prices.least_paid(long) > 0).all()
    with pytest.raises(ValueError, match="recomputing"):
        prices.least_paid(mixed)


@pytest.mark.parametrize("width", [1, 4, 6])
def test_looking_at_a_few_calls_at_once_changes_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the line below steps depends on which calls are looked at."""
    hinge = HingeLatency(0.05, 0.01, 0.002, 0.001, 0.0, 0.0).compile(64, 500, HostOverhead())
    limit = EngineLimits(hinge, 0.0, 2_000, 64, mixes_prefill=False)
    calls = HostedCalls(np.ones(8), np.repeat([120.0, 400.0], 4), limit)
    prices = StepPrices(width, np.linspace(0.0, 3.0, 60) / 2_000, np.zeros(60))
    together = prices.least_paid(calls)
    monkeypatch.setattr(step_prices, "AT_ONCE", 1)
    assert prices.least_paid(calls) == pytest.approx(together)
    assert together[-1] > together[0] > 0
