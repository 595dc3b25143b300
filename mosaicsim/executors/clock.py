"""Monotonic clocks of several hosts: each starts where it likes, so that seconds have to be converted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mosaicsim.executors.messages import CallResult, EngineTime, Heartbeat, Message, Results


@dataclass(frozen=True)
class ClockOffset:
    """``seconds`` to add to the other clock to have ours; the true figure is within ``error_s`` of it."""

    seconds: float
    error_s: float

    @classmethod
    def measure(
        cls, ask: Callable[[], float], rounds: int = 10, now: Callable[[], float] = time.monotonic
    ) -> ClockOffset:
        """From round trips: ``ask`` reads the other clock at some moment between two readings of ours.

        Every trip bounds the offset from both sides; what all allow is no wider than the shortest trip.
        """
        low, high = -math.inf, math.inf
        for _ in range(rounds):
            sent = now()
            theirs = ask()
            low, high = max(low, sent - theirs), min(high, now() - theirs)
        return cls((low + high) / 2, abs(high - low) / 2)

    def convert(self, message: Message) -> Message:
        """The message with every moment in it in our seconds."""
        message = replace(message, at_s=message.at_s + self.seconds)
        if isinstance(message, Results):
            results = tuple(map(self._convert_result, message.results))
            return replace(message, results=results, time=self._convert_time(message.time))
        if isinstance(message, Heartbeat):
            return replace(message, time=self._convert_time(message.time))
        return message

    def _convert_result(self, result: CallResult) -> CallResult:
        def moment(seconds: float) -> float:
            return seconds if seconds < 0 else seconds + self.seconds  # -1: it never came

        return replace(
            result,
            start_s=moment(result.start_s),
            first_token_s=moment(result.first_token_s),
            finish_s=moment(result.finish_s),
        )

    def _convert_time(self, spent: EngineTime) -> EngineTime:
        return replace(spent, tail_since_s=spent.tail_since_s + self.seconds)
