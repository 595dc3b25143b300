"""The calibration questions routed and graded as the evaluated ones are, for gates that are fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from mosaicsim.errors import TraceError
from mosaicsim.workload.aggregator_model import pick_right
from mosaicsim.workload.ballots import Ballots, GateCalibration, GradedCalls
from mosaicsim.workload.block import Block, Columns, pick
from mosaicsim.workload.calls import Bools, Ints
from mosaicsim.workload.routing import HeldOut, Router, RoutingInput


def route_calibration(
    profiled: Block,
    questions: Ints,
    routing: RoutingInput,
    drawn: Ints,
    router: Router[Any],
    source: Literal["recorded", "modelled"],
    rng_streams: Callable[[str], np.random.Generator],
) -> GateCalibration:
    """Draw k experts for each calibration question, as ``drawn`` (evaluated questions, k) came about.

    ``questions`` index ``profiled``'s trace; ``source`` says where the aggregator's answers come from, as
    for the evaluated questions. Raises TraceError: grades, aggregator rows or rows of an expert drawn are
    missing.
    """
    trace, k = profiled.trace, routing.k
    rows = profiled.of_questions(questions)
    if trace.nulls("correct")[rows].any():
        raise TraceError(
            f"{trace.where()}: a gate that is fitted needs every calibration row graded (column 'correct')"
        )
    rng = rng_streams("calibration_routing")
    held_out = HeldOut(routing, *_own_grades(profiled, questions, rows))
    own = router.draw_calibration(held_out, drawn, rng)
    if (own < 0).any():
        raise TraceError(f"{trace.where()}: its routing holds an expert that is not in the pool")
    calls, _ = pick(profiled, questions, own, router, rng)
    answers, correct = calls.answer.reshape(-1, k), calls.correct.reshape(-1, k)
    if source == "recorded":
        right = _recorded_aggregator(profiled, questions)
    else:
        right = pick_right(answers, correct, rng_streams("calibration_aggregator"))
    categories = trace.of_question("category")
    return GateCalibration(
        experts=profiled.experts,
        ballots=Ballots(
            answers, own, calls.confidence.reshape(-1, k), tuple(categories[q] for q in questions.tolist())
        ),
        correct=correct,
        aggregator_correct=right,
        calls=_graded(profiled.columns.take(rows), questions),
        aggregator=source,
        confidences_modelled=trace.metadata.provenance.labels.get("confidence") == "modelled",
    )


def _own_grades(profiled: Block, questions: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Graded and right rows of each calibration question, each (questions, experts)."""
    columns, n = profiled.columns.take(rows), len(profiled.experts)
    cell = np.searchsorted(questions, columns.question) * n + columns.expert

    def count(mask: Bools) -> Ints:
        return np.bincount(cell[mask], minlength=len(questions) * n).reshape(-1, n)

    return count(np.ones(len(rows), np.bool_)), count(columns.correct)


def _recorded_aggregator(profiled: Block, questions: Ints) -> Bools:
    aggregator = profiled.aggregator(questions)
    if aggregator is None or profiled.trace.nulls("correct")[aggregator].any():
        raise TraceError(
            f"{profiled.trace.where()}: a gate that is fitted needs a graded aggregator row for each "
            "calibration question; aggregator_calls: modelled does without"
        )
    return profiled.columns.correct[aggregator]


def _graded(columns: Columns, questions: Ints) -> GradedCalls:
    return GradedCalls(
        np.searchsorted(questions, columns.question),
        columns.expert,
        columns.answer,
        columns.correct,
        columns.confidence,
    )
