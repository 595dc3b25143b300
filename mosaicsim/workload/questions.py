"""Questions to be answered, from JSON lines or Parquet, with options and gold answers where there are any."""

from __future__ import annotations

import gzip
import io
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaicsim.errors import UserInputError, nearest
from mosaicsim.workload.canonical import canonical, canonical_text, matching_options

COLUMNS = ("question_id", "question", "options", "gold", "category")
"""Columns of a question file; ``gold`` is also found as ``answer``. Others are ignored."""

LETTERS = string.ascii_uppercase
NO_CATEGORY = "all"

_READABLE = ".jsonl, .ndjson (each also .gz), .parquet"
_EXAMPLE = '{"question": "2 + 3?", "options": ["4", "5"], "gold": "B", "category": "sums"}'
_LARGEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Question:
    """One question. ``options`` is empty for an open one.

    ``gold`` is spelt as :func:`~mosaicsim.workload.extraction.extract_answer` spells answers: a letter
    where there are options, else a canonical number or text; None where it is not known.
    """

    id: str
    text: str
    options: tuple[str, ...] = ()
    gold: str | None = None
    category: str = NO_CATEGORY

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file, in its order; ids are unique."""

    path: Path
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order in which they are first seen."""
        return tuple(dict.fromkeys(question.category for question in self.questions))

    @property
    def ungraded(self) -> tuple[Question, ...]:
        """Questions without a gold answer."""
        return tuple(question for question in self.questions if question.gold is None)

    @property
    def grading_note(self) -> str:
        """What a user is to know about the accuracy, or an empty string where every question has a gold."""
        missing = len(self.ungraded)
        if not missing:
            return ""
        if missing == len(self):
            return f"{self.path}: no question has a gold answer: accuracy is ungraded"
        return f"{self.path}: {missing} of {len(self)} have no gold answer: accuracy is that of the others"

    def require_gold(self, needed_for: str) -> None:
        """Raise UserInputError unless every question has a gold answer."""
        if self.ungraded:
            raise UserInputError(
                f"{self.path}: question '{self.ungraded[0].id}' has no gold answer, which {needed_for} "
                f"needs ({len(self.ungraded)} of {len(self)} questions lack one); give it as 'gold'"
            )

    def require_apart(self, other: QuestionSet) -> None:
        """Raise UserInputError where a question stands in both sets: one calibrates, the other evaluates."""
        seen = {_same(question): question for question in other}
        for question in self:
            twin = seen.get(_same(question))
            if twin is not None:
                raise UserInputError(
                    f"{self.path}: question '{question.id}' is question '{twin.id}' of {other.path} too; "
                    f"calibration and evaluation must not share questions"
                )


def _same(question: Question) -> tuple[str, tuple[str, ...]]:
    return canonical_text(question.text), tuple(sorted(map(canonical_text, question.options)))


