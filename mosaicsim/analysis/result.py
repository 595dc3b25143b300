"""What a finished `mosaicsim run` holds: one Run a (scheduler, gate, replicate), and the Result of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from mosaicsim.workload.calls import Workload

Columns = dict[str, npt.NDArray[Any]]

BASELINE = "round_robin"
"""The scheduler that speedups are measured against, in scenarios that have it."""

CALL_STATUS = ("finished", "cancelled", "failed")
STATES = ("load", "generate", "tail")
"""Timeline states of a worker; what no interval covers is idle. ``tail`` is decode below a quarter of
max_num_seqs with nothing waiting."""


@dataclass(frozen=True)
class Run:
    """One replicate under one scheduler and one gate.

    ``metrics`` is the run's row of summary.json. ``calls`` has a row a call: stage ("expert" or
    "aggregator"), question, expert (index; -1 for the aggregator), sample, worker, session, start_s,
    first_token_s, finish_s, prompt_tokens, output_tokens, preemptions, status (index into CALL_STATUS).
    ``timeline`` has a row an interval: worker (a GPU), stage, session, expert, state, start_s, end_s.
    ``gpu_time`` is GPU-seconds by state: load, prefill, decode, tail, down (failed), idle.
    """

    scheduler: str
    gate: str
    replicate: int
    sees_lengths: bool
    metrics: dict[str, Any]
    calls: Columns
    timeline: Columns
    gpu_time: dict[str, float]
    plan_info: dict[str, float | int | str]
    gate_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """All runs of a scenario, with the workload of each replicate and the workers' names.

    ``summary`` is the content of summary.json; ``wall`` holds wall-clock figures, which go to wall.json and
    never into the summary.
    """

    scenario: dict[str, Any]
    summary: dict[str, Any]
    workloads: tuple[Workload, ...]
    workers: tuple[str, ...]
    runs: tuple[Run, ...]
    wall: dict[str, float] = field(default_factory=dict)

    def of_replicate(self, replicate: int, gate: str | None = None) -> list[Run]:
        """Runs of one replicate, in scenario order; of one gate when given."""
        return [r for r in self.runs if r.replicate == replicate and gate in (None, r.gate)]
