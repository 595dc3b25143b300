"""The same workers as actors of a real Ray cluster: the conformance suite, and how an actor can die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import RealConformance, build_tiny_models, crew_of, needs_ray, needs_vllm

from mosaicsim.execution import ExecutionSection
from mosaicsim.executors.crew import Crew
from mosaicsim.executors.ray_cluster import RayCluster
from mosaicsim.executors.ray_link import RayLink

pytestmark = [pytest.mark.engine, pytest.mark.slow, needs_vllm, needs_ray]


def section(**more: object) -> ExecutionSection:
    return ExecutionSection.model_validate(
        {"questions": "none", "models": {}, "executor": "ray", "start_timeout_s": 300, **more}
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    cluster = RayCluster(section(), "cpu", ["host0", "host0"])
    with crew_of(tmp_path_factory.mktemp("workers"), cluster) as crew:
        yield crew


def actor_of(crew: Crew, worker: int) -> int:
    """The process of a worker's actor."""
    link = crew.link((worker,))
    assert isinstance(link, RayLink)
    assert link.arrival is not None
    return link.arrival.pid


class TestConformance(RealConformance):
    @pytest.fixture(autouse=True)
    def _world(self, models: Path, crew: Crew) -> Iterator[None]:
        self.models, self.crew = models, crew
        yield
        crew.unload()

    def kill(self, worker: int) -> None:
        os.kill(actor_of(self.crew, worker), signal.SIGKILL)
