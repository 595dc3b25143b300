"""Foreign files to traces: CSV or JSON lines, plain or gzipped, one row a (question, expert, sample)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from mosaicsim.errors import TraceError, UserInputError, nearest
from mosaicsim.workload.cells import Cells
from mosaicsim.workload.trace import SCHEMA, Provenance, Trace, TraceMetadata, as_trace
from mosaicsim.workload.usable import usable_questions
from mosaicsim.workload.validate import require_valid

REASONING_VISIBLE_TOKENS = 330
"""Text after the reasoning where a file does not give it: the mean answer of R1-Distill-Qwen-7B with its
thinking switched off on 11 categories of MMLU-Pro, truncated ones left out (329.5 tokens; outputs published
with TIGER-AI-Lab/MMLU-Pro, Apache-2.0)."""

ALIASES: dict[str, tuple[str, ...]] = {
    "question_id": ("query_id",),
    "category": ("skill",),
    "output_tokens": ("generated_tokens",),
}
"""Other names under which a column is found without being mapped."""

EXTRA = ("capped", "expert_class", "gold")
"""Columns that are read though a trace has none of that name: whether the output hit max_tokens,
``reasoning`` for experts that think first, and the answer that the row was graded by."""

ACCEPTED = (*SCHEMA.names, *EXTRA)


@dataclass(frozen=True)
class ImportOptions:
    """How to read a foreign file.

    ``columns`` maps trace columns (or :data:`EXTRA`) to the file's; ``dataset`` is used where the file has
    no such column; ``exclude`` leaves out experts; ``reasoning`` adds experts that think first;
    ``aggregator`` is the expert whose rows are the aggregator's; ``drop_incomplete`` leaves out questions
    that some expert has not answered; ``conflicting`` (keep, drop or error) is about questions graded by
    different gold answers.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    exclude: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    visible_tokens: int = REASONING_VISIBLE_TOKENS
    aggregator: str | None = None
    drop_incomplete: bool = False
    conflicting: str = "keep"
    command: str = ""


def import_trace(path: str, options: ImportOptions) -> Trace:
    """Read a foreign file as a trace in memory; :func:`~mosaicsim.workload.trace.write_trace` stores it.

    Raises TraceError: the file cannot be read, a column is missing, or a value is impossible; UserInputError:
    an option names a column or expert that does not exist.
    """
    rows, malformed = _read(path)
    if malformed and not options.drop_incomplete:
        raise TraceError(f"{path}: {malformed[0]}; '--incomplete drop' leaves such rows out")
    source = _Source(path, rows, options.columns).without(options.exclude)
    finish = _finish_reason(source)
    expert = source.require("expert").strings()
    reasoning = _reasoning(source, expert, options)
    output = source.require("output_tokens").integers()
    columns = {
        "question_id": source.require("question_id").strings(),
        "dataset": _dataset(source, options),
        "category": source.require("category").strings(),
        "expert": expert,
        "sample": source.integers("sample", default=0),
        "prompt_tokens": source.require("prompt_tokens").integers(),
        "output_tokens": output,
        "visible_tokens": _visible(source, output, expert, finish, reasoning, options),
        "answer": source.optional("answer", Cells.strings, pa.string()),
        "confidence": source.optional("confidence", lambda c, **_: c.floats(), pa.float32()),
        "correct": source.optional("correct", Cells.booleans, pa.bool_()),
        "finish_reason": finish,
        "slot": source.optional("slot", Cells.integers, pa.int32()),
    }
    table = pa.table(columns, schema=SCHEMA)
    provenance = _provenance(source, table, reasoning, len(malformed), options)
    metadata = TraceMetadata(provenance, options.aggregator)
    trace = as_trace(table, metadata, path)
    require_valid(trace, complete=False)
    gold = source.find("gold")
    return usable_questions(
        trace,
        None if gold is None else gold.codes,
        conflicting=options.conflicting,
        drop_incomplete=options.drop_incomplete,
    )


