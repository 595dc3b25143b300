"""Question files: what is read, and what a new user is told about files that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaicsim.errors import UserInputError
from mosaicsim.workload.questions import NO_CATEGORY, Question, QuestionSet, read_questions

SUM = {"question_id": "s1", "question": "2 + 3?", "options": ["4", "5"], "gold": "B", "category": "sums"}


def written(tmp_path: Path, *rows: Any, name: str = "q.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserInputError) as caught:
        read_questions(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.replace(str(path), "FILE")


def test_a_question_is_read_as_written(tmp_path: Path) -> None:
    questions = read_questions(written(tmp_path, SUM, ""))
    assert list(questions) == [Question("s1", "2 + 3?", ("4", "5"), "B", "sums")]
    assert questions.categories == ("sums",)
    assert questions.grading_note == ""


def test_only_the_question_is_required(tmp_path: Path) -> None:
    assert list(read_questions(written(tmp_path, {"question": "a?"}, {"question": "b?"}))) == [
        Question("1", "a?", (), None, NO_CATEGORY),
        Question("2", "b?", (), None, NO_CATEGORY),
    ]


def test_gzip_parquet_and_bom_hold_the_same_questions(tmp_path: Path) -> None:
    plain = written(tmp_path, SUM)
    zipped = tmp_path / "q.jsonl.gz"
    zipped.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    table = tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_pylist([{**SUM, "source": {"url": "nowhere"}}]), table)
    assert list(read_questions(zipped)) == list(read_questions(table)) == list(read_questions(plain))


@pytest.mark.parametrize(
    ("gold", "options", "letter"),
    [
        ("B", ["4", "5"], "B"),
        ("(b)", ["4", "5"], "B"),
        ("b.", ["four", "five"], "B"),
        ("5", ["4", "5"], "B"),
        (5, ["4", 5], "B"),
        ("5.0", ["4", "5"], "B"),
        ("the Rome", ["Paris", "Rome"], "B"),
        ("(A)", ["B", "A"], "A"),
        ("A", ["A", "B"], "A"),
        ("a", ["b", "a"], "B"),
    ],
)
def test_gold_is_a_letter_or_the_option_s_text(
    tmp_path: Path, gold: Any, options: list[Any], letter: str
) -> None:
    [question] = read_questions(written(tmp_path, {"question": "?", "options": options, "answer": gold}))
    assert question.gold == letter


@pytest.mark.parametrize(
    ("gold", "spelt"),
    [("1,200.0", "1200"), (1.50, "1.5"), (" The  Moon. ", "moon"), ("", None), (None, None)],
)
def test_gold_of_an_open_question_has_one_spelling(tmp_path: Path, gold: Any, spelt: str | None) -> None:
    [question] = read_questions(written(tmp_path, {"question": "?", "gold": gold}))
    assert question.gold == spelt


def test_a_question_without_gold_is_allowed_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, SUM, {"question": "6 + 1?"})
    questions = read_questions(path)
    assert questions.grading_note == (f"{path}: 1 of 2 have no gold answer: accuracy is that of the others")
    none = read_questions(written(tmp_path, {"question": "6 + 1?"}))
    assert none.grading_note == f"{path}: no question has a gold answer: accuracy is ungraded"


def test_where_gold_is_needed_its_absence_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, SUM, {"question": "6 + 1?"})
    with pytest.raises(UserInputError) as caught:
        read_questions(path).require_gold("calibration")
    assert str(caught.value) == (
        f"{path}: question '2' has no gold answer, which calibration needs (1 of 2 questions lack one); "
        "give it as 'gold'"
    )
    read_questions(written(tmp_path, SUM)).require_gold("calibration")


def test_a_question_in_both_sets_is_found_whatever_its_id_and_order_of_options() -> None:
    one = QuestionSet(Path("calibration.jsonl"), (Question("c", "Which is it?", ("x", "y"), "A"),))
    same = QuestionSet(Path("evaluation.jsonl"), (Question("e", "which is  it?", ("y", "x"), "B"),))
    other = QuestionSet(Path("evaluation.jsonl"), (Question("e", "Which is it?", ("x", "z"), "B"),))
    with pytest.raises(UserInputError, match=r"question 'e' is question 'c' of calibration\.jsonl too"):
        same.require_apart(one)
    other.require_apart(one)


EXAMPLE = '{"question": "2 + 3?", "options": ["4", "5"], "gold": "B", "category": "sums"}'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], f"FILE: has no questions; each line is one, such as {EXAMPLE}"),
        (["", " "], f"FILE: has no questions; each line is one, such as {EXAMPLE}"),
        (
            [SUM, "{'question': 1}"],
            "FILE: line 2: not valid JSON: Expecting property name enclosed in double quotes: "
            f"line 1 column 2 (char 1); a line is such as {EXAMPLE}",
        ),
        (["[" * 100_000], None),
        (["[1, 2]"], f"FILE: line 1: a list, not an object such as {EXAMPLE}"),
        (
            [{"qestion": "?", "gold": "1"}],
            "FILE: line 1: no column 'question' (did you mean 'qestion'?); accepted: question_id, question, "
            "options, gold, category (or answer); it has: qestion, gold",
        ),
        (["{}"], None),
        ([{"question": " "}], "FILE: line 1: column 'question' is empty"),
        (
            [{"question": ["?"]}],
            "FILE: line 1: column 'question' is ['?']; accepted: a text or a number",
        ),
        (
            [{"question": "?", "gold": True}],
            "FILE: line 1: column 'gold' is True; accepted: a text or a number",
        ),
        (
            [{"question": "?", "options": "a, b"}],
            "FILE: line 1: column 'options' is 'a, b'; accepted: a list of texts",
        ),
        ([{"question": "?", "options": ["a", ""]}], "FILE: line 1: option B is empty"),
        (
            [{"question": "?", "options": ["a"]}],
            "FILE: line 1: 1 options; accepted: 2 to 26, or none for an open question",
        ),
        (
            [{"question": "?", "options": list(range(27))}],
            "FILE: line 1: 27 options; accepted: 2 to 26, or none for an open question",
        ),
        (
            [SUM, "", SUM],
            "FILE: line 3: question_id 's1' is that of line 1 too; ids must be unique",
        ),
        (
            [{**SUM, "gold": "C"}],
            "FILE: line 1: gold 'C' is not among the options; accepted: A to B, or one of ['4', '5']",
        ),
        (
            [{**SUM, "options": ["B", "A"], "gold": "A"}],
            "FILE: line 1: gold 'A' is a letter and the text of option B; write '(A)' for the letter",
        ),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, rows: list[Any], message: str | None) -> None:
    said = complaint(written(tmp_path, *rows))
    assert message is None or said == message


def test_files_that_are_no_question_files_are_named(tmp_path: Path) -> None:
    written(tmp_path, SUM, name="questions.jsonl")
    assert complaint(tmp_path / "question.jsonl") == (
        "FILE: no such question file (did you mean 'questions.jsonl'?)"
    )
    assert complaint(written(tmp_path, "a,b", name="q.csv")) == (
        "FILE: '.csv' is not a format of questions; accepted: .jsonl, .ndjson (each also .gz), .parquet"
    )
    assert "not a file" in complaint(tmp_path)
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not a text in UTF-8" in complaint(binary)
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(b"{}")[:-4])
    assert "cannot be read" in complaint(broken)
    parquet = written(tmp_path, "no parquet", name="b.parquet")
    assert "cannot be read" in complaint(parquet)


def test_a_parquet_file_without_questions_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"Question": ["?"]}), path)
    assert complaint(path).startswith("FILE: row 1: no column 'question' (did you mean 'Question'?)")
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), path)
    assert complaint(path).startswith("FILE: has no questions")
