"""Traces from real runs: of every expert on every question, or of a run that was executed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mosaicsim import __version__
from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.analysis.execution import JOURNAL, WORKERS, Executed, open_work
from mosaicsim.analysis.study import Progress
from mosaicsim.errors import TraceError, UserInputError
from mosaicsim.executors.crew import Crew
from mosaicsim.executors.dialogue import Dialogue, Reply
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.messages import CallResult
from mosaicsim.report.folder import OUTPUT_FILE, SCENARIO
from mosaicsim.runtime.events import SessionSpec
from mosaicsim.runtime.journal import Journal
from mosaicsim.runtime.orchestrator import AGGREGATOR, Orchestrator
from mosaicsim.runtime.runlog import PENDING, RunLog
from mosaicsim.scenario import Scenario, resolved
from mosaicsim.schedulers.base import Problem, SessionCost, WorkerView
from mosaicsim.schedulers.registry import create
from mosaicsim.streams import Streams
from mosaicsim.workload.calls import (
    NO_ANSWER,
    AggregatorCalls,
    Calibration,
    CallTable,
    Ints,
    Outcomes,
    Workload,
)
from mosaicsim.workload.trace import SCHEMA, Provenance, Trace, TraceMetadata, write_trace

UNKNOWN_COST = SessionCost(1.0, np.array([1.0, 2.0]), np.array([1.0, 2.0]), 1.0, 1.0, False)
"""Of experts that nothing is known of yet: a call is a call."""


def record_block(
    scenario: Scenario,
    work: Path,
    out: Path,
    progress: Progress,
    *,
    command: str,
    samples: int = 1,
    resume: bool = False,
) -> Trace:
    """Have every expert answer every question, ``samples`` times, and write the trace ``out``.

    The aggregator answers each question from k experts drawn at random. ``work`` keeps what has to survive
    a crash. Raises UserInputError before a model is loaded, MosaicsimError for what cannot go on.
    """
    executed = Executed(scenario)
    block = _Block(executed, samples)
    open_work(work, _identity(executed, samples), resume=resume)
    crew, finished = Crew(executed.connect(), work / WORKERS), False
    journal = Journal(work / JOURNAL)
    try:
        ledger = Ledger(journal, block.dialogue, block.report(progress))
        block.carry_out(crew, ledger)
        finished = True
    finally:
        journal.close()
        crew.close(at_once=not finished)
    metadata = TraceMetadata(_provenance(executed, command, ledger, block), AGGREGATOR)
    return write_trace(out, pa.Table.from_pylist(block.rows(), SCHEMA), metadata)


def record_run(folder: Path, out: Path, *, command: str, run: int = 0) -> Trace:
    """Turn run number ``run`` of an execution's result folder into a trace with its routing.

    Questions with a call that was cancelled or given up are left out, and so are the aggregator's rows
    unless it was asked about every question that is left. Raises UserInputError, TraceError.
    """
    import yaml

    try:
        table = pq.read_table(folder / OUTPUT_FILE)
        scenario = yaml.safe_load((folder / SCENARIO).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserInputError(f"{folder}: not a result folder of `mosaicsim execute`: {error}") from None
    names = ("scheduler", "gate", "replicate")
    keys = list(dict.fromkeys(zip(*(table[name].to_pylist() for name in names), strict=True)))
    if run >= len(keys):
        raise UserInputError(f"--run {run}: {folder} has {len(keys)} runs; 0 is the first")
    for name, value in zip(names, keys[run], strict=True):
        table = table.filter(pc.equal(table[name], value))
    rows, notes = _whole_questions(table.to_pylist(), scenario["workload"]["k"])
    if not rows:
        raise TraceError(f"{folder}: no question of run {run} has all its calls finished")
    dataset = Path(scenario["execution"]["questions"]).name.partition(".")[0]
    aggregator = AGGREGATOR if any(row["stage"] == AGGREGATOR for row in rows) else None
    # the trace holds the prompt without what was proposed: that depends on who was drawn
    visible = _visible_by_question(rows)
    written = [
        {
            **{name: row.get(name) for name in SCHEMA.names},
            "dataset": dataset,
            "prompt_tokens": row["prompt_tokens"]
            - (visible[row["question_id"]] if row["stage"] == AGGREGATOR else 0),
            "confidence": _known(row["confidence"]),
        }
        for row in rows
    ]
    caps = {name: model["sampling"]["max_tokens"] for name, model in scenario["execution"]["models"].items()}
    provenance = Provenance(
        command=command,
        sources=(f"run {run} ({keys[run][0]}, {keys[run][1]}) of scenario {scenario['name']}",),
        notes=tuple(notes),
        caps=caps,
        reasoning=_reasoning(rows),
        report={"timings_s": _timings(rows)},
    )
    return write_trace(out, pa.Table.from_pylist(written, SCHEMA), TraceMetadata(provenance, aggregator))


class _Block:
    """Every question to every expert, and to the aggregator with k of them."""

    def __init__(self, executed: Executed, samples: int) -> None:
        streams = Streams(executed.scenario.seed)
        self.executed, self.asked = executed, executed.asked(streams)
        self.dialogue = Dialogue(
            self.asked.questions, executed.experts, executed.speakers, executed.aggregator, streams
        )
        self.workload = self._workload(samples)
        width, k = len(executed.experts) * samples, executed.scenario.workload.k
        if k > width:
            raise UserInputError(
                f"workload.k: {k}, but {len(executed.experts)} experts with {samples} samples "
                f"make {width} calls"
            )
        rng = streams("recorded_proposers")
        drawn = np.array([rng.permutation(width)[:k] for _ in range(len(self.asked))])
        proposers = np.arange(len(self.asked))[:, None] * width + drawn
        self.dialogue.begin(self.workload.calls, proposers)
        self.dialogue.require_room()

    def _workload(self, samples: int) -> Workload:
        n, m = len(self.asked), len(self.executed.experts)
        question = np.repeat(np.arange(n), m * samples)
        expert = np.tile(np.arange(m), n * samples)
        sample = np.tile(np.repeat(np.arange(samples), m), n)
        prompts = [
            len(self.dialogue.prompt(q, e)) for q, e in zip(question.tolist(), expert.tolist(), strict=True)
        ]
        zeros, none = np.zeros(len(question), np.int64), np.zeros(n, np.int64)
        return Workload(
            name=self.asked.path.name,
            questions=tuple(q.id for q in self.asked),
            categories=tuple(q.category for q in self.asked),
            experts=self.executed.experts,
            calls=CallTable(question, expert, sample, np.array(prompts, np.int64)),
            outcomes=Outcomes(zeros, zeros, np.full(len(question), NO_ANSWER), zeros.astype(np.bool_)),
            aggregator=AggregatorCalls(none, none, none.astype(np.bool_)),
            calibration=Calibration((), ()),
        )

    def carry_out(self, crew: Crew, ledger: Ledger) -> None:
        """Run every call that has not ended; whole experts, dealt to the workers in turn."""
        workload, pool = self.workload, self.executed.fleet.pool
        log = RunLog(len(workload.calls) + workload.n_questions)
        ledger.restore(log)
        scheduler = create("round_robin", {})
        left = np.flatnonzero(log.status[: len(workload.calls)] == PENDING)
        orchestrator = Orchestrator(
            workload,
            pool,
            scheduler.plan(self._problem(left, pool.workers)),
            scheduler,
            create_gate("always", {}),
            self._problem,
            fallback=scheduler,
            log=log,
        )
        self.executed.carry_out(orchestrator, crew, ledger)

    def _problem(self, call_ids: Ints, workers: tuple[WorkerView, ...]) -> Problem:
        costs = tuple(tuple(UNKNOWN_COST for _ in workers) for _ in self.workload.experts)
        return Problem(self.workload.experts, self.workload.calls, call_ids, workers, costs)

    def report(self, progress: Progress) -> Callable[[SessionSpec, Sequence[CallResult]], None]:
        """Tell of calls done, of all."""
        total = len(self.workload.calls) + self.workload.n_questions

        def told(spec: SessionSpec, results: Sequence[CallResult]) -> None:
            progress(len(self.dialogue.replies), total, spec.expert)

        return told

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the trace; a question with a call that failed is left out."""
        n, width = len(self.workload.calls), len(self.workload.calls) // len(self.asked)
        rows = []
        for q, question in enumerate(self.asked):
            calls = [*range(q * width, (q + 1) * width), n + q]
            replies = [self.dialogue.replies[call] for call in calls]
            if all(reply.result.finished for reply in replies):
                rows += [
                    self._row(question.id, call, reply) for call, reply in zip(calls, replies, strict=True)
                ]
        return rows

    def _row(self, question_id: str, call: int, reply: Reply) -> dict[str, Any]:
        calls, n = self.workload.calls, len(self.workload.calls)
        proposer = call < n
        question = self.asked.questions[int(calls.question[call]) if proposer else call - n]
        tokens = reply.result.output_tokens
        return {
            "question_id": question_id,
            "dataset": self.asked.path.name.partition(".")[0],
            "category": question.category,
            "expert": self.workload.experts[int(calls.expert[call])] if proposer else AGGREGATOR,
            "sample": int(calls.sample[call]) if proposer else 0,
            "prompt_tokens": int(calls.prompt_tokens[call])
            if proposer
            else self.dialogue.template_tokens(call - n),
            "output_tokens": tokens,
            "visible_tokens": self.dialogue.visible_tokens(call) if proposer else tokens,
            "answer": reply.answer,
            "confidence": _known(reply.result.confidence),
            "correct": None if question.gold is None else reply.answer == question.gold,
            "finish_reason": reply.result.finish_reason,
            "slot": None,
        }


