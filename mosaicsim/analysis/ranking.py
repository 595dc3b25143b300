"""Whether the simulator puts schedulers in the real order, where the real order is one at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any


def rank(real: Mapping[str, Sequence[float]], simulated: Mapping[str, float]) -> dict[str, Any]:
    """Compare makespans by scheduler: ``real`` of every repeat, ``simulated`` the prediction.

    A pair is ``decided`` if every repeat of the one beat every repeat of the other, with two repeats or more:
    the real difference exceeds what repeats differ by. ``agrees`` says that the simulator has the order of
    every decided pair right; None where none is decided. ``kendall_tau`` (tau-a: ties count as neither) is
    over all pairs of means.
    """
    pairs = [_pair(a, b, real, simulated) for a, b in combinations(real, 2)]
    decided = [pair for pair in pairs if pair["decided"]]
    return {
        "order_real": sorted(real, key=lambda name: _mean(real[name])),
        "order_simulated": sorted(simulated, key=lambda name: simulated[name]),
        "kendall_tau": sum(pair["concordance"] for pair in pairs) / len(pairs) if pairs else None,
        "pairs": pairs,
        "decided": len(decided),
        "agrees": all(pair["concordance"] > 0 for pair in decided) if decided else None,
    }


def _pair(
    a: str, b: str, real: Mapping[str, Sequence[float]], simulated: Mapping[str, float]
) -> dict[str, Any]:
    difference, predicted = _mean(real[b]) - _mean(real[a]), simulated[b] - simulated[a]
    return {
        "faster_if_above_1": [a, b],
        "speedup_real": _mean(real[b]) / _mean(real[a]),
        "speedup_simulated": simulated[b] / simulated[a],
        "decided": _apart(real[a], real[b]),
        "concordance": (difference * predicted > 0) - (difference * predicted < 0),
    }


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    return min(len(a), len(b)) > 1 and (max(a) < min(b) or max(b) < min(a))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
