"""MOSAIC's confidence gate: skip the aggregator where enough experts agree."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from mosaicsim.aggregation.base import ASK, Decision, GateOptions, Verdict
from mosaicsim.workload.ballots import Ballot, Ballots
from mosaicsim.workload.calls import NO_ANSWER, Ints


def _fraction(value: Any) -> Any:
    """Let people write ``2/3``, which no decimal equals."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            return value
    return value


_Written = float | Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$")]


class PluralityOptions(GateOptions):
    """Options of ``plurality``."""

    tau: Annotated[float, BeforeValidator(_fraction, json_schema_input_type=_Written)] = Field(
        2 / 3,
        gt=0,
        le=1,
        description="accept the plurality answer when its share of the k calls is at least this, as 2/3",
    )
    cancel_pending: bool = Field(
        False, description="cancel the calls of a question that can no longer change an accepted answer"
    )


class Plurality:
    """Accept the plurality answer when its share of all k calls reaches tau (arXiv 2606.03014, C >= tau).

    A call without an answer counts among the k and never wins. Ties go to the answer given first.
    """

    name = "plurality"
    summary = "skip the aggregator where the share of the most frequent answer reaches tau"
    Options = PluralityOptions

    def __init__(self, options: PluralityOptions) -> None:
        self._options = options
        self.cancels = options.cancel_pending

    @property
    def label(self) -> str:
        """See Gate: ``plurality(tau=0.667)``, with ``cancel`` where pending calls are cancelled."""
        given = f"tau={self._options.tau:.3g}" + (", cancel" if self.cancels else "")
        return self._options.label or f"plurality({given})"

    def decide(self, ballot: Ballot) -> Decision:
        """Accept as soon as no pending call can change the answer; ask as soon as none can make it one."""
        votes, pending = ballot.answers, len(ballot.pending)
        k = len(votes) + pending
        ranked = Counter(v for v in votes if v != NO_ANSWER).most_common(2)
        best = ranked[0][1] if ranked else 0
        runner_up = ranked[1][1] if len(ranked) > 1 else 0
        # counts are compared, not shares: 2/3 in floating point is not above 2/3
        enough = self._options.tau * k - 1e-9
        if best >= enough and (not pending or best > runner_up + pending):
            return Decision(Verdict.ACCEPT, ranked[0][0])
        if best + pending < enough or not pending:
            return Decision(Verdict.ASK)
        return Decision(Verdict.WAIT)

    def decide_all(self, ballots: Ballots) -> Ints:
        """See Gate."""
        votes = ballots.answers
        k = votes.shape[1]
        given = votes != NO_ANSWER
        same = (votes[:, :, None] == votes[:, None, :]) & given[:, :, None]
        counts = same.sum(axis=2)
        first = counts.argmax(axis=1)
        rows = np.arange(len(votes))
        enough = counts[rows, first] >= max(self._options.tau * k - 1e-9, 1)
        return np.where(enough, votes[rows, first], ASK)
