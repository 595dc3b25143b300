"""From measured operator times to the time of an engine iteration: sums, and nothing fitted to a run.

The layout is that of LLMServingSim's profiler (casys-kaist/LLMServingSim, MIT), a folder of three tables,
times in microseconds, each plain or ``.gz``:

* ``dense.csv`` (layer, tokens, time_us): what runs on every token of a step, per layer of the model;
* ``per_sequence.csv`` (layer, sequences, time_us): lm_head and sampler, once a step;
* ``attention.csv`` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us), per layer of the model: one
  prefill chunk after ``kv_prefill`` tokens beside ``n_decode`` sequences of ``kv_decode`` tokens.

Dense and per-sequence times are summed as they are. Attention is brought to the engine's form, affine in
context tokens, by least squares over its own table, in proportion to the whole step it is part of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mosaicsim.csv_rows import Parser, count, number, read_rows, text
from mosaicsim.errors import ProfileError, nearest
from mosaicsim.hardware.catalog import Catalog, load_catalog
from mosaicsim.hardware.profile_file import OperatorTiming, dump_timings

TIMES_A_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often each dense operator runs in a layer of the model."""

ONCE = ("embedding", "final_layernorm")
"""Dense operators that run once a step."""

OPTIONAL = ("qk_norm",)
PER_SEQUENCE = ("lm_head", "sampler")

MOST_CONTEXT_TOKENS = 262_144
"""Attention beyond so many tokens in a step is left out of the fit: more than a GPU's KV cache holds."""

US, MS = 1e-6, 1e-3
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Seconds at ascending counts, both of shape (points,); straight between them, constant outside."""

    at: Floats
    seconds: Floats

    def __call__(self, counts: Floats) -> Floats:
        """Seconds at ``counts``."""
        interpolated: Floats = np.interp(counts, self.at, self.seconds)
        return interpolated


@dataclass(frozen=True)
class OperatorTables:
    """What a folder holds: seconds by tokens and by sequences, and attention rows of shape (rows, 5)."""

    dense: Mapping[str, Curve]
    per_sequence: Mapping[str, Curve]
    attention: Floats


def read_operators(folder: Path) -> OperatorTables:
    """Read the three tables. Raises ProfileError with file and line."""
    dense = _curves(folder, "dense", "tokens", (*TIMES_A_LAYER, *ONCE))
    per_sequence = _curves(folder, "per_sequence", "sequences", PER_SEQUENCE)
    path = _table(folder, "attention")
    keys = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    columns: dict[str, Parser] = {key: count(0) for key in keys}
    rows = [values for _, values in read_rows(path, "table", columns | {"time_us": number(0)}, ProfileError)]
    attention = np.array(rows, np.float64).reshape(-1, 5) * [1, 1, 1, 1, US]
    for what, chosen in (("decode alone", attention[:, 0] == 0), ("a prefill chunk", attention[:, 0] > 0)):
        if np.count_nonzero(chosen) < 4:
            raise ProfileError(f"{path}: needs 4 or more rows with {what}")
    return OperatorTables(dense, per_sequence, attention)


def compose_timing(
    tables: OperatorTables, layers: int, *, device: str, model: str, source: str
) -> OperatorTiming:
    """The time of an iteration of a model of ``layers`` layers; ``source`` says where the tables are from."""
    tokens, tokens_s = _matrices(tables.dense, layers)
    batch, sequences_s = _sum(tables.per_sequence, dict.fromkeys(PER_SEQUENCE, 1))
    matrices, sequences = Curve(tokens, tokens_s), Curve(batch, sequences_s)
    decode = _decode_attention(tables.attention, layers, matrices, sequences)
    mixed = _mixed_attention(tables.attention, layers, matrices, sequences)
    decode_s = matrices(batch) + sequences_s + np.maximum(decode.base_s(batch), 0)
    mixed_s = sequences_s + mixed.base_s + mixed.per_sequence_s * batch
    return OperatorTiming(
        device=device,
        model=model,
        form="operators",
        source=source,
        mape_pct={"decode": round(decode.mape_pct, 2), "mixed": round(mixed.mape_pct, 2)},
        batch=tuple(batch.tolist()),
        decode_ms=_rounded_ms(decode_s),
        mixed_ms=_rounded_ms(mixed_s),
        tokens=tuple(tokens.tolist()),
        tokens_ms=_rounded_ms(tokens_s),
        decode_per_context_token_ms=_rounded_ms(decode.per_context_token_s)[0],
        mixed_per_context_token_ms=_rounded_ms(mixed.per_context_token_s)[0],
        mixed_per_pair_ms=_rounded_ms(mixed.per_pair_s)[0],
    )


def profile_from_operators(
    folder: Path, *, device: str | None = None, model: str | None = None, origin: str | None = None
) -> str:
    """Profile file (YAML) of the operator times in ``folder``, which is named ``<device>_<model>_...``.

    ``device`` and ``model`` replace the folder's; the model must be in the catalog, which knows its layers.
    ``origin`` says where the measurements are from. Raises ProfileError.
    """
    catalog = load_catalog()
    parts = folder.resolve().name.split("_")
    named_device, named_model = parts[:2] if len(parts) > 1 else (None, None)
    device, model = device or named_device, model or named_model
    if device is None or model is None:
        raise ProfileError(
            f"{folder}: the folder's name does not say <device>_<model>; give --device and --model"
        )
    model = catalog.model_name(model)
    layers = catalog.architecture(model).layers
    timing = compose_timing(
        read_operators(folder),
        layers,
        device=_own_name(catalog, device),
        model=model,
        source=f"composed: measured operator times ({origin or folder.resolve().name}) summed over {layers} "
        "layers, attention fitted to its own table; nothing fitted to a run",
    )
    return _HEADER + dump_timings([timing])


def _own_name(catalog: Catalog, device: str) -> str:
    """The catalog's name of a device it knows; a profile may be of another."""
    try:
        return catalog.device_name(device)
    except ProfileError:
        return device.lower()


