"""The lower bound: formulas where they are exact, and the engine, which must never beat it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import (
    HostOverhead,
    OperatorLatency,
    ScalableLatency,
    StepTables,
    TwoRegimeLatency,
)
from mosaicsim.schedulers.bounds import (
    EngineLimits,
    ExpertCalls,
    call_work_s,
    expert_stage_lower_bound,
    filling_work_s,
)
from mosaicsim.workload.calls import CallTable, Ints

A100 = TwoRegimeLatency(11.2e-3, 0.033e-3, 8.0e-8, 8.25e-3, 0.05e-3, 0.054e-3, 8.2e-8)
"""Llama-3.1-8B on an A100, rounded: fitted to ai-dynamo/aiconfigurator's operator tables (Apache-2.0)."""

SLOW = TwoRegimeLatency(25e-3, 0.05e-3, 1.6e-7, 20e-3, 0.1e-3, 0.1e-3, 1.6e-7)


def limits(
    latency: TwoRegimeLatency = A100,
    load_s: float = 42.0,
    kv: int = 400_000,
    seqs: int = 256,
    mixes: bool = True,
) -> EngineLimits:
    return EngineLimits(latency.compile(seqs, 4096, HostOverhead()), load_s, kv, seqs, mixes)


def table(expert: list[int], prompt: list[int], question: list[int] | None = None) -> CallTable:
    n = len(expert)
    return CallTable(
        np.array(question if question is not None else range(n)),
        np.array(expert),
        np.zeros(n, np.int64),
        np.array(prompt),
    )


def test_one_call_alone_takes_its_own_steps() -> None:
    """V0: a prefill step, then one decode step a token with its context growing."""
    bound = expert_stage_lower_bound(table([0], [100]), np.array([1000]), [[limits(mixes=False)]])
    steps = 11.2e-3 + 0.033e-3 + 8.0e-8 * (100 + np.arange(1, 1000))
    assert bound.longest_call_s == pytest.approx(42 + 8.25e-3 + 100 * 0.054e-3 + steps.sum(), rel=0.01)
    assert bound.seconds == bound.longest_call_s


def test_a_full_batch_pays_the_base_once_a_step() -> None:
    """512 equal calls in batches of 256: work per worker is known to 1 % when KV does not bind."""
    bound = expert_stage_lower_bound(
        table([0] * 512, [200] * 512), np.full(512, 301), [[limits(mixes=False)] * 2]
    )
    context = (200 + np.arange(1, 301)).mean()
    decode = 2 * 300 * (11.2e-3 + 256 * (0.033e-3 + 8.0e-8 * context))
    prefill = 512 * 200 * 0.054e-3
    assert bound.work_s == pytest.approx((42 + decode + prefill) / 2, rel=0.01)


def test_a_small_kv_cache_costs_steps() -> None:
    calls, output = table([0] * 512, [200] * 512), np.full(512, 301)
    ample, tight = (expert_stage_lower_bound(calls, output, [[limits(kv=kv)]]) for kv in (400_000, 20_000))
    assert tight.work_s - 42 > 1.7 * (ample.work_s - 42)


def test_experts_beyond_the_workers_must_be_loaded_by_someone() -> None:
    calls, output = table([0, 1, 2, 3, 4], [1] * 5), np.ones(5, np.int64)
    engines = [[limits(load_s=s)] * 2 for s in (10.0, 20.0, 30.0, 40.0, 50.0)]
    assert expert_stage_lower_bound(calls, output, engines).loads_s == 60.0
    assert expert_stage_lower_bound(calls, output, engines, slots=2).loads_s == 30.0


def test_unlike_workers_share_by_their_speed() -> None:
    """Work that takes 1 h on a fast worker takes about 2.2 h on a slow one: together 0.69 h, not 0.5 h."""
    calls, output = table([0] * 2000, [10] * 2000), np.full(2000, 500)
    fast, slow = limits(load_s=0.0, mixes=False), limits(SLOW, load_s=0.0, mixes=False)
    f, s, both = (
        expert_stage_lower_bound(calls, output, [list(row)]).work_s
        for row in ((fast,), (slow,), (fast, slow))
    )
    assert both == pytest.approx(1 / (1 / f + 1 / s), rel=0.02)


