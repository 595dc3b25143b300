"""The journal of a real run: every fact, a JSON line each, written before anyone acts on it.

A line is handed to the operating system at once, so a killed process loses none; the disk is told to keep
them (fsync) in batches, so a machine that loses power loses the last second. What a crash leaves of a last
line is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mosaicsim.errors import OutputError

Fact = dict[str, Any]
"""One line: ``kind`` says what it is about, the rest depends on it."""

SYNC_LINES = 16


class Journal:
    """An append-only file of facts. Facts found when it is opened are in ``found``."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or create; one that is ``read_only`` is only looked at.

        Raises OutputError: cannot be opened, or holds something else.
        """
        self._path = path
        if read_only:
            self._open_to_read()
        else:
            self._open()

    def _open(self) -> None:
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            os.ftruncate(self._file, len(whole))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
        self.found = self._parse(whole)
        self._unsynced = 0

    def _open_to_read(self) -> None:
        self._file = -1
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read: {error.strerror}") from None
        self.found = self._parse(content[: content.rfind(b"\n") + 1])

    def write(self, kind: str, **facts: Any) -> None:
        """Append a fact. Raises OutputError, as on a full disk."""
        line = json.dumps({"kind": kind, **facts}, ensure_ascii=False, separators=(",", ":"))
        try:
            self._append(line.encode("utf-8", "surrogatepass") + b"\n")
            self._unsynced += 1
            if self._unsynced >= SYNC_LINES:
                self.sync()
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written: {error.strerror}; --resume goes on with what is in it"
            ) from None

    def sync(self) -> None:
        """Have the disk keep what was written."""
        os.fsync(self._file)
        self._unsynced = 0

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]

    def _parse(self, content: bytes) -> list[Fact]:
        facts: list[Fact] = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                fact = json.loads(line)
                fact["kind"]
            except (ValueError, TypeError, KeyError):
                raise OutputError(
                    f"{self._path}: line {number} is no fact of a journal; the file is damaged or another's"
                ) from None
            facts.append(fact)
        return facts
