"""What an executor tells the orchestrator, and what a session is asked to do.

Every event carries ``at_s``, seconds since the run began, on the executor's own clock: virtual or real.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mosaicsim.workload.calls import Bools, Floats, Ints


@dataclass(frozen=True)
class SessionSpec:
    """A session to carry out: one model on one worker, or on several as a tensor-parallel group.

    ``expert`` is the pool's name for the model, or the aggregator's. ``call_ids``, ``prompt_tokens`` and
    ``groups`` have shape (n,); calls with an equal non-negative group have the identical prompt. Only an
    ``open`` session takes further calls; it lasts until it is stopped. Calls added ``ahead`` are queued
    before those that wait in the session, not behind them. Its engine has one of ``slots`` equal parts of the
    worker's memory.
    """

    session: int
    workers: tuple[int, ...]
    expert: str
    call_ids: Ints
    prompt_tokens: Ints
    groups: Ints
    open: bool = False
    ahead: bool = False
    slots: int = 1


@dataclass(frozen=True)
class CallRecords:
    """Facts about calls that ended, one row a call; times in seconds since the run began.

    ``output_tokens`` is what was generated, less than the full answer when ``cancelled``; a call that was
    never admitted has ``start_s`` and ``first_token_s`` of -1. ``answer`` holds answer codes of the workload,
    NO_ANSWER where there is none, ``confidence`` NaN where it is not known. A ``failed`` call is given up:
    the engine refused it, or died of it.
    """

    call_ids: Ints
    start_s: Floats
    first_token_s: Floats
    finish_s: Floats
    output_tokens: Ints
    preemptions: Ints
    cancelled: Bools
    failed: Bools
    answer: Ints
    confidence: Floats

    def __len__(self) -> int:
        return len(self.call_ids)


@dataclass(frozen=True)
class SessionUsage:
    """What a session did with its workers: seconds by state, and when it changed state."""

    load_start_s: float
    ready_s: float
    tail_start_s: float
    end_s: float
    prefill_s: float
    decode_s: float
    tail_s: float


@dataclass(frozen=True)
class Event:
    """Something that happened at ``at_s``."""

    at_s: float


@dataclass(frozen=True)
class SessionReady(Event):
    """The model is loaded and starts to generate."""

    session: int


@dataclass(frozen=True)
class CallsFinished(Event):
    """Calls ended (finished or cancelled); each call is reported once."""

    session: int
    records: CallRecords


@dataclass(frozen=True)
class CallsWithdrawn(Event):
    """These of the calls that were to be withdrawn could be; the session no longer has them."""

    session: int
    call_ids: Ints


@dataclass(frozen=True)
class SessionEnded(Event):
    """A session has nothing left to do; its workers are free."""

    session: int
    usage: SessionUsage


@dataclass(frozen=True)
class WorkerLost(Event):
    """A worker failed. The sessions it ran are over; calls of theirs that were not reported are lost."""

    worker: int
    ended: dict[int, SessionUsage] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerBack(Event):
    """A lost worker can be used again; it holds no model."""

    worker: int
