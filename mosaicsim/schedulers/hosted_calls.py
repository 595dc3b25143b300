"""An expert's calls as a host could serve them: what each adds to the host's time and to its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from mosaicsim.schedulers.bounds import EngineLimits, ExpertCalls, line_below, mean_batch
from mosaicsim.workload.calls import Floats

ALL = slice(None)
"""Every row."""


@dataclass(frozen=True)
class HostedCalls:
    """Calls in ascending order of ``decodes``, the tokens after a call's first; columns of shape (n > 0,).

    The engine is one of V0 without prefix caching. Token g = 1..decodes of a call attends ``prompt_tokens``
    and g tokens, and while it is decoded the call's blocks take up as many, rounded up to whole blocks.
    """

    prompt_tokens: Floats
    decodes: Floats
    engine: EngineLimits

    @cached_property
    def step(self) -> tuple[float, float]:
        """``base`` and ``slope`` of a line below the costs of decode steps by their number of calls."""
        calls = ExpertCalls(self.prompt_tokens, self.decodes + 1, np.ones(len(self.decodes), np.bool_))
        step_s = np.array(self.engine.tables.decode_base[1 : self.engine.max_num_seqs + 1])
        return line_below(step_s, mean_batch(calls, self.engine))

    @cached_property
    def rate(self) -> float:
        """Least seconds of a prefilled token; a step beyond the table goes on with the table's last slope."""
        tables = self.engine.tables
        seconds = np.array(tables.prefill) + np.array(tables.tokens[: len(tables.prefill)])
        shared = (tables.mixed_base[0] + seconds[1:]) / np.arange(1, len(seconds))
        least = min(shared.min(initial=inf), np.diff(seconds)[-1:].min(initial=inf))
        return float(least) if least < inf else 0.0

    @cached_property
    def lean_s(self) -> Floats:
        """What each call adds to its host's time besides the bases of decode steps."""
        attended = self.decodes * (self.prompt_tokens + (self.decodes + 1) / 2)
        context = self.engine.tables.decode_context
        lean_s: Floats = self.step[1] * self.decodes + context * attended + self.rate * self.prompt_tokens
        return lean_s

    def recomputing(self, token: Floats, rows: slice = ALL) -> Floats:
        """Bases of decode steps that it takes to recompute calls up to a token rather than decode it.

        Of some ``rows``; ``token`` has shape (rows, k), and so has what is returned. There has to be a base.
        """
        (base, slope), context = self.step, self.engine.tables.decode_context
        attended = self.prompt_tokens[rows, None] + token
        steps: Floats = ((self.rate - context) * attended - slope) / base
        return steps

    @cached_property
    def can_be_priced(self) -> bool:
        """Whether steps take time, and no token is sooner recomputed, with all before it, than decoded."""
        first = np.ones((len(self.decodes), 1))
        return self.step[0] > 0 and bool((self.recomputing(first) >= 0).all())

    def blocks_between(self, begin: Floats, end: Floats, rows: slice = ALL) -> Floats:
        """The tokens that blocks take up, summed over each call's from one to another; shape (rows, k)."""
        size, prompt = self.engine.block_size, self.prompt_tokens[rows, None]
        return _rounded_up_sum(prompt + end, size) - _rounded_up_sum(prompt + begin, size)

    def blocks_after(self, m: float) -> Floats:
        """The tokens that each call's blocks take up, summed over its tokens after the m-th."""
        size, end = self.engine.block_size, self.prompt_tokens + self.decodes
        begin = self.prompt_tokens + np.minimum(self.decodes, m)
        return _rounded_up_sum(end, size) - _rounded_up_sum(begin, size)

    def most_blocks(self, m: float) -> float:
        """The most tokens that blocks can take up, summed over a host's first m decode steps."""
        running = min(self.engine.max_num_seqs, len(self.decodes))
        prompts = float(np.sort(self.prompt_tokens)[-running:].sum())
        return m * (prompts + running * ((m + 1) / 2 + self.engine.block_size - 1))

    def classes(self, most: int) -> list[slice]:
        """About ``most`` runs of calls at most, cut by decodes and lean seconds alike; the longest apart."""
        longest, lean_s = max(self.decodes[-1], 1), max(self.lean_s.sum(), 1e-9)
        height = self.decodes / longest + np.cumsum(self.lean_s) / lean_s
        levels = height[0] + (height[-1] - height[0]) * np.arange(most) / most
        cuts = self.decodes[[*np.searchsorted(height, levels), -1]]
        first = np.unique(np.searchsorted(self.decodes, cuts)).tolist()
        return [slice(a, b) for a, b in zip(first, [*first[1:], len(height)], strict=True)]

    def lines(self, cost: Floats, parts: Sequence[slice]) -> tuple[list[float], list[float]]:
        """For each part a line in lean seconds that no call's ``cost`` is below: for all of it, and a second.

        The first is the part's number of calls times the line at 0.
        """
        lines = [_line_below(self.lean_s[part], cost[part]) for part in parts]
        at_none = [(part.stop - part.start) * height for part, (height, _) in zip(parts, lines, strict=True)]
        return at_none, [slope for _, slope in lines]


def _line_below(x: Floats, y: Floats) -> tuple[float, float]:
    """Height at 0 and slope of a line that no point is below, as high as can be at the mean of ``x``.

    It goes through two points on either side of the mean, found like a facet of the convex hull; however
    these are chosen, the height is taken so that the line stays below.
    """
    middle, left, right = float(x.mean()), int(np.argmin(x)), int(np.argmax(x))
    if x[right] - x[left] <= 1e-9 * x[right]:
        return float(y.min()), 0.0
    for _ in x:
        slope = float((y[right] - y[left]) / (x[right] - x[left]))
        lowest = int(np.argmin(y - slope * x))
        if lowest in (left, right):
            break
        left, right = (lowest, right) if x[lowest] <= middle else (left, lowest)
    return float((y - slope * x).min()), slope


def _rounded_up_sum(numbers: Floats, size: int) -> Floats:
    """The sum over q = 1..number of q rounded up to a multiple of ``size``, elementwise."""
    whole = np.floor(numbers / size)
    total: Floats = size * (size * whole * (whole + 1) / 2 + (numbers - size * whole) * (whole + 1))
    return total
