"""From a question file to a workload whose outcomes are not known yet: for a real run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mosaicsim.errors import ScenarioError, TraceError
from mosaicsim.workload.block import Block, load_block, occurrence
from mosaicsim.workload.build import RngStreams, calibration_of, describe_popularity, grades
from mosaicsim.workload.calls import NO_ANSWER, AggregatorCalls, CallTable, Ints, Outcomes, Workload
from mosaicsim.workload.questions import Question, QuestionSet
from mosaicsim.workload.routing import Router, RoutingInput
from mosaicsim.workload.trace import Trace

PromptTokens = Callable[[int, int], int]
"""Tokens of the prompt of (question, expert)."""


def ask(
    questions: QuestionSet,
    calibration: Trace,
    *,
    k: int,
    router: Router[Any],
    prompt_tokens: PromptTokens,
    rng_streams: RngStreams,
) -> Workload:
    """Route the questions over the experts of the ``calibration`` trace.

    Raises ScenarioError or TraceError: a router that needs a recorded routing, or a calibration trace that
    holds nothing but the questions to be asked.
    """
    profiled = load_block(calibration, calibration.experts, None, rng_streams("length_skew"))
    rows = profiled.of_questions(_others(calibration, questions))
    names = questions.categories
    graded, right = grades(names, profiled, rows)
    drawn = router.draw(
        RoutingInput(
            k=k,
            experts=profiled.experts,
            category=np.array([names.index(q.category) for q in questions], np.int64),
            graded=graded,
            right=right,
            recorded=None,
            source=calibration.where(),
        ),
        rng_streams("routing"),
    )
    labels = {"popularity": describe_popularity(drawn, len(profiled.experts), router)}
    return unanswered(
        questions.path.name.partition(".")[0],
        questions.questions,
        profiled,
        rows,
        drawn,
        prompt_tokens,
        labels,
    )


def unanswered(
    name: str,
    questions: Sequence[Question],
    profiled: Block,
    rows: Ints,
    drawn: Ints,
    prompt_tokens: PromptTokens,
    labels: dict[str, str],
) -> Workload:
    """A workload of the calls ``drawn`` (questions, k), with calibration ``rows`` and no outcome."""
    n, k = drawn.shape
    question = np.repeat(np.arange(n), k)
    expert = drawn.ravel()
    zeros = np.zeros(n * k, np.int64)
    return Workload(
        name=name,
        questions=tuple(q.id for q in questions),
        categories=tuple(q.category for q in questions),
        experts=profiled.experts,
        calls=CallTable(
            question=question,
            expert=expert,
            sample=occurrence(drawn).ravel(),
            prompt_tokens=np.array(
                [prompt_tokens(q, m) for q, m in zip(question.tolist(), expert.tolist(), strict=True)],
                np.int64,
            ),
        ),
        outcomes=Outcomes(zeros, zeros, np.full(n * k, NO_ANSWER), np.zeros(n * k, np.bool_)),
        aggregator=AggregatorCalls(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)),
        calibration=calibration_of(profiled, rows, drawn),
        labels=labels,
    )


def require_experts(trace: Trace, models: Sequence[str]) -> None:
    """Raise ScenarioError unless there is a model for every expert of the trace, and none besides."""
    for name in trace.experts:
        if name not in models:
            raise ScenarioError(
                f"execution.models: no entry for expert '{name}' of {trace.where()}; "
                f"there are entries for {', '.join(models)}"
            )
    for name in models:
        if name not in trace.experts:
            raise ScenarioError(
                f"execution.models.{name}: {trace.where()} has no such expert; "
                f"it has {', '.join(trace.experts)}"
            )


def _others(calibration: Trace, questions: QuestionSet) -> Ints:
    """Questions of the calibration trace that are not asked now."""
    asked = {q.id for q in questions}
    free = np.array([i for i, q in enumerate(calibration.questions) if q not in asked], np.int64)
    if not len(free):
        raise TraceError(
            f"{calibration.where()}: every question of it is asked, and calibration must not see those"
        )
    return free
