"""Measurements as a profile file, in the schema of :mod:`mosaicsim.hardware.profile_file`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mosaicsim.errors import MosaicsimError, ProfileError
from mosaicsim.hardware.architecture import Architecture
from mosaicsim.hardware.latency import LatencyModel, OperatorLatency, TwoRegimeLatency
from mosaicsim.profiling.fit import FitError, best_fit, fit_host
from mosaicsim.profiling.launch import Measurements
from mosaicsim.profiling.probe import limits_of
from mosaicsim.profiling.samples import spread_pct

DIGITS = 5
RESTLESS_PCT = 5.0
"""Repeats on a quiet core differ by 1-2 %."""

BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2, "float16": 2}
FOUND_OUT = ("vllm", "device")
"""What the engine says of itself that is no setting, and stands in the source."""


def profile_document(
    measured: Measurements, model: str, device: str, beside: Mapping[str, Any], *, new_device: bool
) -> dict[str, Any]:
    """The profile file's content.

    ``beside`` are settings that were asked for and that the engine does not repeat, as load_format;
    ``new_device``: the catalog does not know the device, so the file adds it.

    Raises
    ------
    MosaicsimError
        There are too few measured steps to fit.
    ProfileError
        The model's config.json does not say what its architecture is.
    """
    try:
        latency, errors = best_fit(measured.samples)
    except ValueError as error:
        raise MosaicsimError(
            f"profile: {error}; the engine is too small for these points, or the time too short"
        ) from None
    resolved = {k: v for k, v in measured.resolved.items() if k not in ("model", *FOUND_OUT)}
    settings = {k: Path(v).name if isinstance(v, str) else v for k, v in {**resolved, **beside}.items()}
    how = ", ".join(f"{key} {value}" for key, value in settings.items())
    run = f"mosaicsim profile, vllm {measured.resolved['vllm']} on {measured.resolved['device']}"
    source = f"measured: {run}; {how}"
    document: dict[str, Any] = {
        "models": {model: {"source": "published: the model's config.json"}},
        "timings": [
            {"device": device, "model": model}
            | timing_entry(latency)
            | {"source": f"{source}; host time apart, in `measured`"}
            | {"mape_pct": _percent(errors[_form(latency)])}
        ],
        "measured": [_measured_entry(measured, model, device, settings, source) | _host(measured)],
    }
    document["models"][model]["architecture"] = architecture_of(measured.shape, measured.resolved["dtype"])
    if new_device:
        document = {"devices": {device: {"description": "measured by mosaicsim profile"}}} | document
    return document


def profile_text(document: Mapping[str, Any], errors: str) -> str:
    """The file's text, with the errors of the fit as a comment."""
    body = yaml.safe_dump(dict(document), sort_keys=False, width=110, default_flow_style=None)
    return f"# Written by `mosaicsim profile`. {errors}\n{body}"


def error_lines(measured: Measurements) -> str:
    """Held-out errors of both forms in one line."""
    _, errors = best_fit(measured.samples)
    each = [
        f"{form} {error.decode_pct:.1f} % (decode, {error.decodes}) {error.mixed_pct:.1f} % "
        f"(with prefill, {error.mixed})"
        for form, error in errors.items()
    ]
    spread = spread_pct(measured.samples)
    busy = "; the machine was not quiet, measure again" if spread > RESTLESS_PCT else ""
    return (
        f"Mean error on steps held out of the fit: {', '.join(each)}. "
        f"Repeated steps differ by {spread:.1f} % from their median{busy}."
    )


def timing_entry(latency: LatencyModel) -> dict[str, Any]:
    """A latency model as an entry of ``timings``, milliseconds."""
    if isinstance(latency, TwoRegimeLatency):
        return {
            "form": "two_regime",
            "decode_ms": {
                "base": _ms(latency.decode_base_s),
                "per_sequence": _ms(latency.decode_per_sequence_s),
                "per_context_token": _ms(latency.decode_per_context_token_s),
            },
            "mixed_ms": {
                "base": _ms(latency.mixed_base_s),
                "per_sequence": _ms(latency.mixed_per_sequence_s),
                "per_prefill_token": _ms(latency.mixed_per_prefill_token_s),
                "per_context_token": _ms(latency.mixed_per_context_token_s),
            },
        }
    assert isinstance(latency, OperatorLatency)
    return {
        "form": "operators",
        "batch": list(latency.batch),
        "decode_ms": [_ms(s) for s in latency.decode_s],
        "mixed_ms": [_ms(s) for s in latency.mixed_s],
        "tokens": list(latency.tokens),
        "tokens_ms": [_ms(s) for s in latency.tokens_s],
        "decode_per_context_token_ms": _ms(latency.decode_per_context_token_s),
        "mixed_per_context_token_ms": _ms(latency.mixed_per_context_token_s),
        "mixed_per_pair_ms": _ms(latency.mixed_per_pair_s),
    }


def architecture_of(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The ``architecture`` of a Hugging Face config. Raises ProfileError for a key that is not there."""

    def need(*names: str) -> int:
        found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
        if found is None:
            raise ProfileError(f"the model's config.json has no '{names[0]}'; accepted: a decoder-only model")
        return int(found)

    heads, hidden = need("num_attention_heads"), need("hidden_size")
    mixture = "num_experts" in config or "num_local_experts" in config
    width = need("moe_intermediate_size", "intermediate_size") if mixture else need("intermediate_size")
    size = BYTES_OF_DTYPE.get(dtype, 2)
    shape = {
        "layers": need("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": width,
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or hidden // heads),
        "vocab_size": need("vocab_size"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "bytes_per_parameter": float(size),
        "kv_bytes_per_value": size,
    }
    if mixture:
        shape["feed_forwards"] = need("num_experts", "num_local_experts")
        shape["feed_forwards_per_token"] = need("num_experts_per_tok")
    return Architecture.model_validate(shape).model_dump(exclude_defaults=True)


def _measured_entry(
    measured: Measurements, model: str, device: str, settings: Mapping[str, Any], source: str
) -> dict[str, Any]:
    entry = {
        "device": device,
        "model": model,
        "tp": measured.resolved["tensor_parallel_size"],
        "load_s": round(measured.load_s, 3),
        "unload_s": round(measured.unload_s, 3),
        "process_start_s": round(measured.process_start_s, 3),
        "kv_capacity_tokens": limits_of(measured.resolved).kv_capacity_tokens,
        "engine": {"vllm": measured.resolved["vllm"], **settings},
        "source": f"{source}; load: an engine closed, and the next one started in the same process "
        "while others generate, weights in the page cache; KV: (num_gpu_blocks - 1) x block_size, one "
        "block is vLLM's own; "
        "host: step less the model's execute_model and sample_tokens, a line in the batch",
    }
    return entry if measured.wake_s is None else {**entry, "wake_s": round(measured.wake_s, 4)}


def _host(measured: Measurements) -> dict[str, float]:
    host = fit_host(measured.samples)
    return {"host_base_ms": _ms(host.base_s), "host_per_sequence_ms": _ms(host.per_sequence_s)}


def _percent(error: FitError) -> dict[str, float]:
    return {"decode": round(error.decode_pct, 2), "mixed": round(error.mixed_pct, 2)}


def _form(latency: LatencyModel) -> str:
    return "two_regime" if isinstance(latency, TwoRegimeLatency) else "operators"


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.{DIGITS}g}")
