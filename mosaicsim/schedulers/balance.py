"""Balance: whole experts by longest processing time, then moves that relieve the busiest worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mosaicsim.errors import InfeasibleError
from mosaicsim.schedulers.shares import Table

_POWERS = (2.0, 3.0, 8.0, 16.0)
"""Power means by which moves are compared, each tried from the same start: a high one follows the maximum, a
low one sees that a split costs a load. Over 30 instances of ``benchmarks/ilp.py`` at 64 x 32 the best of the
four is at most 0.8 % above the proven bound; any one of them alone leaves up to 1.3 %."""

_MAX_MOVES = 10_000
"""Guard only: a search at 64 x 32 makes about 70 moves."""


class Move(NamedTuple):
    """``calls`` of ``expert`` leave the busiest worker for ``to``; all of ``back`` there (-1: none) comes."""

    expert: int
    to: int
    back: int
    calls: int
    from_s: float
    to_s: float


def require_slots(n_experts: int, n_workers: int, per_worker: int | None) -> None:
    """Raise InfeasibleError when K models a worker cannot hold every expert once."""
    if per_worker is not None and n_experts > per_worker * n_workers:
        raise InfeasibleError(
            f"max_models_per_worker: {per_worker} is too small: {n_experts} experts with calls do not fit on "
            f"{n_workers} workers; the least that works is {-(-n_experts // n_workers)}"
        )


class Balance:
    """Shares under construction and the time at which each worker is done with them.

    ``shares[m][w]`` are calls, ``busy_s[w]`` seconds including the backlog. ``per_worker`` is the paper's K,
    ``replicas[m]`` its R_m: the most workers that may load expert m.
    """

    def __init__(
        self, table: Table, backlog_s: Sequence[float], replicas: Sequence[int], per_worker: int | None = None
    ) -> None:
        """Start with nothing placed; ``table[m][w]`` has one entry more than expert m has calls."""
        self.table = table
        self._backlog_s = backlog_s
        self.busy_s = list(backlog_s)
        self.shares = [[0] * len(self.busy_s) for _ in table]
        self._on: list[set[int]] = [set() for _ in self.busy_s]
        self._hosts = [0] * len(table)
        self._replicas = replicas
        self._slots = len(table) if per_worker is None else per_worker

    @property
    def makespan_s(self) -> float:
        """When the last worker is done."""
        return max(self.busy_s)

    def place(self, expert: int, worker: int, calls: int) -> None:
        """Add calls of an expert to a worker (negative: take them away)."""
        row, seconds = self.shares[expert], self.table[expert][worker]
        before, after = row[worker], row[worker] + calls
        row[worker] = after
        self.busy_s[worker] += seconds[after] - seconds[before]
        self._hosts[expert] += (after > 0) - (before > 0)
        (self._on[worker].add if after else self._on[worker].discard)(expert)

    def place_whole_experts(self) -> None:
        """LPT: the longest expert first, each to the worker that finishes it soonest (Graham 1969)."""
        calls = [len(row[0]) - 1 for row in self.table]
        order = sorted(
            (m for m, n in enumerate(calls) if n), key=lambda m: -min(t[-1] for t in self.table[m])
        )
        require_slots(len(order), len(self.busy_s), self._slots)
        for m in order:
            free = (w for w, on in enumerate(self._on) if len(on) < self._slots)
            self.place(m, min(free, key=lambda w: self.busy_s[w] + self.table[m][w][-1]), calls[m])

    def relieved(self) -> Balance:
        """Move calls off the busiest worker, splitting experts where that pays, until nothing helps.

        Each move lowers the finish time of the busiest worker below what it was and raises no other to it, so
        the search ends; every load a split costs, and the fixed part of its session, is in the table.
        """
        trials = [self._copy() for _ in _POWERS]
        for trial, power in zip(trials, _POWERS, strict=True):
            trial._descend(power)
        return min(trials, key=lambda trial: trial.makespan_s)

    def _copy(self) -> Balance:
        twin = Balance(self.table, self._backlog_s, self._replicas, self._slots)
        for m, row in enumerate(self.shares):
            for w, calls in enumerate(row):
                if calls:
                    twin.place(m, w, calls)
        return twin

    def _descend(self, power: float) -> None:
        for _ in range(_MAX_MOVES):
            busiest = max(range(len(self.busy_s)), key=self.busy_s.__getitem__)
            move = min(self._moves(busiest), key=lambda move: self._rank(move, busiest, power), default=None)
            if move is None:
                return
            self._apply(move, busiest)

    def _apply(self, move: Move, source: int) -> None:
        self.place(move.expert, source, -move.calls)
        self.place(move.expert, move.to, move.calls)
        if move.back >= 0:
            returned = self.shares[move.back][move.to]
            self.place(move.back, move.to, -returned)
            self.place(move.back, source, returned)

    def _rank(self, move: Move, source: int, power: float) -> tuple[float, Move]:
        """Power mean's change in units of the makespan; the move itself breaks ties."""
        top = self.busy_s[source]
        gain = (
            (max(move.from_s, 0.0) / top) ** power
            + (max(move.to_s, 0.0) / top) ** power
            - (self.busy_s[move.to] / top) ** power
        )
        return gain, move

    def _moves(self, source: int) -> Iterator[Move]:
        """Every move that finishes both workers before the busiest one finishes now."""
        limit = self.busy_s[source] * (1 - 1e-9)
        for m in sorted(self._on[source]):
            for to, busy in enumerate(self.busy_s):
                if busy >= limit:
                    continue
                for back in (-1, *sorted(self._on[to] - {m})):
                    yield from self._split(m, source, to, back, limit)

    def _split(self, m: int, source: int, to: int, back: int, limit: float) -> Iterator[Move]:
        """Moves of expert m to one worker: all of its calls here, or as many as balance the two."""
        here, there = self.table[m][source], self.table[m][to]
        n, already = self.shares[m][source], self.shares[m][to]
        rest_from, rest_to = self.busy_s[source] - here[n], self.busy_s[to] - there[already]
        slots_from, slots_to = len(self._on[source]), len(self._on[to]) + (not already)
        if back >= 0:
            returned, kept = self.shares[back][to], self.shares[back][source]
            rest_to -= self.table[back][to][returned]
            rest_from += self.table[back][source][kept + returned] - self.table[back][source][kept]
            slots_to -= 1
            slots_from += not kept
        if slots_to > self._slots or rest_from >= limit:
            return
        amounts = [n] if slots_from - 1 <= self._slots else []
        if slots_from <= self._slots and (already or self._hosts[m] < self._replicas[m]):
            amounts += _crossing(here, there, n, already, rest_from - rest_to)
        for q in amounts:
            from_s, to_s = rest_from + here[n - q], rest_to + there[already + q]
            if from_s < limit and to_s < limit:
                yield Move(m, to, back, q, from_s, to_s)


def _crossing(here: list[float], there: list[float], n: int, already: int, lead_s: float) -> list[int]:
    """The two amounts around the point where giver and taker finish together; tables are nondecreasing."""
    if n < 2:
        return []
    low, high = 1, n - 1
    while low < high:
        q = (low + high) // 2
        if lead_s + here[n - q] <= there[already + q]:
            high = q
        else:
            low = q + 1
    return [low, low - 1] if low > 1 else [low]
