"""The assignment bound: no engine beats it, and it is tight where the model says all there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import HingeLatency, HostOverhead, StepTables, TwoRegimeLatency
from mosaicsim.schedulers.assignment_bound import assignment_bound
from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.workload.calls import CallTable, Floats, Ints


def table(expert: list[int], prompt: list[int]) -> CallTable:
    n = len(expert)
    return CallTable(np.arange(n), np.array(expert), np.zeros(n, np.int64), np.array(prompt))


def limits(tables: StepTables, load_s: float, blocks: int, seqs: int, size: int = 4) -> EngineLimits:
    return EngineLimits(tables, load_s, size * blocks, seqs, mixes_prefill=False, block_size=size)


@st.composite
def step_tables(draw: st.DrawFn, seqs: int) -> StepTables:
    """Steps dear or cheap beside tokens, recomputed tokens dear, cheap or free, a floor under the arithmetic."""

    def one_of(*values: float) -> float:
        return draw(st.sampled_from(values))

    host = HostOverhead(one_of(0.0, 0.01), one_of(0.0, 0.001))
    if draw(st.booleans()):
        hinge = HingeLatency(
            one_of(0.02, 1.0), 0.01, one_of(0.001, 0.1), 0.001, one_of(0.0, 1e-4), one_of(0.0, 1e-5)
        )
        return hinge.compile(seqs, 300, host)
    return TwoRegimeLatency(
        one_of(0.0, 0.02, 1.0),
        one_of(0.0, 0.002, 1.0),
        one_of(0.0, 1e-5, 1e-3),
        one_of(0.0, 0.02, 0.5),
        0.0,
        one_of(0.0, 1e-4, 0.01),
        1e-5,
    ).compile(seqs, 300, host)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_engine_run_beats_the_bound(data: st.DataObject) -> None:
    """Any calls in any order and sessions, arriving at any time, in caches ample or starved, on workers alike."""
    draw = data.draw
    n_experts, n_workers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n, longest = draw(st.integers(1, 40)), draw(st.sampled_from([3, 28, 90]))
    seqs = draw(st.integers(1, 12))
    engines = []
    for _ in range(n_experts):
        blocks = draw(st.sampled_from([31, 40, 80, 300]))
        engines.append(limits(draw(step_tables(seqs)), draw(st.sampled_from([0.0, 0.1, 5.0])), blocks, seqs))
    expert = np.array([draw(st.integers(0, n_experts - 1)) for _ in range(n)])
    output = np.array([draw(st.integers(1, longest)) for _ in range(n)])
    prompt = np.array([draw(st.integers(1, 30)) for _ in range(n)])
    worker = np.array([draw(st.integers(0, n_workers - 1)) for _ in range(n)])
    orders = draw(st.sampled_from(["as they come", "longest first", "shortest first"]))

    finish = [0.0] * n_workers
    for w in range(n_workers):
        for m in np.unique(expert[worker == w]).tolist():
            ids = np.flatnonzero((worker == w) & (expert == m))
            if orders != "as they come":
                ids = ids[np.argsort(output[ids] * (-1 if orders == "longest first" else 1), kind="stable")]
            limit = engines[m]
            config = EngineConfig("v0", seqs, 40, 4, limit.kv_capacity_tokens // 4)
            engine = Engine(config, limit.tables)
            arrive = np.sort([draw(st.sampled_from([0.0, 0.0, 0.3])) for _ in ids]).tolist()
            engine.add(prompt[ids].tolist(), output[ids].tolist(), arrive=arrive)
            engine.advance()
            finish[w] += limit.load_s + max(engine.finish)
    calls, rows = table(expert.tolist(), prompt.tolist()), [[limit] * n_workers for limit in engines]
    assert assignment_bound(calls, output, rows, node_limit=50) <= max(finish) * (1 + 1e-9)
