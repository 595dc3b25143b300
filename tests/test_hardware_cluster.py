"""Clusters: what is refused, and which workers can form a tensor-parallel group."""

from __future__ import annotations

import pytest

from mosaicsim.errors import ScenarioError
from mosaicsim.hardware.cluster import Cluster, Host, Worker


def test_islands_are_of_one_device_and_host() -> None:
    cluster = Cluster(
        (
            Worker("a", "a100-80g"),
            Worker("b", "h100"),
            Worker("c", "a100-80g"),
            Worker("d", "a100-80g", "host1"),
        ),
        (Host(), Host("host1")),
    )
    assert cluster.islands == ((0, 2), (1,), (3,))
    assert cluster.devices == ("a100-80g", "h100")


@pytest.mark.parametrize(
    ("workers", "hosts", "said"),
    [
        ((), (Host(),), "the cluster has 0 GPUs; it needs at least one"),
        ((Worker("a", "x"), Worker("a", "x")), (Host(),), "worker name 'a' is used more than once"),
        ((Worker("a", "x"),), (Host(), Host()), "host name 'host0' is used more than once"),
        ((Worker("a", "x", "hots0"),), (Host(),), "unknown host 'hots0' (did you mean 'host0'?)"),
    ],
)
def test_what_is_refused(workers: tuple[Worker, ...], hosts: tuple[Host, ...], said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Cluster(workers, hosts)
    assert said in str(caught.value)


@pytest.mark.parametrize("streams", [0.5, float("nan"), -1])
def test_a_disk_serves_at_least_one_load(streams: float) -> None:
    with pytest.raises(ScenarioError, match="disk_streams must be 1 or more"):
        Host("h", streams)
