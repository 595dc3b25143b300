"""The outputs of a real run as Parquet: a row a call, in parts as calls finish, one file in the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mosaicsim.errors import OutputError

SCHEMA = pa.schema(
    [
        ("scheduler", pa.string()),
        ("gate", pa.string()),
        ("replicate", pa.int32()),
        ("question_id", pa.string()),
        ("category", pa.string()),
        ("stage", pa.string()),
        ("expert", pa.string()),
        ("slot", pa.int32()),
        ("sample", pa.int32()),
        ("worker", pa.string()),
        ("session", pa.int32()),
        ("start_s", pa.float64()),
        ("first_token_s", pa.float64()),
        ("finish_s", pa.float64()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("visible_tokens", pa.int32()),
        ("preemptions", pa.int32()),
        ("finish_reason", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("confidence", pa.float32()),
        ("error", pa.string()),
    ]
)
"""``finish_reason`` is vLLM's (stop, length), cancelled or error; ``correct`` is null without a gold."""

ROWS = 64
"""A part is written when so many rows wait."""


class OutputParts:
    """Rows into numbered Parquet parts of a folder, each whole or not there; the last when it is closed."""

    def __init__(self, folder: Path) -> None:
        """Start anew: parts of an earlier attempt are removed, their rows come again from the journal."""
        self._folder = folder
        self._rows: list[Mapping[str, Any]] = []
        self._parts = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("part-*"):
                old.unlink()
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows; write a part when enough wait."""
        self._rows.extend(rows)
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._rows:
            return
        write_parquet(
            pa.Table.from_pylist(self._rows, SCHEMA), self._folder / f"part-{self._parts:05d}.parquet"
        )
        self._rows, self._parts = [], self._parts + 1


def merge(folders: Iterable[Path], target: Path) -> None:
    """All parts of some folders, in order, as one file."""
    parts = [part for folder in folders for part in sorted(folder.glob("part-*.parquet"))]
    tables = [pq.read_table(part, schema=SCHEMA) for part in parts]
    write_parquet(pa.concat_tables(tables) if tables else SCHEMA.empty_table(), target)


def write_parquet(table: pa.Table, target: Path) -> None:
    """Write a table under a temporary name and rename it. Raises OutputError."""
    temporary = target.with_name(f".{target.name}.partial")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from None
