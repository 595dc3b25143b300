"""Several executions of one scenario, each a result folder: what real runs differ by among themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

from mosaicsim.analysis.execution import Executed, execute, identity_of, open_work
from mosaicsim.analysis.study import Progress
from mosaicsim.report.executed import write_execution
from mosaicsim.report.folder import SUMMARY
from mosaicsim.scenario import Scenario

T = TypeVar("T")


def execute_repeats(
    scenario: Scenario, n: int, work: Path, progress: Progress, *, resume: bool = False
) -> tuple[list[Path], list[str]]:
    """Execute ``scenario`` ``n`` times; returns the result folders, in ``work``, and notes.

    Each time another scheduler goes first, so that what a machine does in the course of minutes is not taken
    for a scheduler's doing. What ``work`` has is not run again with ``resume``. Raises as ``execute`` does.
    """
    open_work(work, identity_of(Executed(scenario)), resume=resume)
    folders, notes = [], []
    for number in range(1, n + 1):
        folder, unfinished = work / str(number), work / f"{number}.unfinished"
        folders.append(folder)
        if (folder / SUMMARY).is_file():
            continue

        def tell(done: int, total: int, what: str, number: int = number) -> None:
            progress(done, total, f"repeat {number} of {n}: {what}")

        turn = scenario.model_copy(update={"schedulers": _rotated(scenario.schedulers, number - 1)})
        execution = execute(turn, unfinished, tell, resume=unfinished.exists())
        write_execution(execution, unfinished, folder, plots=False)
        shutil.rmtree(unfinished)
        notes += [f"repeat {number}: given up: {what}" for what in execution.given_up]
        notes += execution.notes if number == 1 else []
    return folders, notes


def _rotated(items: tuple[T, ...], by: int) -> tuple[T, ...]:
    by %= len(items)
    return items[by:] + items[:by]
