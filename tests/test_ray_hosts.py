"""Workers on two nodes of a real Ray cluster. Apart from the other tests, whose process is in another cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from engines import ROOT, KeepAll, arguments, build_tiny_models, crew_of, needs_ray, needs_vllm
from executor_conformance import Script, session, sessions_ended
from ray_world import descendants, section

from mosaicsim.errors import MosaicsimError, ScenarioError
from mosaicsim.executors.crew import Place
from mosaicsim.executors.messages import EngineArguments
from mosaicsim.executors.ray_cluster import RayCluster
from mosaicsim.executors.ray_link import RayLink
from mosaicsim.executors.vllm_executor import VllmExecutor

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


APART_S = 100_000


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A cluster of two nodes of one CPU, the second with a monotonic clock of its own; its address."""
    namespace = ["unshare", "--time", "--monotonic", str(APART_S), "--fork", "--kill-child"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no time namespaces for this user: unshare --time needs root")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    address = f"127.0.0.1:{port}"
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    nodes = [subprocess.Popen([*start, *head], env=env, **quiet)]
    try:
        wait_for(port)
        other = [*namespace, *start, f"--address={address}"]
        nodes.append(subprocess.Popen(other, env=env, **quiet))
        yield address
    finally:
        for pid in set[int]().union(*({node.pid} | descendants(node.pid) for node in nodes)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in nodes:
            node.wait(60)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.5)
    raise AssertionError("the head node did not come up")


def join(address: str, hosts: list[str], timeout_s: float = 120) -> RayCluster:
    """Join once both nodes are there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return RayCluster(section(ray_address=address), "cpu", hosts)
        except (ScenarioError, MosaicsimError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def test_two_hosts_whose_clocks_are_apart(models: Path, two_nodes: str, tmp_path: Path) -> None:
    def engine_of(expert: str, workers: tuple[int, ...], slots: int) -> EngineArguments:
        return arguments(models, expert, tp=len(workers), max_num_seqs=2)

    script = Script(
        [session(0, (0,), "a", range(2)), session(1, (1,), "a", range(2, 4))], sessions_ended(0, 1)
    )
    with crew_of(tmp_path, join(two_nodes, ["a", "b"])) as crew:
        crew.warm([Place((0,)), Place((1,))], 300)
        end_s = VllmExecutor(crew, 2, engine_of, KeepAll([50] * 4)).run(script)
        links = [crew.link(Place((worker,))) for worker in (0, 1)]
    clocks, nodes = [], set()
    for link in links:
        assert isinstance(link, RayLink)
        assert link.clock is not None
        assert link.arrival is not None
        clocks.append(-link.clock.seconds)
        nodes.add(link.arrival.node)
    assert len(nodes) == 2
    assert sorted(clocks) == pytest.approx([0, APART_S], abs=0.1)
    calls = script.calls()
    for call in calls.values():  # moments cut to fit the session's would be equal to its ends
        assert 0 < call["start"] < call["first"] < call["finish"] < call["at"] <= end_s
    assert calls[0]["finish"] - calls[0]["start"] > 10 * 0.001, "50 steps took their time"
    for worker in (0, 1):
        assert "Loading" in (tmp_path / f"worker-{worker}.log").read_text()


def test_a_cluster_with_too_little_is_named_with_what_it_has(two_nodes: str) -> None:
    join(two_nodes, ["a", "b"]).close()
    with pytest.raises(ScenarioError, match=r"2 workers on a take 2 CPUs of one node, .* has 1, 1 CPUs"):
        RayCluster(section(ray_address=two_nodes), "cpu", ["a", "a"])
    with pytest.raises(ScenarioError, match=r"1 workers on a take 1 GPUs of one node, .* has 0, 0 GPUs"):
        RayCluster(section(ray_address=two_nodes), "cuda", ["a"])


def test_a_cluster_that_is_busy_is_waited_for_so_long(two_nodes: str) -> None:
    others = join(two_nodes, ["a", "b"])
    try:
        busy = section(ray_address=two_nodes, start_timeout_s=2)
        with pytest.raises(MosaicsimError, match=r"start_timeout_s: after 2 s .* of its 2, 0 are free"):
            RayCluster(busy, "cpu", ["c"])
    finally:
        others.close()


def test_a_model_that_is_missing_on_a_host(two_nodes: str, tmp_path: Path) -> None:
    """The folder is there as the cluster is joined, and gone as the actor looks."""
    folder = tmp_path / "model"
    folder.mkdir()
    cluster = RayCluster(section(ray_address=two_nodes, models={"a": {"path": str(folder)}}), "cpu", ["a"])
    folder.rmdir()
    with (
        crew_of(tmp_path, cluster) as crew,
        pytest.raises(MosaicsimError, match=rf"worker 0 died \(host .* has no folder {folder}; a model's"),
    ):
        crew.warm([Place((0,))], 300)
