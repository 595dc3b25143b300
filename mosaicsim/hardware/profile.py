"""A profile: the measured costs of one model on one device, at one tensor-parallel degree."""

from __future__ import annotations

from dataclasses import dataclass

from mosaicsim.hardware.latency import HostOverhead, LatencyModel


@dataclass(frozen=True)
class Profile:
    """Costs of running ``model`` on ``tp`` GPUs of type ``device``.

    ``kv_capacity_tokens`` is what fits beside the weights on all the ``tp`` GPUs together; ``load_s`` is a
    cold session start (weights from disk and engine start-up, the paper's l_m), of which ``disk_s`` reads the
    disk and is stretched when several workers of a host load at once; ``wake_s`` wakes a sleeping engine, and
    ``unload_s`` closes the one that has the worker (0 where it is a part of the load).
    ``host`` is the engine's host time a step where it was measured with the model.
    """

    model: str
    device: str
    tp: int
    latency: LatencyModel
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    load_s: float
    disk_s: float
    wake_s: float
    reasoning: bool
    sources: dict[str, str]
    host: HostOverhead | None = None
    unload_s: float = 0.0
