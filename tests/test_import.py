"""Foreign files become traces; what cannot is refused naming file, column and row."""

from __future__ import annotations

import gzip
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import trace_samples as samples
from click.testing import CliRunner, Result

from mosaicsim.cli.trace import trace as group
from mosaicsim.errors import TraceError, UserInputError
from mosaicsim.workload.importers import REASONING_VISIBLE_TOKENS, ImportOptions, import_trace
from mosaicsim.workload.trace import Trace, read_trace, write_trace

HEADER = "query_id,dataset,skill,expert,expert_class,prompt_tokens,generated_tokens,"
HEADER += "answer,gold,correct,capped,tokenizer"
ROWS = [
    "q1,toy,math,gemma,instruct,140,314,E,E,1,0,x",
    "q1,toy,math,r1,reasoning,140,5000,F,E,0,0,x",
    'q2,toy,law,gemma,instruct,75,41,"B, or\nso",B,1,0,x',
    "q2,toy,law,r1,reasoning,75,2048,,B,0,1,x",
]


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "block.csv", ROWS)


def save(path: pathlib.Path, rows: list[str], header: str = HEADER) -> pathlib.Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def changed(source: pathlib.Path, old: str, new: str) -> str:
    source.write_text(source.read_text().replace(old, new, 1))
    return str(source)


def load(source: pathlib.Path | str, **options: Any) -> Trace:
    return import_trace(str(source), ImportOptions(**options))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


def test_the_default_mapping(source: pathlib.Path) -> None:
    trace = load(source)
    assert trace.table.slice(2, 2).to_pylist() == [
        {
            "question_id": "q2",
            "dataset": "toy",
            "category": "law",
            "expert": expert,
            "sample": 0,
            "prompt_tokens": 75,
            "output_tokens": tokens,
            "visible_tokens": tokens,
            "answer": answer,
            "confidence": None,
            "correct": correct,
            "finish_reason": finish,
            "slot": None,
        }
        for expert, tokens, answer, correct, finish in (
            ("gemma", 41, "B, or\nso", True, "stop"),
            ("r1", 2048, None, False, "length"),
        )
    ]
    provenance = trace.metadata.provenance
    assert provenance.reasoning == {"gemma": False, "r1": True}
    assert provenance.first_seen == ("gemma", "r1")
    assert provenance.caps == {"r1": 2048}
    assert provenance.sources[0].startswith("block.csv (sha256 ")
    assert trace.metadata.aggregator is None


def test_visible_tokens_of_reasoning_experts_are_modelled_and_labelled(source: pathlib.Path) -> None:
    trace = load(source)
    np.testing.assert_array_equal(trace.ints("visible_tokens"), [314, REASONING_VISIBLE_TOKENS, 41, 2048])
    assert trace.metadata.provenance.labels == {"visible_tokens": "modelled"}
    assert "min(output_tokens, 330)" in trace.metadata.provenance.notes[0]
    np.testing.assert_array_equal(load(source, visible_tokens=7).ints("visible_tokens"), [314, 7, 41, 2048])
    named = load(source, reasoning=["gemma"], visible_tokens=100)
    np.testing.assert_array_equal(named.ints("visible_tokens"), [100, 100, 41, 2048])


def test_an_expert_can_be_left_out(source: pathlib.Path) -> None:
    trace = load(source, exclude=["r1"])
    assert trace.experts == ("gemma",)
    provenance = trace.metadata.provenance
    assert provenance.notes == ("experts of the file left out: r1",)
    assert provenance.reasoning == {"gemma": False}
    assert provenance.labels == {}
    out = source.with_suffix(".parquet")
    assert run("import", source, "-o", out, "--exclude", "r1").exit_code == 0
    assert "--exclude r1" in read_trace(str(out)).metadata.provenance.command


def test_leaving_out_what_is_not_there(source: pathlib.Path) -> None:
    with pytest.raises(UserInputError, match=r"--exclude r2: no such expert in .*; it has: gemma, r1"):
        load(source, exclude=["r2"])
    with pytest.raises(UserInputError, match="no other expert"):
        load(source, exclude=["r1", "gemma"])


def test_questions_graded_by_two_gold_answers(tmp_path: pathlib.Path) -> None:
    """A benchmark that was corrected between two runs: by gold, or by grades alone where there is no gold."""
    contradicted = [
        *ROWS,
        "q3,toy,law,gemma,instruct,75,41,C,C,1,0,x",
        "q3,toy,law,r1,reasoning,75,90,D,A,0,0,x",
    ]
    path = save(tmp_path / "block.csv", contradicted)
    told = r"1 of 3 questions are graded by different gold answers, e\.g\. 'q3' \('--conflicting drop'"
    with pytest.raises(TraceError, match=told):
        load(path, conflicting="error")
    kept = load(path)
    assert kept.questions == ("q1", "q2", "q3")
    assert re.match(told, kept.metadata.provenance.notes[-1])
    trace = load(path, conflicting="drop")
    assert trace.questions == ("q1", "q2")
    assert trace.metadata.provenance.notes[-1] == "1 of 3 questions dropped: graded by different gold answers"
    bare = [row.replace(",D,A,", ",C,A,") for row in contradicted]
    path = save(path, bare, HEADER.replace("gold", "unread"))
    assert load(path, conflicting="drop").questions == ("q1", "q2")
    out = tmp_path / "out.parquet"
    assert run("import", path, "-o", out, "--conflicting", "drop").exit_code == 0
    assert read_trace(str(out)).metadata.provenance.command.endswith("--conflicting drop")


