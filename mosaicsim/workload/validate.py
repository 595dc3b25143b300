"""Is every value of a trace possible? Vectorised checks, each naming a column and the rows that fail it.

Rows are counted from 1 in messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mosaicsim.errors import TraceError, nearest
from mosaicsim.workload.calls import Bools, Ints

if TYPE_CHECKING:
    from mosaicsim.workload.trace import Trace

MAX_TOKENS = 1_000_000
"""Longest prompt or output believed; the longest context any model of a pool offers is below it."""

MAX_SAMPLES = 10_000
FINISH_REASONS = ("stop", "length", "unknown")
REQUIRED = (
    "question_id",
    "dataset",
    "category",
    "expert",
    "sample",
    "prompt_tokens",
    "output_tokens",
    "visible_tokens",
    "finish_reason",
)
MAX_EXPERTS = 10_000


@dataclass(frozen=True)
class Violation:
    """One rule broken in ``column``; ``rows`` (0-based, ascending) break it, ``describe(row)`` says how."""

    column: str
    rows: Ints
    describe: Callable[[int], str]

    def line(self, row: int) -> str:
        """The one-line message for a row, without the file's name."""
        return f"column '{self.column}', row {row + 1}: {self.describe(row)}"


def require_valid(trace: Trace, *, complete: bool = True) -> None:
    """Raise TraceError naming file, column and row of the first problem, and how many more there are.

    Without ``complete``, questions may lack rows of some expert or of the aggregator.
    """
    broken = violations(trace, complete=complete)
    if broken:
        more = sum(len(v.rows) for v in broken) - 1
        tail = f" (and {more} more; list them with 'mosaicsim trace validate')" if more else ""
        raise TraceError(f"{trace.where()}: {broken[0].line(int(broken[0].rows[0]))}{tail}")


def violations(trace: Trace, *, complete: bool = True) -> list[Violation]:
    """Every rule that some row breaks; rules that relate rows only once each row is sound by itself."""
    if len(trace) == 0:
        return [Violation("question_id", np.zeros(1, np.int64), lambda _: "the trace has no rows")]
    for stage in (_nulls, _values, _relations, *((_completeness,) if complete else ())):
        broken = [v for v in stage(trace) if len(v.rows)]
        if broken:
            return broken
    return []


def _rows(mask: Bools) -> Ints:
    return np.flatnonzero(mask)


def _nulls(trace: Trace) -> Iterator[Violation]:
    for column in REQUIRED:
        yield Violation(column, _rows(trace.nulls(column)), lambda _: "is null, but a value is required")


def _values(trace: Trace) -> Iterator[Violation]:
    """Rules of one row by itself."""
    for column in ("question_id", "dataset", "category", "expert"):
        empty = np.array([not v.strip() for v in trace.values(column)])
        yield Violation(column, _rows(empty[trace.codes(column)]), lambda _: "is an empty string")
    yield _between(trace, "sample", 0, MAX_SAMPLES)
    yield _between(trace, "prompt_tokens", 1, MAX_TOKENS)
    yield _between(trace, "output_tokens", 1, MAX_TOKENS)
    yield _between(trace, "visible_tokens", 0, MAX_TOKENS)
    yield _visible(trace)
    yield _finish_reason(trace)
    yield _confidence(trace)
    yield _expert(trace)
    slot, unset = trace.ints("slot"), trace.nulls("slot")
    bad = ~unset & ((slot < 0) | (slot > MAX_SAMPLES))
    yield Violation("slot", _rows(bad), lambda r: f"is {slot[r]:,}, not within 0 and {MAX_SAMPLES:,}")
    yield Violation("slot", _rows(~unset & trace.is_aggregator), lambda _: "is set on an aggregator row")


def _between(trace: Trace, column: str, low: int, high: int) -> Violation:
    values = trace.ints(column)
    return Violation(
        column,
        _rows((values < low) | (values > high)),
        lambda r: f"is {values[r]:,}, not within {low} and {high:,}",
    )


def _visible(trace: Trace) -> Violation:
    visible, output = trace.ints("visible_tokens"), trace.ints("output_tokens")
    return Violation(
        "visible_tokens",
        _rows(visible > output),
        lambda r: f"is {visible[r]:,}, more than the row's output_tokens {output[r]:,}",
    )


def _confidence(trace: Trace) -> Violation:
    confidence, absent = trace.floats("confidence"), trace.nulls("confidence")
    within = (confidence >= 0) & (confidence <= 1)
    return Violation(
        "confidence", _rows(~absent & ~within), lambda r: f"is {confidence[r]:g}, not within 0 and 1"
    )


def _finish_reason(trace: Trace) -> Violation:
    names, code = trace.values("finish_reason"), trace.codes("finish_reason")
    known = np.array([name in FINISH_REASONS for name in names])
    accepted = ", ".join(FINISH_REASONS)

    def describe(row: int) -> str:
        name = names[code[row]]
        return f"is '{name}'{nearest(name, FINISH_REASONS)}; accepted: {accepted}"

    return Violation("finish_reason", _rows(~known[code]), describe)


