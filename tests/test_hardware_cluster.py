"""The cluster: heterogeneous workers, groups of GPUs, and what is refused."""

from __future__ import annotations

import math

import pytest

from mosaicsim.errors import ProfileError, ScenarioError
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.cluster import Cluster, Gpu, Host, Worker


def mixed() -> Cluster:
    gpus = [Gpu("a", "l40s", "left"), *(Gpu(f"h{i}", "h100", "right") for i in range(2))]
    return Cluster.of_gpus(gpus, (Host("left"), Host("right", disk_streams=2)))


def test_homogeneous_cluster_is_one_worker_a_gpu() -> None:
    cluster = Cluster.homogeneous("a100-80g", 4)
    assert [worker.name for worker in cluster.workers] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert {worker.tp for worker in cluster.workers} == {1}
    assert cluster.devices == ("a100-80g",)


def test_heterogeneous_cluster_knows_each_workers_device_and_host() -> None:
    cluster = mixed()
    assert [(worker.device, worker.host) for worker in cluster.workers] == [
        ("l40s", "left"),
        ("h100", "right"),
        ("h100", "right"),
    ]
    assert cluster.devices == ("l40s", "h100")
    assert cluster.host(cluster.workers[1]).disk_streams == 2


def test_group_takes_gpus_of_one_device_and_host() -> None:
    group = mixed().tensor_parallel_group(2, "aggregator")
    assert (group.name, group.device, group.tp) == ("aggregator", "h100", 2)
    with pytest.raises(ScenarioError, match=r"tp=3 needs 3 GPUs of one device on one host.*at most 2"):
        mixed().tensor_parallel_group(3)
    with pytest.raises(ScenarioError, match="tp must be 1 or more"):
        mixed().tensor_parallel_group(0)


@pytest.mark.parametrize(
    ("streams", "loading", "slowdown"), [(math.inf, 8, 1), (2, 1, 1), (2, 2, 1), (2, 5, 2.5)]
)
def test_disk_is_shared_beyond_its_streams(streams: float, loading: int, slowdown: float) -> None:
    assert Host("h", streams).disk_slowdown(loading) == slowdown


def test_what_is_refused() -> None:
    with pytest.raises(ScenarioError, match="0 GPUs; it needs at least one"):
        Cluster.homogeneous("h100", 0)
    with pytest.raises(ScenarioError, match="'w': needs at least one GPU"):
        Worker("w", ())
    with pytest.raises(ScenarioError, match="one device and host, got h100 on host0, l40s on host0"):
        Worker("w", (Gpu("a", "h100"), Gpu("b", "l40s")))
    with pytest.raises(ScenarioError, match="worker name 'a' is used more than once"):
        Cluster.of_gpus([Gpu("a", "h100"), Gpu("a", "h100")])
    with pytest.raises(ScenarioError, match="GPU name 'a' is used more than once"):
        Cluster((Worker("u", (Gpu("a", "h100"),)), Worker("v", (Gpu("a", "h100"),))))
    with pytest.raises(
        ScenarioError, match=r"unknown host 'hots0' \(did you mean 'host0'\?\); known are host0"
    ):
        Cluster.of_gpus([Gpu("a", "h100", "hots0")])
    for streams in (0.5, math.nan):
        with pytest.raises(ScenarioError, match="disk_streams must be 1 or more"):
            Host("h", streams)


def test_devices_are_checked_against_the_catalog() -> None:
    known = load_catalog().devices
    Cluster.homogeneous("l40s", 1).check_devices(known)
    with pytest.raises(ProfileError, match=r"worker 'gpu0': unknown device 'l4s' \(did you mean 'l40s'\?\)"):
        Cluster.homogeneous("l4s", 1).check_devices(known)