def read_questions(path: str | Path) -> QuestionSet:
    """Read a question file: columns question_id?, question, options?, gold? (or answer), category?.

    Raises UserInputError, in one line with the file and the line (JSON) or row (Parquet, from 1).
    """
    path = Path(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    for number, (at, row) in enumerate(rows, start=1):
        question = _question(row, at, number)
        if question.id in questions:
            raise UserInputError(
                f"{at}: question_id '{question.id}' is that of {places[question.id]} too; ids must be unique"
            )
        questions[question.id], places[question.id] = question, at.rpartition(": ")[2]
    if not questions:
        raise UserInputError(f"{path}: has no questions; each line is one, such as {_EXAMPLE}")
    return QuestionSet(path, tuple(questions.values()))


Rows = Iterator[tuple[str, dict[str, Any]]]
"""Where a row stands, for messages, and its cells by column."""


def _json_rows(path: Path) -> Rows:
    if path.name.removesuffix(".gz").rpartition(".")[2] not in ("jsonl", "ndjson"):
        what = _refused(path)
        raise UserInputError(f"{path}: {what}; accepted: {_READABLE}")
    for number, line in enumerate(io.StringIO(_text(path)), start=1):
        if not line.strip():
            continue
        at = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserInputError(f"{at}: not valid JSON: {error}; a line is such as {_EXAMPLE}") from None
        if not isinstance(row, dict):
            raise UserInputError(f"{at}: a {type(row).__name__}, not an object such as {_EXAMPLE}")
        yield at, row


def _refused(path: Path) -> str:
    if not path.is_file():
        return "no such question file" if not path.exists() else "not a file"
    return f"'{path.suffix}' is not a format of questions"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise UserInputError(f"{path}: larger than {_LARGEST_BYTES:,} bytes")
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserInputError(f"{path}: no such question file{nearest(path.name, names)}") from None
    except UnicodeDecodeError:
        raise UserInputError(f"{path}: not a text in UTF-8; accepted: {_READABLE}") from None
    except (OSError, EOFError) as error:
        raise UserInputError(f"{path}: cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserInputError(f"{path}: {_refused(path)}")
    try:
        file = pq.ParquetFile(path)
        names = [name for name in (*COLUMNS, "answer") if name in file.schema_arrow.names]
        batches = file.iter_batches(columns=names)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}: row {number}", row if names else dict.fromkeys(file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise UserInputError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def _question(row: dict[str, Any], at: str, number: int) -> Question:
    if "question" not in row:
        raise UserInputError(
            f"{at}: no column 'question'{nearest('question', row)}; accepted: "
            f"{', '.join(COLUMNS)} (or answer); it has: {', '.join(map(str, row)) or 'nothing'}"
        )
    text = _cell(row["question"], at, "question")
    if text is None:
        raise UserInputError(f"{at}: column 'question' is empty")
    options = _options(row.get("options"), at)
    gold = _cell(row.get("gold", row.get("answer")), at, "gold" if "gold" in row else "answer")
    return Question(
        id=_cell(row.get("question_id"), at, "question_id") or str(number),
        text=text,
        options=options,
        gold=None if gold is None else _gold(gold, options, at),
        category=_cell(row.get("category"), at, "category") or NO_CATEGORY,
    )


def _cell(value: Any, at: str, column: str) -> str | None:
    """A text or a number as text; None for null and for blanks."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserInputError(f"{at}: column '{column}' is {_shown(value)}; accepted: a text or a number")
    return str(value).strip() or None


def _options(value: Any, at: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserInputError(f"{at}: column 'options' is {_shown(value)}; accepted: a list of texts")
    options = tuple(_cell(option, at, "options") for option in value)
    if None in options:
        raise UserInputError(f"{at}: option {LETTERS[options.index(None) % 26]} is empty")
    if len(options) == 1 or len(options) > len(LETTERS):
        raise UserInputError(
            f"{at}: {len(options)} options; accepted: 2 to {len(LETTERS)}, or none for an open question"
        )
    return tuple(option for option in options if option is not None)


def _gold(gold: str, options: tuple[str, ...], at: str) -> str:
    """The letter of the option that is given by letter or text; the canonical answer of an open one."""
    if not options:
        return canonical(gold)
    letters = LETTERS[: len(options)]
    named = gold.strip("(). ").upper()
    by_letter = {named} & set(letters)
    by_text = {letter for letter, option in zip(letters, options, strict=True) if option == gold}
    if not by_text and not by_letter:
        by_text = {letters[i] for i in matching_options(gold, options)}
    if by_letter and by_text - by_letter and gold == named:
        raise UserInputError(
            f"{at}: gold '{gold}' is a letter and the text of option {min(by_text)}; "
            f"write '({gold})' for the letter"
        )
    found = by_text if by_text and gold != f"({named})" else by_letter
    if not found:
        raise UserInputError(
            f"{at}: gold '{gold}' is not among the options; accepted: {letters[0]} to {letters[-1]}, "
            f"or one of {_shown(list(options))}"
        )
    return min(found)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
