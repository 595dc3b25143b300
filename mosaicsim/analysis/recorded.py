"""Real runs as their result folders tell them: what was run where and when, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mosaicsim.analysis.result import Columns, Result, Run
from mosaicsim.errors import UserInputError
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.messages import CallRequest, CallResult
from mosaicsim.report.folder import JOURNALS, OUTPUT_FILE, read_result
from mosaicsim.runtime.journal import Journal
from mosaicsim.runtime.orchestrator import AGGREGATOR
from mosaicsim.runtime.replay import added_calls
from mosaicsim.runtime.runlog import CANCELLED, FAILED, FINISHED, RunLog
from mosaicsim.workload.calls import NO_ANSWER, AggregatorCalls, Bools, Ints, Outcomes, Workload

Engines = dict[str, dict[str, Any]]
"""Settings that engines resolved, by expert and for the aggregator."""


@dataclass(frozen=True)
class Recorded:
    """One real run: ``run`` has its figures and calls, ``log`` its sessions too, ``workload`` its outcomes.

    ``repeat`` numbers the result folders that are compared. Calls that were cancelled have the tokens they
    had come to.
    """

    repeat: int
    run: Run
    log: RunLog
    workload: Workload
    engines: Engines

    @property
    def key(self) -> tuple[str, str, int]:
        """Scheduler, gate and replicate: what repeats have in common."""
        return self.run.scheduler, self.run.gate, self.run.replicate

    @property
    def notes(self) -> list[str]:
        """What keeps this run from being replayed just as it was."""
        lost = sum(row.lost for row in self.log.sessions.values())
        cut = int(((self.log.status == CANCELLED) & (self.log.start_s >= 0)).sum())
        failed = int((self.log.status == FAILED).sum())
        added = sum(len(added_calls(self.log, row.spec)) for row in self.log.sessions.values())
        found = {
            f"{lost} sessions lost with their worker: replayed with what finished in them, "
            "the time a worker was away is not": lost,
            f"{cut} calls were cancelled while they ran: replayed with the tokens they had come to, "
            "not compared": cut,
            f"{failed} calls were given up: left out of the replay": failed,
            f"{added} calls were added to sessions under way: replayed as if queued from their start": added,
        }
        return [note for note, count in found.items() if count]


def read_recorded(folder: Path, repeat: int = 0) -> tuple[Result, list[Recorded]]:
    """A result folder of ``mosaicsim execute`` and its runs. Raises UserInputError, OutputError."""
    journals = sorted((folder / JOURNALS).glob("*.jsonl"))
    result = read_result(folder)
    if len(journals) != len(result.runs) or not (folder / OUTPUT_FILE).is_file():
        raise UserInputError(
            f"{folder}: no result of `mosaicsim execute`: its journals or outputs are missing"
        )
    answers = _Outputs(folder / OUTPUT_FILE)
    return result, [
        _recorded(repeat, run, result.workloads[run.replicate], journal, answers)
        for run, journal in zip(result.runs, journals, strict=True)
    ]


def complete(recorded: Recorded, company: Iterable[Recorded]) -> tuple[Workload, int]:
    """The run's workload with the whole length of calls that it cut short, and how many stay unknown.

    A call has the same text in every run of a replicate (its seed is its own), so one that was cancelled
    here may have finished in another of the ``company``. An aggregator's call that nobody made gets the mean
    of those made.
    """
    n, workload = len(recorded.workload.calls), recorded.workload
    tokens, answer = recorded.log.output_tokens.copy(), recorded.log.answer.copy()
    known = recorded.log.status == FINISHED
    prompts = workload.aggregator.prompt_tokens.copy()
    for other in company:
        if other.run.replicate != recorded.run.replicate:
            continue
        news = ~known & (other.log.status == FINISHED)
        tokens[news], answer[news] = other.log.output_tokens[news], other.log.answer[news]
        prompts[news[n:]] = other.workload.aggregator.prompt_tokens[news[n:]]
        known |= news
    outcomes = replace(workload.outcomes, output_tokens=np.maximum(tokens[:n], 1), answer=answer[:n])
    aggregator = _filled(AggregatorCalls(prompts, tokens[n:], workload.aggregator.correct), known[n:])
    return replace(workload, outcomes=outcomes, aggregator=aggregator), int((~known[:n]).sum())


def _filled(calls: AggregatorCalls, known: Bools) -> AggregatorCalls:
    """Means of the known calls where nothing is known."""

    def fill(values: Ints) -> Ints:
        typical = round(float(values[known].mean())) if known.any() else 1
        return np.where(known, values, max(typical, 1))

    return replace(calls, prompt_tokens=fill(calls.prompt_tokens), output_tokens=fill(calls.output_tokens))


class _Outputs:
    """Answers, prompts and visible tokens of the calls, from outputs.parquet."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        columns = [
            *("scheduler", "gate", "replicate", "question_id", "stage", "slot"),
            *("prompt_tokens", "visible_tokens", "answer", "correct"),
        ]
        table = pq.read_table(path, columns=columns)
        self._columns = {name: table[name].to_pylist() for name in columns}
        self._codes: dict[str, int] = {}

    def of(self, run: Run, workload: Workload) -> Columns:
        """By call id: prompt_tokens, visible_tokens, answer code, correct; shape (calls + questions,)."""
        n, k = len(workload.calls), len(workload.calls) // workload.n_questions
        total = n + workload.n_questions
        found: Columns = {
            "prompt_tokens": np.zeros(total, np.int64),
            "visible_tokens": np.zeros(total, np.int64),
            "answer": np.full(total, NO_ANSWER),
            "correct": np.zeros(total, np.bool_),
        }
        place = {name: i for i, name in enumerate(workload.questions)}
        for names, question, stage, slot, prompt, visible, answer, correct in self._rows():
            if names == (run.scheduler, run.gate, run.replicate):
                call = n + place[question] if stage == AGGREGATOR else place[question] * k + slot
                found["prompt_tokens"][call], found["visible_tokens"][call] = prompt, visible
                found["answer"][call], found["correct"][call] = self._code(answer), bool(correct)
        return found

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        columns = list(self._columns.values())
        keys = zip(*columns[:3], strict=True)
        return zip(keys, *columns[3:], strict=True)

    def _code(self, answer: str | None) -> int:
        return NO_ANSWER if answer is None else self._codes.setdefault(answer, len(self._codes))


