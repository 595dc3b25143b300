"""How engines that share a GPU slow each other down.

An iteration of an engine is some host time (scheduling, preparing inputs, sampling), in which the GPU has
nothing of it to do, and GPU time. Engines in processes of their own overlap: while one is on its host, the
GPU works for the others, and what they want of it at the same time it divides evenly among them. That is a
closed network of queues, a processor-sharing one (the GPU) and a delay (the hosts: each engine has a core of
its own), whose throughput depends on the mean times only (Baskett, Chandy, Muntz and Palacios, 1975).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial


def rates(gpu_parts: Sequence[float]) -> list[float]:
    """How fast each of some engines goes beside the others, in parts of its speed alone.

    ``gpu_parts`` (0 to 1) say what part of each one's iterations is GPU time. Two engines with parts u and v
    both go at 1 / (1 + u v): at half their speed if neither has host time, at full speed if one has no other.
    """
    whole = _states(gpu_parts)
    return [_states([*gpu_parts[:i], *gpu_parts[i + 1 :]]) / whole for i in range(len(gpu_parts))]


def _states(gpu_parts: Sequence[float]) -> float:
    """The network's normalising constant: over all sets that may be at the GPU, size! times their chance."""
    at_gpu = [1.0]
    for part in gpu_parts:
        stay = [(1 - part) * weight for weight in at_gpu]
        go = [part * weight for weight in at_gpu]
        at_gpu = [a + b for a, b in zip([*stay, 0.0], [0.0, *go], strict=True)]
    return sum(factorial(n) * weight for n, weight in enumerate(at_gpu))