def test_gzip_and_plain_are_the_same_trace(source: pathlib.Path) -> None:
    packed = source.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert load(packed).table.equals(load(source).table)


def test_json_lines_with_a_mapping(tmp_path: pathlib.Path) -> None:
    rows = [
        {"qid": q, "model": m, "topic": "math", "n_in": 10, "n_out": 20.0, "seen": 5, "said": q, "p": 0.5}
        for q in (1, 2)
        for m in ("a", "b", "judge")
    ]
    path = tmp_path / "block.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = {
        "question_id": "qid",
        "expert": "model",
        "category": "topic",
        "prompt_tokens": "n_in",
        "output_tokens": "n_out",
        "visible_tokens": "seen",
        "answer": "said",
        "confidence": "p",
    }
    trace = load(path, columns=columns, dataset="mine", aggregator="judge")
    assert trace.experts == ("a", "b")
    assert trace.questions == ("1", "2")
    assert trace.values("dataset") == ("mine",)
    assert trace.values("finish_reason") == ("unknown",)
    np.testing.assert_array_equal(trace.ints("visible_tokens"), [5] * 6)
    np.testing.assert_array_equal(trace.is_aggregator, [False, False, True] * 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",314,", ",10000000000,", "'generated_tokens', row 1: '10000000000' is not a whole number up to"),
        (",314,", ",2000000,", "'output_tokens', row 1: is 2,000,000, not within 1 and 1,000,000"),
        (",5000,", ",-3,", "'output_tokens', row 2: is -3, not within"),
        (",5000,", ",12.5,", "'generated_tokens', row 2: '12.5' is not a whole number"),
        (",5000,", ",NaN,", "'generated_tokens', row 2: 'NaN' is not a whole number"),
        (",5000,", ",inf,", "'generated_tokens', row 2: 'inf' is not a whole number"),
        (",5000,", ",many,", "'generated_tokens', row 2: 'many' is not a whole number"),
        (",5000,", ",,", "'generated_tokens', row 2: is empty"),
        ("F,E,0", "F,E,maybe", "'correct', row 2: 'maybe' is not one of 1, 0, true, false"),
        ("q1,toy,math,r1", "q1,toy,math,gemma", "'sample', row 2: 0 appears twice for question 'q1'"),
        ("q1,toy,math,r1", ",toy,math,r1", "'query_id', row 2: is empty"),
        ("q1,toy,math,r1", "q1,toy,law,r1", "'category', row 2: differs from an earlier row"),
    ],
)
def test_a_bad_cell_is_named(source: pathlib.Path, old: str, new: str, message: str) -> None:
    path = changed(source, old, new)
    with pytest.raises(TraceError, match=rf"block\.csv: column {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_row_with_too_few_fields_is_named_or_dropped(source: pathlib.Path) -> None:
    path = changed(source, "q1,toy,math,r1,reasoning,", "q1,toy,math,r1,")
    with pytest.raises(TraceError, match="row 2 has 11 fields, not 12; '--incomplete drop'"):
        load(path)
    trace = load(path, drop_incomplete=True)
    assert trace.questions == ("q2",)
    assert trace.metadata.provenance.notes[-2:] == (
        "1 malformed rows of the file left out",
        "1 of 2 questions dropped: some expert had no row",
    )


def test_incomplete_questions_are_counted_with_an_example(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "block.csv", ROWS[:3])
    with pytest.raises(
        TraceError, match=r"1 of 2 questions lack .* 'q2' has none of r1; '--incomplete drop'"
    ):
        load(path)
    assert load(path, drop_incomplete=True).questions == ("q1",)
    path = save(tmp_path / "block.csv", ROWS[1:3])
    with pytest.raises(TraceError, match="no question is left: some expert had no row"):
        load(path, drop_incomplete=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"outputs": "gold"}},
            r"--map outputs=gold: no trace column 'outputs'.*accepted: question_id",
        ),
        ({"columns": {"answer": "golds"}}, r"no column 'golds' \(did you mean 'gold'\?\); it has: query_id"),
        (
            {"reasoning": ["r2"]},
            r"--reasoning r2: no such expert in .* \(did you mean 'r1'\?\)|it has: gemma, r1",
        ),
        ({"aggregator": "judge"}, "--aggregator judge: no such expert .* it has: gemma, r1"),
    ],
)
def test_options_that_name_nothing(source: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        load(source, **options)


def test_files_that_cannot_be_read(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    packed = tmp_path / "block.csv.gz"
    packed.write_bytes(gzip.compress(source.read_bytes())[:60])
    garbage = tmp_path / "garbage.jsonl"
    garbage.write_text('{"a": 1\nnot json')
    for path, message in (
        (tmp_path / "none.csv", "no such file"),
        (tmp_path / "block.txt", "no such file"),
        (packed, "cannot be read"),
        (garbage, "cannot be read"),
        (save(tmp_path / "empty.csv", []), "has no rows"),
        (save(tmp_path / "twice.csv", ["1,2"], "a,a"), "column 'a' appears twice"),
        (
            save(tmp_path / "other.csv", ["1,2"], "a,b"),
            "no column 'expert'; name yours with --map expert=THEIRS",
        ),
    ):
        with pytest.raises(TraceError, match=message) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "block.xlsx").write_text("")
    with pytest.raises(TraceError, match=r"'\.xlsx' is not a format that can be imported; accepted: \.csv"):
        load(tmp_path / "block.xlsx")


def test_a_file_without_a_dataset_needs_one(tmp_path: pathlib.Path) -> None:
    rows = [row.replace(",toy", "", 1) for row in ROWS]
    path = save(tmp_path / "block.csv", rows, HEADER.replace("dataset,", ""))
    with pytest.raises(UserInputError, match="no column 'dataset'; give --dataset NAME"):
        load(path)
    assert load(path, dataset="named").values("dataset") == ("named",)


def test_the_import_verb(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "made" / "out.parquet"
    result = run("import", source, "-o", out, "--visible-tokens", "50", "--map", "category=dataset")
    assert result.exit_code == 0, result.output
    assert "4 rows, 2 questions, 2 experts" in result.stdout
    assert "note: visible_tokens of reasoning experts are modelled" in result.stderr
    trace = read_trace(out)
    assert trace.values("category") == ("toy",)
    assert trace.metadata.provenance.command == (
        "mosaicsim trace import block.csv -o out.parquet --map category=dataset --visible-tokens 50"
    )
    column = run(
        "import",
        source,
        "-o",
        out,
        "--visible-tokens",
        "prompt_tokens",
        "--map",
        "output_tokens=prompt_tokens",
    )
    assert column.exit_code == 0, column.output
    np.testing.assert_array_equal(read_trace(out).ints("visible_tokens"), [140, 140, 75, 75])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [(["answer"], "expected COLUMN=THEIRS"), (["answer=gold", "answer=skill"], "already mapped to 'gold'")],
)
def test_map_is_checked(source: pathlib.Path, tmp_path: pathlib.Path, pairs: list[str], message: str) -> None:
    result = run("import", source, "-o", tmp_path / "o.parquet", *(w for p in pairs for w in ("--map", p)))
    assert isinstance(result.exception, UserInputError)
    assert message in str(result.exception)
    assert not (tmp_path / "o.parquet").exists()


def test_the_info_verb(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "toy.parquet"
    values = samples.with_routing(samples.columns())
    write_trace(path, samples.table(values), samples.metadata(notes=("made up",)))
    found = json.loads(run("info", path, "--json").stdout)
    gemma = values["output_tokens"][values["expert"] == "gemma"]
    assert found["rows"] == 200
    assert found["experts"][0]["mean"] == pytest.approx(gemma.mean())
    assert found["experts"][0]["drawn"] == 40
    assert found["experts"][3]["drawn"] == 0
    assert found["aggregator"]["calls"] == 40
    shares = found["routing"]["plurality_votes"]
    answers = values["answer"][:160].reshape(40, 4)[:, :3]
    unanimous = (answers == answers[:, :1]).all(axis=1).mean()
    assert shares["3"] == pytest.approx(unanimous)
    assert sum(shares.values()) == pytest.approx(1)
    text = run("info", path).stdout
    assert "200 rows, 40 questions, categories law" in text
    assert "made up" in text


def test_the_validate_verb(tmp_path: pathlib.Path) -> None:
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    write_trace(good, samples.table(samples.columns()), samples.metadata())
    bad.write_bytes(good.read_bytes()[:-20])
    assert run("validate", good).stdout == f"{good}: ok, 200 rows\n"
    both = run("validate", good, bad)
    assert both.exit_code == 2
    assert f"{bad}: not a readable Parquet file" in both.stdout
    reports = json.loads(run("validate", "--json", good, bad).stdout)
    assert [report["count"] for report in reports] == [0, 1]


def test_validate_lists_rows_up_to_a_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = samples.columns()
    values["output_tokens"][:150] = 0
    values["visible_tokens"][:] = 0
    path = tmp_path / "bad.parquet"
    monkeypatch.setattr("mosaicsim.workload.trace.validate.require_valid", lambda trace: None)
    write_trace(path, samples.table(values), samples.metadata())
    result = run("validate", path)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: column 'output_tokens', row 1: is 0, not within 1 and 1,000,000"
    assert len(lines) == 101
    assert lines[-1] == f"{path}: and 50 more problems"


def test_generate_is_registered_without_being_imported() -> None:
    assert "generate" in run("--help").stdout
