"""From a question file to a workload whose outcomes are not known yet: for a real run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from mosaicsim.errors import ScenarioError, TraceError
from mosaicsim.workload.ballots import GateCalibration
from mosaicsim.workload.block import Block, load_block, occurrence
from mosaicsim.workload.build import RngStreams, calibration_of, describe_popularity, grades, routing_input
from mosaicsim.workload.calls import NO_ANSWER, AggregatorCalls, CallTable, Ints, Outcomes, Workload
from mosaicsim.workload.held_out import route_calibration
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
    for_gates: bool = False,
) -> Workload:
    """Route the questions over the experts of the ``calibration`` trace; ``for_gates`` as in build_workload.

    Raises ScenarioError or TraceError: a router that needs a recorded routing, or a calibration trace that
    holds nothing but the questions to be asked.
    """
    profiled = load_block(calibration, calibration.experts, None, rng_streams("length_skew"))
    held_out = others(calibration, {q.id for q in questions})
    rows = profiled.of_questions(held_out)
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
    workload = unanswered(
        questions.path.name.partition(".")[0],
        questions.questions,
        profiled,
        rows,
        drawn,
        prompt_tokens,
        labels,
    )
    if not for_gates:
        return workload
    return replace(workload, gate_calibration=_for_gates(profiled, held_out, k, drawn, router, rng_streams))


def _for_gates(
    profiled: Block, held_out: Ints, k: int, drawn: Ints, router: Router[Any], rng_streams: RngStreams
) -> GateCalibration:
    """The calibration questions for gates; an aggregator without rows there is modelled, and labelled so."""
    routing = routing_input(profiled, held_out, k, profiled, profiled.of_questions(held_out))
    source: Literal["recorded", "modelled"] = (
        "modelled" if profiled.aggregator(held_out) is None else "recorded"
    )
    return route_calibration(profiled, held_out, routing, drawn, router, source, rng_streams)


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
    names = sorted({q.category for q in questions})
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
            category=np.repeat([names.index(q.category) for q in questions], k).astype(np.int64),
        ),
        outcomes=Outcomes(zeros, zeros, np.full(n * k, NO_ANSWER), np.zeros(n * k, np.bool_)),
        aggregator=AggregatorCalls(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.bool_)),
        calibration=calibration_of(profiled, rows, drawn, names),
        labels=labels,
    )


def calibrated(
    workload: Workload,
    calibration: Trace,
    *,
    router: Router[Any],
    rng_streams: RngStreams,
    for_gates: bool = False,
) -> Workload:
    """A workload that was read back, with the calibration that its schedulers and gates were shown."""
    profiled = load_block(calibration, workload.experts, None, rng_streams("length_skew"))
    held_out = others(calibration, set(workload.questions))
    drawn = workload.calls.expert.reshape(workload.n_questions, -1)
    rows, names = profiled.of_questions(held_out), sorted(set(workload.categories))
    codes = np.array([names.index(category) for category in workload.categories], np.int64)
    known = replace(
        workload,
        calls=replace(workload.calls, category=codes[workload.calls.question]),
        calibration=calibration_of(profiled, rows, drawn, names),
    )
    if not for_gates:
        return known
    shown = _for_gates(profiled, held_out, drawn.shape[1], drawn, router, rng_streams)
    return replace(known, gate_calibration=shown)


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


def others(calibration: Trace, asked: Collection[str]) -> Ints:
    """Questions of the calibration trace that are not asked now. Raises TraceError where there are none."""
    free = np.array([i for i, q in enumerate(calibration.questions) if q not in asked], np.int64)
    if not len(free):
        raise TraceError(
            f"{calibration.where()}: every question of it is asked, and calibration must not see those"
        )
    return free