def test_only_finished_calls_and_unshared_prompts_are_charged() -> None:
    calls, output = table([0] * 3, [4000] * 3, [5, 5, 6]), np.ones(3, np.int64)
    prompt_s = 4000 * 0.054e-3

    def generate(finished: Ints | None = None, prefix_caching: bool = False) -> float:
        engines = [[limits(load_s=0.0)]]
        return expert_stage_lower_bound(
            calls, output, engines, finished=finished, prefix_caching=prefix_caching
        ).work_s

    assert generate() == pytest.approx(3 * prompt_s)
    assert generate(prefix_caching=True) == pytest.approx(2 * prompt_s)
    assert generate(finished=np.array([1, 2])) == pytest.approx(2 * prompt_s)
    # the twin that was cancelled may have prefilled for the one that finished
    assert generate(finished=np.array([1, 2]), prefix_caching=True) == pytest.approx(prompt_s)
    assert generate(finished=np.zeros(0, np.int64)) == 0.0


@st.composite
def latencies(draw: st.DrawFn) -> ScalableLatency:
    def up_to(most: float) -> float:
        return draw(st.floats(0.0, most))

    if draw(st.booleans()):
        tokens_s = sorted(up_to(0.02) for _ in range(3))
        batches = [tuple(sorted(up_to(0.02) for _ in range(2))) for _ in range(2)]
        return OperatorLatency(
            (1, 6), *batches, (1, 10, 30), tuple(tokens_s), up_to(2e-5), up_to(2e-5), up_to(2e-5)
        )
    return TwoRegimeLatency(
        up_to(0.02), up_to(0.002), up_to(2e-5), up_to(0.02), up_to(0.002), up_to(0.002), up_to(2e-5)
    )


