"""What calls may come to, known from calibration alone: the forecast of a batch that has not run.

Every question is given a calibration question to stand in for it, drawn at random from its category where
there is one. The experts it was routed to then say what they said to that one, and so does the aggregator:
lengths of one question go together across experts, and so do their answers, as they did in calibration.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mosaicsim.errors import TraceError
from mosaicsim.workload.aggregator_model import model_aggregator
from mosaicsim.workload.asked import others
from mosaicsim.workload.block import Block, Columns, load_block, occurrence, repeats
from mosaicsim.workload.calls import AggregatorCalls, Ints, Outcomes, Workload
from mosaicsim.workload.trace import Trace


class Forecast:
    """Draws outcomes for ``workload``; its own are not looked at."""

    def __init__(self, workload: Workload, calibration: Trace) -> None:
        """Raises TraceError: a calibration trace without a row of every expert on every question."""
        self._workload = workload
        self._block: Block = load_block(calibration, workload.experts, None, np.random.default_rng(0))
        self._free = others(calibration, set(workload.questions))
        self._drawn = workload.calls.expert.reshape(workload.n_questions, -1)
        used = np.unique(self._drawn)
        rows = self._block.find(self._free[:, None], used[None, :], np.zeros((1, 1), np.int64))
        if (rows < 0).any():
            question, expert = np.argwhere(rows < 0)[0].tolist()
            raise TraceError(
                f"{calibration.where()}: no row of expert '{workload.experts[used[expert]]}' on question "
                f"'{calibration.questions[self._free[question]]}'; a forecast needs every expert on every one"
            )

    def draw(self, rng: np.random.Generator) -> Workload:
        """The workload with outcomes drawn from the calibration questions."""
        stand_in = self._stand_ins(rng)
        calls = self._said(stand_in, rng)
        return replace(
            self._workload,
            outcomes=Outcomes(calls.output_tokens, calls.visible_tokens, calls.answer, calls.correct),
            aggregator=self._aggregator(stand_in, calls, rng),
        )

    def _stand_ins(self, rng: np.random.Generator) -> Ints:
        """A calibration question for each question, shape (questions,)."""
        categories = self._block.trace.of_question("category")
        names = np.array([categories[q] for q in self._free.tolist()])
        drawn = []
        for category in self._workload.categories:
            alike = self._free[names == category]
            drawn.append(int(rng.choice(alike if len(alike) else self._free)))
        return np.array(drawn, np.int64)

    def _said(self, stand_in: Ints, rng: np.random.Generator) -> Columns:
        """The calls of each question, flattened; a sample that is not there is a noisy repeat."""
        block, drawn = self._block, self._drawn
        rows = block.find(stand_in[:, None], drawn, occurrence(drawn))
        missing = rows < 0
        if not missing.any():
            return block.columns.take(rows.ravel())
        first = block.find(stand_in[:, None], drawn, np.zeros_like(drawn))
        more = repeats(block, first[missing], rng)
        rows[missing] = len(block.columns.question) + np.arange(len(more.question))
        return block.columns.append(more).take(rows.ravel())

    def _aggregator(self, stand_in: Ints, calls: Columns, rng: np.random.Generator) -> AggregatorCalls:
        """The trace's aggregator on the stand-in, its prompt with what was proposed; else a modelled one."""
        shape = self._drawn.shape
        visible, rows = calls.visible_tokens.reshape(shape), self._block.aggregator(stand_in)
        if rows is not None:
            own = self._block.columns.take(rows)
            return AggregatorCalls(own.prompt_tokens + visible.sum(axis=1), own.output_tokens, own.correct)
        return model_aggregator(
            question_tokens=np.rint(calls.prompt_tokens.reshape(shape).mean(axis=1)).astype(np.int64),
            answers=calls.answer.reshape(shape),
            correct=calls.correct.reshape(shape),
            output_tokens=calls.output_tokens.reshape(shape),
            visible_tokens=visible,
            rng=rng,
        )
