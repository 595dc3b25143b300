"""Finished runs of a study kept on disk, so that a crash or Ctrl-C loses none and ``--resume`` goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np

from mosaicsim import __version__
from mosaicsim.analysis.result import Columns, Run
from mosaicsim.errors import OutputError, ScenarioError
from mosaicsim.scenario import Scenario, resolved
from mosaicsim.workload.trace import read_trace

STUDY = "study.json"
_COLUMNS = ("calls", "timeline")
_SUFFIXES = (".npz", ".tmp")


class Journal:
    """One file a finished run, in a folder beside the result's that goes away when the result is written."""

    def __init__(self, result: Path, scenario: Scenario, *, resume: bool) -> None:
        """Open the journal of a study whose result goes to ``result``; without ``resume`` it starts empty.

        Nothing is written before the first run is kept. Raises ScenarioError when what is there belongs to
        another study, OutputError when something else is there.
        """
        target = result.resolve()
        self.folder = target.with_name(f"{target.name}.unfinished")
        self._study = _identity(scenario)
        self._fresh = not resume
        if not self.folder.exists():
            return
        foreign = [p.name for p in self.folder.iterdir() if p.name != STUDY and p.suffix not in _SUFFIXES]
        if foreign or not (self.folder / STUDY).is_file():
            raise OutputError(
                f"{self.folder}: is no unfinished study of mosaicsim and is in the way; move it"
            )
        if resume and (self.folder / STUDY).read_text() != self._study:
            raise ScenarioError(
                f"{self.folder}: --resume: it was begun with another scenario, trace, profile or version; "
                "without --resume the study starts anew"
            )

    @property
    def finished(self) -> int:
        """How many runs are kept."""
        return len(list(self.folder.glob("*.npz")))

    def find(self, number: int) -> Run | None:
        """The run of that number in the study, if it had finished and can be read."""
        path = self.folder / f"{number}.npz"
        if self._fresh or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                return Run(**facts, calls=_columns(stored, "calls"), timeline=_columns(stored, "timeline"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None  # damaged: it is run again

    def keep(self, number: int, run: Run) -> None:
        """Write a finished run; it appears whole or not at all."""
        facts = {f.name: getattr(run, f.name) for f in fields(Run) if f.name not in _COLUMNS}
        arrays = {f"{group}.{name}": c for group in _COLUMNS for name, c in getattr(run, group).items()}
        temporary = self.folder / f"{number}.tmp"
        try:
            if self._fresh:
                shutil.rmtree(self.folder, ignore_errors=True)
                self._fresh = False
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                (self.folder / STUDY).write_text(self._study)
            with temporary.open("wb") as file:
                np.savez(file, facts=json.dumps(facts), **arrays)
            os.replace(temporary, self.folder / f"{number}.npz")
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Remove the journal: the result holds everything now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _columns(stored: np.lib.npyio.NpzFile, group: str) -> Columns:
    return {name.partition(".")[2]: stored[name] for name in stored.files if name.startswith(f"{group}.")}


def _identity(scenario: Scenario) -> str:
    """What a study's runs depend on: the scenario, the content of its files, the program's version."""
    traces = [scenario.workload.trace, scenario.workload.calibration.trace]
    hashes = [read_trace(path).metadata.content_hash for path in traces if path is not None]
    hashes += [
        hashlib.sha256(Path(profile).read_bytes()).hexdigest()
        for profile in scenario.profiles
        if Path(profile).is_file()
    ]
    return json.dumps({"version": __version__, "content": hashes, "scenario": resolved(scenario)})
