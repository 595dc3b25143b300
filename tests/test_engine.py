"""The fast engine against the stepwise one, and against formulas."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveEngine, Sequence

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import (
    HostOverhead,
    LatencyModel,
    OperatorLatency,
    StepTables,
    TwoRegimeLatency,
)

# no two sums of these coincide, so no decision hangs on the last bit of a float
LATENCIES = (
    TwoRegimeLatency(
        0.01123456789, 0.0000331415926, 7.9794293e-8, 0.00825468, 0.00005005577, 0.0000540106247, 8.2135296e-8
    ),
    OperatorLatency(
        batch=(1, 5, 9),
        decode_s=(0.01123456789, 0.0121314151, 0.01282930313),
        mixed_s=(0.00123456789, 0.00131313179, 0.00146146191),
        tokens=(1, 20, 60),
        tokens_s=(0.01011121314, 0.01191817161, 0.0192837465),
        decode_per_context_token_s=7.9794293e-8,
        mixed_per_context_token_s=1.22135296e-7,
        mixed_per_pair_s=3.1415926e-7,
    ),
)


def tables_for(config: EngineConfig, latency: LatencyModel) -> StepTables:
    return latency.compile(config.max_num_seqs, 4096, HostOverhead(0.00101, 0.0000123))


@st.composite
def engine_configs(draw: st.DrawFn) -> EngineConfig:
    max_num_seqs = draw(st.integers(1, 8))
    return EngineConfig(
        policy=draw(st.sampled_from(["v0", "v1"])),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, 60)),
        block_size=draw(st.sampled_from([1, 2, 4, 16])),
        num_gpu_blocks=draw(st.integers(20, 160)),
        watermark_blocks=draw(st.integers(0, 3)),
        prefix_caching=draw(st.booleans()),
    )


@st.composite
def workloads(draw: st.DrawFn) -> tuple[EngineConfig, list[Sequence], dict[int, float]]:
    config = draw(engine_configs())
    capacity = config.num_gpu_blocks * config.block_size
    online = draw(st.booleans())
    prompts: dict[int, int] = {}
    sequences = []
    for row in range(draw(st.integers(1, 24))):
        group = draw(st.integers(-1, 5))
        prompt = draw(st.integers(1, max(1, min(70, capacity // 2))))
        if group >= 0:
            prompt = prompts.setdefault(group, prompt)
        output = draw(st.integers(1, max(1, min(90, capacity - prompt))))
        arrive = draw(st.integers(0, 200)) * 0.0137 if online else 0.0
        begun = draw(st.integers(1, output - 1)) if output > 1 and draw(st.integers(0, 3)) == 3 else 0
        sequences.append(Sequence(row, prompt, output, group, arrive, generated=begun))
    sequences.sort(key=lambda s: s.arrive)
    for row, sequence in enumerate(sequences):
        sequence.row = row
    rows = st.integers(0, len(sequences) - 1)
    moments = st.integers(0, 200).map(lambda i: 0.000713 + i * 0.0171)  # never that of an arrival
    cancels = draw(st.dictionaries(rows, moments, max_size=5))
    return config, sequences, cancels


def load(engine: Engine, sequences: list[Sequence]) -> None:
    engine.add(
        [s.prompt for s in sequences],
        [s.output for s in sequences],
        [s.group for s in sequences],
        [s.arrive for s in sequences],
        generated=[s.generated for s in sequences],
    )


def drive(engine: Engine, cancels: dict[int, float]) -> None:
    """Advance to each cancel in turn, then to the end; a reactive engine stops more often on the way."""
    for moment, row in sorted((moment, row) for row, moment in cancels.items()):
        while engine.advance(moment) <= moment:
            engine.finished.clear()
        engine.cancel(row)
    while engine.advance() < inf:
        engine.finished.clear()


@settings(max_examples=400, deadline=None)
@given(workloads(), st.sampled_from(LATENCIES), st.booleans())
def test_equals_the_stepwise_engine(
    case: tuple[EngineConfig, list[Sequence], dict[int, float]], latency: LatencyModel, reactive: bool
) -> None:
    config, sequences, cancels = case
    engine = Engine(config, tables_for(config, latency), reactive=reactive)
    load(engine, sequences)
    drive(engine, cancels)
    naive = NaiveEngine(config, tables_for(config, latency))
    naive.run(sequences, cancels)

    assert naive.most_blocks <= config.num_gpu_blocks
    assert naive.most_running <= config.max_num_seqs
    assert engine.cancelled == {s.row for s in sequences if s.cancelled}
    for s in sequences:
        assert engine.preempted[s.row] == s.preempted
        assert engine.tokens_generated(s.row) == s.generated
        for column, expected in (
            (engine.start, s.start),
            (engine.first_token, s.first_token),
            (engine.finish, s.finish),
        ):
            assert column[s.row] == pytest.approx(expected, rel=1e-9, abs=0)


@settings(max_examples=100, deadline=None)
@given(workloads(), st.sampled_from(LATENCIES), st.data())
def test_calls_taken_out_leave_the_others_as_if_they_were_cancelled(
    case: tuple[EngineConfig, list[Sequence], dict[int, float]], latency: LatencyModel, data: st.DataObject
) -> None:
    """And have what a cancelled call had generated, be they waiting, running or ended with the iteration."""
    config, sequences, leaves = case
    again = [Sequence(s.row, s.prompt, s.output, s.group, s.arrive, generated=s.generated) for s in sequences]
    engine = Engine(config, tables_for(config, latency), reactive=data.draw(st.booleans()))
    load(engine, sequences)
    taken = []
    for moment, row in sorted((moment, row) for row, moment in leaves.items()):
        while engine.advance(moment) <= moment:
            engine.finished.clear()
        taken += [row] if engine.withdraw(row, started=True) else []
        assert not engine.withdraw(row, started=True), "it is on its way already, or has ended"
    while engine.advance() < inf:
        engine.finished.clear()
    naive = NaiveEngine(config, tables_for(config, latency))
    naive.run(again, leaves)
    assert not engine.cancelled
    assert engine.withdrawn == {s.row for s in again if s.cancelled}
    assert engine.withdrawn <= set(taken)
    for s in again:
        assert engine.tokens_generated(s.row) == s.generated
        assert engine.finish[s.row] == pytest.approx(s.finish, rel=1e-9, abs=0)
