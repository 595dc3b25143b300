"""Makespans for which the workers have too little time: the part of the bound that knows tails and loads.

Suppose the expert stage took no longer than T. On each worker that runs an expert (a *host*) the expert is
ready at ``load`` at the earliest, and ``room = T - load`` is left to generate in. A step costs its base and a
part for each call in it, so that the engine time of a host can be charged to its calls in two ways:

* *Shared*: no call takes less than ``work``, its part with the bases shared as widely as can be.
* *Led*: the tokens of one call come out of different steps, so the call with the longest ``lead`` pays the
  bases of its own steps, and every call ``lean``, its part without base: ``lead + sum of lean <= room``.

Take the k calls with the longest leads, all at least ``lead_k``. Fewer than j hosts can hold them only if
``sum of lean <= (j - 1)(room - lead_k)``; else the j-th longest-led host has a lead of ``lead_k`` or more.

Charge the j longest-led hosts as led and the others as shared, whatever j. The engine time of the expert is
at least ``sum of work + leads - sum of (work - lean) over the calls of led hosts``, and the ``lean`` of these
calls fits into the hosts' rooms less their leads: a fractional knapsack. That time needs so many rooms, and
for each of them a load takes of its worker's time what cannot be read ahead. If all experts together need
more than N workers have from the end of the first read to T, no schedule is as short as T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np

from mosaicsim.workload.calls import Floats

PRECISION = 1e-5
"""Relative width at which the bisection stops; its lower end is the bound."""


def not_known(room_s: float) -> float:
    """No engine time is known to be lost while KV caches fill."""
    return 0.0


@dataclass(frozen=True)
class ExpertNeeds:
    """What an expert's calls need, in seconds: columns of shape (n,), in descending order of ``lead_s``.

    It is ready after ``load_s``, ``taken_s`` of it surely the worker's time.
    ``filling_s(room)`` is the least engine time of all calls on hosts that have so much room, where that
    is known to be more than ``work_s`` because every host's KV cache is empty at first.
    """

    load_s: float
    taken_s: float
    work_s: Floats
    lean_s: Floats
    lead_s: Floats
    filling_s: Callable[[float], float] = not_known

    def worker_s(self, makespan_s: float, n_workers: int) -> float:
        """Least worker time, loads included, that the expert takes up in a stage of this length."""
        room = makespan_s - self.load_s
        if room <= 0:
            return inf
        engine_s = max(self._engine_s(room, n_workers))
        if engine_s == inf:
            return inf
        return engine_s + self.taken_s * max(1, ceil(engine_s / room * (1 - 1e-9)))

    def _engine_s(self, room: float, n_workers: int) -> list[float]:
        """Engine time with 0, 1, 2, ... hosts counted as led; endless where a lead does not fit."""
        work, leads, held = float(self.work_s.sum()), 0.0, np.cumsum(self.lean_s)
        needs = [max(work, self.filling_s(room))]
        for j in range(1, n_workers + 1):
            few_hold = (j - 1) * np.maximum(room - self.lead_s, 0.0) * (1 + 1e-9)
            crowded = np.flatnonzero(held > few_hold)
            if not len(crowded):
                break
            leads += float(self.lead_s[crowded[0]])
            needs.append(work + leads - self._saved(j * room - leads) if leads <= j * room else inf)
        return needs

    def _saved(self, lean_s: float) -> float:
        """Most that calls whose ``lean`` adds up to this spare of their ``work``."""
        lean, gain = self._knapsack
        return float(np.interp(lean_s, lean, gain))

    @cached_property
    def _knapsack(self) -> tuple[Floats, Floats]:
        """Sums of lean and of what it spares, most spared a second first."""
        gain = np.maximum(self.work_s - self.lean_s, 0.0)
        order = np.argsort(-gain / np.maximum(self.lean_s, 1e-12), kind="stable")
        return np.cumsum([0.0, *self.lean_s[order]]), np.cumsum([0.0, *gain[order]])


def packing_bound(
    experts: Sequence[ExpertNeeds], n_workers: int, at_least_s: float, first_s: float = 0.0
) -> float:
    """The longest stage found that N workers cannot do, by bisection from a bound known otherwise.

    In its first ``first_s`` seconds nothing can be done.
    """

    def too_short(makespan_s: float) -> bool:
        needed = sum(expert.worker_s(makespan_s, n_workers) for expert in experts)
        return needed > n_workers * (makespan_s - first_s) * (1 + 1e-9)

    low, high = at_least_s, 2 * at_least_s
    if low <= 0 or not too_short(low):
        return low
    while too_short(high):
        low, high = high, 2 * high
    while high - low > PRECISION * low:
        middle = (low + high) / 2
        low, high = (middle, high) if too_short(middle) else (low, middle)
    return low
