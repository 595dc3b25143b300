"""From a trace to a workload: split off the calibration questions, route the rest, look up what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mosaicsim.errors import ScenarioError, TraceError
from mosaicsim.validation import StrictModel
from mosaicsim.workload.aggregator_model import (
    LENGTH_MEDIAN,
    MAX_OUTPUT_TOKENS,
    TEMPLATE_TOKENS,
    model_aggregator,
)
from mosaicsim.workload.block import Block, Columns, load_block, occurrence, pick
from mosaicsim.workload.calls import (
    NO_ANSWER,
    AggregatorCalls,
    Bools,
    Calibration,
    CallTable,
    Ints,
    Outcomes,
    Workload,
)
from mosaicsim.workload.dealing import popularity
from mosaicsim.workload.held_out import route_calibration
from mosaicsim.workload.routing import Router, RoutingInput
from mosaicsim.workload.skew import LengthSkew

if TYPE_CHECKING:
    from mosaicsim.workload.trace import Trace

AggregatorSource = Literal["auto", "recorded", "modelled"]
RngStreams = Callable[[str], np.random.Generator]


class CalibrationSpec(StrictModel):
    """Where the calibration questions come from: exactly one of another trace, a number, or a share.

    A number or share is split off the workload's own trace at random; those questions are not evaluated.
    """

    trace: str | None = None
    questions: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationSpec:
        if [self.trace, self.questions, self.share].count(None) != 2:
            raise ValueError("give exactly one of trace, questions and share")
        return self

    def held_out(self, n_questions: int) -> int:
        """How many of ``n_questions`` are split off; none when another trace is the calibration set."""
        if self.share is not None:
            return max(1, round(self.share * n_questions))
        return self.questions or 0


def build_workload(
    trace: Trace,
    *,
    k: int,
    router: Router[Any],
    calibration: CalibrationSpec,
    skew: LengthSkew | None = None,
    limit_questions: int | None = None,
    aggregator_calls: AggregatorSource = "auto",
    rng_streams: RngStreams,
    for_gates: bool = False,
) -> Workload:
    """Route ``trace`` and return its calls, ordered by question, then slot.

    ``rng_streams`` yields a generator by name, each asked for once: "calibration_split", "length_skew",
    "routing", "aggregator_model". ``limit_questions`` evaluates a random subset of that size.
    ``aggregator_calls`` says whether the trace's aggregator rows are used, modelled ones, or ("auto") the
    trace's rows only with the routing they were recorded with. ``for_gates`` also routes the calibration
    questions, for gates that are fitted, by streams of its own: "calibration_routing" and
    "calibration_aggregator".
    Raises ScenarioError, TraceError or InfeasibleError, naming the trace or the option.
    """
    skew_rng, rng = rng_streams("length_skew"), rng_streams("routing")
    block = load_block(trace, trace.experts, skew, skew_rng)
    questions, held_out = _split(trace, calibration, limit_questions, rng_streams("calibration_split"))
    profiled = block
    if calibration.trace is not None:
        profiled = _other_block(calibration.trace, block, skew, skew_rng)
        held_out = _unused_questions(calibration.trace, profiled, block, questions)
    rows = profiled.of_questions(held_out)

    drawn = router.draw(routing_input(block, questions, k, profiled, rows), rng)
    calls, made_up = pick(block, questions, drawn, router, rng)
    source = _aggregator_source(aggregator_calls, block, questions, router)
    aggregator, origin = _aggregator(block, questions, calls, k, source, rng_streams("aggregator_model"))

    labels = dict(trace.metadata.provenance.labels) | origin
    if skew is not None:
        labels["lengths"] = "skewed"
    if made_up:
        labels["repeats"] = "modelled"
    if trace.nulls("correct")[~trace.is_aggregator].any():
        labels["accuracy"] = labels["delta_pp"] = "ungraded"
    labels["popularity"] = describe_popularity(drawn, len(block.experts), router)
    gate_calibration = None
    if for_gates:
        routing = routing_input(profiled, held_out, k, profiled, rows)
        gate_calibration = route_calibration(profiled, held_out, routing, drawn, router, source, rng_streams)
    categories = trace.of_question("category")
    return Workload(
        name=trace.name,
        questions=tuple(trace.questions[q] for q in questions.tolist()),
        categories=tuple(categories[q] for q in questions.tolist()),
        experts=block.experts,
        calls=CallTable(
            question=np.repeat(np.arange(len(questions)), k),
            expert=drawn.ravel(),
            sample=occurrence(drawn).ravel(),
            prompt_tokens=calls.prompt_tokens,
            category=np.repeat(trace.codes("category")[trace.first_row[questions]], k),
        ),
        outcomes=Outcomes(
            calls.output_tokens, calls.visible_tokens, calls.answer, calls.correct, calls.confidence
        ),
        aggregator=aggregator,
        calibration=calibration_of(profiled, rows, drawn, trace.values("category")),
        labels=labels,
        gate_calibration=gate_calibration,
    )


def _split(
    trace: Trace, calibration: CalibrationSpec, limit: int | None, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Indices of the evaluated and of the calibration questions, each ascending."""
    total = len(trace.questions)
    held_out = calibration.held_out(total)
    if held_out >= total:
        raise ScenarioError(
            f"calibration takes {held_out:,} questions, but {trace.where()} has {total:,} "
            "and some must be left to evaluate"
        )
    if limit is not None and limit > total - held_out:
        raise ScenarioError(
            f"workload.questions: {limit:,}, but {trace.where()} has {total - held_out:,} to evaluate"
        )
    order = rng.permutation(total)
    end = None if limit is None else held_out + limit
    return np.sort(order[held_out:end]), np.sort(order[:held_out])


