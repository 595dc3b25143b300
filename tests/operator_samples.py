"""Operator tables of a made-up GPU, in the layout of LLMServingSim's profiler, from a law that tests know."""

from __future__ import annotations

import gzip
from pathlib import Path

DENSE_US = {
    "embedding": (3.0, 0.004),
    "layernorm": (2.0, 0.01),
    "qkv_proj": (50.0, 0.3),
    "rotary_emb": (2.0, 0.01),
    "o_proj": (40.0, 0.2),
    "gate_up_proj": (250.0, 1.4),
    "act_fn": (3.0, 0.02),
    "down_proj": (125.0, 0.7),
    "final_layernorm": (2.0, 0.01),
}
"""Microseconds of each dense operator: the level at which weights stream, and the slope from KNEE tokens on."""

KNEE = 200
SEQUENCE_US = {"lm_head": (1100.0, 0.5), "sampler": (25.0, 1.0)}
DECODE_US = (10.0, 0.2, 0.004)
"""Decode attention of a layer: base, per sequence, per context token."""
MIXED_US = (9.0, 0.1, 0.009, 1.2e-4)
"""Attention of a layer beside a prefill chunk: base, per sequence, per context token, per pair."""


def dense_us(layer: str, tokens: int) -> float:
    level, slope = DENSE_US[layer]
    return level + slope * max(tokens - KNEE, 0)


def mixed_us(chunk: int, history: int, batch: int, kv: int) -> float:
    base, per_sequence, context, pair = MIXED_US
    attended = context * (batch * kv + history) + pair * chunk * (history + chunk / 2)
    return base + per_sequence * batch + attended


def decode_us(batch: int, kv: int) -> float:
    base, per_sequence, context = DECODE_US
    return base + per_sequence * batch + context * batch * kv


def table_texts() -> dict[str, str]:
    """The three tables as CSV, by name."""
    tokens = (1, 8, 64, KNEE, 512, 1024, 2048)
    dense = [f"{layer},{t},{dense_us(layer, t)!r}" for layer in DENSE_US for t in tokens]
    sequences = [
        f"{layer},{n},{base + slope * n!r}"
        for layer, (base, slope) in SEQUENCE_US.items()
        for n in (1, 16, 64, 256)
    ]
    counts, lengths = (1, 4, 16, 64, 256), (16, 256, 1024)
    attention = [f"0,0,{n},{kv},{decode_us(n, kv)!r}" for n in counts for kv in lengths]
    for chunk in (16, 256, 2048):
        for history in (0, 512, 4096):
            attention.append(f"{chunk},{history},0,0,{mixed_us(chunk, history, 0, 0)!r}")
            attention += [
                f"{chunk},{history},{n},{kv},{mixed_us(chunk, history, n, kv)!r}"
                for n in counts
                for kv in lengths
            ]
    return {
        "dense": "\n".join(["layer,tokens,time_us", *dense, ""]),
        "per_sequence": "\n".join(["layer,sequences,time_us", *sequences, ""]),
        "attention": "\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *attention, ""]),
    }


def write_tables(folder: Path, *, packed: bool = False) -> Path:
    """Write the three tables into a new ``folder``."""
    folder.mkdir()
    for name, content in table_texts().items():
        if packed:
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (folder / f"{name}.csv").write_text(content)
    return folder
