"""Text cells of a foreign file to typed trace columns, each failure naming column, row and value.

Each distinct value is read once, in Python, and the result spread over the rows by code: files have few
distinct lengths, and every message can name the row. Rows count from 1, without a header.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mosaicsim.errors import TraceError
from mosaicsim.workload.calls import Ints

TRUE, FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0")
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Cells:
    """One column of a foreign file: ``codes`` (rows,) into the distinct ``values``, -1 where empty."""

    path: str
    name: str
    values: tuple[str, ...]
    codes: Ints

    def parse(self, convert: Callable[[str], Any], accepted: str, kind: pa.DataType, null: bool) -> pa.Array:
        """Convert every cell; with ``null`` an empty one stays null, else it is an error.

        Raises TraceError: a cell that ``convert`` refuses with ValueError.
        """
        converted = []
        for code, value in enumerate(self.values):
            try:
                converted.append(convert(value))
            except ValueError as error:
                row = int(np.argmax(self.codes == code))
                raise self.error(row, f"'{_short(value)}' is not {accepted}") from error
        if not null and (self.codes < 0).any():
            raise self.error(int(np.argmax(self.codes < 0)), f"is empty; accepted: {accepted}")
        lookup = pa.array([*converted, None], type=kind)
        return lookup.take(pa.array(np.where(self.codes < 0, len(converted), self.codes)))

    def error(self, row: int, what: str) -> TraceError:
        """The error for a row (0-based)."""
        return TraceError(f"{self.path}: column '{self.name}', row {row + 1}: {what}")

    def strings(self, *, null: bool = False) -> pa.Array:
        """As text."""
        return self.parse(str, "text", pa.string(), null)

    def integers(self, *, null: bool = False) -> pa.Array:
        """As whole numbers that fit 32 bits."""
        return self.parse(_integer, f"a whole number up to {INT32_MAX:,}", pa.int32(), null)

    def floats(self) -> pa.Array:
        """As numbers, NaN refused, empty cells null."""
        return self.parse(_finite, "a finite number", pa.float32(), True)

    def booleans(self, *, null: bool = False) -> pa.Array:
        """As truth values: 1/0, true/false, yes/no."""
        return self.parse(_truth, "one of 1, 0, true, false, yes, no", pa.bool_(), null)


def _integer(text: str) -> int:
    number = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    if not abs(number) <= INT32_MAX or number != int(number):
        raise ValueError(text)
    return int(number)


def _finite(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise ValueError(text)
    return word in TRUE


def _short(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
