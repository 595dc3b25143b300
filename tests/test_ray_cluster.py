"""What can be said of a Ray cluster without one."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim import __version__
from mosaicsim.errors import MosaicsimError, ScenarioError
from mosaicsim.execution import ExecutionSection
from mosaicsim.executors import ray_cluster
from mosaicsim.executors.machine import Machine
from mosaicsim.executors.ray_actor import Arrival
from mosaicsim.executors.ray_cluster import require_answer, require_ray, require_room
from mosaicsim.executors.ray_link import reason_of, require_same
from mosaicsim.hardware.cluster import Cluster, Host, Worker

FOUR = Cluster(tuple(Worker(f"w{i}", "a100") for i in range(4)))


def section(**more: object) -> ExecutionSection:
    return ExecutionSection.model_validate({"questions": "none", "models": {}, "executor": "ray", **more})


@given(
    hosts=st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1),
    each=st.integers(1, 3),
    spare=st.integers(0, 2),
)
def test_nodes_as_large_as_the_hosts_are_enough_and_one_less_is_not(
    hosts: dict[str, int], each: int, spare: int
) -> None:
    need = [each * n for n in hosts.values()]
    require_room("CPU", each, hosts, [*need, *[1.0] * spare], "it")
    with pytest.raises(ScenarioError, match=r"cluster.hosts: "):
        require_room("CPU", each, hosts, [max(need) - 1.0] * 10, "it")


def test_too_few_in_all_says_how_many_there_are() -> None:
    message = r"cluster.hosts: the workers take 4 GPUs, but the Ray cluster has 2, 1 GPUs by node"
    with pytest.raises(ScenarioError, match=message):
        require_room("GPU", 1, {"a": 2, "b": 2}, [1, 2], "the Ray cluster")


def test_a_local_cluster_is_no_larger_than_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: SimpleNamespace(name=name))
    machine = Machine(gpus=("0", "1"), cores=(0, 1, 2))
    with pytest.raises(ScenarioError, match=r"4 workers on host0 take 4 GPUs .* has 2 GPUs by node"):
        require_ray(section(), "cuda", FOUR, machine)
    with pytest.raises(ScenarioError, match=r"4 workers on host0 take 8 CPUs .* has 3 CPUs by node"):
        require_ray(section(cores_per_worker=2), "cpu", FOUR, machine)
    require_ray(section(ray_address="head:6379"), "cuda", FOUR, machine)


def test_ray_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ScenarioError, match=r"execution.executor: ray, .*pip install 'mosaicsim\[ray\]'"):
        require_ray(section(), "cpu", FOUR, Machine((), (0,)))


def test_gpus_of_two_kinds_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: SimpleNamespace(name=name))
    mixed = Cluster((Worker("w0", "a100", "a"), Worker("w1", "h100", "b")), hosts=(Host("a"), Host("b")))
    with pytest.raises(ScenarioError, match=r"cluster.hosts: a100, h100; with executor ray all workers"):
        require_ray(section(ray_address="head:6379"), "cuda", mixed, Machine((), ()))


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ScenarioError, match="accepted: auto, or HOST:PORT"):
        require_answer(address)


def test_nobody_at_the_address_is_found_out_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MosaicsimError, match=f"execution.ray_address: {address}: no Ray cluster there"):
            require_answer(address)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        require_answer(f"127.0.0.1:{head.getsockname()[1]}")


def test_another_version_or_a_missing_folder_on_a_host() -> None:
    here = Arrival("far", "n", 1, __version__, (0,), ())
    require_same(here)
    with pytest.raises(MosaicsimError, match=r"host far has mosaicsim 0.0.9, this one .*; install the same"):
        require_same(Arrival("far", "n", 1, "0.0.9", (0,), ()))
    with pytest.raises(MosaicsimError, match="host far has no folder /models/x"):
        require_same(Arrival("far", "n", 1, __version__, (0,), ("/models/x",)))


def test_the_reason_of_a_death_is_one_line() -> None:
    told = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerActor\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
        "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
        "include: (1) the process was killed by the OOM killer"
    )
    reason = reason_of(RuntimeError(told))
    assert reason.startswith("The actor is dead because its worker process has died.")
    assert reason.endswith("End of file.")
    assert reason_of(
        RuntimeError("Traceback\n  File x\nModuleNotFoundError: No module named 'mosaicsim'\n")
    ) == ("ModuleNotFoundError: No module named 'mosaicsim'")
    assert reason_of(RuntimeError("")) == "RuntimeError"
