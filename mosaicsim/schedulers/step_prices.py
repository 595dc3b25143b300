"""Prices of the KV cache by decode step: which steps of a host are dear, and what its calls pay at least.

Let a token of KV cache cost ``u(t)`` in the t-th decode step of a host (an expert on a worker), a sequence
``w(t)``, neither negative. A step holds K tokens and S sequences at most. So all that the calls pay is no
more than D steps take in: ``sum of K u(t) + S w(t) over t <= D``, which is D and an *excess*. So D is at
least the sum of what each call pays at least, whenever it runs, less the largest excess that as many steps
as are known to be needed, or more, can have.

V0 decodes every running call in every decode step, and its calls stay. So a call's token g = 1..d comes out
of step ``g + o``, where the offset o stays until the call is preempted, and never falls: a preempted call
misses a step, and gets a token out of recomputing all it had. That is priced too, by the steps that would
take as long. It must not cost less than nothing: a recomputed token is dearer than a decoded one.

**The least that a call pays**, over all offsets and preemptions, is found on a lattice. Prices are constant
in cells, and at an offset o a call pays ``sum of (u before - u behind) B(edge - o)`` over the edges of
cells, where B(g) is what its first g tokens take up. The lattice has the offsets that are multiples of
``spacing``, and those from which the call ends at one. Between two neighbours no edge passes the begin or
end of a call that is not preempted, and B is convex. So what it pays there is less than at the cheaper
neighbour by no more than ``spacing (spacing + block) / 4`` times what prices fall from cell to cell.

Of a preempted call, choose a fraction; move the parts whose offset has come farther than that fraction of
its way from the lower to the upper neighbour up, and the others down. Offsets still never fall, and for
some fraction it pays no more. Several parts may be near an edge, but with tokens for two spacings on either
side at most, since each token takes a later step; so four times the above is taken off. Where the call is
cut an edge may pass, which adds ``spacing / 4`` times its blocks and a price difference on either side. A
cut within a group of tokens that share a cell costs no less than one at the group's begin or end, but for
the group's own convexity, as the price of a token may rise where that of a sequence falls. All this is
taken off what a preemption costs; and so is the price of the token that was recomputed, which the lattice
decodes. Where nothing is left of it, offsets may rise for nothing, and what is less than nothing is taken
off once for every token.

**Prices** come from a linear program: the fewest steps in which a host can run given calls, cut at will
between ways to run them. Its dual are prices, and ways that are cheap at these are added. Prices made for
some calls are valid for all others, and demand the less the more unlike these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import highspy
import numpy as np

from mosaicsim.schedulers.hosted_calls import ALL, HostedCalls
from mosaicsim.workload.calls import Floats, Ints

CELLS = 64
"""Cells of a price over the steps of the longest call."""

FINER = 4
"""Offsets tried in each cell for what calls pay at least."""

STEEPEST = 2.0
"""Most by which a full KV cache's price changes from cell to cell, in steps: steep prices round badly."""

MOST_COLUMNS = 60
"""Times that columns are generated for a price."""

SLACK_STEPS = 4.0
"""Steps by which the program may fall short of its optimum."""

AT_ONCE = 4_000_000
"""Calls times offsets that are looked at together."""


