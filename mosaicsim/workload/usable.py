"""Which questions of an imported block can be used: answered by every expert, and graded alike.

Outputs published at different times are graded by different versions of a benchmark. Where the gold answer
was changed, the same answer is right in one row and wrong in another, and often the options moved too, so
that equal letters are not equal answers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from mosaicsim.errors import TraceError
from mosaicsim.workload.calls import Bools, Ints
from mosaicsim.workload.trace import Trace, as_trace


def usable_questions(trace: Trace, gold: Ints | None, *, conflicting: str, drop_incomplete: bool) -> Trace:
    """The trace without questions that cannot be used; one with a recorded routing may lack rows.

    ``gold`` (rows,) codes each row's gold answer, -1 where unknown. Questions graded by different gold
    answers are kept with a note, dropped, or an error, as ``conflicting`` says. Raises TraceError: there are
    questions that cannot be used and are not to be dropped, or no question is left.
    """
    contested = conflicting_questions(trace, gold)
    if contested.any() and conflicting == "error":
        raise TraceError(f"{trace.where()}: {_describe_conflicting(trace, contested)}")
    if conflicting == "drop":
        trace = _without(trace, contested, "graded by different gold answers")
    elif contested.any():
        trace = _noted(trace, f"{_describe_conflicting(trace, contested)}; kept")
    if not trace.nulls("slot").all():
        return trace
    lacking = incomplete_questions(trace)
    if lacking.any() and not drop_incomplete:
        raise TraceError(_describe_incomplete(trace, lacking))
    return _without(trace, lacking, "some expert had no row")


def conflicting_questions(trace: Trace, gold: Ints | None) -> Bools:
    """Which questions have two gold answers, or an answer graded right and wrong, shape (questions,)."""
    question, correct = trace.codes("question_id"), trace.bools("correct")
    graded = (trace.codes("answer") >= 0) & ~trace.nulls("correct")
    answers = _two_values(question[graded], trace.codes("answer")[graded], correct[graded])
    conflicting = np.zeros(len(trace.questions), np.bool_)
    conflicting[answers] = True
    if gold is not None:
        conflicting[_two_values(question[gold >= 0], np.zeros_like(gold[gold >= 0]), gold[gold >= 0])] = True
    return conflicting


def _two_values(question: Ints, answer: Ints, value: Ints | Bools) -> Ints:
    """Questions in which some answer has more than one value; all arguments of shape (rows,)."""
    triples = np.unique(np.stack([question, answer, value]).astype(np.int64), axis=1)
    pairs, counts = np.unique(triples[:2], axis=1, return_counts=True)
    return np.asarray(pairs[0, counts > 1])


def incomplete_questions(trace: Trace) -> Bools:
    """Which questions lack a row of some expert, or of the aggregator, shape (questions,)."""
    there = np.zeros((len(trace.questions), len(trace.experts) + 1), dtype=np.bool_)
    there[trace.codes("question_id"), trace.expert_index] = True
    if trace.metadata.aggregator is None:
        there[:, -1] = True
    return np.asarray(~there.all(axis=1))


def _without(trace: Trace, questions: Bools, why: str) -> Trace:
    """The trace less some questions, noting how many and why. Raises TraceError: none is left."""
    if not questions.any():
        return trace
    if questions.all():
        raise TraceError(f"{trace.where()}: no question is left: {why}")
    table = trace.table.filter(pa.array(~questions[trace.codes("question_id")]))
    kept = as_trace(table, trace.metadata, trace.path)
    return _noted(kept, f"{int(questions.sum())} of {len(questions)} questions dropped: {why}")


def _noted(trace: Trace, note: str) -> Trace:
    provenance = trace.metadata.provenance
    provenance = provenance.model_copy(update={"notes": (*provenance.notes, note)})
    return as_trace(trace.table, replace(trace.metadata, provenance=provenance), trace.path)


def _describe_conflicting(trace: Trace, conflicting: Bools) -> str:
    return (
        f"{int(conflicting.sum())} of {len(conflicting)} questions are graded by different gold answers, "
        f"e.g. '{trace.questions[int(np.argmax(conflicting))]}' ('--conflicting drop' leaves them out)"
    )


def _describe_incomplete(trace: Trace, lacking: Bools) -> str:
    question = int(np.argmax(lacking))
    there = set(trace.expert_index[trace.codes("question_id") == question].tolist())
    absent = [name for i, name in enumerate(trace.experts) if i not in there]
    if trace.metadata.aggregator is not None and -1 not in there:
        absent.append(trace.metadata.aggregator)
    return (
        f"{trace.where()}: {int(lacking.sum())} of {len(lacking)} questions lack a row of some expert, e.g. "
        f"'{trace.questions[question]}' has none of {', '.join(absent)}; '--incomplete drop' leaves them out"
    )
