"""Small traces made on the spot: a full block, with or without aggregator rows, samples and a routing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mosaicsim.workload.trace import SCHEMA, Provenance, Trace, TraceMetadata, as_trace

EXPERTS = ("gemma", "qwen_r1", "glm", "exaone")


def columns(
    n_questions: int = 40,
    experts: tuple[str, ...] = EXPERTS,
    n_samples: int = 1,
    aggregator: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Columns of a full block; expert i is right with probability 0.2 + 0.15 i, in every category."""
    rng = np.random.default_rng(seed)
    rows = [(q, e, s) for q in range(n_questions) for e in range(len(experts)) for s in range(n_samples)]
    rows += [(q, len(experts), 0) for q in range(n_questions)] if aggregator else []
    question, expert, sample = np.array(rows, dtype=np.int64).T
    n = len(rows)
    correct = rng.random(n) < 0.2 + 0.15 * expert
    output = rng.lognormal(5, 0.8, n).astype(np.int32) + 2
    names = np.array([*experts, "aggregator"])
    return {
        "question_id": np.char.add("q", question.astype(str)),
        "dataset": np.full(n, "toy"),
        "category": np.array(["law", "math", "biology"])[question % 3],
        "expert": names[expert],
        "sample": sample.astype(np.int32),
        "prompt_tokens": (100 + question).astype(np.int32),
        "output_tokens": output,
        "visible_tokens": np.where(expert == 1, output // 2, output).astype(np.int32),
        "answer": np.where(correct, "A", rng.choice(["B", "C", "D"], n)),
        "confidence": pa.nulls(n, pa.float32()),
        "correct": correct,
        "finish_reason": np.full(n, "stop"),
        "slot": pa.nulls(n, pa.int32()),
    }


def table(values: dict[str, Any]) -> pa.Table:
    """The columns as a table of the trace schema."""
    arrays = [
        values[f.name] if isinstance(values[f.name], pa.Array) else pa.array(values[f.name], type=f.type)
        for f in SCHEMA
    ]
    return pa.table(arrays, schema=SCHEMA)


def with_routing(values: dict[str, Any], k: int = 3) -> dict[str, Any]:
    """The same columns with the first k experts of every question recorded as its routing."""
    expert = values["expert"]
    order = list(dict.fromkeys(expert.tolist()))
    slot = np.array([order.index(e) if order.index(e) < k else -1 for e in expert.tolist()])
    slot = np.where((values["sample"] > 0) | (expert == "aggregator"), -1, slot)
    return values | {"slot": pa.array(slot, type=pa.int32(), mask=slot < 0)}


def metadata(aggregator: bool = True, **provenance: Any) -> TraceMetadata:
    """Metadata of a sample trace."""
    return TraceMetadata(Provenance(**provenance), "aggregator" if aggregator else None)


def trace(*, routed: bool = False, aggregator: bool = True, provenance: Any = None, **options: Any) -> Trace:
    """A sample trace in memory."""
    values = columns(aggregator=aggregator, **options)
    values = with_routing(values) if routed else values
    return as_trace(table(values), metadata(aggregator, **(provenance or {})))
