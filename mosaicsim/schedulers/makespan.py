"""The makespan model: a fixed cost for each expert a worker loads and a slope for each call it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.schedulers.balance import Balance
from mosaicsim.schedulers.shares import Table
from mosaicsim.workload.calls import Bools, Floats, Ints


@dataclass(frozen=True)
class MakespanModel:
    """Minimise the latest finish: ``fixed_s`` for an expert that a worker loads, ``slope_s`` a call of it.

    ``calls`` and ``replicas`` have shape (experts,), every entry at least 1; ``backlog_s`` (workers,);
    ``fixed_s`` and ``slope_s`` (experts, workers). ``per_worker`` is the paper's K, ``replicas`` its R_m.
    """

    calls: Ints
    fixed_s: Floats
    slope_s: Floats
    backlog_s: Floats
    replicas: Ints
    per_worker: int

    def finish_s(self, shares: Ints) -> Floats:
        """Finish time of each worker under shares of shape (experts, workers)."""
        work = np.where(shares > 0, self.fixed_s + self.slope_s * shares, 0.0)
        total: Floats = self.backlog_s + work.sum(axis=0)
        return total

    def start(self) -> Ints:
        """Shares by longest processing time and local search; shape (experts, workers)."""
        balance = self._balance()
        balance.place_whole_experts()
        return np.array(balance.relieved().shares, np.int64)

    def round(self, fractional: Floats, used: Bools) -> Ints:
        """Make a solver's shares whole: floors, the rest one by one to the least busy host, local search."""
        balance = self._balance()
        floors = np.floor(fractional + 1e-6).astype(np.int64)
        floors[~used] = 0
        for m, w in zip(*floors.nonzero(), strict=True):
            balance.place(int(m), int(w), int(floors[m, w]))
        for m, left in enumerate((self.calls - floors.sum(axis=1)).tolist()):
            hosts = used[m].nonzero()[0].tolist()
            for _ in range(left):
                balance.place(m, min(hosts, key=balance.busy_s.__getitem__), 1)
        return np.array(balance.relieved().shares, np.int64)

    def _balance(self) -> Balance:
        return Balance(self._table(), self.backlog_s.tolist(), self.replicas.tolist(), self.per_worker)

    def _table(self) -> Table:
        """Tabulate the costs, one list for workers that cost the same."""
        table: Table = []
        for n, fixed, slope in zip(self.calls.tolist(), self.fixed_s, self.slope_s, strict=True):
            kinds = {pair: _line(*pair, n) for pair in set(zip(fixed.tolist(), slope.tolist(), strict=True))}
            table.append([kinds[pair] for pair in zip(fixed.tolist(), slope.tolist(), strict=True)])
        return table


def _line(fixed_s: float, slope_s: float, n: int) -> list[float]:
    seconds: list[float] = (fixed_s + slope_s * np.arange(1, n + 1)).tolist()
    return [0.0, *seconds]
