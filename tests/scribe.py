"""Journals a simulated run as if it were a real one."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaicsim.executors.base import Executor
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.messages import CallResult
from mosaicsim.runtime.events import CallRecords, CallsFinished, Event, SessionReady, SessionSpec
from mosaicsim.runtime.orchestrator import Orchestrator


class Cut(Exception):
    """The run ends here, as if it had been killed."""


class Scribe:
    """Journals a simulated run as the vLLM executor journals a real one; cut after so many events."""

    def __init__(
        self,
        handler: Orchestrator,
        ledger: Ledger,
        events: int | None = None,
        resolved: dict[str, object] | None = None,
    ) -> None:
        self._handler, self._ledger, self._left = handler, ledger, events
        self._resolved = resolved or {"device": "simulated"}
        self._specs: dict[int, SessionSpec] = {}
        self._prefetched: dict[tuple[int, ...], str] = {}
        self.now = 0.0

    @property
    def finished(self) -> bool:
        return self._handler.finished

    def begin(self, executor: Executor) -> None:
        self._executor = executor
        self._handler.begin(self)

    def handle(self, event: Event) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Cut
        self.now = event.at_s
        if isinstance(event, CallsFinished):
            self._ledger.ended(self._specs[event.session], results_of(event.records))
        elif isinstance(event, SessionReady):
            self._ledger.ready(self._specs[event.session], self._resolved, event.at_s)
        else:
            self._ledger.happened(event, "killed")
        self._handler.handle(event)

    def start_session(self, spec: SessionSpec) -> None:
        self._specs[spec.session] = spec
        prefetched = self._prefetched.get(spec.workers) == spec.expert
        if prefetched:
            del self._prefetched[spec.workers]
        self._ledger.started(spec, self.now, prefetched=prefetched)
        self._executor.start_session(spec)

    def prefetch(self, expert: str, workers: tuple[int, ...]) -> None:
        self._prefetched[workers] = expert
        self._executor.prefetch(expert, workers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


def results_of(records: CallRecords) -> list[CallResult]:
    return [
        CallResult(
            call_id=int(records.call_ids[i]),
            start_s=float(records.start_s[i]),
            first_token_s=float(records.first_token_s[i]),
            finish_s=float(records.finish_s[i]),
            output_tokens=int(records.output_tokens[i]),
            preemptions=int(records.preemptions[i]),
            text="",
            logprob=float(np.log(records.confidence[i]) * records.output_tokens[i]),
            finish_reason="cancelled" if records.cancelled[i] else "stop",
        )
        for i in range(len(records))
    ]
