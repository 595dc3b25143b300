"""A trace's rows as plain columns, and the lookup from (question, expert, sample) to a row."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from mosaicsim.errors import TraceError
from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.routing import DrawOptions, Router, RouterOptions
from mosaicsim.workload.skew import Lengths, LengthSkew, skew_lengths

if TYPE_CHECKING:
    from mosaicsim.workload.trace import Trace

REPEAT_LOG_SD = 0.25
"""Log-sd of output length between repeats of one question by one model, measured over public traces."""


@dataclass(frozen=True)
class Columns:
    """What calls are made from, each of shape (rows,).

    ``expert`` is -1 for the aggregator's rows, ``confidence`` NaN where there is none.
    """

    question: Ints
    expert: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    visible_tokens: Ints
    answer: Ints
    correct: Bools
    confidence: Floats

    def take(self, rows: Ints) -> Columns:
        """Some of the rows."""
        return Columns(*(getattr(self, f.name)[rows] for f in fields(self)))

    def append(self, other: Columns) -> Columns:
        """These rows and then the other's."""
        return Columns(*(np.append(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Block:
    """The rows of ``trace``, with experts numbered as in the pool ``experts`` and lengths after any skew."""

    trace: Trace
    experts: tuple[str, ...]
    columns: Columns

    def of_questions(self, questions: Ints) -> Ints:
        """The experts' rows of some questions, ascending."""
        wanted = np.zeros(len(self.trace.questions), dtype=np.bool_)
        wanted[questions] = True
        return np.flatnonzero(wanted[self.columns.question] & (self.columns.expert >= 0))

    def recorded(self, questions: Ints) -> Ints | None:
        """Row that fills each slot of the recorded routing, (questions, k); None where none is recorded."""
        slot = self.trace.ints("slot")
        drawn = np.flatnonzero(slot >= 0)
        if not len(drawn):
            return None
        table = np.full((len(self.trace.questions), int(slot.max()) + 1), -1, dtype=np.int64)
        table[self.columns.question[drawn], slot[drawn]] = drawn
        return np.asarray(table[questions])

    def aggregator(self, questions: Ints) -> Ints | None:
        """The aggregator's row of each question, shape (questions,); None where the trace has none."""
        own = np.flatnonzero(self.trace.is_aggregator)
        if not len(own):
            return None
        row = np.zeros(len(self.trace.questions), dtype=np.int64)
        row[self.columns.question[own]] = own
        return np.asarray(row[questions])

    def find(self, question: Ints, expert: Ints, sample: Ints) -> Ints:
        """Row of each (question, expert, sample), -1 where there is none; the arguments broadcast."""
        own = np.flatnonzero(self.columns.expert >= 0)
        samples = self.trace.ints("sample")[own]
        n_samples = 1 + max(int(samples.max()), int(sample.max(initial=0)))
        pair = self.columns.question[own] * len(self.experts) + self.columns.expert[own]
        keys = pair * n_samples + samples
        order = np.argsort(keys)
        wanted = (question * len(self.experts) + expert) * n_samples + sample
        at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        return np.where(keys[order][at] == wanted, own[order][at], -1)


def load_block(
    trace: Trace, experts: tuple[str, ...], skew: LengthSkew | None, rng: np.random.Generator
) -> Block:
    """A trace's rows, renumbered to the pool ``experts`` and with ``skew`` applied to their lengths."""
    place = {name: i for i, name in enumerate(experts)}
    renumber = np.array([*(place.get(name, -1) for name in trace.experts), -1], dtype=np.int64)
    columns = Columns(
        question=trace.codes("question_id"),
        expert=renumber[trace.expert_index],
        prompt_tokens=trace.ints("prompt_tokens"),
        output_tokens=trace.ints("output_tokens"),
        visible_tokens=trace.ints("visible_tokens"),
        answer=trace.codes("answer"),
        correct=trace.bools("correct"),
        confidence=trace.floats("confidence"),
    )
    if skew is not None:
        lengths = Lengths(
            experts,
            columns.expert,
            columns.output_tokens,
            columns.visible_tokens,
            trace.metadata.provenance.caps,
        )
        output, visible = skew_lengths(lengths, skew, rng)
        columns = replace(columns, output_tokens=output, visible_tokens=visible)
    return Block(trace, experts, columns)


def occurrence(drawn: Ints) -> Ints:
    """How often the slot's expert fills an earlier slot of its question, shape (questions, k)."""
    same = drawn[:, :, None] == drawn[:, None, :]
    earlier = np.tri(drawn.shape[1], k=-1, dtype=np.bool_)
    return np.asarray((same & earlier).sum(axis=2))


def pick(
    block: Block, questions: Ints, drawn: Ints, router: Router[RouterOptions], rng: np.random.Generator
) -> tuple[Columns, bool]:
    """The calls behind ``drawn`` (questions, k), flattened, and whether some repeat had to be made up.

    The n-th draw of an expert for a question takes its sample n, counted from 0.
    Raises TraceError: the trace has no such row.
    """
    recorded = block.recorded(questions) if router.recorded else None
    if recorded is not None:
        return block.columns.take(recorded.ravel()), False
    rows = block.find(questions[:, None], drawn, occurrence(drawn))
    if (rows >= 0).all():
        return block.columns.take(rows.ravel()), False
    first = block.find(questions[:, None], drawn, np.zeros_like(drawn))
    if (first < 0).any():
        raise TraceError(_not_a_block(block, questions, drawn, first < 0, router))
    if not (isinstance(router.options, DrawOptions) and router.options.resample):
        raise TraceError(_too_few_samples(block, questions, drawn, rows < 0, router))
    made_up = repeats(block, first[rows < 0], rng)
    rows[rows < 0] = len(block.columns.question) + np.arange(len(made_up.question))
    return block.columns.append(made_up).take(rows.ravel()), True


def repeats(block: Block, rows: Ints, rng: np.random.Generator) -> Columns:
    """One more sample of each row: a noisy length within the cap; prompt, answer and grade the same."""
    old = block.columns.take(rows)
    caps = block.trace.metadata.provenance.caps
    limit = np.array([caps.get(name, np.iinfo(np.int32).max) for name in block.experts])[old.expert]
    noisy = np.rint(old.output_tokens * rng.lognormal(0.0, REPEAT_LOG_SD, size=len(rows)))
    output = np.clip(noisy, 1, np.maximum(limit, old.output_tokens)).astype(np.int64)
    whole = old.visible_tokens == old.output_tokens
    visible = np.where(whole, output, np.minimum(old.visible_tokens, output))
    return replace(old, output_tokens=output, visible_tokens=visible)


def _drew(
    block: Block, questions: Ints, drawn: Ints, bad: Bools, router: Router[RouterOptions]
) -> tuple[str, tuple[int, int]]:
    """The start of a message about the first bad slot, and where that is."""
    at = (int(np.argwhere(bad)[0, 0]), int(np.argwhere(bad)[0, 1]))
    expert, question = block.experts[drawn[at]], block.trace.questions[questions[at[0]]]
    return f"{block.trace.where()}: router '{router.name}' drew '{expert}' for question '{question}'", at


def _not_a_block(
    block: Block, questions: Ints, drawn: Ints, bad: Bools, router: Router[RouterOptions]
) -> str:
    start, _ = _drew(block, questions, drawn, bad, router)
    return f"{start}, but the trace has no row of it: it is not a full block, so only router 'recorded' fits"


def _too_few_samples(
    block: Block, questions: Ints, drawn: Ints, bad: Bools, router: Router[RouterOptions]
) -> str:
    start, at = _drew(block, questions, drawn, bad, router)
    times = int(occurrence(drawn)[at]) + 1
    own = (block.columns.question == questions[at[0]]) & (block.columns.expert == drawn[at])
    return (
        f"{start} {times} times, but the trace has {np.count_nonzero(own)} sample(s) of it; "
        "'replacement: false' draws no repeats, 'resample: true' models them"
    )
