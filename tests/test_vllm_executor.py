"""The vLLM executor on real engines with tiny random models: the conformance suite, and what kills a worker."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import KeepAll, arguments, build_tiny_models, crew_of, needs_vllm
from executor_conformance import Conformance

from mosaicsim.executors.base import Executor
from mosaicsim.executors.crew import Crew
from mosaicsim.executors.messages import EngineArguments
from mosaicsim.executors.process import ProcessLink
from mosaicsim.executors.vllm_executor import Patience, VllmExecutor
from mosaicsim.runtime.events import SessionSpec

pytestmark = [pytest.mark.engine, needs_vllm]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew_of(tmp_path_factory.mktemp("workers")) as crew:
        yield crew


def kill(crew: Crew, worker: int) -> None:
    link = crew.link((worker,))
    assert isinstance(link, ProcessLink)
    os.kill(link.pid, signal.SIGKILL)


class TestConformance(Conformance):
    ENDLESS = 3000

    @pytest.fixture(autouse=True)
    def _world(self, models: Path, crew: Crew) -> Iterator[None]:
        self.models, self.crew = models, crew
        yield
        crew.unload()

    def engine_of(self, expert: str, workers: tuple[int, ...]) -> EngineArguments:
        return arguments(self.models, expert, tp=len(workers), max_num_seqs=2)

    def executor(
        self, lengths: list[int], *, failures: dict[int, tuple[float, float | None]] | None = None
    ) -> Executor:
        failures = dict(failures or {})
        patience = Patience(restarts=0)

        def strike(spec: SessionSpec) -> None:
            for worker in set(spec.workers) & set(failures):
                after, _ = failures.pop(worker)
                threading.Timer(after, kill, (self.crew, worker)).start()

        for _, down in failures.values():
            if down is not None:
                patience = Patience(restart_s=down)
        recorder = KeepAll(lengths, strike)
        return VllmExecutor(self.crew, 2, self.engine_of, recorder, patience=patience)

    def session_seconds(self) -> float:
        return 1.5  # after it is ready
