"""What a preempted call may find again: its KV blocks among the free ones, until others take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Run:
    """Blocks ``first`` to ``end - 1`` of call ``row``, the last one foremost, behind ``ahead`` others."""

    row: int
    first: int
    end: int
    ahead: int


class CachedBlocks:
    """The queue of free blocks, of which only the places of preempted calls' computed blocks are kept.

    Free blocks are taken from the head of the queue, and a call's blocks join its end last block first, as in
    vLLM's block pool: so a call loses its tail first, and what is left can go on from there.
    """

    def __init__(self) -> None:
        """An empty queue; ``runs`` is the same list throughout, empty while nothing can be found again."""
        self.runs: list[_Run] = []

    def append(self, row: int, first: int, computed: int, *, freed: int, free: int) -> None:
        """Blocks from ``first`` on were ``freed``, after ``free`` others; the first ``computed`` hold KV."""
        if computed <= first:
            return
        others = free - sum(run.ahead + run.end - run.first for run in self.runs)
        self.runs.append(_Run(row, first, computed, others + freed - (computed - first)))

    def take(self, blocks: int) -> None:
        """Take blocks from the head of the queue; what they held is gone."""
        while blocks and self.runs:
            head = self.runs[0]
            others = min(blocks, head.ahead)
            head.ahead -= others
            own = min(blocks - others, head.end - head.first)
            head.end -= own
            blocks -= others + own
            if head.end == head.first:
                del self.runs[0]

    def found(self, row: int, held: int) -> int:
        """How many first blocks of ``row`` are computed: ``held`` ones that twins hold, then its own."""
        run = next((run for run in self.runs if run.row == row), None)
        return held if run is None or run.first > held else max(held, run.end)

    def claim(self, row: int, held: int) -> int:
        """Take those of its own that ``row`` finds out of the queue; returns how many."""
        place = next((i for i, run in enumerate(self.runs) if run.row == row), None)
        if place is None:
            return 0
        run = self.runs.pop(place)
        claimed = max(run.end - held, 0) if run.first <= held else 0
        self._pass_on(place, run.ahead + run.end - run.first - claimed)
        return claimed

    def _pass_on(self, place: int, others: int) -> None:
        """Blocks before a run that is gone stand before the next one; behind the last they need no count."""
        if place < len(self.runs):
            self.runs[place].ahead += others
