"""Reading the CSV files of numbers that users give: logs of requests, tables of operator times."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mosaicsim.errors import UserInputError, nearest

Parser = Callable[[str], Any]
"""Turns a cell into its value; raises ValueError with what was expected."""


def text(cell: str) -> str:
    """A name that is not empty."""
    if not cell.strip():
        raise ValueError("expected a name")
    return cell.strip()


def number(least: float) -> Parser:
    """Parser of a finite number, ``least`` or more."""

    def parse(cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"expected a finite number, {least:g} or more")
        return value

    return parse


def count(least: int) -> Parser:
    """Parser of a whole number, ``least`` or more; ``12.0`` is one."""

    def parse(cell: str) -> int:
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value == int(value) and value >= least and abs(value) < 2**53):
            raise ValueError(f"expected a whole number, {least} or more")
        return int(value)

    return parse


def read_rows(
    path: Path, what: str, columns: Mapping[str, Parser], error: type[UserInputError]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield (line, values) of each row, the values of ``columns`` in their order; other columns are ignored.

    A file named ``.gz`` is unpacked. Raises ``error``, in one line with file and line: no such file, no
    table, a column missing, a cell that its parser refuses.
    """
    lines = io.StringIO(_content(path, what, error), newline="")
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        places = [_place(path, name, header, error) for name in columns]
        for row in reader:
            if any(cell.strip() for cell in row):
                yield (
                    reader.line_num,
                    _values(f"{path}:{reader.line_num}", row, header, columns, places, error),
                )
    except csv.Error as problem:
        raise error(f"{path}:{reader.line_num}: not valid CSV: {problem}") from None


def _content(path: Path, what: str, error: type[UserInputError]) -> str:
    try:
        packed = path.read_bytes()
        return (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise error(f"{path}: no such {what}{nearest(path.name, names)}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise error(f"{path}: cannot be read: not a gzip file, or one cut short") from None
    except UnicodeDecodeError:
        raise error(f"{path}: cannot be read: not a text file in UTF-8; a {what} is CSV") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None


def _place(path: Path, name: str, header: list[str], error: type[UserInputError]) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise error(f"{path}:1: column '{name}' is there {header.count(name)} times")
    there = ", ".join(header) if header else "none"
    raise error(f"{path}:1: no column '{name}'{nearest(name, header)}; there are {there[:200]}")


def _values(
    where: str,
    row: list[str],
    header: list[str],
    columns: Mapping[str, Parser],
    places: list[int],
    error: type[UserInputError],
) -> tuple[Any, ...]:
    if len(row) != len(header):
        raise error(f"{where}: {len(row)} cells in a table of {len(header)} columns")
    values = []
    for (name, parse), place in zip(columns.items(), places, strict=True):
        try:
            values.append(parse(row[place]))
        except ValueError as problem:
            raise error(f"{where}: {name}: {problem}, got {row[place][:60]!r}") from None
    return tuple(values)
