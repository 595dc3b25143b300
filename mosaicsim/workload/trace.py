"""The trace store: profiled lengths and answers, one Parquet row a (question, expert, sample).

A trace is a full block (every expert on every question) or a routed one (the calls a router drew, in column
``slot``). One more row a question, under the name in the metadata, holds the aggregator's call; its
``prompt_tokens`` count the template and the question only, as the proposers' visible text depends on who
was drawn and is added when a workload is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mosaicsim.errors import OutputError, TraceError, nearest
from mosaicsim.workload import validate
from mosaicsim.workload.calls import Bools, Floats, Ints

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("category", pa.string()),
        pa.field("expert", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("visible_tokens", pa.int32()),
        pa.field("answer", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("correct", pa.bool_()),
        pa.field("finish_reason", pa.string()),
        pa.field("slot", pa.int32()),
    ]
)
"""Columns of a trace file, in order. ``slot`` says which of its question's k slots the row fills in the
routing recorded with the trace (null: profiled but not drawn). Only answer, confidence, correct and slot may
be null."""

STRING_COLUMNS = tuple(f.name for f in SCHEMA if f.type == pa.string())
MAX_ROWS = 20_000_000
MAX_BYTES = 4 << 30
"""What a file may claim to hold (rows, decoded bytes) before anything is allocated for it."""

_KEY = "mosaicsim."


class Provenance(BaseModel):
    """Where a trace came from; further keys are kept as they are (a generator's report goes in ``report``).

    ``labels`` maps a figure ("lengths", "visible_tokens", ...) to how it came about ("modelled", ...);
    ``caps`` is each expert's max_tokens; ``reasoning`` marks the experts that think before they answer;
    ``first_seen`` is the order round-robin deals experts in, and may name experts that have no rows.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    command: str = ""
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    caps: dict[str, int] = {}
    reasoning: dict[str, bool] = {}
    first_seen: tuple[str, ...] = ()
    report: dict[str, Any] = {}


@dataclass(frozen=True)
class TraceMetadata:
    """What the Parquet key-value metadata says; ``aggregator`` is None where a trace has no aggregator rows.

    ``content_hash`` is filled in by :func:`write_trace` and verified by :func:`read_trace`.
    """

    provenance: Provenance = field(default_factory=Provenance)
    aggregator: str | None = "aggregator"
    schema_version: int = SCHEMA_VERSION
    content_hash: str = ""


@dataclass(frozen=True)
class Trace:
    """A trace in memory; ``table`` has the columns of :data:`SCHEMA`, one chunk each.

    Strings are dictionary-encoded in order of first appearance. Accessors return numpy columns of shape
    (rows,); nothing is ever turned into Python rows.
    """

    table: pa.Table
    metadata: TraceMetadata
    path: str | None = None

    def __len__(self) -> int:
        """Rows of the trace, the aggregator's included."""
        return int(self.table.num_rows)

    @property
    def name(self) -> str:
        """The file's name without its suffix, or "trace"."""
        return Path(self.path).stem if self.path else "trace"

    def where(self) -> str:
        """The trace's path for a message, or "trace"."""
        return self.path or "trace"

    def values(self, column: str) -> tuple[str, ...]:
        """The distinct strings of a column, in order of first appearance."""
        return tuple(_chunk(self.table, column).dictionary.to_pylist())

    def codes(self, column: str) -> Ints:
        """Index into :meth:`values` of every row; -1 where null."""
        return np.asarray(_numpy(_chunk(self.table, column).indices, -1), dtype=np.int64)

    def ints(self, column: str, null: int = -1) -> Ints:
        """An integer column, ``null`` where null."""
        return np.asarray(_numpy(_chunk(self.table, column), null), dtype=np.int64)

    def floats(self, column: str) -> Floats:
        """A float column, NaN where null."""
        return np.asarray(_numpy(_chunk(self.table, column), float("nan")), dtype=np.float64)

    def bools(self, column: str) -> Bools:
        """A boolean column, False where null."""
        return np.asarray(_numpy(_chunk(self.table, column), False), dtype=np.bool_)

    def nulls(self, column: str) -> Bools:
        """Which rows of a column are null."""
        return np.asarray(_chunk(self.table, column).is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """Question ids in order of first appearance."""
        return self.values("question_id")

    @cached_property
    def experts(self) -> tuple[str, ...]:
        """The pool in first-seen order, without the aggregator: as recorded, else as the rows come."""
        seen = tuple(e for e in self.values("expert") if e != self.metadata.aggregator)
        recorded = self.metadata.provenance.first_seen
        return recorded + tuple(e for e in seen if e not in recorded)

    @cached_property
    def expert_index(self) -> Ints:
        """Index into :attr:`experts` of every row; -1 for aggregator rows."""
        place = {name: i for i, name in enumerate(self.experts)}
        lookup = np.array([place.get(name, -1) for name in self.values("expert")] + [-1], dtype=np.int64)
        return lookup[self.codes("expert")]

    @cached_property
    def is_aggregator(self) -> Bools:
        """Which rows are the aggregator's."""
        return self.expert_index < 0

    @cached_property
    def first_row(self) -> Ints:
        """Row where each question first appears, shape (questions,)."""
        # Codes are numbered by first appearance, so a new question is a new maximum.
        codes = self.codes("question_id")
        before = np.maximum.accumulate(np.concatenate(([-1], codes[:-1])))
        return np.flatnonzero(codes > before)

    def of_question(self, column: str) -> tuple[str, ...]:
        """The value of a string column in each question's first row: its dataset or category."""
        names = self.values(column)
        return tuple(names[code] for code in self.codes(column)[self.first_row].tolist())


def read_trace(path: str | os.PathLike[str], *, check: bool = True) -> Trace:
    """Read and verify a trace.

    The schema is compared before any row is read, since pyarrow fills what is missing with nulls; the
    content hash is verified after. ``check=False`` leaves the values unchecked, for ``trace validate``.

    Raises TraceError: the file is missing, not a trace, damaged, or (with ``check``) holds impossible values.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise TraceError(_missing(path))
    try:
        footer = pq.read_metadata(path)
        metadata = _metadata(path, footer.metadata or {})
        _check_schema(path, footer.schema.to_arrow_schema())
        _check_size(path, footer)
        table = _read_rows(path)
        table.validate(full=True)
        table = _normalise(table)
        trace = Trace(table, metadata, path)
        found = content_hash(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if path.removesuffix(".gz").endswith((".csv", ".jsonl", ".json")):
            raise TraceError(f"{path}: is no trace yet; make one with `mosaicsim trace import`") from error
        raise TraceError(f"{path}: not a readable Parquet file (truncated or damaged?): {reason}") from error
    if found != metadata.content_hash:
        raise TraceError(
            f"{path}: content hash is {found[:12]}, but the file's metadata says "
            f"{metadata.content_hash[:12] or 'nothing'}: its rows were changed after it was written"
        )
    if check:
        validate.require_valid(trace)
    return trace


def write_trace(path: str | os.PathLike[str], table: pa.Table, metadata: TraceMetadata) -> Trace:
    """Validate ``table``, write it under a temporary name and rename: a trace is there whole or not at all.

    Strings may be plain or dictionary-encoded. Returns the trace as written, its content hash filled in.
    Raises TraceError: wrong columns or impossible values; OutputError: the file cannot be written.
    """
    path = os.fspath(path)
    _refuse_to_replace(path)
    _check_schema(path, pa.schema([pa.field(f.name, _plain(f.type)) for f in table.schema]))
    trace = as_trace(table, metadata, path)
    trace = replace(trace, metadata=replace(metadata, content_hash=content_hash(trace.table)))
    validate.require_valid(trace)
    plain = trace.table.cast(SCHEMA).replace_schema_metadata(_key_values(trace.metadata))
    folder = os.path.dirname(path) or "."
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".trace-", suffix=".tmp", dir=folder)
        os.fchmod(handle, 0o644)
        os.close(handle)
        pq.write_table(plain, temporary, compression="zstd", use_dictionary=True)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"{path}: cannot write the trace: {error.strerror or error}") from error
    return trace


def _refuse_to_replace(path: str) -> None:
    """Raise OutputError where something stands that is not a Parquet file: it may be the user's only copy."""
    if not os.path.lexists(path):
        return
    if not os.path.isfile(path):
        raise OutputError(f"{path}: cannot write the trace: there is something that is no file")
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the trace: {error.strerror}") from None
    if head not in (b"", b"PAR1"):
        raise OutputError(f"{path}: holds something else than a trace and is not replaced; give another name")


def as_trace(table: pa.Table, metadata: TraceMetadata, path: str | None = None) -> Trace:
    """A table with the columns of :data:`SCHEMA` as a trace in memory; its values are not checked."""
    return Trace(_normalise(table), metadata, path)


def content_hash(table: pa.Table) -> str:
    """sha256 over the columns' values in row order; compression, row groups and encodings do not enter."""
    digest = hashlib.sha256()
    for column in SCHEMA:
        digest.update(f"{column.name}:{column.type}:{table.num_rows};".encode())
        if column.type == pa.string():
            encoded = _chunk(table, column.name)
            digest.update(json.dumps(encoded.dictionary.to_pylist()).encode())
            digest.update(_numpy(encoded.indices, -1).astype("<i4").tobytes())
            continue
        values = _chunk(table, column.name)
        digest.update(np.packbits(values.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        numbers = _numpy(values, False if column.type == pa.bool_() else 0)
        digest.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _read_rows(path: str) -> pa.Table:
    with pq.ParquetFile(path, read_dictionary=list(STRING_COLUMNS)) as file:
        return file.read()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _normalise(table: pa.Table) -> pa.Table:
    """One chunk a column; strings coded by first appearance, so that equal columns have equal codes."""
    columns = []
    for column in SCHEMA:
        values = table.column(column.name)
        if column.type == pa.string():
            values = values.cast(pa.string()).combine_chunks().dictionary_encode()
        columns.append(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    return pa.table(columns, names=SCHEMA.names)


def _chunk(table: pa.Table, column: str) -> Any:
    chunks = table.column(column)
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def _numpy(values: Any, null: float | bool) -> Any:
    filled = values.fill_null(null) if values.null_count else values
    return filled.to_numpy(zero_copy_only=False)


def _missing(path: str) -> str:
    if os.path.isdir(path):
        return f"{path}: is a folder, not a trace file (.parquet)"
    folder = os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return f"{path}: no such trace file{nearest(os.path.basename(path), names)}"


def _check_schema(path: str, found: pa.Schema) -> None:
    """Raise TraceError for the first column that is missing, extra or of another type."""
    for column in SCHEMA:
        if column.name not in found.names:
            raise TraceError(f"{path}: column '{column.name}' is missing{nearest(column.name, found.names)}")
        kind = found.field(column.name).type
        if kind != column.type:
            raise TraceError(f"{path}: column '{column.name}' is {kind}, not {column.type}")
    for name in found.names:
        if name not in SCHEMA.names:
            raise TraceError(f"{path}: unknown column '{name}'{nearest(name, SCHEMA.names)}")
    if len(found.names) != len(SCHEMA.names):
        raise TraceError(f"{path}: a column appears twice")


def _check_size(path: str, file: Any) -> None:
    """Raise TraceError when the file claims more than :data:`MAX_ROWS` or :data:`MAX_BYTES`."""
    if not 0 <= file.num_rows <= MAX_ROWS:
        raise TraceError(f"{path}: claims {file.num_rows:,} rows; at most {MAX_ROWS:,} are read")
    claimed = sum(file.row_group(i).total_byte_size for i in range(file.num_row_groups))
    if not 0 <= claimed <= MAX_BYTES:
        raise TraceError(
            f"{path}: claims {claimed / 2**30:,.1f} GiB of rows; at most {MAX_BYTES >> 30} GiB are read"
        )


def _key_values(metadata: TraceMetadata) -> dict[str, str]:
    return {
        f"{_KEY}schema_version": str(metadata.schema_version),
        f"{_KEY}provenance": metadata.provenance.model_dump_json(),
        f"{_KEY}aggregator": metadata.aggregator or "",
        f"{_KEY}content_hash": metadata.content_hash,
    }


def _metadata(path: str, raw: dict[bytes, bytes]) -> TraceMetadata:
    found = {k.decode(): v.decode(errors="replace") for k, v in raw.items() if k.startswith(_KEY.encode())}
    version = found.get(f"{_KEY}schema_version")
    if version is None:
        raise TraceError(
            f"{path}: Parquet, but not a mosaicsim trace: metadata key '{_KEY}schema_version' is missing "
            "(make one with 'mosaicsim trace import')"
        )
    if version != str(SCHEMA_VERSION):
        raise TraceError(f"{path}: trace schema version {version!r}; this mosaicsim reads {SCHEMA_VERSION}")
    try:
        provenance = Provenance.model_validate_json(found.get(f"{_KEY}provenance", "{}"))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise TraceError(f"{path}: metadata '{_KEY}provenance': {at}: {first['msg']}") from error
    aggregator = found.get(f"{_KEY}aggregator") or None
    return TraceMetadata(provenance, aggregator, SCHEMA_VERSION, found.get(f"{_KEY}content_hash", ""))
