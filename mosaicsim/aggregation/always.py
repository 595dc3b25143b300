"""Full aggregation: the aggregator answers every question."""

from __future__ import annotations

import numpy as np

from mosaicsim.aggregation.base import ASK, Decision, GateOptions, Verdict
from mosaicsim.workload.ballots import Ballot, Ballots
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

    def decide(self, ballot: Ballot) -> Decision:
        """Ask once all votes are in."""
        return Decision(Verdict.WAIT if ballot.pending else Verdict.ASK)

    def decide_all(self, ballots: Ballots) -> Ints:
        """See Gate."""
        return np.full(len(ballots), ASK, np.int64)