def _read(path: str) -> tuple[pa.Table, list[str]]:
    """The file's cells, those of a CSV as text, and what is wrong with rows that have too few or many."""
    if not os.path.isfile(path):
        raise TraceError(f"{path}: no such file")
    kind = os.path.basename(path).removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in ("csv", "jsonl", "ndjson", "json"):
        raise TraceError(
            f"{path}: '.{kind}' is not a format that can be imported; accepted: .csv, .jsonl, each also .gz"
        )
    try:
        table, malformed = _read_csv(path) if kind == "csv" else (pa_json.read_json(path), [])
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise TraceError(f"{path}: column '{name}' appears twice")
    if not table.num_rows:
        raise TraceError(f"{path}: has no rows")
    return table, malformed


def _read_csv(path: str) -> tuple[pa.Table, list[str]]:
    malformed: list[str] = []

    def skip(row: Any) -> str:
        at = "a row" if row.number is None else f"row {row.number - 1}"
        malformed.append(f"{at} has {row.actual_columns} fields, not {row.expected_columns}")
        return "skip"

    opened: Callable[..., Any] = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(io.StringIO(file.readline(1 << 20))), [])
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    table = pa_csv.read_csv(
        path,
        # Rows are only numbered, for the message, when read by one thread.
        read_options=pa_csv.ReadOptions(use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=convert,
    )
    return table, malformed


class _Source:
    """A foreign table and the mapping of its columns."""

    def __init__(self, path: str, table: pa.Table, columns: Mapping[str, str]) -> None:
        self.path, self.table, self.columns = path, table, columns
        for name, theirs in columns.items():
            if name not in ACCEPTED:
                raise UserInputError(
                    f"--map {name}={theirs}: no trace column '{name}'{nearest(name, ACCEPTED)}; "
                    f"accepted: {', '.join(ACCEPTED)}"
                )
            if theirs not in table.column_names:
                raise UserInputError(
                    f"--map {name}={theirs}: {path} has no column '{theirs}'"
                    f"{nearest(theirs, table.column_names)}; it has: {', '.join(table.column_names)}"
                )

    def name_of(self, column: str) -> str | None:
        """The file's name for a trace column, None where it has none."""
        if column in self.columns:
            return self.columns[column]
        found = (n for n in (column, *ALIASES.get(column, ())) if n in self.table.column_names)
        return next(found, None)

    def find(self, column: str) -> Cells | None:
        """The cells of a trace column."""
        name = self.name_of(column)
        if name is None:
            return None
        values = self.table.column(name)
        if pa.types.is_nested(values.type):
            raise TraceError(f"{self.path}: column '{name}' holds {values.type}, not single values")
        encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return Cells(self.path, name, tuple(encoded.dictionary.to_pylist()), codes)

    def require(self, column: str) -> Cells:
        """The cells of a column that a trace cannot do without."""
        cells = self.find(column)
        if cells is None:
            looked = " or ".join(f"'{name}'" for name in (column, *ALIASES.get(column, ())))
            raise TraceError(
                f"{self.path}: no column {looked}; name yours with --map {column}=THEIRS, "
                f"one of: {', '.join(self.table.column_names)}"
            )
        return cells

    def without(self, experts: Sequence[str]) -> _Source:
        """The same file less the rows of these experts."""
        if not experts:
            return self
        values = self.require("expert").strings()
        names = pc.unique(values).to_pylist()
        for name in experts:
            if name not in names:
                raise UserInputError(
                    f"--exclude {name}: no such expert in {self.path}{nearest(name, names)}; "
                    f"it has: {', '.join(names)}"
                )
        if set(experts) >= set(names):
            raise UserInputError(f"--exclude: {self.path} has no other expert than those excluded")
        kept = pc.invert(pc.is_in(values, value_set=pa.array(experts, pa.string())))
        return _Source(self.path, self.table.filter(kept), self.columns)

    def integers(self, column: str, default: int) -> pa.Array:
        """An integer column, or ``default`` in every row."""
        cells = self.find(column)
        return (
            pa.array(np.full(self.table.num_rows, default, np.int32)) if cells is None else cells.integers()
        )

    def optional(self, column: str, read: Callable[..., pa.Array], kind: pa.DataType) -> pa.Array:
        """A column that may be absent, or empty in places: null there."""
        cells = self.find(column)
        return pa.nulls(self.table.num_rows, kind) if cells is None else read(cells, null=True)


def _dataset(source: _Source, options: ImportOptions) -> pa.Array:
    if options.dataset is not None:
        return pa.array([options.dataset] * source.table.num_rows)
    if source.name_of("dataset") is None:
        raise UserInputError(
            f"{source.path}: no column 'dataset'; give --dataset NAME or --map dataset=THEIRS"
        )
    return source.require("dataset").strings()


def _finish_reason(source: _Source) -> pa.Array:
    """As given, else from ``capped``, else unknown."""
    given, capped = source.find("finish_reason"), source.find("capped")
    if given is not None:
        return given.strings()
    if capped is not None:
        return pc.if_else(capped.booleans(), "length", "stop")
    return pa.array(["unknown"] * source.table.num_rows)


def _reasoning(source: _Source, expert: pa.Array, options: ImportOptions) -> dict[str, bool]:
    """Which experts think first: named by an option, or of class "reasoning" in the file."""
    experts = [e for e in pc.unique(expert).to_pylist() if e != options.aggregator]
    for name in options.reasoning:
        if name not in experts:
            raise UserInputError(
                f"--reasoning {name}: no such expert in {source.path}{nearest(name, experts)}; "
                f"it has: {', '.join(experts)}"
            )
    if options.aggregator is not None and len(experts) == len(pc.unique(expert)):
        raise UserInputError(
            f"--aggregator {options.aggregator}: no such expert in {source.path}"
            f"{nearest(options.aggregator, experts)}; it has: {', '.join(experts)}"
        )
    named = set(options.reasoning)
    kind = source.find("expert_class")
    if kind is not None:
        named |= set(pc.unique(expert.filter(pc.equal(kind.strings(null=True), "reasoning"))).to_pylist())
    return {e: e in named for e in experts}


def _visible(
    source: _Source,
    output: pa.Array,
    expert: pa.Array,
    finish: pa.Array,
    reasoning: Mapping[str, bool],
    options: ImportOptions,
) -> pa.Array:
    """As given; else the whole output, but a modelled part of it for a finished reasoning trace.

    A truncated trace never ended its reasoning, so the whole of it is visible, as in Symbolic-MoE.
    """
    given = source.find("visible_tokens")
    if given is not None:
        return given.integers()
    thinks = pc.is_in(expert, value_set=pa.array([e for e, yes in reasoning.items() if yes], pa.string()))
    cut = pc.and_(thinks, pc.not_equal(finish, "length"))
    return pc.if_else(cut, pc.min_element_wise(output, options.visible_tokens), output).cast(pa.int32())


def _provenance(
    source: _Source, table: pa.Table, reasoning: Mapping[str, bool], malformed: int, options: ImportOptions
) -> Provenance:
    labels, notes = {}, []
    if source.name_of("visible_tokens") is None and any(reasoning.values()):
        labels["visible_tokens"] = "modelled"
        notes.append(
            "visible_tokens of reasoning experts are modelled: "
            f"min(output_tokens, {options.visible_tokens}), the whole output where it was truncated"
        )
    if options.exclude:
        notes.append(f"experts of the file left out: {', '.join(options.exclude)}")
    if malformed:
        notes.append(f"{malformed} malformed rows of the file left out")
    capped = table.filter(pc.equal(table["finish_reason"], "length"))
    caps = capped.group_by("expert").aggregate([("output_tokens", "max")])
    with open(source.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Provenance(
        command=options.command,
        sources=(f"{os.path.basename(source.path)} (sha256 {digest})",),
        notes=tuple(notes),
        labels=labels,
        caps=dict(
            sorted(zip(caps["expert"].to_pylist(), caps["output_tokens_max"].to_pylist(), strict=True))
        ),
        reasoning=dict(reasoning),
        first_seen=tuple(reasoning),
    )