_HEADER = """\
# Made by `mosaicsim profile --from-operators`. A decode-only step is decode(B) + per_context_token C; one
# with prefill mixed(B) + tokens(B + P) + per_context_token C + per_pair for a token and one it attends to.
"""


def _table(folder: Path, name: str) -> Path:
    found = [path for path in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if path.is_file()]
    if found:
        return found[0]
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder of operator times")
    raise ProfileError(f"{folder}: no {name}.csv or {name}.csv.gz; needed are dense, per_sequence, attention")


def _curves(folder: Path, name: str, by: str, known: tuple[str, ...]) -> dict[str, Curve]:
    """The table's curves by operator. Raises ProfileError: an unknown, missing or repeated entry."""
    path = _table(folder, name)
    columns: dict[str, Parser] = {"layer": text, by: count(1), "time_us": number(0)}
    points: dict[str, dict[int, float]] = {}
    for line, (layer, at, time_us) in read_rows(path, "table", columns, ProfileError):
        if layer not in known:
            accepted = ", ".join(known)
            raise ProfileError(f"{path}:{line}: layer '{layer}'{nearest(layer, known)}; known are {accepted}")
        if at in points.setdefault(layer, {}):
            raise ProfileError(f"{path}:{line}: {layer} at {at} {by} is there twice")
        points[layer][at] = time_us * US
    for layer in known:
        if layer not in OPTIONAL and len(points.get(layer, {})) < 2:
            raise ProfileError(f"{path}: {layer}: needs 2 or more points, got {len(points.get(layer, {}))}")
    return {layer: _curve(at) for layer, at in points.items()}


def _curve(points: dict[int, float]) -> Curve:
    at = sorted(points)
    return Curve(np.array(at, np.float64), np.array([points[a] for a in at]))


def _matrices(dense: Mapping[str, Curve], layers: int) -> tuple[Floats, Floats]:
    """All dense operators of a step, by its tokens."""
    times = {name: layers * n for name, n in TIMES_A_LAYER.items()} | dict.fromkeys(ONCE, 1)
    return _sum(dense, times)


def _sum(curves: Mapping[str, Curve], times: Mapping[str, int]) -> tuple[Floats, Floats]:
    """Points of all the curves, and the sum of the curves there, each ``times`` over."""
    at = np.unique(np.concatenate([curve.at for curve in curves.values()]))
    return at, np.sum([times[name] * curve(at) for name, curve in curves.items()], axis=0)


@dataclass(frozen=True)
class _DecodeAttention:
    """Attention of a decode-only step, all layers: a base by sequences, and a context token's."""

    base_s: Curve
    per_context_token_s: float
    mape_pct: float


def _decode_attention(rows: Floats, layers: int, matrices: Curve, sequences: Curve) -> _DecodeAttention:
    """One slope for all batches, and a base for each batch measured."""
    chosen = rows[(rows[:, 0] == 0) & (rows[:, 2] * rows[:, 3] <= MOST_CONTEXT_TOKENS)]
    batch, seconds = chosen[:, 2], layers * chosen[:, 4]
    batches = np.unique(batch)
    whole = matrices(batch) + sequences(batch) + seconds
    terms = np.column_stack([batch * chosen[:, 3], *(batch == b for b in batches)])
    found, mape_pct = _fit(terms, seconds, whole)
    return _DecodeAttention(Curve(batches, found[1:]), float(found[0]), mape_pct)


@dataclass(frozen=True)
class _MixedAttention:
    """Attention of a step with prefill, all layers."""

    base_s: float
    per_sequence_s: float
    per_context_token_s: float
    per_pair_s: float
    mape_pct: float


def _mixed_attention(rows: Floats, layers: int, matrices: Curve, sequences: Curve) -> _MixedAttention:
    """Context of decodes and of the chunk's history alike; pairs of the chunk with what it attends to."""
    chosen = rows[(rows[:, 0] > 0) & (rows[:, 2] * rows[:, 3] + rows[:, 1] <= MOST_CONTEXT_TOKENS)]
    chunk, history, batch, kv, seconds = chosen.T
    seconds = layers * seconds
    whole = matrices(batch + chunk) + sequences(np.maximum(batch, 1)) + seconds
    terms = np.column_stack([np.ones_like(chunk), batch, batch * kv + history, chunk * (history + chunk / 2)])
    found, mape_pct = _fit(terms, seconds, whole)
    base, per_sequence, per_context_token, per_pair = found.tolist()
    return _MixedAttention(base, per_sequence, per_context_token, per_pair, mape_pct)


def _fit(terms: Floats, seconds: Floats, whole: Floats) -> tuple[Floats, float]:
    """Least squares of errors relative to the whole step, no coefficient negative; their mean size in %."""
    left = list(range(terms.shape[1]))
    found: Any = np.zeros(0)
    while left:
        found = np.linalg.lstsq(terms[:, left] / whole[:, None], seconds / whole, rcond=None)[0]
        if (found >= 0).all():
            break
        del left[int(found.argmin())]
    coefficients = np.zeros(terms.shape[1])
    coefficients[left] = found
    return coefficients, 100 * float(np.abs((terms @ coefficients - seconds) / whole).mean())


def _rounded_ms(seconds: Floats | float) -> tuple[float, ...]:
    """Milliseconds to six digits: as many as the tables have."""
    return tuple(float(f"{s / MS:.6g}") for s in np.atleast_1d(seconds))
