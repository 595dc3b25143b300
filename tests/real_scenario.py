"""A scenario that runs for real in seconds: tiny random models, sums to be answered, an invented profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from mosaicsim.workload.trace import SCHEMA, Provenance, TraceMetadata, write_trace

PROFILE: dict[str, Any] = {
    "devices": {
        "cpu": {
            "memory_gb": {"value": 16, "source": "estimated: a test"},
            "activation_reserve_gb": {"value": 1, "source": "estimated: a test"},
            "disk_gb_per_s": {"value": 1, "source": "estimated: a test"},
            "engine_start_s": {"value": 3, "source": "estimated: a test"},
            "pcie_gb_per_s": {"value": 1, "source": "estimated: a test"},
            "wake_constant_s": {"value": 1, "source": "estimated: a test"},
        }
    },
    "models": {
        "tiny": {
            "source": "published: the test's own",
            "architecture": {
                "layers": 2,
                "hidden_size": 128,
                "intermediate_size": 256,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 64,
                "vocab_size": 259,
                "tied_embeddings": False,
            },
        }
    },
    "timings": [
        {
            "device": "cpu",
            "model": "tiny",
            "form": "two_regime",
            "source": "estimated: a test",
            "decode_ms": {"base": 5, "per_sequence": 0.22, "per_context_token": 1e-4},
            "mixed_ms": {
                "base": 5,
                "per_sequence": 0.22,
                "per_prefill_token": 0.02,
                "per_context_token": 1e-4,
            },
        }
    ],
}

EXPERTS = ("a", "b", "c")


def write_scenario(folder: Path, models: Path, n_questions: int = 12, **changes: Any) -> Path:
    """Scenario, profile, questions and a calibration trace in ``folder``; ``changes`` replace sections."""
    write_questions(folder / "questions.jsonl", n_questions)
    write_calibration(folder / "calibration.parquet")
    (folder / "cpu.yaml").write_text(yaml.safe_dump(PROFILE))
    scenario = {
        "name": "tiny",
        "workload": {
            "trace": "none.parquet",
            "calibration": {"trace": "calibration.parquet"},
            "k": 3,
            "routing": "uniform",
        },
        "cluster": {"hosts": [{"device": "cpu", "gpus": 2}]},
        "experts": {name: {"model": "tiny"} for name in EXPERTS},
        "aggregator": {"model": "tiny"},
        "engine": {
            "version": "none",
            "max_num_seqs": 8,
            "max_num_batched_tokens": 2048,
            "prefix_caching": False,
            "num_gpu_blocks": 1000,
        },
        "profiles": ["cpu.yaml"],
        "schedulers": ["round_robin"],
        "gates": ["always"],
        "execution": {
            "questions": "questions.jsonl",
            "device": "cpu",
            "engine": {
                "dtype": "float32",
                "enforce_eager": True,
                "kv_cache_memory_bytes": 64 << 20,
                "max_model_len": 2048,
            },
            "models": {
                "a": {"path": str(models / "tiny"), "template": "{question}", "sampling": {"max_tokens": 60}},
                "b": {
                    "path": str(models / "tiny-b"),
                    "template": "{question}\n{options}",
                    "sampling": {"max_tokens": 120},
                },
                "c": {
                    "path": str(models / "tiny"),
                    "template": "{question} Think.",
                    "sampling": {"max_tokens": 240},
                },
                "aggregator": {"path": str(models / "tiny-b"), "sampling": {"max_tokens": 30}},
            },
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(scenario | changes))
    return path


def write_questions(path: Path, n: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        a, b = rng.integers(1, 50, 2).tolist()
        options = [str(a + b), str(a + b + 1), str(a - b)]
        question = {
            "question_id": f"q{i}",
            "question": f"What is {a} + {b}?",
            "options": options,
            "gold": "A",
        }
        lines.append(json.dumps(question | {"category": "low" if a < 25 else "high"}))
    path.write_text("\n".join(lines) + "\n")


def write_calibration(path: Path, n: int = 20, seed: int = 1) -> None:
    """Answers of experts to questions that nobody asks, lengths and grades drawn."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "question_id": f"calibration{q}",
            "dataset": "calibration",
            "category": "low" if q % 2 else "high",
            "expert": expert,
            "sample": 0,
            "prompt_tokens": 40,
            "output_tokens": int(rng.integers(5, 60)),
            "visible_tokens": 5,
            "answer": "A",
            "confidence": 0.5,
            "correct": bool(rng.random() < 0.5),
            "finish_reason": "stop",
            "slot": None,
        }
        for q in range(n)
        for expert in (*EXPERTS, "aggregator")
    ]
    write_trace(path, pa.Table.from_pylist(rows, SCHEMA), TraceMetadata(Provenance(), "aggregator"))
