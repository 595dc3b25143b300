"""Profiling without an engine: which points, the fit and its held-out error, the file, the error lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.cli.profile import profile
from mosaicsim.errors import MosaicsimError, OutputError, ProfileError
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.latency import HostOverhead, StepTables, TwoRegimeLatency
from mosaicsim.hardware.profile_file import write_profile_file
from mosaicsim.profiling.design import LEAST_POINTS, Limits, Point, Speed, design, passes
from mosaicsim.profiling.document import architecture_of, profile_document, profile_text
from mosaicsim.profiling.fit import best_fit, fit_host, fit_operators, fit_two_regime, held_out_error
from mosaicsim.profiling.launch import Measurements
from mosaicsim.profiling.samples import StepSample, medians, spread_pct

LIMITS = Limits(max_num_seqs=32, max_num_batched_tokens=2048, max_model_len=4096, kv_capacity_tokens=60_000)
SPEED = Speed(step_s=0.05, token_s=0.002)
LINE = TwoRegimeLatency(0.05, 0.001, 5e-6, 0.03, 0.002, 0.0022, 8e-6)
HOST = HostOverhead(0.0005, 0.00004)


def composed(points: list[Point], tables: StepTables, pair_s: float = 0.0) -> list[StepSample]:
    """What an engine of these step times would have measured at the points: no noise."""
    samples = []
    for index, point in enumerate(points):
        contexts = [point.batch * (point.prompt_tokens + 1 + step) for step in range(point.steps + 1)]
        held = [(0, context, 0.0) for context in contexts[:-1]]
        held += [(sum(p), contexts[-1], sum(n * n / 2 for n in p)) for p in point.prefills]
        for tokens, context, pairs in held:
            if tokens:
                model_s = tables.mixed_s(point.batch, tokens, context, pairs) + pair_s * pairs
            else:
                model_s = tables.decode_s(point.batch, context)
            host_s = HOST.base_s + HOST.per_sequence_s * point.batch
            seconds = model_s + host_s
            samples.append(
                StepSample(index, point.held_out, point.batch, tokens, context, pairs, seconds, host_s)
            )
    return samples


def measured(samples: list[StepSample]) -> Measurements:
    return Measurements(
        resolved={
            "vllm": "0.32.0", "model": "/some/where/toy", "dtype": "float32", "max_model_len": 4096, "num_gpu_blocks": 101,
            "block_size": 16, "max_num_seqs": 32, "max_num_batched_tokens": 2048, "async_scheduling": False,
            "tensor_parallel_size": 1, "device": "cpu",
        },
        shape={
            "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512,
        },
        samples=samples, process_start_s=12.0, load_s=4.0, unload_s=0.5,
    )  # fmt: skip


tables_of = st.builds(
    TwoRegimeLatency,
    st.floats(0.01, 0.1),
    st.floats(1e-4, 0.01),
    st.floats(1e-6, 1e-4),
    st.floats(0.01, 0.1),
    st.floats(1e-4, 0.01),
    st.floats(1e-4, 0.01),
    st.floats(1e-6, 1e-4),
)


@settings(max_examples=20, deadline=None)
@given(tables_of)
def test_two_lines_are_recovered_from_what_they_generate(line: TwoRegimeLatency) -> None:
    samples = composed(design(LIMITS, SPEED, 500), line.compile(32, 4096, HostOverhead()))
    found = fit_two_regime([s for s in medians(samples) if not s.held_out])
    for name in line.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(line, name), rel=0.01), name
    assert held_out_error(found, [s for s in samples if s.held_out]).pct < 0.1


def test_operators_see_the_attention_of_long_prompts_and_are_then_chosen() -> None:
    samples = composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead()), pair_s=1e-6)
    found = fit_operators([s for s in medians(samples) if not s.held_out])
    assert found.mixed_per_pair_s == pytest.approx(1e-6, rel=0.05)
    latency, errors = best_fit(samples)
    assert type(latency).__name__ == "OperatorLatency"
    assert errors["operators"].mixed_pct < 1.5 < errors["two_regime"].mixed_pct


def test_two_lines_are_chosen_where_tables_tell_no_more() -> None:
    latency, errors = best_fit(composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead())))
    assert isinstance(latency, TwoRegimeLatency)
    assert errors["two_regime"].decodes >= 4
    assert errors["two_regime"].mixed >= 4


def test_held_out_steps_are_not_fitted_and_are_all_the_error_is_of() -> None:
    samples = composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead()))
    slow = [replace(s, seconds=2 * s.seconds - s.host_s) if s.held_out else s for s in samples]
    latency, errors = best_fit(slow)
    assert latency == best_fit(samples)[0]
    assert errors["two_regime"].pct == pytest.approx(50, abs=0.5)


def test_a_disturbed_repeat_is_not_seen_by_the_fit_and_seen_by_the_spread() -> None:
    samples = composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead()))
    noisy = [*samples, *samples, *(replace(s, seconds=5 * s.seconds) for s in samples)]
    found = best_fit(noisy)[0]
    assert isinstance(found, TwoRegimeLatency)
    assert found.mixed_per_prefill_token_s == pytest.approx(LINE.mixed_per_prefill_token_s, rel=0.01)
    assert spread_pct(samples) < 1 < spread_pct(noisy)


def test_host_time_is_a_line_in_the_batch() -> None:
    host = fit_host(composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead())))
    assert host.base_s == pytest.approx(HOST.base_s)
    assert host.per_sequence_s == pytest.approx(HOST.per_sequence_s)


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(MosaicsimError, match="1 decode-only steps and 0 with prefill are too few to fit"):
        profile_document(
            measured([StepSample(0, False, 1, 0, 17, 0.0, 0.01, 0.0)]), "toy", "core", {}, new_device=True
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.floats(1e-4, 1.0), st.floats(1e-6, 0.05))
def test_the_slowest_and_the_smallest_engine_can_be_fitted(seats: int, step_s: float, token_s: float) -> None:
    limits = Limits(seats, 512, 256, 4096)
    latency, errors = best_fit(
        composed(design(limits, Speed(step_s, token_s), 15), LINE.compile(64, 4096, HostOverhead()))
    )
    assert errors["two_regime"].decodes >= 1
    assert errors["two_regime"].mixed >= 2
    assert latency.compile(seats, 64, HostOverhead()).decode_s(1, 20) == pytest.approx(0.0511, rel=0.01)


limits_of = st.builds(
    lambda seqs, extra, length, blocks: Limits(seqs, seqs + extra, length, blocks * 16),
    st.integers(1, 300),
    st.integers(1, 8192),
    st.integers(32, 8192),
    st.integers(8, 20_000),
)


@settings(max_examples=60, deadline=None)
@given(limits_of, st.floats(0.001, 0.1), st.floats(1e-5, 0.01), st.sampled_from([15.0, 120.0]))
def test_every_point_fits_the_engine_and_all_of_them_the_time(
    limits: Limits, step_s: float, token_s: float, budget_s: float
) -> None:
    speed = Speed(step_s, token_s)
    points = design(limits, speed, budget_s)
    for p in points:
        last = max((len(prompts) for prompts in p.prefills), default=0)
        assert p.batch + last <= limits.max_num_seqs
        assert p.batch * (p.prompt_tokens + p.output_tokens(limits)) <= limits.kv_capacity_tokens
        assert all(n + 1 <= limits.max_model_len for prompts in p.prefills for n in prompts)
    if len(points) > LEAST_POINTS:
        assert max(map(speed.seconds, points)) <= budget_s / 5
        assert sum(map(speed.seconds, points)) <= budget_s
    if points:
        assert passes(points, speed, budget_s) in (1, 2, 3)


def test_file_gives_back_what_was_measured(tmp_path: Path) -> None:
    samples = composed(design(LIMITS, SPEED, 500), LINE.compile(32, 4096, HostOverhead()), pair_s=1e-6)
    document = profile_document(measured(samples), "toy", "core", {"load_format": "dummy"}, new_device=True)
    path = tmp_path / "toy.yaml"
    write_profile_file(path, profile_text(document, "No errors."))
    assert "/some/where" not in path.read_text()
    found = load_catalog(files=[path]).profile("toy", "core")
    tables = found.latency.compile(32, 2048, HostOverhead())
    expected = best_fit(samples)[0].compile(32, 2048, HostOverhead())
    assert tables.decode_s(8, 1000) == pytest.approx(expected.decode_s(8, 1000), rel=1e-4)
    assert tables.mixed_s(8, 500, 1000, 9000) == pytest.approx(expected.mixed_s(8, 500, 1000, 9000), rel=1e-4)
    assert found.host is not None
    assert found.host.base_s == pytest.approx(HOST.base_s, rel=1e-4)
    assert (found.load_s, found.unload_s, found.wake_s) == (4.0, 0.5, 4.0)
    assert found.kv_capacity_tokens == 1600
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert all(source.split(":")[0] in ("measured", "derived") for source in found.sources.values())


def test_architecture_names_the_key_that_is_missing() -> None:
    with pytest.raises(ProfileError, match=r"config\.json has no 'num_attention_heads'"):
        architecture_of({"hidden_size": 8}, "float32")
    mixture = architecture_of(
        {
            "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 999, "moe_intermediate_size": 32, "num_experts": 8,
            "num_experts_per_tok": 2, "num_attention_heads": 4, "vocab_size": 100, "tie_word_embeddings": True,
        },
        "bfloat16",
    )  # fmt: skip
    assert mixture["feed_forwards_per_token"] == 2
    assert mixture["intermediate_size"] == 32
    assert "bytes_per_parameter" not in mixture


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(profile, ["--device", "core", "--on", "cpu", *arguments])
    assert isinstance(result.exception, MosaicsimError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_what_cannot_be_measured_is_said_before_anything_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = str(model)
    assert "missing: no such folder; accepted" in refused("--model", str(tmp_path / "missing"))
    assert "no config.json in this folder" in refused("--model", str(tmp_path))
    assert "expected KEY=VALUE" in refused("--model", here, "--engine", "max_num_seqs")
    assert "'model' is set by the measurement" in refused("--model", here, "--engine", "model=x")
    assert "--name: 'a b' is no name" in refused("--model", here, "--name", "a b")
    assert "--device: '' is no name" in refused("--model", here, "--device", "")
    assert "no NVIDIA GPU is visible here" in refused("--model", here, "--on", "cuda")
    assert "10000 engines, each on a core of its own" in refused("--model", here, "--concurrent", "10000")
    kv = refused("--model", here, "--engine", "kv_cache_memory_bytes=1e15")
    assert "kv_cache_memory_bytes=1,000,000,000,000,000" in kv
    assert "free memory" in kv


def test_model_and_device_are_both_needed() -> None:
    result = CliRunner().invoke(profile, ["--model", "x"])
    assert result.exit_code == 2
    assert "--model and --device" in result.output


def test_output_is_checked_before_measuring(tmp_path: Path) -> None:
    from mosaicsim.hardware.profile_file import check_profile_output

    with pytest.raises(OutputError, match="no folder"):
        check_profile_output(tmp_path / "none" / "x.yaml")
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not a \.yaml file"):
        check_profile_output(tmp_path / "x.txt")
