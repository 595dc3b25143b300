"""The ledger of a real run: what was said, in the journal first, and back from the journal into a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import inf, isnan, nan
from typing import Any, Protocol

import numpy as np

from mosaicsim.executors.messages import CallRequest, CallResult
from mosaicsim.executors.vllm_executor import records_of
from mosaicsim.runtime.events import (
    Event,
    SessionEnded,
    SessionSpec,
    SessionUsage,
    WorkerBack,
    WorkerLost,
)
from mosaicsim.runtime.journal import Fact, Journal
from mosaicsim.runtime.orchestrator import AGGREGATOR
from mosaicsim.runtime.runlog import RunLog, SessionRow
from mosaicsim.workload.calls import Ints


class Conversation(Protocol):
    """Who knows what is asked, and reads answers out of what is said."""

    def request(self, call_id: int) -> CallRequest:
        """The prompt and sampling settings of a call."""
        ...

    def take(self, result: CallResult) -> int:
        """Keep the text of a call that ended; return its answer code."""
        ...


class Ledger:
    """Records a run as the executor's Recorder; ``on_end`` is told of every batch of calls that ended.

    ``resolved`` holds the settings that the engines chose, by expert (and the aggregator), ``errors`` what
    was wrong with calls that were given up.
    """

    def __init__(
        self,
        journal: Journal,
        conversation: Conversation,
        on_end: Callable[[SessionSpec, Sequence[CallResult]], None] = lambda spec, results: None,
    ) -> None:
        self._journal, self._conversation, self._on_end = journal, conversation, on_end
        self.resolved: dict[str, dict[str, object]] = {}
        self.errors: dict[int, str] = {}
        self._ready_s: dict[int, float] = {}

    def restore(self, log: RunLog) -> None:
        """Enter what the journal has of an earlier attempt into an empty ``log``.

        ``on_end`` is told of its calls again. Sessions it left running count as lost at the last moment that
        is known of it.
        """
        for fact in self._journal.found:
            self._enter(fact, log)
        end_s = max([log.end_s, *(f["at_s"] for f in self._journal.found if "at_s" in f)])
        for row in log.sessions.values():
            if row.usage is None:
                ready = self._ready_s.get(row.spec.session, end_s)
                row.usage = SessionUsage(row.started_s, ready, end_s, end_s, 0.0, end_s - ready, 0.0)
                row.lost = True
        log.down = [(worker, start, end_s if end == inf else end) for worker, start, end in log.down]

    # the executor's Recorder

    def request(self, call_id: int) -> CallRequest:
        """See Recorder."""
        return self._conversation.request(call_id)

    def started(self, spec: SessionSpec, at_s: float, *, prefetched: bool) -> None:
        """See Recorder."""
        self._journal.write(
            "session",
            session=spec.session,
            workers=list(spec.workers),
            expert=spec.expert,
            calls=spec.call_ids.tolist(),
            at_s=at_s,
            **({"prefetched": True} if prefetched else {}),
            **({"slots": spec.slots} if spec.slots > 1 else {}),
        )

    def ready(self, spec: SessionSpec, resolved: dict[str, object], at_s: float) -> None:
        """See Recorder."""
        self.resolved[spec.expert] = resolved
        self._journal.write("ready", session=spec.session, expert=spec.expert, resolved=resolved, at_s=at_s)

    def ended(self, spec: SessionSpec, results: Sequence[CallResult]) -> Ints:
        """See Recorder."""
        self._journal.write("calls", session=spec.session, results=[_written(r) for r in results])
        answers = self._take(results)
        self._on_end(spec, results)
        return answers

    def happened(self, event: Event, note: str = "") -> None:
        """See Recorder."""
        if isinstance(event, SessionEnded):
            self._journal.write("end", session=event.session, usage=asdict(event.usage))
            self._journal.sync()
        elif isinstance(event, WorkerLost):
            ended = {str(number): asdict(usage) for number, usage in event.ended.items()}
            self._journal.write("lost", worker=event.worker, ended=ended, reason=note, at_s=event.at_s)
        elif isinstance(event, WorkerBack):
            self._journal.write("back", worker=event.worker, at_s=event.at_s)

    # from the journal

    def _enter(self, fact: Fact, log: RunLog) -> None:
        match fact["kind"]:
            case "session":
                spec = _spec(fact)
                stage = AGGREGATOR if spec.expert == AGGREGATOR else "expert"
                log.sessions[spec.session] = SessionRow(
                    spec, stage, fact["at_s"], prefetched=fact.get("prefetched", False)
                )
            case "ready":
                self.resolved[fact["expert"]] = fact["resolved"]
                self._ready_s[fact["session"]] = fact["at_s"]
            case "calls":
                results = [_read(written) for written in fact["results"]]
                log.record(fact["session"], records_of(results, self._take(results)))
                self._on_end(log.sessions[fact["session"]].spec, results)
            case "end":
                log.sessions[fact["session"]].usage = SessionUsage(**fact["usage"])
            case "lost":
                for number, usage in fact["ended"].items():
                    row = log.sessions[int(number)]
                    row.usage, row.lost = SessionUsage(**usage), True
                log.down.append((fact["worker"], fact["at_s"], inf))
            case "back":
                at = max(i for i, down in enumerate(log.down) if down[0] == fact["worker"])
                log.down[at] = (*log.down[at][:2], fact["at_s"])

    def _take(self, results: Sequence[CallResult]) -> Ints:
        self.errors |= {r.call_id: r.error for r in results if r.failed}
        return np.array([self._conversation.take(result) for result in results], np.int64)


def _written(result: CallResult) -> dict[str, object]:
    return vars(result) | {"logprob": None if isnan(result.logprob) else result.logprob}


def _read(written: dict[str, Any]) -> CallResult:
    return CallResult(**written | {"logprob": nan if written["logprob"] is None else written["logprob"]})


def _spec(fact: Fact) -> SessionSpec:
    calls = np.array(fact["calls"], np.int64)
    unknown = np.full(len(calls), -1, np.int64)
    workers, slots = tuple(fact["workers"]), fact.get("slots", 1)
    return SessionSpec(fact["session"], workers, fact["expert"], calls, unknown, unknown, slots=slots)
