"""What is in a trace, in figures: lengths and accuracy by expert, and how often the proposers agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaicsim.workload.calls import Bools, Ints
from mosaicsim.workload.trace import Trace
from mosaicsim.workload.votes import vote_counts


def describe(trace: Trace) -> dict[str, Any]:
    """Figures of a trace, ready for JSON; shares lie within 0 and 1, absent figures are None."""
    metadata = trace.metadata
    return {
        "trace": trace.path,
        "rows": len(trace),
        "questions": len(trace.questions),
        "datasets": list(trace.values("dataset")),
        "categories": list(trace.values("category")),
        "experts": [
            _rows(trace, name, trace.expert_index == index) for index, name in enumerate(trace.experts)
        ],
        "aggregator": None
        if metadata.aggregator is None
        else _rows(trace, metadata.aggregator, trace.is_aggregator),
        "routing": _routing(trace),
        "schema_version": metadata.schema_version,
        "content_hash": metadata.content_hash,
        "provenance": metadata.provenance.model_dump(mode="json"),
    }


def _rows(trace: Trace, name: str, mask: Bools) -> dict[str, Any]:
    """Figures of one expert's rows: calls, drawn slots, output tokens, share cut off, accuracy."""
    lengths = trace.ints("output_tokens")[mask]
    graded = mask & ~trace.nulls("correct")
    figures: dict[str, Any] = {
        "expert": name,
        "reasoning": trace.metadata.provenance.reasoning.get(name),
        "calls": len(lengths),
        "drawn": int(np.count_nonzero(~trace.nulls("slot")[mask])),
        "accuracy": float(trace.bools("correct")[graded].mean()) if graded.any() else None,
    }
    if not len(lengths):
        return figures | dict.fromkeys(("mean", "p50", "p99", "max", "cap_share"))
    cut = np.array([reason == "length" for reason in trace.values("finish_reason")])
    p50, p99 = np.percentile(lengths, [50, 99])
    return figures | {
        "mean": float(lengths.mean()),
        "p50": float(p50),
        "p99": float(p99),
        "max": int(lengths.max()),
        "cap_share": float(cut[trace.codes("finish_reason")[mask]].mean()),
    }


def _routing(trace: Trace) -> dict[str, Any] | None:
    """The recorded routing: k, and the share of questions by how many slots hold the plurality answer."""
    slot = trace.ints("slot")
    drawn = np.flatnonzero(slot >= 0)
    if not len(drawn):
        return None
    k = int(slot.max()) + 1
    answers: Ints = np.full((len(trace.questions), k), -1, dtype=np.int64)
    answers[trace.codes("question_id")[drawn], slot[drawn]] = trace.codes("answer")[drawn]
    votes = vote_counts(answers).max(axis=1)
    shares = np.bincount(votes, minlength=k + 1) / len(votes)
    return {"k": k, "plurality_votes": {str(n): float(shares[n]) for n in range(k, -1, -1)}}