def _provenance(executed: Executed, command: str, ledger: Ledger, block: _Block) -> Provenance:
    failed = sum(not reply.result.finished for reply in block.dialogue.replies.values())
    notes = [f"{failed} calls failed; their questions are left out"] if failed else []
    rows = [
        {
            "expert": block.workload.experts[int(block.workload.calls.expert[call])],
            "start_s": reply.result.start_s,
            "first_token_s": reply.result.first_token_s,
            "finish_s": reply.result.finish_s,
            "output_tokens": reply.result.output_tokens,
            "visible_tokens": block.dialogue.visible_tokens(call),
        }
        for call, reply in block.dialogue.replies.items()
        if call < len(block.workload.calls) and reply.result.finished
    ]
    models = executed.section.models
    return Provenance(
        command=command,
        sources=tuple(f"{name}: {Path(model.path).name}" for name, model in models.items()),
        notes=(*notes, *executed.notes),
        caps={name: model.sampling.max_tokens for name, model in models.items()},
        reasoning=_reasoning(rows),
        first_seen=executed.experts,
        report={"timings_s": _timings(rows), "engines": _portable(ledger.resolved)},
    )


def _portable(engines: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Settings without the folder that the model lay in."""
    return {
        name: settings | {"model": Path(str(settings["model"])).name} for name, settings in engines.items()
    }


def _whole_questions(rows: list[dict[str, Any]], k: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the questions with all k calls finished, and what was left out."""
    finished = [row for row in rows if row["finish_reason"] in ("stop", "length")]
    calls: dict[str, int] = {}
    for row in finished:
        calls[row["question_id"]] = calls.get(row["question_id"], 0) + (row["stage"] != AGGREGATOR)
    whole = {question for question, n in calls.items() if n == k}
    kept = [row for row in finished if row["question_id"] in whole]
    notes = []
    dropped = len({row["question_id"] for row in rows}) - len(whole)
    if dropped:
        notes.append(f"{dropped} questions with a call cancelled or given up are left out")
    aggregated = {row["question_id"] for row in kept if row["stage"] == AGGREGATOR}
    if aggregated and aggregated != whole:
        notes.append(f"the aggregator was asked about {len(aggregated)} of {len(whole)} questions: left out")
        kept = [row for row in kept if row["stage"] != AGGREGATOR]
    return kept, notes


def _visible_by_question(rows: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows:
        if row["stage"] != AGGREGATOR:
            total[row["question_id"]] = total.get(row["question_id"], 0) + row["visible_tokens"]
    return total


def _reasoning(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Experts some of whose tokens the aggregator does not see."""
    return {
        name: any(r["visible_tokens"] < r["output_tokens"] for r in rows if r["expert"] == name)
        for name in sorted({r["expert"] for r in rows})
    }


def _timings(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean ttft (from admission) and tpot of each expert's calls."""
    found = {}
    for name in sorted({row["expert"] for row in rows}):
        own = [row for row in rows if row["expert"] == name]
        long = [row for row in own if row["output_tokens"] > 1]
        tpot = [(r["finish_s"] - r["first_token_s"]) / (r["output_tokens"] - 1) for r in long]
        ttft = [r["first_token_s"] - r["start_s"] for r in own]
        found[name] = {"ttft_mean": float(np.mean(ttft)), "tpot_mean": float(np.mean(tpot or [math.nan]))}
    return found


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _identity(executed: Executed, samples: int) -> str:
    files = [executed.questions.path, *map(Path, executed.scenario.profiles)]
    return json.dumps(
        {
            "version": __version__,
            "samples": samples,
            "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
            "scenario": resolved(executed.scenario),
        }
    )