def _other_block(path: str, block: Block, skew: LengthSkew | None, rng: np.random.Generator) -> Block:
    """The calibration trace, its experts numbered as the evaluated ones."""
    from mosaicsim.workload.trace import read_trace

    return load_block(read_trace(path), block.experts, skew, rng)


def _unused_questions(path: str, profiled: Block, block: Block, questions: Ints) -> Ints:
    """Questions of a calibration trace, less those (by dataset and id) that are evaluated."""
    names = list(zip(block.trace.of_question("dataset"), block.trace.questions, strict=True))
    evaluated = {names[q] for q in questions.tolist()}
    others = zip(profiled.trace.of_question("dataset"), profiled.trace.questions, strict=True)
    free = np.array([i for i, name in enumerate(others) if name not in evaluated], dtype=np.int64)
    if not len(free):
        raise ScenarioError(
            f"calibration.trace = {path}: every question of it is evaluated, "
            "and calibration must not see those"
        )
    return free


def routing_input(block: Block, questions: Ints, k: int, profiled: Block, rows: Ints) -> RoutingInput:
    """What the router may see; grades only of the calibration ``rows`` of ``profiled``."""
    trace = block.trace
    recorded = block.recorded(questions)
    graded, right = grades(trace.values("category"), profiled, rows)
    return RoutingInput(
        k=k,
        experts=block.experts,
        category=trace.codes("category")[trace.first_row[questions]],
        graded=graded,
        right=right,
        recorded=None if recorded is None else block.columns.expert[recorded],
        source=trace.where(),
    )


def grades(names: Sequence[str], profiled: Block, rows: Ints) -> tuple[Ints, Ints]:
    """Calibration rows with a grade, and the right ones, each (evaluated categories ``names`` + 1, experts).

    A category that only the calibration trace has is counted in one more row, so that it still tells of the
    experts' overall strength.
    """
    category = _category_codes(names, profiled)[rows]
    cell = category * len(profiled.experts) + profiled.columns.expert[rows]
    graded = ~profiled.trace.nulls("correct")[rows]
    size = (len(names) + 1) * len(profiled.experts)

    def count(mask: Bools) -> Ints:
        return np.bincount(cell[mask], minlength=size).reshape(-1, len(profiled.experts))

    return count(graded), count(graded & profiled.columns.correct[rows])


def _aggregator_source(
    asked: AggregatorSource, block: Block, questions: Ints, router: Router[Any]
) -> Literal["recorded", "modelled"]:
    """Settle "auto". Raises TraceError where rows are asked for that the trace has not."""
    has_rows = block.aggregator(questions) is not None
    if asked == "recorded" and not has_rows:
        raise TraceError(
            f"{block.trace.where()}: aggregator_calls is recorded, but the trace has no aggregator rows"
        )
    if asked != "auto":
        return asked
    rerouted = block.recorded(questions) is not None and not router.recorded
    return "recorded" if has_rows and not rerouted else "modelled"


