"""The catalog: sources, memory, derivation and tensor-parallel rules, and what it says to bad input."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import yaml

from mosaicsim.errors import ProfileError
from mosaicsim.hardware.catalog import PACKAGE_PROFILES, host_overhead, load_catalog
from mosaicsim.hardware.latency import HingeLatency, HostOverhead, TwoRegimeLatency
from mosaicsim.hardware.profile_file import SOURCE_KINDS

CATALOG = load_catalog()
PAPER_POOL = (
    "gemma-2-9b",
    "r1-distill-qwen-7b",
    "qwen2.5-7b",
    "r1-distill-llama-8b",
    "exaone-3.5-7.8b",
    "glm-4-9b",
)
FIGURES = ("latency", "kv_bytes_per_token", "kv_capacity_tokens", "load_s", "disk_s", "wake_s")


def unsourced_numbers(node: Any, path: str = "") -> list[str]:
    """Paths of numbers in a YAML document that no mapping around them gives a source for."""
    if isinstance(node, dict):
        if "source" in node:
            return [] if str(node["source"]).partition(":")[0] in SOURCE_KINDS else [f"{path}.source"]
        return [found for key, value in node.items() for found in unsourced_numbers(value, f"{path}.{key}")]
    if isinstance(node, list):
        return [found for i, value in enumerate(node) for found in unsourced_numbers(value, f"{path}.{i}")]
    return [path] if isinstance(node, float | int) and not isinstance(node, bool) else []


@pytest.mark.parametrize("path", sorted(PACKAGE_PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_number_shipped_has_a_source(path: Any) -> None:
    document = yaml.safe_load(path.read_text())
    # The tensor-parallel anchor: the point at which the two sourced speed-ups hold.
    document.get("tensor_parallel", {}).pop("reference_tp", None)
    assert unsourced_numbers(document) == []


def test_the_source_check_finds_a_bare_number() -> None:
    document = {"devices": {"x": {"memory_gb": 80, "disk": {"value": 1, "source": "a guess"}}}}
    assert unsourced_numbers(document) == [".devices.x.memory_gb", ".devices.x.disk.source"]


COMPOSED_ALIKE = [
    d for d in CATALOG.devices if isinstance(CATALOG.profile("llama-3.1-8b", d).latency, TwoRegimeLatency)
]
"""Devices whose default timings are two_regime; the RTX 4090 has operator times of one model only."""


@pytest.mark.parametrize(
    ("model", "device"),
    [
        (model, device)
        for model in CATALOG.models
        for device in CATALOG.devices
        if device in COMPOSED_ALIKE or not CATALOG.architecture(model).is_mixture
    ],
)
def test_every_figure_of_every_profile_has_a_source(model: str, device: str) -> None:
    profile = CATALOG.profile(model, device, tp=4)
    assert all(profile.sources[figure].partition(":")[0] in SOURCE_KINDS for figure in FIGURES)
    assert profile.kv_capacity_tokens > 0
    assert profile.load_s > profile.disk_s > 0


KV_BYTES = {
    # 2 x layers x kv_heads x head_dim x 2 bytes, from the models' public config.json.
    "llama-3.1-8b": 2 * 32 * 8 * 128 * 2,
    "qwen2.5-7b": 2 * 28 * 4 * 128 * 2,
    "gemma-2-9b": 2 * 42 * 8 * 256 * 2,
    "glm-4-9b": 2 * 40 * 2 * 128 * 2,
    "exaone-3.5-7.8b": 2 * 32 * 8 * 128 * 2,
    "qwen2.5-14b": 2 * 48 * 8 * 128 * 2,
    "qwen2.5-32b": 2 * 64 * 8 * 128 * 2,
}


@pytest.mark.parametrize(("model", "kv_bytes"), KV_BYTES.items())
def test_kv_bytes_follow_from_the_architecture(model: str, kv_bytes: int) -> None:
    assert CATALOG.profile(model, "a100-80g", tp=1).kv_bytes_per_token == kv_bytes
    assert CATALOG.architecture(model).kv_bytes_per_token() == kv_bytes


BILLIONS = {
    # Parameters as the models' cards state them.
    "llama-3.1-8b": 8.03,
    "qwen2.5-7b": 7.62,
    "gemma-2-9b": 9.24,
    "glm-4-9b": 9.40,
    "exaone-3.5-7.8b": 7.82,
    "mistral-7b": 7.24,
    "qwen1.5-7b": 7.72,
    "phi-3-mini": 3.82,
    "qwen3-8b": 8.19,
    "qwen2.5-14b": 14.77,
    "qwen3-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53,
}


@pytest.mark.parametrize(("model", "billions"), BILLIONS.items())
def test_architectures_count_the_published_parameters(model: str, billions: float) -> None:
    assert CATALOG.architecture(model).parameters / 1e9 == pytest.approx(billions, abs=0.006)


CAPACITIES = [
    # ai-dynamo/aiconfigurator's KV capacities in tokens (Apache-2.0), utilization 0.9, one GPU.
    ("a100-80g", "llama-3.1-8b", 411_529),
    ("a100-80g", "qwen2.5-7b", 955_103),
    ("a100-80g", "mistral-7b", 423_465),
    ("a100-80g", "qwen2.5-14b", 205_798),
    ("a100-80g", "qwen2.5-32b", 17_068),
    ("h100", "llama-3.1-8b", 411_529),
    ("h100", "qwen3-14b", 246_974),
    ("l40s", "llama-3.1-8b", 191_803),
    ("l40s", "qwen2.5-7b", 452_870),
    ("l40s", "qwen2.5-14b", 59_314),
    ("rtx-pro-6000", "llama-3.1-8b", 521_392),
    ("rtx-pro-6000", "qwen2.5-32b", 72_000),
]


@pytest.mark.parametrize(("device", "model", "tokens"), CAPACITIES)
def test_kv_capacity_is_the_composed_one(device: str, model: str, tokens: int) -> None:
    assert CATALOG.profile(model, device).kv_capacity_tokens == pytest.approx(tokens, rel=5e-4)


def test_two_experts_on_one_gpu_hold_less_than_one() -> None:
    whole = CATALOG.profile("llama-3.1-8b", "a100-80g").kv_capacity_tokens
    half = CATALOG.profile("llama-3.1-8b", "a100-80g", memory_share=0.5).kv_capacity_tokens
    assert 0 < 2 * half < whole
    assert CATALOG.profile("llama-3.1-8b", "a100-80g", gpu_memory_utilization=0.8).kv_capacity_tokens < whole


@pytest.mark.parametrize("model", PAPER_POOL)
def test_load_times_are_in_the_papers_range(model: str) -> None:
    assert 38 <= CATALOG.profile(model, "a100-80g").load_s <= 47


def test_load_and_wake_grow_with_the_weights() -> None:
    sizes = ("qwen2.5-7b", "llama-3.1-8b", "glm-4-9b", "qwen2.5-14b", "qwen2.5-32b")
    profiles = [CATALOG.profile(model, "a100-80g") for model in sizes]
    for smaller, larger in pairwise(profiles):
        assert smaller.load_s < larger.load_s
        assert smaller.disk_s < larger.disk_s
        assert smaller.wake_s < larger.wake_s < larger.load_s / 5


def test_h100_reads_weights_as_fast_as_serverlessllm_measured() -> None:
    """ServerlessLLM (Apache-2.0), safetensors on an H100 host: means of 4.44 s (8B) and 19.1 s (32B)."""
    assert CATALOG.profile("llama-3.1-8b", "h100").disk_s == pytest.approx(4.44, rel=0.05)
    assert CATALOG.profile("r1-distill-qwen-32b", "h100").disk_s == pytest.approx(19.1, rel=0.05)


def test_given_load_time_keeps_the_disk_share() -> None:
    own = CATALOG.profile("gemma-2-9b", "a100-80g")
    given = CATALOG.profile("gemma-2-9b", "a100-80g", load_s=20.0)
    assert given.load_s == 20.0
    assert given.disk_s / given.load_s == pytest.approx(own.disk_s / own.load_s)
    assert given.sources["load_s"].startswith("given")


def step_s(latency: Any, batch: int) -> float:
    tables = latency.compile(256, 0, HostOverhead())
    return float(tables.decode_s(batch, batch * 1024))


@pytest.mark.parametrize("device", COMPOSED_ALIKE)
@pytest.mark.parametrize(
    ("model", "within"),
    [("qwen2.5-7b", 0.05), ("mistral-7b", 0.05), ("qwen3-8b", 0.05), ("qwen2.5-14b", 0.11)],
)
def test_derivation_predicts_models_that_have_timings(model: str, within: float, device: str) -> None:
    reference = CATALOG.profile("llama-3.1-8b", device).latency
    ours, theirs = CATALOG.architecture(model), CATALOG.architecture("llama-3.1-8b")
    weights = ours.streamed_bytes / theirs.streamed_bytes
    kv = ours.kv_bytes_per_token() / theirs.kv_bytes_per_token()
    assert isinstance(reference, TwoRegimeLatency)
    derived = reference.scaled(decode=weights, prefill=weights, context=kv)
    own = CATALOG.profile(model, device).latency
    for batch in (1, 64, 256):
        assert step_s(derived, batch) == pytest.approx(step_s(own, batch), rel=within)


def test_derived_models_say_so_and_composed_ones_too() -> None:
    for model in ("gemma-2-9b", "glm-4-9b", "exaone-3.5-7.8b"):
        source = CATALOG.profile(model, "h100").sources["latency"]
        assert source.startswith("derived: llama-3.1-8b x ")
    assert CATALOG.profile("qwen2.5-7b", "h100").sources["latency"].startswith("composed")


def test_a_mixture_streams_what_its_sequences_picked() -> None:
    """Between its 3 billion active weights at one sequence and all 30 billion at many."""
    mixture, dense = (CATALOG.architecture(m) for m in ("qwen3-30b-a3b", "qwen3-8b"))
    assert (mixture.parameters - 30.53e9, mixture.active_parameters - 3.04e9) == pytest.approx(
        (0, 0), abs=6e6
    )
    own, theirs = (
        CATALOG.profile(m, "a100-80g").latency.compile(2048, 4096, HostOverhead())
        for m in ("qwen3-30b-a3b", "qwen3-8b")
    )
    active = mixture.active_parameters / dense.matmul_parameters
    whole = mixture.matmul_parameters / dense.matmul_parameters
    assert own.decode_base[1] / theirs.decode_base[1] == pytest.approx(active)
    assert own.decode_base[64] > 0.9 * whole * theirs.decode_base[0]
    slopes = (
        own.decode_base[2048] - own.decode_base[1500],
        theirs.decode_base[2048] - theirs.decode_base[1500],
    )
    assert slopes[0] / slopes[1] == pytest.approx(active, rel=1e-3)
    # A short prefill takes as long as the weights do, a long one as its arithmetic.
    assert own.mixed_s(0, 1, 0) == own.mixed_s(0, 1000, 0) == pytest.approx(whole * theirs.decode_base[0])
    assert own.mixed_s(0, 4096, 0) / theirs.mixed_s(0, 4096, 0) == pytest.approx(active)
    assert own.decode_context / theirs.decode_context == pytest.approx(98_304 / 147_456)
    assert CATALOG.profile("qwen3-30b-a3b", "h100").sources["latency"].startswith("derived: qwen3-8b by")


def test_a_mixture_follows_from_a_two_regime_timing_only() -> None:
    with pytest.raises(ProfileError, match=r"no 'hinge' timing of its own.*qwen3-8b's is hinge"):
        CATALOG.profile("qwen3-30b-a3b", "a100-80g", timing="hinge")
    with pytest.raises(ProfileError, match=r"no 'operators' timing of its own"):
        CATALOG.profile("qwen3-30b-a3b", "rtx-4090", tp=4)


def test_derived_context_cost_is_in_proportion_to_kv_bytes() -> None:
    gemma = CATALOG.profile("gemma-2-9b", "a100-80g").latency.compile(1, 0, HostOverhead())
    llama = CATALOG.profile("llama-3.1-8b", "a100-80g").latency.compile(1, 0, HostOverhead())
    assert gemma.decode_context / llama.decode_context == pytest.approx(344_064 / 131_072)


def test_distilled_twin_costs_what_its_base_costs() -> None:
    twin, base = (CATALOG.profile(m, "a100-80g") for m in ("r1-distill-qwen-7b", "qwen2.5-7b"))
    assert twin.latency == base.latency
    assert twin.kv_capacity_tokens == base.kv_capacity_tokens
    assert twin.reasoning
    assert not base.reasoning


def test_tensor_parallel_anchor() -> None:
    """The anchored point: 2.2x decode, 2.8x prefill for a 7B model at tp = 4."""
    one, four = (CATALOG.profile("qwen2.5-7b", "a100-80g", tp=tp) for tp in (1, 4))
    host = HostOverhead()
    a, b = one.latency.compile(64, 2048, host), four.latency.compile(64, 2048, host)
    assert a.decode_s(64, 65_536) / b.decode_s(64, 65_536) == pytest.approx(2.2)
    assert a.mixed_s(0, 2048, 0) / b.mixed_s(0, 2048, 0) == pytest.approx(2.8)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "glm-4-9b", "qwen2.5-14b", "qwen2.5-32b"])
@pytest.mark.parametrize("device", ["a100-80g", "rtx-pro-6000"])
def test_more_gpus_are_faster_hold_more_and_start_slower(model: str, device: str) -> None:
    degrees = (1, 2, 4, 8)
    profiles = [CATALOG.profile(model, device, tp=tp) for tp in degrees]
    for (fewer, tp), (more, tp_more) in pairwise(zip(profiles, degrees, strict=True)):
        speedup = step_s(fewer.latency, 64) / step_s(more.latency, 64)
        assert 1 < speedup < tp_more / tp
        assert more.kv_capacity_tokens > fewer.kv_capacity_tokens
        assert more.load_s > fewer.load_s
        assert more.disk_s == fewer.disk_s
        assert more.wake_s < fewer.wake_s


def test_larger_models_scale_better() -> None:
    def speedup(model: str) -> float:
        one, four = (CATALOG.profile(model, "a100-80g", tp=tp).latency for tp in (1, 4))
        return step_s(one, 1) / step_s(four, 1)

    assert speedup("qwen2.5-7b") < speedup("qwen2.5-14b") < speedup("qwen2.5-32b")


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    glm = {tp: CATALOG.profile("glm-4-9b", "a100-80g", tp=tp) for tp in (1, 2, 4)}
    assert glm[2].kv_bytes_per_token == glm[1].kv_bytes_per_token
    assert glm[4].kv_bytes_per_token == 2 * glm[1].kv_bytes_per_token
    context = {tp: p.latency.compile(1, 0, HostOverhead()).decode_context for tp, p in glm.items()}
    assert context[1] / context[4] == pytest.approx(2.0)


def test_other_timings_by_name() -> None:
    assert isinstance(CATALOG.profile("qwen2.5-7b", "h100", timing="hinge").latency, HingeLatency)
    prototype = CATALOG.profile("r1-distill-llama-8b", "a100-80g", timing="roofline_prototype")
    tables = prototype.latency.compile(64, 0, HostOverhead())
    assert tables.decode_base[64] == pytest.approx((10.25 + 0.061 * 64) * 1e-3)
    assert tables.decode_context == pytest.approx(131_072 / 1.94e12, rel=1e-4)
    # Two references away from the one model that has it: the context part is still KV bytes / 1.94 TB/s.
    derived = CATALOG.profile("r1-distill-qwen-32b", "a100-80g", timing="roofline_prototype")
    assert derived.latency.compile(1, 0, HostOverhead()).decode_context == pytest.approx(
        262_144 / 1.94e12, rel=1e-4
    )


def test_host_overheads() -> None:
    assert host_overhead("none") == HostOverhead(0.0, 0.0)
    v0 = host_overhead("vllm-0.7-v0")
    assert (v0.base_s, v0.per_sequence_s) == pytest.approx((0.010, 0.0001))
    v1 = host_overhead("vLLM-V1")
    assert 0 < v1.base_s + 256 * v1.per_sequence_s < 0.01
    with pytest.raises(ProfileError, match=r"unknown engine 'vllm-v2' \(did you mean 'vllm-v.'\?\)"):
        host_overhead("vllm-v2")


def test_names_are_found_by_alias_and_in_any_case() -> None:
    profile = CATALOG.profile("DeepSeek-AI/DeepSeek-R1-Distill-Llama-8B", "A100-80G")
    assert (profile.model, profile.device) == ("r1-distill-llama-8b", "a100-80g")
    assert CATALOG.device_name("L40S-48G") == "l40s"


@pytest.mark.parametrize(
    ("model", "device", "settings", "message"),
    [
        ("lama-3.1-8b", "h100", {}, "unknown model 'lama-3.1-8b' (did you mean 'llama-3.1-8b'?); known are"),
        ("qwen2.5-7b", "h10", {}, "unknown device 'h10' (did you mean 'h100'?); known are a100-80g, h100"),
        ("qwen2.5-7b", "h100", {"tp": 3}, "tp must be one of 1, 2, 4, 8, got 3"),
        ("qwen2.5-7b", "h100", {"tp": 8}, "28 attention heads do not divide by tp=8; tp can be 1, 2, 4"),
        ("qwen2.5-7b", "h100", {"gpu_memory_utilization": 90}, "gpu_memory_utilization must be above 0 and"),
        ("qwen2.5-7b", "h100", {"memory_share": math.nan}, "memory_share must be above 0 and at most 1"),
        ("qwen2.5-7b", "h100", {"load_s": -1.0}, "load_s must be a finite number of seconds, 0 or more"),
        ("qwen2.5-7b", "h100", {"load_s": math.inf}, "load_s must be a finite number of seconds"),
        ("qwen2.5-7b", "h100", {"timing": "hinges"}, "unknown timing 'hinges' (did you mean 'hinge'?)"),
        ("qwen2.5-7b", "h100", {"timing": "roofline_prototype"}, "no 'roofline_prototype' timing for model"),
        ("qwen2.5-32b", "l40s", {}, "weights of 65.5 GB do not fit in one GPU at tp=1 (41.2 GB usable"),
        ("qwen2.5-32b", "l40s", {}, "tp=2 is the least that fits"),
        ("qwen2.5-32b", "a100-80g", {"memory_share": 0.5}, "do not fit in one GPU"),
        ("qwen2.5-32b", "l40s", {"tp": 2, "memory_share": 0.5}, "tp=4 is the least that fits"),
        ("qwen2.5-32b", "l40s", {"memory_share": 0.01}, "not at tp=8 either"),
    ],
)
def test_what_cannot_be_resolved_is_said_in_one_line(
    model: str, device: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)) as caught:
        CATALOG.profile(model, device, **settings)
    assert "\n" not in str(caught.value)


def test_model_too_large_for_one_gpu_runs_on_the_least_that_fits() -> None:
    profile = CATALOG.profile("qwen2.5-32b", "l40s", tp=2)
    assert profile.kv_capacity_tokens == pytest.approx((2 * 41.2e9 - 65.5e9) / 262_144, rel=0.01)
    assert "qwen2.5-14b" in profile.sources["latency"]
