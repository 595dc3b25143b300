"""The Parquet tables of a result: calls, timeline, workload; and back to columns.

Names stand where the program has indices, null where it has -1, and text columns are dictionary-encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mosaicsim.analysis.result import CALL_STATUS, Columns, Result, Run
from mosaicsim.workload.calls import AggregatorCalls, Calibration, CallTable, Outcomes, Workload

UNKNOWN = -1
STAGES = ("expert", "aggregator")


def calls_table(result: Result) -> pa.Table:
    """Every call of every run: scheduler, gate, replicate, then the columns of ``Run.calls``."""
    return pa.concat_tables([_calls_of(result, run) for run in result.runs])


def timeline_table(result: Result) -> pa.Table:
    """Every interval of every worker in every run; what no interval covers is idle."""
    return pa.concat_tables([_timeline_of(result, run) for run in result.runs])


def workload_table(result: Result) -> pa.Table:
    """What each replicate had to compute: its calls and one aggregator call a question, with their outcomes.

    These are the true lengths and answers, also of calls that a gate cancelled or never asked for.
    ``answer`` is a code: equal code, equal answer within a replicate.
    """
    return pa.concat_tables([_workload_of(workload, i) for i, workload in enumerate(result.workloads)])


def _calls_of(result: Result, run: Run) -> pa.Table:
    workload, columns = result.workloads[run.replicate], run.calls
    table = _labels(run, len(columns["question"])) | {
        "stage": _text(columns["stage"]),
        "question": _names(columns["question"], workload.questions),
        "expert": _names(columns["expert"], workload.experts),
        "sample": pa.array(columns["sample"]),
        "worker": _names(columns["worker"], result.workers),
        "session": _known(columns["session"]),
    }
    for name in ("start_s", "first_token_s", "finish_s"):
        table[name] = _known(columns[name])
    for name in ("prompt_tokens", "output_tokens", "preemptions"):
        table[name] = pa.array(columns[name])
    return pa.table(table | {"status": _names(columns["status"], CALL_STATUS)})


def _timeline_of(result: Result, run: Run) -> pa.Table:
    columns = run.timeline
    return pa.table(
        _labels(run, len(columns["worker"]))
        | {
            "worker": _names(columns["worker"], result.workers),
            "stage": _text(columns["stage"]),
            "session": pa.array(columns["session"], pa.int64()),
            "expert": _names(columns["expert"], result.workloads[run.replicate].experts),
            "state": _text(columns["state"]),
            "start_s": pa.array(columns["start_s"], pa.float64()),
            "end_s": pa.array(columns["end_s"], pa.float64()),
        }
    )


def _workload_of(workload: Workload, replicate: int) -> pa.Table:
    calls, outcomes, aggregator = workload.calls, workload.outcomes, workload.aggregator
    n, questions = len(calls), np.arange(workload.n_questions)
    total = n + len(questions)
    question = np.concatenate([calls.question, questions])
    visible = np.concatenate([outcomes.visible_tokens, aggregator.output_tokens])
    return pa.table(
        {
            "replicate": pa.array(np.full(total, replicate, np.int32)),
            "stage": _names(np.repeat([0, 1], [n, len(questions)]), STAGES),
            "question": _names(question, workload.questions),
            "category": _text(np.array(workload.categories)[question]),
            "expert": _names(
                np.concatenate([calls.expert, np.full(len(questions), UNKNOWN)]), workload.experts
            ),
            "sample": pa.array(np.concatenate([calls.sample, np.zeros_like(questions)])),
            "prompt_tokens": pa.array(np.concatenate([calls.prompt_tokens, aggregator.prompt_tokens])),
            "output_tokens": pa.array(np.concatenate([outcomes.output_tokens, aggregator.output_tokens])),
            "visible_tokens": pa.array(visible),
            "answer": _known(np.concatenate([outcomes.answer, np.full(len(questions), UNKNOWN)])),
            "correct": pa.array(np.concatenate([outcomes.correct, aggregator.correct])),
        }
    )


def _labels(run: Run, n: int) -> dict[str, Any]:
    return {
        "scheduler": _names(np.zeros(n, np.int32), (run.scheduler,)),
        "gate": _names(np.zeros(n, np.int32), (run.gate,)),
        "replicate": pa.array(np.full(n, run.replicate, np.int32)),
    }


def _names(codes: npt.NDArray[Any], names: Sequence[str]) -> pa.DictionaryArray:
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(names), pa.string()))


def _text(values: npt.NDArray[Any]) -> pa.DictionaryArray:
    return pa.array(values.astype(np.str_), pa.string()).dictionary_encode()


def _known(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values, mask=values < 0)


def read_calls(table: pa.Table, workload: Workload, workers: Sequence[str]) -> Columns:
    """The columns of ``Run.calls`` from one run's rows."""
    columns: Columns = {
        "stage": _strings(table["stage"]),
        "question": _codes(table["question"], workload.questions),
        "expert": _codes(table["expert"], workload.experts),
        "worker": _codes(table["worker"], workers),
        "status": _codes(table["status"], CALL_STATUS).astype(np.int8),
    }
    numbers = ("sample", "session", "start_s", "first_token_s", "finish_s")
    for name in (*numbers, "prompt_tokens", "output_tokens", "preemptions"):
        columns[name] = _numbers(table[name])
    return columns