def _aggregator(
    block: Block, questions: Ints, calls: Columns, k: int, source: AggregatorSource, rng: np.random.Generator
) -> tuple[AggregatorCalls, dict[str, str]]:
    """The aggregator's calls and the labels that say where they come from."""
    visible = calls.visible_tokens.reshape(-1, k)
    rows = block.aggregator(questions)
    if source == "modelled" or rows is None:
        modelled = model_aggregator(
            question_tokens=np.rint(calls.prompt_tokens.reshape(-1, k).mean(axis=1)).astype(np.int64),
            answers=calls.answer.reshape(-1, k),
            correct=calls.correct.reshape(-1, k),
            output_tokens=calls.output_tokens.reshape(-1, k),
            visible_tokens=visible,
            rng=rng,
        )
        return modelled, dict.fromkeys(("aggregator_stage", "accuracy", "delta_pp"), "modelled")
    own = block.columns.take(rows)
    recorded = block.recorded(questions)
    origin = {}
    if recorded is None:
        origin["aggregator_stage"] = "recorded, of proposers the trace does not name"
    elif not np.array_equal(block.columns.expert[recorded].ravel(), calls.expert):
        origin["aggregator_stage"] = "recorded, of another routing of the same questions"
    return AggregatorCalls(own.prompt_tokens + visible.sum(axis=1), own.output_tokens, own.correct), origin


def calibration_of(profiled: Block, rows: Ints, drawn: Ints, categories: Sequence[str]) -> Calibration:
    """Calibration calls by expert. An expert that is never called may have none: the pool's stand in.

    ``categories`` are the evaluated questions' category names, by code. Raises
    TraceError: an expert with calls has no calibration rows.
    """
    columns = profiled.columns.take(rows)
    category = _category_codes(categories, profiled)[rows]
    masks = [columns.expert == i for i in range(len(profiled.experts))]
    for index, mask in enumerate(masks):
        if not mask.any() and (drawn == index).any():
            raise TraceError(
                f"{profiled.trace.where()}: no calibration rows of expert '{profiled.experts[index]}', "
                "which has calls to run"
            )
    masks = [mask if mask.any() else np.ones_like(mask) for mask in masks]
    questions = np.unique(columns.question)
    table = _profiled_rows(profiled, questions, drawn.shape[1])
    length, prompt = _calibration_aggregator(profiled, columns, questions)
    return Calibration(
        output_tokens=tuple(columns.output_tokens[mask] for mask in masks),
        prompt_tokens=tuple(columns.prompt_tokens[mask] for mask in masks),
        category=tuple(category[mask] for mask in masks),
        answers=np.where(table >= 0, profiled.columns.answer[table], NO_ANSWER),
        lengths=np.where(table >= 0, profiled.columns.output_tokens[table], 0),
        visible_tokens=np.where(table >= 0, profiled.columns.visible_tokens[table], 0),
        question_category=_category_codes(categories, profiled)[profiled.trace.first_row[questions]],
        aggregator_output_tokens=length,
        aggregator_prompt_tokens=prompt,
    )


def _category_codes(names: Sequence[str], profiled: Block) -> Ints:
    """Category of each row of ``profiled``, by its place in ``names``; one code more for those not there."""
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([place.get(n, len(names)) for n in profiled.trace.values("category")], dtype=np.int64)
    return np.asarray(codes[profiled.trace.codes("category")])


def _profiled_rows(profiled: Block, questions: Ints, k: int) -> Ints:
    """Row by (question, expert, sample), at most k samples; -1 where there is none."""
    samples = np.arange(min(k, 1 + int(profiled.trace.ints("sample").max(initial=0))))
    experts = np.arange(len(profiled.experts))
    return profiled.find(questions[:, None, None], experts[:, None], samples)


def _calibration_aggregator(profiled: Block, columns: Columns, questions: Ints) -> tuple[Ints, Ints]:
    """Output tokens of an aggregator call on each calibration question, and its prompt without proposals.

    Recorded where the trace has the rows; else the median of the model in
    :mod:`~mosaicsim.workload.aggregator_model`.
    """
    place = np.searchsorted(questions, columns.question)
    n = np.maximum(np.bincount(place), 1)

    def mean(column: Ints) -> Ints:
        return np.rint(np.bincount(place, weights=column) / n).astype(np.int64)

    rows = profiled.aggregator(questions)
    if rows is None:
        length = np.maximum(np.rint(LENGTH_MEDIAN * mean(columns.output_tokens)), 1).astype(np.int64)
        return np.minimum(length, MAX_OUTPUT_TOKENS), mean(columns.prompt_tokens) + TEMPLATE_TOKENS
    own = profiled.columns.take(rows)
    return own.output_tokens, own.prompt_tokens


def describe_popularity(drawn: Ints, n_experts: int, router: Router[Any]) -> str:
    """How uneven the draw (questions, k) is, in words."""
    skew = popularity(np.bincount(drawn.ravel(), minlength=n_experts))
    return f"{router.name}: max/min {skew.max_min:.4g}, CV {skew.cv:.4g}"
