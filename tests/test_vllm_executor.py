"""The vLLM executor on real engines with tiny random models: the conformance suite, and what kills a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import RealConformance, build_tiny_models, crew_of, needs_vllm

from mosaicsim.executors.crew import Crew
from mosaicsim.executors.process import ProcessLink

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


class TestConformance(RealConformance):
    @pytest.fixture(autouse=True)
    def _world(self, models: Path, crew: Crew) -> Iterator[None]:
        self.models, self.crew = models, crew
        yield
        crew.unload()

    def kill(self, worker: int) -> None:
        kill(self.crew, worker)
