"""The latency forms: what they compile to, and that a span in closed form is the sum of its steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.hardware.latency import (
    HingeLatency,
    HostOverhead,
    OperatorLatency,
    ScalableLatency,
    TabulatedLatency,
    TwoRegimeLatency,
)

NO_HOST = HostOverhead()

seconds = st.floats(0, 0.05, allow_nan=False)
tiny = st.floats(0, 1e-6, allow_nan=False)

two_regimes = st.builds(TwoRegimeLatency, seconds, seconds, tiny, seconds, seconds, seconds, tiny)
hinges = st.builds(HingeLatency, seconds, seconds, seconds, seconds, tiny, tiny)
tables = st.builds(
    lambda gaps, decode, mixed, prefill, context: TabulatedLatency(
        batch=tuple(float(b) for b in np.cumsum(gaps)),
        decode_s=tuple(decode),
        mixed_s=tuple(mixed),
        prefill_tokens=(0.0, 100.0, 200.0),
        prefill_s=tuple(prefill),
        decode_per_context_token_s=context,
        mixed_per_context_token_s=context,
    ),
    st.lists(st.integers(1, 60), min_size=3, max_size=3),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    tiny,
)
operators = st.builds(
    lambda gaps, decode, mixed, tokens, context, pair: OperatorLatency(
        batch=tuple(float(b) for b in np.cumsum(gaps)),
        decode_s=tuple(decode),
        mixed_s=tuple(mixed),
        tokens=(1.0, 40.0, 100.0),
        tokens_s=tuple(tokens),
        decode_per_context_token_s=context,
        mixed_per_context_token_s=context,
        mixed_per_pair_s=pair,
    ),
    st.lists(st.integers(1, 60), min_size=3, max_size=3),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    st.lists(seconds, min_size=3, max_size=3).map(sorted),
    tiny,
    tiny,
)
any_form = st.one_of(two_regimes, hinges, tables, operators)


@given(any_form, st.integers(1, 64), st.integers(0, 200_000), st.integers(0, 50))
def test_span_is_the_sum_of_its_steps(form: ScalableLatency, batch: int, context: int, steps: int) -> None:
    compiled = form.compile(64, 8, HostOverhead(1e-3, 1e-5))
    stepwise = math.fsum(compiled.decode_s(batch, context + batch * i) for i in range(steps))
    assert compiled.decode_span_s(batch, context, steps) == pytest.approx(stepwise, rel=1e-12, abs=1e-15)


@given(any_form, st.integers(0, 64), st.integers(0, 8), st.integers(0, 10_000))
def test_host_time_is_added_once_to_every_step(
    form: ScalableLatency, batch: int, prefill: int, context: int
) -> None:
    bare, hosted = form.compile(64, 8, NO_HOST), form.compile(64, 8, HostOverhead(0.01, 0.0001))
    host_s = 0.01 + 0.0001 * batch
    assert hosted.decode_s(batch, context) == pytest.approx(bare.decode_s(batch, context) + host_s)
    assert hosted.mixed_s(batch, prefill, context) == pytest.approx(
        bare.mixed_s(batch, prefill, context) + host_s
    )


@given(any_form, st.integers(1, 64), st.integers(0, 8), st.integers(0, 100_000))
def test_scaling_every_part_alike_scales_the_step(
    form: ScalableLatency, batch: int, prefill: int, context: int
) -> None:
    once = form.compile(64, 8, NO_HOST)
    thrice = form.scaled(decode=3, prefill=3, context=3).compile(64, 8, NO_HOST)
    assert thrice.decode_s(batch, context) == pytest.approx(3 * once.decode_s(batch, context))
    assert thrice.mixed_s(batch, prefill, context) == pytest.approx(3 * once.mixed_s(batch, prefill, context))


def test_scaling_context_leaves_a_step_without_context_alone() -> None:
    line = TwoRegimeLatency(1, 2, 3, 4, 5, 6, 7)
    scaled = line.scaled(decode=1, prefill=1, context=10)
    assert scaled == TwoRegimeLatency(1, 2, 30, 4, 5, 6, 70)
    assert line.scaled(decode=2, prefill=1, context=1) == TwoRegimeLatency(2, 4, 3, 4, 5, 6, 7)
    assert line.scaled(decode=1, prefill=2, context=1) == TwoRegimeLatency(1, 2, 3, 8, 10, 12, 7)


LLAMA_A100 = HingeLatency(11.527e-3, 9.0086e-3, 0.047543e-3, 0.00255e-3, 8.2349e-8, 4.5207e-9)


def hinge_s(form: HingeLatency, batch: int, prefill: int, context: int) -> float:
    """The form as its docstring states it."""
    matrices = max(form.floor_s, form.base_s + form.per_token_s * (batch + prefill))
    return (
        matrices
        + form.per_sequence_s * batch
        + form.per_context_token_s * context
        + form.per_prefill_token_squared_s * prefill**2
    )


@pytest.mark.parametrize("batch", [1, 52, 53, 256])
def test_hinge_decode_is_exact_on_both_sides_of_the_floor(batch: int) -> None:
    compiled = LLAMA_A100.compile(256, 0, NO_HOST)
    assert compiled.decode_s(batch, 5000) == pytest.approx(hinge_s(LLAMA_A100, batch, 0, 5000), rel=1e-12)


@given(st.integers(0, 256), st.integers(1, 2048))
def test_hinge_prefill_is_exact_on_both_sides_of_the_floor(batch: int, prefill: int) -> None:
    compiled = LLAMA_A100.compile(256, 2048, NO_HOST).mixed_s(batch, prefill, 1000)
    assert compiled == pytest.approx(hinge_s(LLAMA_A100, batch, prefill, 1000), rel=1e-12)


def test_hinge_agrees_with_the_decode_line_fitted_to_the_same_grid() -> None:
    """Composed A100 line of Llama-3.1-8B (aiconfigurator, Apache-2.0): 11.169 + 0.033233 B + 7.9794e-5 C ms.

    Holds only with B inside the maximum: with P alone a step of 256 sequences would be 7 ms too short.
    """
    compiled = LLAMA_A100.compile(256, 0, NO_HOST)
    for batch in (1, 16, 64, 128, 256):
        line_s = (11.169 + 0.033233 * batch + 7.9794e-5 * batch * 1024) * 1e-3
        assert compiled.decode_s(batch, batch * 1024) == pytest.approx(line_s, rel=0.08)


MEASURED = TabulatedLatency(
    batch=(1, 16, 64),
    decode_s=(0.002, 0.005, 0.006),
    mixed_s=(0.001, 0.002, 0.005),
    prefill_tokens=(0, 100, 300),
    prefill_s=(0.0, 0.01, 0.02),
    decode_per_context_token_s=1e-7,
    mixed_per_context_token_s=2e-7,
)


def test_tabulated_goes_through_its_points_and_straight_between_and_beyond() -> None:
    compiled = MEASURED.compile(112, 400, NO_HOST)
    assert [compiled.decode_base[b] for b in (0, 1, 16, 64)] == pytest.approx([0.002, 0.002, 0.005, 0.006])
    assert compiled.decode_base[40] == pytest.approx(0.0055)
    assert compiled.decode_base[112] == pytest.approx(0.007)
    assert [compiled.prefill[p] for p in (0, 50, 100, 200, 400)] == pytest.approx(
        [0.0, 0.005, 0.01, 0.015, 0.025]
    )
    assert compiled.mixed_s(16, 100, 1000) == pytest.approx(0.002 + 0.01 + 2e-4)


SUMMED = OperatorLatency(
    batch=(1, 64),
    decode_s=(0.016, 0.018),
    mixed_s=(0.001, 0.002),
    tokens=(1, 256, 2048),
    tokens_s=(0.015, 0.02, 0.18),
    decode_per_context_token_s=1e-7,
    mixed_per_context_token_s=3e-7,
    mixed_per_pair_s=4e-9,
)


def test_operators_count_the_tokens_of_decode_and_prefill_together() -> None:
    """What is prefilled beside decodes rides on weights that stream anyway, up to the knee."""
    compiled = SUMMED.compile(64, 2048, NO_HOST)
    assert compiled.decode_s(64, 1000) == pytest.approx(0.018 + 1e-4)
    assert compiled.mixed_s(64, 192, 1000) == pytest.approx(0.002 + 0.02 + 3e-4)
    assert compiled.mixed_s(64, 2048, 0) == pytest.approx(0.002 + 0.18 + 64 * 0.16 / 1792)


def test_attention_of_prefilled_tokens_is_paid_by_the_pair() -> None:
    compiled = SUMMED.compile(64, 2048, NO_HOST)
    alone = compiled.mixed_s(0, 2048, 0)
    assert compiled.mixed_s(0, 2048, 4096, 2048 * (4096 + 1024)) - alone == pytest.approx(
        4096 * 3e-7 + 2048 * 5120 * 4e-9
    )


@given(any_form, st.integers(1, 128), st.integers(0, 512))
def test_tables_are_as_long_as_the_engine_is_large(
    form: ScalableLatency, sequences: int, prefill: int
) -> None:
    compiled = form.compile(sequences, prefill, NO_HOST)
    assert len(compiled.decode_base) == len(compiled.mixed_base) == sequences + 1
    assert len(compiled.prefill) == prefill + 1
    assert len(compiled.tokens) == sequences + prefill + 1
