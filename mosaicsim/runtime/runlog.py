"""The one log every fact of a run goes to, as columns; metrics, plots and files are computed from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mosaicsim.runtime.events import CallRecords, SessionSpec, SessionUsage
from mosaicsim.workload.calls import NO_ANSWER

PENDING, FINISHED, CANCELLED, FAILED = -1, 0, 1, 2
"""Status codes of a call; all but the first index ``analysis.result.CALL_STATUS``."""


@dataclass
class SessionRow:
    """A session as it went; ``usage`` comes with its end, ``lost`` when a worker failed under it.

    ``prefetched``: its weights were to be read ahead.
    """

    spec: SessionSpec
    stage: str
    started_s: float
    usage: SessionUsage | None = None
    lost: bool = False
    prefetched: bool = False


@dataclass
class RunLog:
    """Facts about n calls (columns of shape (n,), seconds since the run began, -1 until known) and sessions.

    ``down`` has (worker, from, to) for each time a worker was lost; to is infinite if it never came back.
    Rows 0..n_expert_calls-1 are the workload's calls, the rest one aggregator call a question.
    """

    n_calls: int
    sessions: dict[int, SessionRow] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    down: list[tuple[int, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_s = np.full(self.n_calls, -1.0)
        self.first_token_s = np.full(self.n_calls, -1.0)
        self.finish_s = np.full(self.n_calls, -1.0)
        self.output_tokens = np.zeros(self.n_calls, np.int64)
        self.preemptions = np.zeros(self.n_calls, np.int64)
        self.session = np.full(self.n_calls, -1, np.int64)
        self.answer = np.full(self.n_calls, NO_ANSWER, np.int64)
        self.confidence = np.full(self.n_calls, np.nan)
        self.status = np.full(self.n_calls, PENDING, np.int8)

    @property
    def end_s(self) -> float:
        """The latest moment of which anything is known."""
        ends = [row.usage.end_s for row in self.sessions.values() if row.usage is not None]
        return max([0.0, float(self.finish_s.max(initial=0.0)), *ends])

    def stage_end_s(self, stage: str) -> float:
        """When the last session of a stage ended."""
        rows = [row for row in self.sessions.values() if row.stage == stage and row.usage is not None]
        return max((row.usage.end_s for row in rows if row.usage), default=0.0)

    def record(self, session: int, records: CallRecords) -> None:
        """Enter calls that ended. Raises ValueError for a call that had already ended: each ends once."""
        ids = records.call_ids
        if (self.status[ids] != PENDING).any():
            raise ValueError(f"calls reported twice: {ids[self.status[ids] != PENDING][:5].tolist()}")
        self.start_s[ids] = records.start_s
        self.first_token_s[ids] = records.first_token_s
        self.finish_s[ids] = records.finish_s
        self.output_tokens[ids] = records.output_tokens
        self.preemptions[ids] = records.preemptions
        self.session[ids] = session
        self.answer[ids] = records.answer
        self.confidence[ids] = records.confidence
        self.status[ids] = np.where(records.failed, FAILED, np.where(records.cancelled, CANCELLED, FINISHED))

    def cancel_unstarted(self, call_id: int, at_s: float) -> None:
        """Enter a call that was dropped before any session took it."""
        self.status[call_id] = CANCELLED
        self.finish_s[call_id] = at_s