def _expert(trace: Trace) -> Violation:
    """With a first-seen order in the metadata, it names every expert; and a pool has a believable size."""
    names, code = trace.values("expert"), trace.codes("expert")
    if len(names) > MAX_EXPERTS:
        many = f"the trace names {len(names):,} experts; at most {MAX_EXPERTS:,} are believed"
        return Violation("expert", np.zeros(1, np.int64), lambda _: many)
    order = trace.metadata.provenance.first_seen
    accepted = {*(order or names), trace.metadata.aggregator}
    known = np.array([name in accepted for name in names])

    def describe(row: int) -> str:
        name = names[code[row]]
        return f"'{name}' is not in the metadata's first_seen order{nearest(name, order)}"

    return Violation("expert", _rows(~known[code]), describe)


def _relations(trace: Trace) -> Iterator[Violation]:
    """Rules that relate a row to the others of its question."""
    question, ids = trace.codes("question_id"), trace.questions
    for column in ("dataset", "category"):
        code = trace.codes(column)
        first = code[trace.first_row][question]
        yield Violation(
            column,
            _rows(code != first),
            lambda r: f"differs from an earlier row of question '{ids[question[r]]}'",
        )
    yield from _samples(trace)
    yield from _slots(trace)


def _completeness(trace: Trace) -> Iterator[Violation]:
    """No question lacks a row it needs."""
    yield from _aggregator(trace)
    if trace.nulls("slot").all():
        yield _block(trace)


def _repeated(keys: Ints) -> Bools:
    """Which entries equal an earlier one."""
    again = np.ones(len(keys), dtype=np.bool_)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _samples(trace: Trace) -> Iterator[Violation]:
    """Samples of one (question, expert) are 0, 1, ... without repeats or gaps."""
    names, expert = trace.values("expert"), trace.codes("expert")
    question, sample = trace.codes("question_id"), trace.ints("sample")
    pair = question * len(names) + expert
    repeated = _repeated(pair * (MAX_SAMPLES + 1) + sample)

    def who(row: int) -> str:
        return f"question '{trace.questions[question[row]]}', expert '{names[expert[row]]}'"

    yield Violation("sample", _rows(repeated), lambda r: f"{sample[r]} appears twice for {who(r)}")
    _, place, calls = np.unique(pair, return_inverse=True, return_counts=True)
    size = calls[place]
    gap = (sample >= size) & ~repeated
    yield Violation("sample", _rows(gap), lambda r: f"is {sample[r]}, but {who(r)} has {size[r]} sample(s)")


def _slots(trace: Trace) -> Iterator[Violation]:
    """A recorded routing fills slots 0 to k-1 of every question, each once."""
    slot, drawn = trace.ints("slot"), ~trace.nulls("slot")
    if not drawn.any():
        return
    question, ids = trace.codes("question_id"), trace.questions
    k = int(slot.max()) + 1
    rows = _rows(drawn)
    again = rows[_repeated(question[rows] * k + slot[rows])]
    yield Violation("slot", again, lambda r: f"{slot[r]} is filled twice for question '{ids[question[r]]}'")
    filled = np.bincount(question[rows], minlength=len(ids))
    yield Violation(
        "slot",
        trace.first_row[filled < k],
        lambda r: f"question '{ids[question[r]]}' has {filled[question[r]]} of its {k} slots filled",
    )


def _aggregator(trace: Trace) -> Iterator[Violation]:
    """With an aggregator in the metadata, every question has a row of it."""
    if trace.metadata.aggregator is None:
        return
    question, ids = trace.codes("question_id"), trace.questions
    rows = np.bincount(question[trace.is_aggregator], minlength=len(ids))
    name = trace.metadata.aggregator
    yield Violation(
        "expert",
        trace.first_row[rows == 0],
        lambda r: f"question '{ids[question[r]]}' has no aggregator row (expert '{name}')",
    )
    calls = np.bincount(question[~trace.is_aggregator], minlength=len(ids))
    yield Violation(
        "expert",
        trace.first_row[calls == 0],
        lambda r: f"question '{ids[question[r]]}' has no row of an expert",
    )


def _block(trace: Trace) -> Violation:
    """Without a recorded routing, every expert has answered every question."""
    question, expert = trace.codes("question_id"), trace.expert_index
    n_experts = len(trace.experts)
    pairs = np.unique((question * n_experts + expert)[~trace.is_aggregator])
    answered = np.bincount(pairs // n_experts, minlength=len(trace.questions))

    def describe(row: int) -> str:
        there = set(expert[question == question[row]].tolist())
        absent = [repr(name) for i, name in enumerate(trace.experts) if i not in there]
        return f"question '{trace.questions[question[row]]}' has no row of expert {', '.join(absent)}"

    return Violation("expert", trace.first_row[answered < n_experts], describe)
