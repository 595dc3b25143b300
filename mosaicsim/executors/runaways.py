"""Calls that never stop by themselves: so rare that few calibration calls do, so long that one ends a run.

Playing out a handful of them, wherever they happen to fall, drowns what one plan has over another in noise.
A rehearsal leaves them out instead, and weighs what one would do to the run by its chance, wherever it
may fall (Rao-Blackwell: an expectation taken in closed form has no variance of its own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mosaicsim.runtime.runlog import RunLog
from mosaicsim.workload.calls import Bools, Calibration, Floats, Ints

FACTOR = 10.0
"""A call that is so many times longer than the median call of its model is a runaway."""


@dataclass(frozen=True)
class Runaways:
    """The aggregator's: the ``chance`` that a call is one, and ``tokens`` it then writes; 0: none known."""

    chance: float
    tokens: int

    @classmethod
    def of(cls, seen: Calibration) -> Runaways:
        """From calibration calls: the mean of the aggregator's own rate and that of all models.

        Looping is common to all models; of the aggregator there is one calibration call a question, too few
        to tell a rate of a tenth of a percent. It then writes as much as the longest call that was seen.
        """
        own = seen.aggregator_output_tokens
        models = [lengths for lengths in (*seen.output_tokens, own) if len(lengths)]
        longest = max((int(lengths.max()) for lengths in models), default=0)
        if not len(own) or longest <= FACTOR * np.median(own):
            return cls(0.0, 0)
        pooled = sum(int(are_runaways(lengths).sum()) for lengths in models) / sum(map(len, models))
        return cls((float(are_runaways(own).mean()) + pooled) / 2, longest)


def runaway_ends_s(
    log: RunLog, calls: Ints, alone_s: Callable[[tuple[int, ...]], float], tokens: int
) -> Floats:
    """When each of these aggregator calls, shape (n,), would have ended had it written so many ``tokens``.

    It would have gone on at its own pace until its instance's last call ended, and then alone:
    ``alone_s(group)`` is what a token takes then.
    """
    groups = [log.sessions[session].spec.workers for session in log.session[calls].tolist()]
    starts, ends = log.start_s[calls], log.finish_s[calls]
    last: dict[tuple[int, ...], float] = {}
    for group, end in zip(groups, ends.tolist(), strict=True):
        last[group] = max(last.get(group, 0.0), end)
    paces = {group: alone_s(group) for group in last}
    alone_from, pace = np.array([last[g] for g in groups]), np.array([paces[g] for g in groups])
    beside_s = (ends - starts) / np.maximum(log.output_tokens[calls], 1)
    left = tokens - (alone_from - starts) / np.maximum(beside_s, 1e-9)
    found: Floats = alone_from + np.maximum(left, 0.0) * pace
    return found


def expected_makespan_s(makespan_s: float, ends_s: Floats, chance: float) -> float:
    """The mean makespan if each of some calls may be a runaway, apart from others.

    ``ends_s``, shape (n,), is when each would end if it were one.
    """
    ends = np.maximum(np.sort(ends_s)[::-1], makespan_s)
    # the last to end of those that are runaways ends the run
    none_later = (1 - chance) ** np.arange(len(ends) + 1)
    return float(chance * (ends * none_later[:-1]).sum() + makespan_s * none_later[-1])


def are_runaways(output_tokens: Ints) -> Bools:
    """Which of a model's calls, shape (n,), are runaways."""
    found: Bools = output_tokens > FACTOR * np.median(output_tokens)
    return found


def without(output_tokens: Ints, drawn: Ints, rng: np.random.Generator) -> Ints:
    """``drawn`` lengths, runaways among them replaced by others of ``output_tokens``."""
    far = drawn > FACTOR * np.median(output_tokens)
    near = output_tokens[~are_runaways(output_tokens)]
    replaced = drawn.copy()
    replaced[far] = rng.choice(near, int(far.sum()))
    return replaced