@dataclass(frozen=True)
class StepPrices:
    """Prices of a token of KV cache and of a sequence, in steps, by cells of ``width`` decode steps.

    Both of shape (cells,); after the last cell a full KV cache costs a step, and a sequence nothing.
    """

    width: int
    token: Floats
    sequence: Floats

    def excess(self, calls: HostedCalls, least_steps: Floats) -> Floats:
        """The most that D or more steps take in beyond D, for each D of ``least_steps``."""
        engine = calls.engine
        full = engine.kv_capacity_tokens * self.token + engine.max_num_seqs * self.sequence
        total = np.concatenate([[0.0], np.cumsum((full - 1.0) * self.width)])
        edges = self.width * np.arange(len(total), dtype=np.float64)
        # linear between edges: largest at one of them, or at D itself
        later = np.maximum.accumulate(total[::-1])[::-1]
        behind = later[np.minimum(np.searchsorted(edges, least_steps), len(later) - 1)]
        most: Floats = np.maximum(np.interp(least_steps, edges, total), behind)
        return most

    def least_paid(self, calls: HostedCalls) -> Floats:
        """Steps that each call pays at least, whenever it runs; shape (n,).

        Raises ValueError for calls that ``can_be_priced`` says no of.
        """
        if not calls.can_be_priced:
            raise ValueError("steps take no time, or recomputing takes less: prices say nothing")
        spacing = 1 if self.width % FINER else self.width // FINER
        steps = self.in_cells(spacing, calls)
        engine, n = calls.engine, len(calls.decodes)
        rough = spacing * (spacing + engine.block_size) / 4
        bends = 4 * rough * float(np.maximum(-np.diff(steps.token), 0.0).sum())
        paid = np.zeros(n)
        at_once = max(1, AT_ONCE // (2 * len(steps.token)))
        for begin in range(0, n, at_once):
            rows = slice(begin, begin + at_once)
            lattice = _Lattice(calls, spacing, rows)
            paid[rows] = lattice.least(steps, lattice.preemptions(steps))
        least: Floats = np.maximum(paid - bends, 0.0)
        return least

    def between(self, other: StepPrices) -> StepPrices:
        """The mean of both."""
        return StepPrices(self.width, (self.token + other.token) / 2, (self.sequence + other.sequence) / 2)

    def in_cells(self, spacing: int, calls: HostedCalls) -> StepPrices:
        """The same in narrower cells, and one cell more for what comes after."""
        finer = self.width // spacing
        token = np.append(np.repeat(self.token, finer), 1 / calls.engine.kv_capacity_tokens)
        return StepPrices(spacing, token, np.append(np.repeat(self.sequence, finer), 0.0))


class _Lattice:
    """Offsets of calls, two to a cell, and the groups of tokens that fall into one cell at each of them.

    A group ends where a multiple of the spacing does, or where ``rest`` more tokens do, so that the last
    group of a call of ``d`` tokens ends with it. At offset number q group j lies in cell ``(j + q) // 2``.
    """

    def __init__(self, calls: HostedCalls, spacing: int, rows: slice = ALL) -> None:
        self._calls, self._spacing, self._rows = calls, spacing, rows
        decodes = calls.decodes[rows]
        last = np.maximum(np.ceil(decodes / spacing) - 1, 0)
        rest = decodes - last * spacing
        number = np.arange(2 * int(last.max()) + 2)
        starts = number // 2 * spacing + np.where(number % 2, rest[:, None], 0.0)
        ends = number // 2 * spacing + np.where(number % 2, float(spacing), rest[:, None])
        begin, end = (np.minimum(at, decodes[:, None]) for at in (starts, ends))
        self._begin = begin
        self._tokens = end - begin
        self._blocks = calls.blocks_between(begin, end, rows)

    def preemptions(self, prices: StepPrices) -> Floats:
        """Steps that a preemption within each group costs at least, less what the lattice may miss there."""
        calls, spacing, size = self._calls, self._spacing, self._calls.engine.block_size
        largest = calls.prompt_tokens[self._rows, None] + self._begin + spacing + 2 * size
        rise, rise_w = (_largest(np.abs(np.diff(p))) for p in (prices.token, prices.sequence))
        missed = float(prices.token.max()) * largest + float(prices.sequence.max())
        missed += spacing / 2 * (rise * largest + rise_w)
        missed += float(prices.token.max()) * spacing * (spacing + size) / 4
        found: Floats = calls.recomputing(self._begin + 1.0, self._rows) - missed
        return found

    def least(self, prices: StepPrices, preemptions: Floats) -> Floats:
        """What each call pays on the lattice at least; shape (n,).

        A preemption that spares more than it costs may happen at every token.
        """
        spared = (self._tokens * np.minimum(preemptions, 0.0)).sum(axis=1)
        least: Floats = self._paid(prices, preemptions, None).min(axis=1) + spared
        return least

    def ways(self, prices: StepPrices, preemptions: Floats) -> tuple[Floats, Ints]:
        """The same, with the offset number of every group of a way that pays just that, shape (n, groups)."""
        turns: list[Ints] = []
        paid = self._paid(prices, preemptions, turns)
        ways = np.zeros(self._tokens.shape, np.int64)
        ways[:, -1] = paid.argmin(axis=1)
        for j in range(len(turns), 0, -1):
            ways[:, j - 1] = np.take_along_axis(turns[j - 1], ways[:, j : j + 1], 1)[:, 0]
        return paid.min(axis=1), ways

    def _paid(self, prices: StepPrices, preemptions: Floats, turns: list[Ints] | None) -> Floats:
        """What calls have paid at each offset number when all their groups are done."""
        cells, groups = len(prices.token), self._tokens.shape[1]
        numbers = np.arange(2 * cells)
        paid = np.zeros((len(self._tokens), len(numbers)))
        for j in range(groups):
            if j:
                sooner = np.minimum.accumulate(paid, axis=1)
                again = sooner + np.maximum(preemptions[:, j - 1, None], 0.0)
                if turns is not None:
                    at = np.maximum.accumulate(np.where(paid <= sooner, numbers, 0), axis=1)
                    turns.append(np.where(again < paid, at, numbers))
                np.minimum(paid, again, out=paid)
            cell = np.minimum((j + numbers) // 2, cells - 1)
            paid += self._blocks[:, j, None] * prices.token[cell]
            paid += self._tokens[:, j, None] * prices.sequence[cell]
        return paid

    def taken(self, ways: Ints, cells: int) -> tuple[Floats, Floats]:
        """Tokens of KV cache and sequences, summed over the steps of each cell, that calls so run take up."""
        cell = np.minimum((np.arange(ways.shape[1]) + ways) // 2, cells - 1)
        rows = np.arange(len(ways))[:, None]
        blocks, sequences = np.zeros((2, len(ways), cells))
        np.add.at(blocks, (rows, cell), self._blocks)
        np.add.at(sequences, (rows, cell), self._tokens)
        return blocks, sequences

    def preempted(self, ways: Ints, preemptions: Floats) -> Floats:
        """Steps that the preemptions of calls so run cost."""
        costs = np.maximum(preemptions[:, :-1], 0.0)
        cost: Floats = np.where(np.diff(ways, axis=1) > 0, costs, 0.0).sum(axis=1)
        return cost


def _largest(steps: Floats) -> float:
    return float(steps.max(initial=0.0))


def fitted_prices(calls: HostedCalls, weights: Floats, least_steps: float) -> StepPrices | None:
    """Prices under which these calls, each so many times, demand the most of a host that runs so many steps.

    None where nothing can be priced, for want of calls or of steps that are dearer than recomputing.
    """
    if not len(weights) or not calls.can_be_priced:
        return None
    return _Program(calls, weights, least_steps).prices()


class _Program:
    """Fewest steps of a host for some calls, over ways to run them that are added as prices ask for them.

    Variables: of each cell the part of it that is run, which is never more than of the cell before; what
    capacity neighbours lend each other, at a cost that keeps prices from being steep; and of each call how
    often it is run in a way.
    """

    def __init__(self, calls: HostedCalls, weights: Floats, least_steps: float) -> None:
        self._calls, self._weights = calls, weights
        longest = float(max(calls.decodes[-1], 1.0))
        self._width = FINER * max(1, round(longest / CELLS / FINER))
        engine = calls.engine
        cache, full = float(engine.kv_capacity_tokens), float(engine.max_num_seqs)
        work = float((weights * calls.blocks_after(0.0)).sum()) / cache
        turns = float((weights * calls.decodes).sum()) / full
        self._cells = int(max(1.3 * max(work, turns) + longest / 4, 1.1 * longest) / self._width) + 2
        self._caps = cache, full
        self._least_steps = least_steps
        self._lattice = _Lattice(calls, self._width)
        self._start()

    def _start(self) -> None:
        self._highs: Any = cast(Any, highspy).Highs()
        for name, value in {"output_flag": False, "threads": 1, "random_seed": 0}.items():
            self._highs.setOptionValue(name, value)
        highs, cells, width = self._highs, self._cells, float(self._width)
        none = np.array([], np.int32), np.array([])
        for cell in range(cells):
            sure = 1.0 if (cell + 1) * width <= self._least_steps else 0.0
            highs.addCol(width, sure, 1.0, 0, *none)
        for cap in self._caps:
            for cell in range(cells):
                highs.addRow(0.0, highspy.kHighsInf, 1, np.array([cell], np.int32), np.array([cap * width]))
        for weight in self._weights.tolist():
            highs.addRow(weight, highspy.kHighsInf, 0, *none)
        for cell in range(cells - 1):
            highs.addRow(
                0.0, highspy.kHighsInf, 2, np.array([cell, cell + 1], np.int32), np.array([1.0, -1.0])
            )
        for k, cap in enumerate(self._caps):
            for cell in range(cells - 1):
                rows = np.array([k * cells + cell, k * cells + cell + 1], np.int32)
                for lent in ([-1.0, 1.0], [1.0, -1.0]):
                    highs.addCol(STEEPEST / cap, 0.0, highspy.kHighsInf, 2, rows, np.array(lent))

    def prices(self) -> StepPrices:
        """The best prices found."""
        unpriced = self._prices(np.zeros(self._cells), np.zeros(self._cells))
        preemptions = self._lattice.preemptions(unpriced)
        for number in range(0, 2 * self._cells, 4):
            ways = np.full((len(self._weights), preemptions.shape[1]), number)
            self._add(ways, preemptions)
        best, best_steps = unpriced, 0.0
        for _ in range(MOST_COLUMNS):
            self._highs.run()
            needed = float(self._highs.getInfo().objective_function_value)
            duals = np.maximum(np.array(self._highs.getSolution().row_dual), 0.0)
            found = self._prices(duals[: self._cells], duals[self._cells : 2 * self._cells])
            # half way to the best so far as well, since duals jump from one corner to another
            for tried in (found, best.between(found)):
                padded = tried.in_cells(self._width, self._calls)
                paid, ways = self._lattice.ways(padded, preemptions)
                self._add(ways, preemptions)
                steps = float((paid * self._weights).sum()) - self._excess(tried)
                if steps > best_steps:
                    best, best_steps = tried, steps
            if needed - best_steps < SLACK_STEPS:
                break
        return best

    def _prices(self, token: Floats, sequence: Floats) -> StepPrices:
        return StepPrices(self._width, token, sequence)

    def _excess(self, prices: StepPrices) -> float:
        return float(prices.excess(self._calls, np.array([self._least_steps]))[0])

    def _add(self, ways: Ints, preemptions: Floats) -> None:
        """A column for each call run in its way; what comes after the last cell has its price."""
        blocks, sequences = self._lattice.taken(ways, self._cells + 1)
        costs = self._lattice.preempted(ways, preemptions) + blocks[:, -1] / self._caps[0]
        for i, cost in enumerate(costs.tolist()):
            token = np.flatnonzero(blocks[i, :-1])
            sequence = np.flatnonzero(sequences[i, :-1])
            rows = [*token, *(self._cells + sequence), 2 * self._cells + i]
            values = [*-blocks[i, token], *-sequences[i, sequence], 1.0]
            self._highs.addCol(
                cost, 0.0, highspy.kHighsInf, len(rows), np.array(rows, np.int32), np.array(values)
            )
