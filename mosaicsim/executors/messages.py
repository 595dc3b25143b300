"""What the coordinator and a worker process say to each other: plain data, small enough to pickle often.

Seconds are those of the worker's monotonic clock, which all processes of one host share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class EngineArguments:
    """A model to serve: ``expert`` is the pool's name for it, ``vllm`` keyword arguments of EngineArgs."""

    expert: str
    vllm: dict[str, Any]


@dataclass(frozen=True)
class CallRequest:
    """One generation; ``sampling`` are keyword arguments of vLLM's SamplingParams.

    A ``solo`` call has the engine to itself: it is suspected of killing its worker.
    """

    call_id: int
    prompt_token_ids: tuple[int, ...]
    sampling: dict[str, Any]
    solo: bool = False


@dataclass(frozen=True)
class CallResult:
    """How a call ended. ``start_s`` and ``first_token_s`` are -1 where it was never admitted.

    ``logprob`` is the sum of the tokens' log-probabilities, NaN where the engine was not asked for it.
    ``finish_reason`` is vLLM's ("stop", "length"), "cancelled", "withdrawn", or "error" with the text in
    ``error``.
    """

    call_id: int
    start_s: float
    first_token_s: float
    finish_s: float
    output_tokens: int
    preemptions: int
    text: str
    logprob: float
    finish_reason: str
    error: str = ""

    @property
    def confidence(self) -> float:
        """exp of the tokens' mean log-probability, in (0, 1]; NaN where there is none."""
        return math.exp(self.logprob / self.output_tokens) if self.output_tokens else math.nan

    @property
    def finished(self) -> bool:
        """Whether the call came to its own end."""
        return self.finish_reason in ("stop", "length")

    @property
    def cancelled(self) -> bool:
        """Whether the call was taken back before it finished."""
        return self.finish_reason == "cancelled"

    @property
    def failed(self) -> bool:
        """Whether the call ended with an error."""
        return self.finish_reason == "error"


@dataclass(frozen=True)
class Begun:
    """What a call that was taken out of an engine had come to: ``token_ids`` is what it had generated."""

    result: CallResult
    token_ids: tuple[int, ...]

    def joined(self, rest: CallResult) -> CallResult:
        """The call as a whole, if ``rest`` is what became of it in the engine that went on with it."""
        first, given_up = self.result, rest.cancelled or rest.failed
        logprobs = [part.logprob for part in (first, rest) if part.output_tokens]
        return replace(
            rest,
            start_s=first.start_s,
            first_token_s=first.first_token_s if self.token_ids else rest.first_token_s,
            output_tokens=first.output_tokens + rest.output_tokens,
            preemptions=first.preemptions + rest.preemptions,
            text="" if given_up else first.text + rest.text,
            logprob=sum(logprobs) if logprobs and not given_up else math.nan,
        )


# coordinator to worker


@dataclass(frozen=True)
class StartSession:
    """Have the model of ``engine`` ready (loaded, woken, or still there) and run ``calls`` in their order.

    ``cores`` pins the process (CPU workers); None leaves it where it is.
    """

    session: int
    engine: EngineArguments
    calls: tuple[CallRequest, ...]
    keep_asleep: bool = False
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True)
class AddCalls:
    """Queue more calls behind those that wait in the running session, or ``ahead`` of them."""

    session: int
    calls: tuple[CallRequest, ...]
    ahead: bool = False


@dataclass(frozen=True)
class CancelCall:
    """Drop a queued or running call."""

    session: int
    call_id: int


@dataclass(frozen=True)
class WithdrawCalls:
    """Give back those of the calls that have not started, or ``started`` ones too; answered by Withdrawn."""

    session: int
    call_ids: tuple[int, ...]
    started: bool = False


@dataclass(frozen=True)
class Prefetch:
    """Read the weights of ``engine`` into the host's memory beside whatever runs; nothing answers."""

    engine: EngineArguments


@dataclass(frozen=True)
class WarmUp:
    """Start ``engine``, generate a token and close it; answered by Unloaded, or StartFailed with session -1.

    The first engine of a process is slow: it imports and reads what later ones find in memory.
    """

    engine: EngineArguments
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Unload:
    """Free the memory: the workers are needed by another process."""


@dataclass(frozen=True)
class Quit:
    """End the process."""


Command = StartSession | AddCalls | CancelCall | WithdrawCalls | Prefetch | WarmUp | Unload | Quit

# worker to coordinator


@dataclass(frozen=True)
class Message:
    """Something a worker reports, at its ``at_s``."""

    at_s: float


@dataclass(frozen=True)
class Hello(Message):
    """The process is up, vLLM imported, no model loaded."""

    pid: int


@dataclass(frozen=True)
class Ready(Message):
    """The session's engine is there; ``resolved`` holds its settings as the engine itself chose them."""

    session: int
    resolved: dict[str, Any]


@dataclass(frozen=True)
class Submitted(Message):
    """Calls handed to the engine: what a dying worker can have died of."""

    session: int
    call_ids: tuple[int, ...]


@dataclass(frozen=True)
class EngineTime:
    """Seconds since Ready by what the engine did; ``tail_since_s``: where the current tail began, or inf.

    ``between_s`` of them passed between the engine's steps: taking commands, handing over calls, reporting.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    tail_s: float = 0.0
    tail_since_s: float = float("inf")
    between_s: float = 0.0


@dataclass(frozen=True)
class Results(Message):
    """Calls that ended since the last report."""

    session: int
    results: tuple[CallResult, ...]
    time: EngineTime = field(default_factory=EngineTime)


@dataclass(frozen=True)
class Withdrawn(Message):
    """These of the calls that were to be withdrawn are not here any more; some of them had ``begun``."""

    session: int
    call_ids: tuple[int, ...]
    begun: tuple[Begun, ...] = ()


@dataclass(frozen=True)
class Heartbeat(Message):
    """Sent between steps, so that silence means a worker that hangs."""

    session: int
    time: EngineTime


@dataclass(frozen=True)
class StartFailed(Message):
    """The engine did not come up."""

    session: int
    error: str


@dataclass(frozen=True)
class Unloaded(Message):
    """The memory is free."""


@dataclass(frozen=True)
class Died(Message):
    """The process is gone; said by whoever watches it."""

    reason: str