class _Heard:
    """A conversation that is over: answers are known, nothing is asked."""

    def __init__(self, answers: Ints) -> None:
        self._answers = answers

    def request(self, call_id: int) -> CallRequest:
        raise NotImplementedError("a recorded run asks nothing")

    def take(self, result: CallResult) -> int:
        return int(self._answers[result.call_id])


def _recorded(repeat: int, run: Run, workload: Workload, journal: Path, outputs: _Outputs) -> Recorded:
    said = outputs.of(run, workload)
    log = RunLog(len(workload.calls) + workload.n_questions)
    ledger = Ledger(Journal(journal, read_only=True), _Heard(said["answer"]))
    ledger.restore(log)
    return Recorded(repeat, run, log, _with_outcomes(workload, log, said), ledger.resolved)


def _with_outcomes(workload: Workload, log: RunLog, said: Columns) -> Workload:
    n = len(workload.calls)
    return replace(
        workload,
        outcomes=Outcomes(
            log.output_tokens[:n], said["visible_tokens"][:n], log.answer[:n], said["correct"][:n]
        ),
        aggregator=AggregatorCalls(said["prompt_tokens"][n:], log.output_tokens[n:], said["correct"][n:]),
    )


def engines_of(recorded: Sequence[Recorded]) -> Engines:
    """What the engines resolved, over all runs; a run may have had no use for some."""
    return {name: settings for run in recorded for name, settings in run.engines.items()}
