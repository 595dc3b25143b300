"""How fast sessions really go, against what was profiled: a run that is steered learns from its own calls.

Profiles may be off: other questions are longer, another machine is slower. How long a session takes until
some of its calls have ended was profiled too, so that its pace shows long before it is over.
"""

from __future__ import annotations

from math import exp, log

from mosaicsim.schedulers.base import SessionCost

LEAST_ENDED = 16
"""Ended calls of a session before its pace counts: the first ones to end are the shortest."""

LARGEST_SHARE = 0.9
"""Beyond this share of its calls a session's time is that of its few longest calls, and says little."""

PRIOR_CALLS = 40
"""Calls that the profile counts for: the variance of a long-tailed length over that of a profile's error."""


class Pace:
    """Of one expert: seconds that its sessions take, over the seconds that were profiled."""

    def __init__(self) -> None:
        """As profiled, until something is seen."""
        self._seen: dict[int, tuple[int, float]] = {}

    def see(self, session: int, n_calls: int, n_ended: int, seconds: float, cost: SessionCost) -> bool:
        """Take note that so many of a session's calls ended so long after it was ready.

        False where that says nothing yet, or no more.
        """
        if n_ended < LEAST_ENDED or n_ended > LARGEST_SHARE * n_calls or seconds <= 0:
            return False
        expected_s = cost.ended_s(n_calls, n_ended / n_calls)
        if expected_s <= 0:
            return False
        self._seen[session] = n_ended, log(seconds / expected_s)
        return True

    @property
    def factor(self) -> float:
        """The mean over sessions by ended calls, drawn to 1 where few have ended."""
        n = sum(calls for calls, _ in self._seen.values())
        return exp(sum(calls * ratio for calls, ratio in self._seen.values()) / (n + PRIOR_CALLS))
