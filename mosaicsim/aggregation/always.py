"""Full aggregation: the aggregator answers every question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaicsim.aggregation.base import ASK, Decision, GateOptions, Verdict
from mosaicsim.workload.calls import Ints


class Always:
    """The baseline without a gate."""

    name = "always"
    summary = "full aggregation: the aggregator answers every question"
    Options = GateOptions
    cancels = False

    def __init__(self, options: GateOptions) -> None:
        self._options = options

    @property
    def label(self) -> str:
        """See Gate."""
        return self._options.label or self.name

    def decide(self, votes: Sequence[int], pending: int) -> Decision:
        """Ask once all votes are in."""
        return Decision(Verdict.WAIT if pending else Verdict.ASK)

    def decide_all(self, votes: Ints) -> Ints:
        """See Gate."""
        return np.full(len(votes), ASK, np.int64)
