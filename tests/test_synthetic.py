"""The synthetic generator meets its targets on the recorded routing and, on average, on any redraw of it."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mosaicsim.cli.generate import generate as generate_command
from mosaicsim.errors import MosaicsimError
from mosaicsim.workload.calls import NO_ANSWER
from mosaicsim.workload.synthetic import SyntheticSpec, generate, generator, load_spec
from mosaicsim.workload.synthetic.agreement import (
    BUCKETS,
    MAJORITY,
    SPLIT,
    UNANIMOUS,
    buckets,
    expect,
    routed_samples,
)
from mosaicsim.workload.synthetic.block import Block
from mosaicsim.workload.synthetic.generate import build_block
from mosaicsim.workload.synthetic.report import report
from mosaicsim.workload.trace import read_trace

TRACES = Path(__file__).parent.parent / "traces"
DATASETS = ("mmlu_pro", "medmcqa", "gpqa")


@functools.cache
def spec_of(name: str, questions: int | None = None) -> SyntheticSpec:
    spec = load_spec(TRACES / f"{name}.yaml")
    return spec if questions is None else spec.scaled(questions)


@functools.cache
def small_block() -> Block:
    return build_block(spec_of("mmlu_pro", 300), *np.random.default_rng(5).spawn(2))


def figures(block: Block) -> dict[str, dict[str, float]]:
    return {line["figure"]: line for line in report(block)["figures"]}


def redraw(block: Block, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    slots = block.spec.slot_counts
    deal = rng.permutation(np.repeat(np.arange(len(slots)), slots)).reshape(-1, 3)
    return buckets(block.answers[np.arange(len(deal))[:, None], deal, routed_samples(deal)])


def test_buckets_count_votes_and_ignore_missing_answers() -> None:
    answers = np.array([[0, 0, 0], [2, 2, 0], [0, 3, 0], [1, 2, 3], [-1, -1, 0], [-1, -1, -1], [-1, 0, 0]])
    assert NO_ANSWER == -1
    bucket, right = buckets(answers)
    assert bucket.tolist() == [UNANIMOUS, MAJORITY, MAJORITY, SPLIT, SPLIT, SPLIT, MAJORITY]
    assert right.tolist() == [True, False, True, False, False, False, True]


def test_expectation_equals_the_average_over_redraws() -> None:
    answers = np.random.default_rng(1).integers(0, 4, (4, 3, 3))
    slots = np.array([6, 4, 2])
    rng = np.random.default_rng(2)
    share = np.zeros((4, 3))
    for _ in range(4000):
        deal = rng.permutation(np.repeat(np.arange(3), slots)).reshape(-1, 3)
        bucket, _ = buckets(answers[np.arange(4)[:, None], deal, routed_samples(deal)])
        share[np.arange(4), bucket] += 1
    expected = expect(answers, slots).share
    assert expected.sum(axis=1) == pytest.approx(np.ones(4))
    assert share / 4000 == pytest.approx(expected, abs=0.04)


def test_recorded_routing_meets_every_count_exactly() -> None:
    block = small_block()
    targets = block.spec.targets
    assert block.deal is not None
    assert np.bincount(block.deal.ravel(), minlength=6).tolist() == block.spec.slot_counts.tolist()
    bucket, right = buckets(block.routed(block.answers))
    assert np.bincount(bucket).tolist() == [targets.unanimous, targets.majority, targets.split]
    assert int(right[bucket == UNANIMOUS].sum()) == targets.unanimous_correct
    assert int(right[bucket == MAJORITY].sum()) == targets.majority_correct
    assert int(block.aggregator_right.sum()) == targets.aggregator_correct
    for upto, gain in ((UNANIMOUS, targets.gain_tau_1), (MAJORITY, targets.gain_tau_two_thirds)):
        skipped = bucket <= upto
        assert int(right[skipped].sum()) - int(block.aggregator_right[skipped].sum()) == gain


def test_redraws_give_the_same_shares_and_gains_on_average() -> None:
    block = small_block()
    targets, n = block.spec.targets, block.spec.targets.questions
    rng = np.random.default_rng(3)
    shares, gains = [], []
    for _ in range(1500):
        bucket, right = redraw(block, rng)
        shares.append(np.bincount(bucket, minlength=3) / n)
        skipped = bucket <= MAJORITY
        gains.append((right & skipped).sum() - (block.aggregator_right & skipped).sum())
    wanted = np.array([targets.unanimous, targets.majority, targets.split]) / n
    assert np.mean(shares, axis=0) == pytest.approx(wanted, abs=0.003)
    assert np.mean(gains) == pytest.approx(targets.gain_tau_two_thirds, abs=0.01 * n)


def test_means_are_met_on_the_block_and_on_the_routed_calls() -> None:
    block = small_block()
    for name, line in figures(block).items():
        if name.endswith("mean output tokens"):
            assert line["recorded"] == pytest.approx(line["target"], rel=0.005), name
        if name.endswith("mean output tokens, routed"):
            assert line["recorded"] == pytest.approx(line["target"], rel=0.02), name


def test_disagreement_and_wrong_answers_mean_long() -> None:
    found = figures(small_block())
    tokens = [found[f"mean expert tokens in {name}"]["redrawn"] for name in BUCKETS]
    assert tokens[0] < tokens[1] < tokens[2]
    assert found["wrong over right length, instruct"]["recorded"] > 1.1
    assert 0.06 < found["Spearman of lengths, reasoning-instruct"]["recorded"] < 0.47
    assert 0.5 < found["Spearman of lengths, instruct-instruct"]["recorded"] < 0.73


def test_cut_off_calls_stand_at_the_cap_and_often_lose_their_answer() -> None:
    block = small_block()
    caps = np.array([e.lengths.cap for e in block.spec.experts.values()])[None, :, None]
    assert np.array_equal(block.tokens == caps, block.cut)
    assert set(block.cut[block.answers == NO_ANSWER].tolist()) == {True}
    assert block.tokens.min() >= 1


def test_table_is_a_full_block_with_one_aggregator_row_a_question() -> None:
    spec = spec_of("mmlu_pro", 40)
    table, metadata = generate(spec, generator(1))
    rows = table.to_pydict()
    assert table.num_rows == 40 * (6 * 3 + 1)
    assert Counter(rows["expert"])["aggregator"] == 40
    assert metadata.provenance.first_seen == ("Gemma", "QwenR1", "Qwen", "LlamaR1", "Exaone", "GLM")
    drawn = [i for i, slot in enumerate(rows["slot"]) if slot is not None]
    counts = Counter(rows["expert"][i] for i in drawn)
    assert [counts[name] for name in spec.experts] == spec.slot_counts.tolist()
    answers: dict[str, dict[bool, set[str]]] = {}
    for question, answer, correct in zip(rows["question_id"], rows["answer"], rows["correct"], strict=True):
        answers.setdefault(question, {True: set(), False: set()})[correct].add(answer)
    for spelled in answers.values():
        assert len(spelled[True]) <= 1
        assert not spelled[True] & spelled[False]
    thinks = metadata.provenance.reasoning
    for expert, output, visible, end in zip(
        rows["expert"], rows["output_tokens"], rows["visible_tokens"], rows["finish_reason"], strict=True
    ):
        whole = end == "length" or not thinks.get(expert, True)
        assert visible == output if whole else visible <= output


def test_same_seed_same_trace_other_seed_another() -> None:
    spec = spec_of("gpqa", 30)
    one, two, three = (generate(spec, generator(seed))[0] for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one.equals(three)


def test_calibration_is_other_questions_of_the_same_model() -> None:
    spec = spec_of("mmlu_pro", 300)
    results, _ = generate(spec, generator(0))
    calibration, metadata = generate(spec, generator(0), calibration=True)
    ids = set(calibration["question_id"].to_pylist())
    assert len(ids) == spec.calibration_questions
    assert not ids & set(results["question_id"].to_pylist())
    assert calibration["slot"].null_count == calibration.num_rows
    wanted = spec.experts["LlamaR1"].lengths.mean
    achieved = {f["figure"]: f["recorded"] for f in metadata.provenance.report["figures"]}
    assert achieved["LlamaR1 mean output tokens"] == pytest.approx(wanted, rel=0.25)
    assert achieved["LlamaR1 mean output tokens"] != pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("calibration", [False, True])
def test_shipped_traces_are_what_their_spec_generates(name: str, calibration: bool, tmp_path: Path) -> None:
    shipped = TRACES / (f"{name}.calibration.parquet" if calibration else f"{name}.parquet")
    flag = ["--calibration"] if calibration else []
    out = tmp_path / "again.parquet"
    result = CliRunner().invoke(
        generate_command, [str(TRACES / f"{name}.yaml"), "-o", str(out), "--json", *flag]
    )
    assert json.loads(result.stdout)["content_hash"] == read_trace(shipped).metadata.content_hash


@pytest.mark.parametrize("name", DATASETS)
def test_shipped_traces_report_every_target_met(name: str) -> None:
    trace = read_trace(TRACES / f"{name}.parquet")
    lines = {f["figure"]: f for f in trace.metadata.provenance.report["figures"]}
    for figure in [f for f in lines if f.startswith(("share of", "aggregator acc", "plurality acc"))]:
        assert lines[figure]["recorded"] == lines[figure]["target"], figure
        assert lines[figure]["redrawn"] == pytest.approx(lines[figure]["target"], abs=0.001), figure
    for figure in [f for f in lines if f.startswith("delta_pp")]:
        assert lines[figure]["recorded"] == lines[figure]["target"], figure
    assert set(trace.metadata.provenance.labels.values()) == {"modelled"}


def test_command_prints_targets_beside_what_came_out(tmp_path: Path) -> None:
    out = tmp_path / "small.parquet"
    arguments = [str(TRACES / "gpqa.yaml"), "-o", str(out), "--questions", "20", "--seed", "3"]
    result = CliRunner().invoke(generate_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "share of 3:0" in result.stdout
    assert "--seed 3 --questions 20" in read_trace(out).metadata.provenance.command


@pytest.mark.parametrize("questions", [1, 2, 5])
def test_tiny_traces_are_valid_and_their_report_is_json(questions: int, tmp_path: Path) -> None:
    out = tmp_path / "tiny.parquet"
    arguments = [str(TRACES / "mmlu_pro.yaml"), "-o", str(out), "--questions", str(questions), "--json"]
    result = CliRunner().invoke(generate_command, arguments, catch_exceptions=False)

    def reject(constant: str) -> None:
        raise ValueError(constant)

    assert json.loads(result.stdout, parse_constant=reject)["questions"] == questions


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cv: 0.6", "cvv: 0.6", r"experts\.Gemma\.lengths\.cvv: unknown key \(did you mean 'cv'\?\)"),
        ("targets:", "target:", r"target: unknown key \(did you mean 'targets'\?\)"),
        ("slots: 429", "slots: 430", r"add up to 595, but 198 questions .* take 594"),
        ("slots: 429", "slots: many", r"experts\.LlamaR1\.slots: .*'many'"),
        ("mean: 7800, cv: 0.5", "mean: 7800, cv: 5", r"experts\.QwenR1\.lengths: cv 5 is out of reach"),
        ("mean: 7800", "mean: .nan", r"experts\.QwenR1\.lengths\.mean: .*finite"),
        ("name: gpqa", "name: [", r"not valid YAML"),
    ],
)
def test_a_wrong_spec_is_named_by_path(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text((TRACES / "gpqa.yaml").read_text().replace(old, new))
    with pytest.raises(MosaicsimError, match=message) as raised:
        load_spec(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_spec_names_its_neighbour() -> None:
    with pytest.raises(MosaicsimError, match=r"no such trace spec file \(did you mean 'gpqa\.yaml'\?\)"):
        load_spec(TRACES / "gpqaa.yaml")
