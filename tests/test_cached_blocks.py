"""Where a preempted call's blocks stand among the free ones, against the queue itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.executors.cached_blocks import CachedBlocks

MOVES = st.lists(
    st.tuples(st.sampled_from(["preempt", "free", "take", "claim"]), st.integers(0, 12), st.integers(0, 4)),
    max_size=40,
)


@given(st.integers(0, 10), MOVES)
def test_equals_the_queue_itself(at_first: int, moves: list[tuple[str, int, int]]) -> None:
    queue: list[tuple[int, int] | None] = [None] * at_first
    cached = CachedBlocks()
    rows: dict[int, None] = {}
    for row, (move, n, m) in enumerate(moves):
        if move == "preempt":
            first, computed, end = min(m, n), n, n + m
            freed = [(row, i) if i < computed else None for i in reversed(range(first, end))]
            cached.append(row, first, computed, freed=len(freed), free=len(queue))
            queue += freed
            rows[row] = None
        elif move == "free":
            queue += [None] * n
        elif move == "take":
            del queue[:n]
            cached.take(n)
        elif rows:
            claimer = list(rows)[n % len(rows)]
            del rows[claimer]
            found = m
            while (claimer, found) in queue:
                found += 1
            assert cached.found(claimer, m) == found
            assert cached.claim(claimer, m) == found - m
            mine = [(claimer, i) for i in range(m, found)]
            left = [block for block in queue if block not in mine]
            queue = [None if block and block[0] == claimer else block for block in left]
        for other in rows:
            blocks = [block[1] for block in queue if block and block[0] == other]
            assert cached.found(other, min(blocks, default=0)) == max(blocks, default=-1) + 1