def wrinkled(tables: StepTables, bumps: list[float]) -> StepTables:
    """The same tables with unequal steps up, so that they are neither convex nor concave."""
    rises = np.cumsum([bumps[i % len(bumps)] for i in range(len(tables.decode_base))])
    base = (np.array(tables.decode_base) + rises).tolist()
    return replace(tables, decode_base=base)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_engine_run_beats_the_bound(data: st.DataObject) -> None:
    """Any calls, in any order, in any sessions on unlike workers, with preemption and shared prompts."""
    draw = data.draw
    n_experts, n_workers, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 30))
    policy, caching = draw(st.sampled_from(["v0", "v1"])), draw(st.booleans())
    seqs = draw(st.integers(1, 8))
    devices = [
        (draw(latencies()), draw(st.integers(10, 80)), draw(st.sampled_from([0.0, 0.1, 2.0])))
        for _ in range(draw(st.integers(1, n_workers)))
    ]
    bumps = draw(st.lists(st.floats(0, 0.003), min_size=1, max_size=4))
    compiled = [wrinkled(latency.compile(seqs, 600, HostOverhead()), bumps) for latency, _, _ in devices]
    configs = [
        EngineConfig(policy, seqs, max(seqs, 40), 4, blocks, prefix_caching=caching)
        for _, blocks, _ in devices
    ]
    bound_by = [
        EngineLimits(tables, load_s, 4 * blocks, seqs, policy == "v1", caching, 4)
        for tables, (_, blocks, load_s) in zip(compiled, devices, strict=True)
    ]
    expert = [draw(st.integers(0, n_experts - 1)) for _ in range(n)]
    question = [draw(st.integers(0, 8)) for _ in range(n)]
    output = np.array([draw(st.integers(1, 28)) for _ in range(n)])
    calls = table(expert, [1 + q for q in question], question)

    finish = [0.0] * n_workers
    sessions: dict[tuple[int, int], list[int]] = {}
    for i in range(n):
        sessions.setdefault((draw(st.integers(0, n_workers - 1)), expert[i]), []).append(i)
    for (worker, _), ids in sessions.items():
        kind = worker % len(devices)
        engine = Engine(configs[kind], compiled[kind])
        groups = [question[i] for i in ids]
        engine.add(calls.prompt_tokens[ids].tolist(), output[ids].tolist(), groups)
        engine.advance()
        finish[worker] += devices[kind][2] + max(engine.finish)

    engines = [[bound_by[w % len(devices)] for w in range(n_workers)] for _ in range(n_experts)]
    bound = expert_stage_lower_bound(calls, output, engines, prefix_caching=caching)
    for part in (bound.work_s, bound.expert_s, bound.longest_call_s, bound.loads_s, bound.packing_s):
        assert part <= max(finish) * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(
    n_workers=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 200), min_size=3, max_size=24),
    alike=st.booleans(),
    blocks=st.sampled_from([60, 150, 300, 1000, 3000]),
    base=st.sampled_from([1.0, 0.025, 0.005]),
    context=st.sampled_from([1e-3, 1e-4, 1e-5]),
    prefill_base=st.sampled_from([0.0, 0.5]),
    mixes=st.booleans(),
    data=st.data(),
)
def test_no_run_beats_the_bound_with_caches_that_fill(
    n_workers: int,
    lengths: list[int],
    alike: bool,
    blocks: int,
    base: float,
    context: float,
    prefill_base: float,
    mixes: bool,
    data: st.DataObject,
) -> None:
    """Few or many calls in caches that they fill, overfill or hardly touch, on workers alike."""
    seqs = 24
    tables = TwoRegimeLatency(base, 0.0, context, prefill_base, 0.0, 1e-3, context).compile(
        seqs, 600, HostOverhead()
    )
    config = EngineConfig("v1" if mixes else "v0", seqs, 600, 4, blocks, prefix_caching=False)
    if alike:
        lengths = [max(lengths)] * (len(lengths) // n_workers * n_workers)
    prompt, output = [1 if alike else 1 + 3 * (i % 5) for i in range(len(lengths))], np.array(lengths)
    spread = data.draw(st.booleans()) or alike
    host = np.array(
        [i % n_workers if spread else data.draw(st.integers(0, n_workers - 1)) for i in range(len(lengths))]
    )
    finish = 0.0
    for worker in np.unique(host):
        own = np.flatnonzero(host == worker)
        engine = Engine(config, tables)
        engine.add([prompt[i] for i in own], output[own].tolist())
        engine.advance()
        finish = max(finish, engine.clock)
    limit = EngineLimits(tables, 0.0, 4 * blocks, seqs, mixes)
    calls = table([0] * len(lengths), prompt)
    assert expert_stage_lower_bound(calls, output, [[limit] * n_workers]).seconds <= finish * (1 + 1e-9)


def test_a_cache_that_fills_from_empty_costs_steps() -> None:
    """20 calls need 50 steps until they fill 1,000 tokens: 24.5 full steps are lost, of which 24 are charged."""
    tables = TwoRegimeLatency(1.0, 0.0, 0.0, 1.0, 0.0, 10.0, 0.0).compile(64, 64, HostOverhead())
    limit = EngineLimits(tables, 0.0, 1000, 64, mixes_prefill=False)
    prompt, output = np.zeros(20), np.full(20, 301.0)
    calls = ExpertCalls(prompt, output, np.ones(20, np.bool_))
    attended = 20 * 300 * 301 / 2
    assert call_work_s(calls, limit).sum() == pytest.approx(attended / 1000)
    lost = (1000 - 20) ** 2 / (2 * 20 * 1000)
    assert lost < 24.5
    room_s = attended / 1000
    assert filling_work_s(calls, limit, room_s) == pytest.approx(room_s + lost, rel=1e-6)
    # a cache that these calls cannot fill in a room it could serve them in: nothing is known
    assert filling_work_s(calls, replace(limit, kv_capacity_tokens=20_000), attended / 20_000) == 0


def test_tokens_that_come_out_of_recomputation_are_not_charged_as_decodes() -> None:
    """Where prefill is free, a preempted call gets tokens for nothing."""
    free_prefill = TwoRegimeLatency(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0).compile(2, 100, HostOverhead())
    engine = Engine(EngineConfig("v0", 2, 100, 1, 20), free_prefill)
    engine.add([10, 2], [8, 9])
    engine.advance()
    assert engine.stats.preemptions
    assert engine.clock < 7 + 8
    limit = EngineLimits(free_prefill, 0.0, 20, 2, mixes_prefill=False)
    bound = expert_stage_lower_bound(table([0, 0], [10, 2]), np.array([8, 9]), [[limit]])
    assert bound.seconds <= engine.clock


def test_a_decode_beside_prefill_may_be_cheaper_than_alone() -> None:
    """Every token of the long call comes out of a step that prefills one token of the long prompt."""
    tables = TwoRegimeLatency(1.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.0).compile(2, 2, HostOverhead())
    engine = Engine(EngineConfig("v1", 2, 2, 1, 100), tables)
    engine.add([1, 40], [20, 1])
    engine.advance()
    assert engine.clock == pytest.approx(41 * 0.01)
    limit = EngineLimits(tables, 0.0, 100, 2, mixes_prefill=True)
    bound = expert_stage_lower_bound(table([0, 0], [1, 40]), np.array([20, 1]), [[limit]]).seconds
    assert bound == pytest.approx(engine.clock)


def test_a_saturated_engine_comes_close_to_the_bound() -> None:
    """The bound is not only valid: a long session of equal calls runs within 5 % of it."""
    n, limit = 4096, limits(load_s=0.0, mixes=False)
    calls, output = table([0] * n, [200] * n), np.full(n, 300)
    engine = Engine(EngineConfig("v0", 256, 4096, 16, 25_000), limit.tables)
    engine.add(calls.prompt_tokens.tolist(), output.tolist())
    engine.advance()
    bound = expert_stage_lower_bound(calls, output, [[limit]]).seconds
    assert bound <= engine.clock <= 1.05 * bound
