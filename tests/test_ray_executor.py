"""The same workers as actors of a real Ray cluster: the conformance suite, and how an actor can die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from engines import (
    ROOT,
    RealConformance,
    build_tiny_models,
    crew_of,
    needs_ray,
    needs_vllm,
)
from ray_world import descendants, section
from real_scenario import write_scenario

from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.messages import Died
from mosaicsim.executors.ray_cluster import RayCluster
from mosaicsim.executors.ray_link import RayLink

pytestmark = [pytest.mark.engine, pytest.mark.slow, needs_vllm, needs_ray]


@pytest.fixture(scope="module", autouse=True)
def _no_token() -> Iterator[None]:
    """Clusters of tests need no secret of this user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


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
    link = crew.link(Place((worker,)))
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


def running(pids: set[int]) -> set[int]:
    """Those of them that are still there, and not only to be buried."""
    left = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.add(pid)
    return left


def wait_until_gone(pids: set[int], timeout_s: float = 60.0) -> set[int]:
    deadline = time.monotonic() + timeout_s
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return running(pids)


def test_a_worker_is_as_urgent_as_its_coordinator(crew: Crew) -> None:
    crew.warm([Place((0,))], 300)
    (process,) = descendants(actor_of(crew, 0))
    assert os.getpriority(os.PRIO_PROCESS, process) == os.getpriority(os.PRIO_PROCESS, 0)


def test_however_it_dies_the_worker_is_gone_and_the_reason_told(crew: Crew) -> None:
    import ray

    def kill_process() -> None:
        (process,) = descendants(actor_of(crew, 0))
        os.kill(process, signal.SIGKILL)

    def kill_actor_process() -> None:
        os.kill(actor_of(crew, 0), signal.SIGKILL)

    def kill_actor() -> None:
        link = crew.link(Place((0,)))
        assert isinstance(link, RayLink)
        ray.kill(link.actor)

    for kill, reason in [
        (kill_process, "killed by SIGKILL"),
        (kill_actor_process, "its worker process has died"),
        (kill_actor, "killed by `ray.kill`"),
        (lambda: crew.kill(Place((0,))), "killed by SIGKILL"),
    ]:
        crew.warm([Place((0,))], 300)
        actor = actor_of(crew, 0)
        gone = {actor} | descendants(actor)
        assert len(gone) == 2
        kill()
        while (received := crew.receive(60)) is not None and not isinstance(received[1], Died):
            pass
        assert received is not None
        assert isinstance(received[1], Died)
        assert received[0] == (0,)
        assert reason in received[1].reason
        assert not wait_until_gone(gone)


COORDINATOR = """
import signal, sys, time
from pathlib import Path
from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.ray_cluster import RayCluster
from test_ray_executor import section

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
crew = Crew(RayCluster(section(), "cpu", ["host0"]), Path(sys.argv[1]))
try:
    crew.warm([Place((0,))], 300)
    print("up", file=sys.__stdout__, flush=True)  # Ray's own words on stdout are kept off it
    time.sleep(600)
finally:
    crew.close(at_once=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_local_cluster_does_not_outlive_its_coordinator(how: signal.Signals, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    coordinator = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "up\n"
        started = descendants(coordinator.pid)
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0] for pid in started}
        assert any(name.endswith("/raylet") for name in names.values())
        coordinator.send_signal(how)
        agents = {pid for pid, name in names.items() if name.endswith("Agent")}
        assert not wait_until_gone({coordinator.pid} | started - agents, 30)
        assert not wait_until_gone(agents, 150)  # Ray's agents give a raylet that is gone a minute
    finally:
        coordinator.kill()
        coordinator.communicate()


def test_execute_on_ray_gives_the_answers_of_the_local_executor(models: Path, tmp_path: Path) -> None:
    """Two runs, each with an aggregator over both workers: the second needs what the first one's group held."""
    scenario = write_scenario(
        tmp_path,
        models,
        n_questions=4,
        aggregator={"model": "tiny", "tp": 2},
        schedulers=["round_robin", "greedy"],
    )
    found = {}
    for executor in ("local", "ray"):
        out = tmp_path / executor
        command = [sys.executable, "-m", "mosaicsim", "execute", str(scenario), "-o", str(out), "--no-plots"]
        run = subprocess.run(
            [*command, "--json", "--set", f"execution.executor={executor}"], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        json.loads(run.stdout)  # nothing of Ray's is on stdout
        rows = pq.read_table(out / "outputs.parquet").to_pylist()
        found[executor] = {
            (row["scheduler"], row["question_id"], row["expert"], row["slot"]): row["text"] for row in rows
        }
        assert len(found[executor]) == len(rows) == 2 * (4 * 3 + 4)
    assert found["local"] == found["ray"]