def read_timeline(table: pa.Table, workload: Workload, workers: Sequence[str]) -> Columns:
    """The columns of ``Run.timeline`` from one run's rows."""
    return {
        "worker": _codes(table["worker"], workers),
        "stage": _strings(table["stage"]),
        "session": _numbers(table["session"]),
        "expert": _codes(table["expert"], workload.experts),
        "state": _strings(table["state"]),
        "start_s": _numbers(table["start_s"]),
        "end_s": _numbers(table["end_s"]),
    }


def read_workload(table: pa.Table, name: str, experts: Sequence[str], labels: dict[str, str]) -> Workload:
    """One replicate's Workload from its rows; the calibration calls are not kept, so it has none."""
    asked = table.filter(pc.equal(table["stage"], STAGES[1]))
    calls = table.filter(pc.equal(table["stage"], STAGES[0]))
    questions = tuple(asked["question"].to_pylist())
    return Workload(
        name=name,
        questions=questions,
        categories=tuple(asked["category"].to_pylist()),
        experts=tuple(experts),
        calls=CallTable(
            question=_codes(calls["question"], questions),
            expert=_codes(calls["expert"], experts),
            sample=_numbers(calls["sample"]),
            prompt_tokens=_numbers(calls["prompt_tokens"]),
        ),
        outcomes=Outcomes(
            *(_numbers(calls[column]) for column in ("output_tokens", "visible_tokens", "answer", "correct"))
        ),
        aggregator=AggregatorCalls(
            *(_numbers(asked[column]) for column in ("prompt_tokens", "output_tokens", "correct"))
        ),
        calibration=Calibration((), ()),
        labels=labels,
    )


def split_runs(table: pa.Table) -> dict[tuple[str, str, int], pa.Table]:
    """Each run's rows by (scheduler, gate, replicate); the rows of a run follow each other."""
    columns = ("scheduler", "gate", "replicate")
    keys = np.stack([_indices(table[c]) if c != "replicate" else _numbers(table[c]) for c in columns])
    starts = (
        np.flatnonzero(np.append(True, (np.diff(keys) != 0).any(axis=0))) if len(table) else np.zeros(0, int)
    )
    edges = [*starts.tolist(), len(table)]
    pieces = (table.slice(start, end - start) for start, end in pairwise(edges))
    return {tuple(piece[c][0].as_py() for c in columns): piece for piece in pieces}


def _indices(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Dictionary index of each value, -1 for null."""
    indices = column.combine_chunks().indices
    return np.asarray(indices.fill_null(UNKNOWN).to_numpy(zero_copy_only=False))


def _codes(column: pa.ChunkedArray, names: Sequence[str]) -> npt.NDArray[Any]:
    """Index of each value in ``names``, -1 for null."""
    dictionary = column.combine_chunks().dictionary.to_pylist()
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([*(place.get(name, UNKNOWN) for name in dictionary), UNKNOWN])
    return np.asarray(codes[_indices(column)])


def _strings(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """The text of a column that has no nulls, as numpy strings."""
    names = column.combine_chunks().dictionary.to_pylist()
    return np.asarray(np.array(names or [""], np.str_)[_indices(column)])


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of numbers, -1 where it is null."""
    filled = pc.fill_null(column, UNKNOWN) if column.null_count else column
    return np.asarray(filled.to_numpy())
