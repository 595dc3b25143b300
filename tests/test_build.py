"""From a trace to a workload: the right rows in the right order, and every modelled figure labelled."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import trace_samples as samples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mosaicsim.errors import ScenarioError, TraceError
from mosaicsim.workload.aggregator_model import KEEPS_UNANIMOUS, LENGTH_MEDIAN, model_aggregator, pick_right
from mosaicsim.workload.block import REPEAT_LOG_SD
from mosaicsim.workload.build import CalibrationSpec, build_workload
from mosaicsim.workload.calls import NO_ANSWER, Workload
from mosaicsim.workload.routing import ROUTERS
from mosaicsim.workload.skew import Lengths, LengthSkew, skew_lengths
from mosaicsim.workload.trace import Trace, as_trace, write_trace


def make(trace: Trace, router: str, seed: int = 0, calibration: Any = None, **changes: Any) -> Workload:
    options = changes.pop("options", {})
    arguments: dict[str, Any] = {
        "k": 3,
        "router": ROUTERS[router](ROUTERS[router].Options(**options)),
        "calibration": CalibrationSpec(**(calibration or {"questions": 10})),
        "skew": None,
        "limit_questions": None,
        "rng_streams": lambda name: np.random.default_rng([seed, *name.encode()]),
    }
    return build_workload(trace, **arguments | changes)


def rows_of(trace: Trace, workload: Workload) -> list[int]:
    """Row of each call, found the slow way by question, expert and sample."""
    ids = [trace.questions[q] for q in trace.codes("question_id").tolist()]
    names = [trace.values("expert")[e] for e in trace.codes("expert").tolist()]
    place = {key: i for i, key in enumerate(zip(ids, names, trace.ints("sample").tolist(), strict=True))}
    calls = workload.calls
    return [
        place[workload.questions[q], workload.experts[e], s]
        for q, e, s in zip(calls.question.tolist(), calls.expert.tolist(), calls.sample.tolist(), strict=True)
    ]


@given(seed=st.integers(0, 2**32))
def test_every_call_carries_its_own_row(seed: int) -> None:
    trace = samples.trace(
        n_samples=3, provenance={"first_seen": ("glm", "idle", "gemma", "exaone", "qwen_r1")}
    )
    workload = make(trace, "fixed_counts", seed, options={"counts": {"glm": 60, "gemma": 20, "qwen_r1": 10}})
    assert workload.experts == ("glm", "idle", "gemma", "exaone", "qwen_r1")
    rows = rows_of(trace, workload)
    for column, found in (
        ("prompt_tokens", workload.calls.prompt_tokens),
        ("output_tokens", workload.outcomes.output_tokens),
        ("visible_tokens", workload.outcomes.visible_tokens),
    ):
        np.testing.assert_array_equal(found, trace.ints(column)[rows])
    np.testing.assert_array_equal(workload.outcomes.answer, trace.codes("answer")[rows])
    np.testing.assert_array_equal(workload.outcomes.correct, trace.bools("correct")[rows])
    np.testing.assert_array_equal(workload.calls.question, np.repeat(np.arange(30), 3))
    np.testing.assert_array_equal(workload.calls.counts(5), [60, 0, 20, 0, 10])
    assert len(set(rows)) == 90


def test_calibration_questions_are_not_evaluated() -> None:
    trace = samples.trace()
    workload = make(trace, "uniform", calibration={"share": 0.25}, options={"replacement": False})
    assert workload.n_questions == 30
    assert [len(lengths) for lengths in workload.calibration.output_tokens] == [10] * 4
    order = [trace.questions.index(q) for q in workload.questions]
    assert order == sorted(order)
    held_out = sorted(set(trace.questions) - set(workload.questions))
    gemma = trace.expert_index == 0
    mine = [trace.questions[q] in held_out for q in trace.codes("question_id").tolist()]
    wanted = trace.ints("output_tokens")[gemma & np.array(mine)]
    np.testing.assert_array_equal(workload.calibration.output_tokens[0], wanted)
    assert workload.categories[0] == trace.of_question("category")[order[0]]


def test_another_trace_calibrates(tmp_path: pathlib.Path) -> None:
    trace = samples.trace()
    other = samples.columns(n_questions=5, experts=(*reversed(samples.EXPERTS), "extra"), seed=3)
    other["question_id"] = np.char.add("c", other["question_id"])
    path = str(tmp_path / "calibration.parquet")
    write_trace(path, samples.table(other), samples.metadata())
    workload = make(trace, "skill", calibration={"trace": path}, options={"replacement": False})
    assert workload.n_questions == 40
    wanted = other["output_tokens"][other["expert"] == "gemma"]
    np.testing.assert_array_equal(workload.calibration.output_tokens[0], wanted)


def test_calibration_tells_what_the_aggregator_would_read() -> None:
    trace = samples.trace()
    known = make(trace, "uniform", options={"replacement": False}).calibration
    assert known.visible_tokens.shape == known.lengths.shape
    assert (known.visible_tokens <= known.lengths).all()


def test_calibration_on_evaluated_questions_is_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "same.parquet")
    trace = write_trace(path, samples.table(samples.columns()), samples.metadata())
    with pytest.raises(ScenarioError, match="every question of it is evaluated"):
        make(trace, "uniform", calibration={"trace": path}, options={"replacement": False})
    left = make(
        trace, "uniform", calibration={"trace": path}, limit_questions=30, options={"replacement": False}
    )
    assert len(left.calibration.output_tokens[0]) == 10


@pytest.mark.parametrize("spec", [{}, {"questions": 3, "share": 0.1}, {"share": 1.0}, {"questions": 0}])
def test_calibration_has_one_source(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CalibrationSpec(**spec)


def test_something_is_left_to_evaluate() -> None:
    with pytest.raises(ScenarioError, match="calibration takes 40 questions, but trace has 40"):
        make(samples.trace(), "uniform", calibration={"questions": 40})


def test_limit_takes_a_part() -> None:
    workload = make(samples.trace(), "uniform", limit_questions=7, options={"replacement": False})
    assert workload.n_questions == 7
    assert len(workload.calls) == 21


def test_recorded_routing_and_aggregator_are_taken_as_they_are() -> None:
    trace = samples.trace(routed=True)
    workload = make(trace, "recorded")
    np.testing.assert_array_equal(workload.calls.expert, np.tile([0, 1, 2], 30))
    rows = [
        i
        for i in np.flatnonzero(trace.is_aggregator)
        if trace.questions[trace.codes("question_id")[i]] in workload.questions
    ]
    visible = workload.outcomes.visible_tokens.reshape(-1, 3).sum(axis=1)
    np.testing.assert_array_equal(workload.aggregator.output_tokens, trace.ints("output_tokens")[rows])
    np.testing.assert_array_equal(
        workload.aggregator.prompt_tokens, trace.ints("prompt_tokens")[rows] + visible
    )
    np.testing.assert_array_equal(workload.aggregator.correct, trace.bools("correct")[rows])
    assert set(workload.labels) == {"popularity"}


@pytest.mark.parametrize(
    ("trace", "router"),
    [(samples.trace(aggregator=False), "uniform"), (samples.trace(routed=True), "uniform")],
)
def test_a_modelled_aggregator_is_labelled(trace: Trace, router: str) -> None:
    workload = make(trace, router, options={"replacement": False})
    for figure in ("aggregator_stage", "accuracy", "delta_pp"):
        assert workload.labels[figure] == "modelled"
    any_correct = workload.outcomes.correct.reshape(-1, 3).any(axis=1)
    assert not (workload.aggregator.correct & ~any_correct).any()


def test_aggregator_rows_without_a_routing_say_so() -> None:
    workload = make(samples.trace(), "uniform", options={"replacement": False})
    assert workload.labels["aggregator_stage"].startswith("recorded, of proposers")


def test_repeats_need_samples_or_a_model() -> None:
    trace = samples.trace(experts=("gemma", "glm"))
    with pytest.raises(
        TraceError, match=r"drew '\w+' for question 'q\d+' 2 times, but the trace has 1 sample"
    ):
        make(trace, "uniform")
    workload = make(trace, "uniform", options={"resample": True})
    assert workload.labels["repeats"] == "modelled"
    first = workload.calls.sample == 0
    exact = rows_of(trace, make(trace, "uniform", options={"replacement": False}, k=1))
    assert len(exact) == 30
    assert (~first).sum() >= 30
    answers = workload.outcomes.answer.reshape(-1, 3)
    experts = workload.calls.expert.reshape(-1, 3)
    same = experts[:, 0] == experts[:, 1]
    np.testing.assert_array_equal(answers[same, 0], answers[same, 1])


def test_made_up_repeats_have_the_measured_noise() -> None:
    trace = samples.trace(n_questions=3000, experts=("gemma",), provenance={"caps": {"gemma": 100_000}})
    workload = make(trace, "uniform", k=2, options={"resample": True})
    length = workload.outcomes.output_tokens.reshape(-1, 2)
    long = length[:, 0] > 50
    ratio = np.log(length[long, 1] / length[long, 0])
    assert ratio.std() == pytest.approx(REPEAT_LOG_SD, rel=0.05)
    assert ratio.mean() == pytest.approx(0, abs=0.02)


def test_only_the_recorded_routing_fits_a_partial_trace() -> None:
    values = samples.with_routing(samples.columns())
    table = samples.table(values)
    keep = np.flatnonzero((values["expert"] != "exaone") | (values["question_id"] == "q0"))
    trace = as_trace(table.take(keep), samples.metadata())
    assert make(trace, "recorded", calibration={"questions": 5}).n_questions == 35
    with pytest.raises(
        TraceError, match="no row of it: it is not a full block, so only router 'recorded' fits"
    ):
        make(trace, "fixed_counts", options={"counts": {"exaone": 90}})


def test_calibration_must_know_an_expert_that_is_called() -> None:
    values = samples.with_routing(samples.columns())
    table = samples.table(values)
    # qwen_r1 answers only in the routed questions that are left to evaluate.
    evaluated = set(make(samples.trace(routed=True), "recorded").questions)
    keep = [
        i
        for i, (q, e) in enumerate(
            zip(values["question_id"].tolist(), values["expert"].tolist(), strict=True)
        )
        if e != "exaone" and (e != "qwen_r1" or q in evaluated)
    ]
    trace = as_trace(table.take(keep), samples.metadata(first_seen=samples.EXPERTS))
    with pytest.raises(TraceError, match="no calibration rows of expert 'qwen_r1', which has calls"):
        make(trace, "recorded")
    idle = as_trace(table.filter(values["expert"] != "exaone"), samples.metadata(first_seen=samples.EXPERTS))
    assert all(len(lengths) for lengths in make(idle, "recorded").calibration.output_tokens)


def test_ungraded_traces_are_labelled() -> None:
    values = samples.with_routing(samples.columns()) | {"correct": [None] * 200}
    workload = make(as_trace(samples.table(values), samples.metadata()), "recorded")
    assert workload.labels["accuracy"] == workload.labels["delta_pp"] == "ungraded"


def test_the_aggregator_model_has_its_stated_length_and_accuracy() -> None:
    n = 20_000
    three = np.tile([0, 0, 0], (n, 1))
    right = np.ones((n, 3), dtype=bool)
    tokens = np.full((n, 3), 400)
    calls = model_aggregator(np.full(n, 50), three, right, tokens, tokens, np.random.default_rng(0))
    assert np.median(calls.output_tokens) == pytest.approx(400 * LENGTH_MEDIAN, rel=0.02)
    assert np.log(calls.output_tokens).std() == pytest.approx(0.4, rel=0.03)
    assert (calls.prompt_tokens == 50 + 120 + 1200).all()
    assert calls.correct.mean() == pytest.approx(KEEPS_UNANIMOUS, abs=0.003)


@pytest.mark.parametrize(
    ("answers", "correct", "chance"),
    [
        ([0, 0, 1], [1, 1, 0], np.exp(2.8) / (np.exp(2.8) + 1)),
        ([0, 0, 1], [0, 0, 1], np.exp(0.8) / (np.exp(0.8) + np.exp(2.0))),
        ([0, 1, 2], [0, 1, 0], np.exp(0.8) / (np.exp(0.8) + 2)),
        ([NO_ANSWER, 1, NO_ANSWER], [0, 1, 0], KEEPS_UNANIMOUS),
        ([0, 0, 1], [0, 0, 0], 0.0),
        ([NO_ANSWER] * 3, [0, 0, 0], 0.0),
    ],
)
def test_the_aggregator_model_picks_among_the_proposed(
    answers: list[int], correct: list[int], chance: float
) -> None:
    n = 20_000
    right = pick_right(
        np.tile(answers, (n, 1)), np.tile(correct, (n, 1)).astype(bool), np.random.default_rng(0)
    )
    assert right.mean() == pytest.approx(chance, abs=0.015)


def lengths(n: int = 4000, caps: dict[str, int] | None = None) -> Lengths:
    rng = np.random.default_rng(0)
    output = np.maximum(1, rng.lognormal(6, 0.6, 2 * n)).astype(np.int64)
    visible = np.where(np.arange(2 * n) < n, output, np.minimum(output, 100))
    return Lengths(("a", "b"), np.repeat([0, 1], n), output, visible, caps or {})


@given(ratio=st.floats(0.5, 4), cv=st.floats(0.2, 2), seed=st.integers(0, 2**32))
def test_length_skew_meets_mean_ratio_and_cv(ratio: float, cv: float, seed: int) -> None:
    old = lengths()
    output, visible = skew_lengths(old, LengthSkew(mean_ratio=ratio, cv=cv), np.random.default_rng(seed))
    for expert in (0, 1):
        mine = old.expert == expert
        assert output[mine].mean() == pytest.approx(old.output_tokens[mine].mean() * ratio, rel=0.01)
        assert output[mine].std() / output[mine].mean() == pytest.approx(cv, rel=0.02)
    assert (visible <= output).all()
    np.testing.assert_array_equal(visible[old.expert == 0], output[old.expert == 0])


def test_length_skew_of_one_expert_leaves_the_others() -> None:
    old = lengths(caps={"b": 3000})
    skew = LengthSkew(loop_share={"b": 0.1}, mean_ratio={"b": 1.5})
    output, visible = skew_lengths(old, skew, np.random.default_rng(0))
    np.testing.assert_array_equal(output[:4000], old.output_tokens[:4000])
    loops = output[4000:] == 3000
    assert loops.mean() == pytest.approx(0.1)
    assert output.max() == max(3000, old.output_tokens[:4000].max())
    assert (visible[4000:][loops] == 3000).all()
    assert (visible[4000:][~loops] <= 150).all()


def test_length_skew_reaches_the_workload_and_its_calibration() -> None:
    trace = samples.trace(n_questions=200)
    plain, longer = (
        make(trace, "uniform", options={"replacement": False}, skew=skew)
        for skew in (None, LengthSkew(mean_ratio=3))
    )
    assert longer.labels["lengths"] == "skewed"
    np.testing.assert_array_equal(longer.outcomes.output_tokens, 3 * plain.outcomes.output_tokens)
    np.testing.assert_array_equal(longer.calibration.output_tokens[2], 3 * plain.calibration.output_tokens[2])
    np.testing.assert_array_equal(longer.outcomes.answer, plain.outcomes.answer)


def test_length_skew_that_cannot_be() -> None:
    with pytest.raises(ScenarioError, match=r"no expert 'aa' in the trace"):
        skew_lengths(lengths(), LengthSkew(cv={"aa": 1}), np.random.default_rng(0))
    same = Lengths(("a",), np.zeros(5, np.int64), np.full(5, 9), np.full(5, 9), {})
    with pytest.raises(ScenarioError, match=r"cv = 1 cannot be reached by stretching the 5 lengths of 'a'"):
        skew_lengths(same, LengthSkew(cv=1), np.random.default_rng(0))


# calibration questions, routed for gates that are fitted


def test_gates_calibrate_on_questions_that_are_not_evaluated() -> None:
    trace = samples.trace(n_questions=60)
    workload = make(
        trace, "uniform", calibration={"share": 0.5}, options={"replacement": False}, for_gates=True
    )
    calibration = workload.gate_calibration
    assert calibration is not None
    assert len(calibration) == 30
    held_out = [q for q in trace.questions if q not in workload.questions]
    ids = [trace.questions[q] for q in trace.codes("question_id").tolist()]
    names = [trace.values("expert")[e] for e in trace.codes("expert").tolist()]
    row = {key: i for i, key in enumerate(zip(ids, names, strict=True))}
    for q, question in enumerate(held_out):
        rows = [row[question, workload.experts[e]] for e in calibration.ballots.experts[q].tolist()]
        np.testing.assert_array_equal(calibration.ballots.answers[q], trace.codes("answer")[rows])
        np.testing.assert_array_equal(calibration.correct[q], trace.bools("correct")[rows])
        aggregator = trace.bools("correct")[row[question, "aggregator"]]
        assert calibration.aggregator_correct[q] == aggregator
        assert (
            calibration.ballots.categories[q]
            == trace.of_question("category")[trace.questions.index(question)]
        )
    assert calibration.aggregator == "recorded"
    assert np.bincount(calibration.calls.question).tolist() == [4] * 30


@pytest.mark.parametrize(
    ("router", "options"),
    [("uniform", {}), ("skill", {}), ("zipf", {"max_min": 3}), ("fixed_counts", {"counts": {"glm": 60, "gemma": 30}})],
)  # fmt: skip
def test_routing_for_gates_leaves_the_workload_as_it_is(router: str, options: dict[str, Any]) -> None:
    """The calibration questions are drawn from streams of their own, in the proportions of the evaluated ones."""
    trace = samples.trace(n_samples=3)
    plain, gated = (
        make(trace, router, options=options, aggregator_calls="modelled", for_gates=gates)
        for gates in (False, True)
    )
    assert plain.gate_calibration is None
    assert gated.gate_calibration is not None
    np.testing.assert_array_equal(plain.calls.expert, gated.calls.expert)
    np.testing.assert_array_equal(plain.outcomes.output_tokens, gated.outcomes.output_tokens)
    np.testing.assert_array_equal(plain.aggregator.correct, gated.aggregator.correct)
    np.testing.assert_array_equal(plain.calibration.output_tokens[0], gated.calibration.output_tokens[0])
    if router in ("zipf", "fixed_counts"):
        share = plain.calls.counts(4) / 90
        own = np.bincount(gated.gate_calibration.ballots.experts.ravel(), minlength=4) / 30
        np.testing.assert_allclose(own, share, atol=1 / 30)


def test_a_calibration_question_has_no_part_in_how_it_is_routed() -> None:
    """Strengths without the question itself: an expert right on one question only is not drawn for that one."""
    values = samples.columns(n_questions=40, aggregator=False)
    lucky = (values["expert"] == "gemma") & (np.char.find(values["question_id"], "q1") == 0)
    values["correct"] = np.where(values["expert"] == "gemma", lucky, True)
    values["category"] = values["question_id"]
    trace = as_trace(samples.table(values), samples.metadata(aggregator=False))
    workload = make(
        trace, "skill", calibration={"questions": 30}, options={"shrinkage": 0, "replacement": False, "pool_size": 3}, for_gates=True,
    )  # fmt: skip
    assert workload.gate_calibration is not None
    assert not (workload.gate_calibration.ballots.experts == 0).any()


def test_another_trace_calibrates_gates(tmp_path: pathlib.Path) -> None:
    trace = samples.trace()
    other = samples.columns(n_questions=25, experts=tuple(reversed(samples.EXPERTS)), seed=3)
    other["question_id"] = np.char.add("c", other["question_id"])
    other["confidence"] = np.linspace(0, 1, len(other["expert"])).astype(np.float32)
    path = str(tmp_path / "calibration.parquet")
    write_trace(path, samples.table(other), samples.metadata(labels={"confidence": "modelled"}))
    workload = make(
        trace, "skill", calibration={"trace": path}, options={"replacement": False}, for_gates=True
    )
    calibration = workload.gate_calibration
    assert calibration is not None
    assert len(calibration) == 25
    assert calibration.confidences_modelled
    gemma = calibration.calls.expert == workload.experts.index("gemma")
    np.testing.assert_array_equal(
        calibration.calls.correct[gemma], other["correct"][other["expert"] == "gemma"]
    )
    assert np.isfinite(calibration.ballots.confidences).all()


def test_gates_cannot_calibrate_without_grades_or_the_aggregator_s_rows(tmp_path: pathlib.Path) -> None:
    trace = samples.trace()
    other = samples.columns(n_questions=5, aggregator=False)
    other["question_id"] = np.char.add("c", other["question_id"])
    path = str(tmp_path / "calibration.parquet")
    write_trace(path, samples.table(other), samples.metadata(aggregator=False))
    asked = {"calibration": {"trace": path}, "options": {"replacement": False}, "for_gates": True}
    with pytest.raises(TraceError, match="graded aggregator row for each calibration question"):
        make(trace, "uniform", aggregator_calls="recorded", **asked)
    assert make(trace, "uniform", aggregator_calls="modelled", **asked).gate_calibration is not None
    write_trace(path, samples.table(other | {"correct": [None] * 20}), samples.metadata(aggregator=False))
    with pytest.raises(TraceError, match="needs every calibration row graded"):
        make(trace, "uniform", aggregator_calls="modelled", **asked)
