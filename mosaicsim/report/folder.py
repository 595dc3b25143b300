"""The result folder: written as a whole or not at all, and read back to draw it again.

scenario.resolved.yaml   the scenario with every default written out
summary.json             every figure; byte-identical for the same scenario and seed
wall.json                wall-clock figures, which are not
calls.parquet            a row a call, of all runs
timeline.parquet         a row a worker and interval of constant state, of all runs
workload.parquet         what each replicate had to compute, with its outcomes
plots/                   the plots
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaicsim.analysis.result import Result, Run
from mosaicsim.errors import OutputError, UserInputError

if TYPE_CHECKING:
    import pyarrow as pa

    from mosaicsim.workload.calls import Workload

SCENARIO, SUMMARY, WALL = "scenario.resolved.yaml", "summary.json", "wall.json"
CALLS, TIMELINE, WORKLOAD, PLOTS = "calls.parquet", "timeline.parquet", "workload.parquet", "plots"
OUTPUT_FILE, ANSWERS, ENGINES = "outputs.parquet", "answers.parquet", "engines.json"
JOURNALS, WORKER_LOGS = "runs", "workers"
NEEDED = frozenset((SCENARIO, SUMMARY, CALLS, TIMELINE, WORKLOAD))
ENTRIES = NEEDED | {WALL, PLOTS, OUTPUT_FILE, ANSWERS, ENGINES, JOURNALS, WORKER_LOGS}
"""What a result folder holds; a folder with anything else in it is never replaced."""

_DRAWN = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Contents:
    """A kind of folder: what shows that one is of this kind, and all that it may hold."""

    marks: frozenset[str]
    entries: frozenset[str]


RESULT = Contents(frozenset((SCENARIO, SUMMARY)), ENTRIES)


def check_writable(folder: Path, contents: Contents = RESULT) -> None:
    """Find out, before a long run, whether ``folder`` can be written. Raises OutputError."""
    target = _target(folder, contents)
    ancestor = next(p for p in target.parents if p.exists())
    if not ancestor.is_dir():
        raise OutputError(f"{folder}: cannot be written: {ancestor} is not a folder")
    trial = ancestor / f".{target.name}.{os.getpid()}.trial"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise OutputError(f"{folder}: no folder can be made in {ancestor}: {error.strerror}") from None


def write_result(
    result: Result, folder: Path, *, plots: bool = True, more: Callable[[Path], None] = lambda partial: None
) -> None:
    """Write ``result`` to ``folder``, in place of an earlier result if there is one, and what ``more`` adds.

    It is written beside the folder and moved there when it is whole. Raises OutputError.
    """

    def fill(partial: Path) -> None:
        _write_files(result, partial)
        more(partial)
        if plots:
            from mosaicsim.report.plots import save_plots

            save_plots(result, partial / PLOTS)

    write_whole(folder, fill)


def write_whole(folder: Path, fill: Callable[[Path], None], contents: Contents = RESULT) -> None:
    """Have ``fill`` write into a new folder beside ``folder``, and move it there. Raises OutputError."""
    check_writable(folder, contents)
    target = _target(folder, contents)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    created = _missing_parents(target)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        _move(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
        raise


def summary_text(result: Result) -> str:
    """Content of summary.json: floats as Python writes them, null for what is not finite."""
    return json.dumps(plain(result.summary), indent=1, allow_nan=False) + "\n"


def read_result(folder: Path) -> Result:
    """Read a result folder back, all but the workloads' calibration calls. Raises UserInputError."""
    import pyarrow as pa
    import yaml

    missing = sorted(name for name in NEEDED if not (folder / name).is_file())
    if missing:
        what = f"{missing[0]} is missing" if folder.is_dir() else "no such folder"
        raise UserInputError(f"{folder}: not a result folder of `mosaicsim run`: {what}")
    try:
        return _read_files(folder)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
        pa.ArrowException,
    ) as error:
        problem = str(error).partition("\n")[0]
        raise UserInputError(f"{folder}: damaged result folder: {type(error).__name__}: {problem}") from error


def _target(folder: Path, contents: Contents) -> Path:
    """Where the folder really is. Raises OutputError unless it is absent, empty or an earlier result."""
    target = folder.resolve()
    if not os.path.lexists(target):
        return target
    if not target.is_dir():
        raise OutputError(f"{folder}: cannot be written: it is a file, not a folder")
    held = {entry.name for entry in target.iterdir()}
    if held and not contents.marks <= held:
        raise OutputError(
            f"{folder}: holds '{min(held)}' and no result of mosaicsim; give an empty or new folder"
        )
    plots = target / PLOTS
    drawn = {p.name for p in plots.iterdir() if p.suffix not in _DRAWN} if plots.is_dir() else set()
    held |= {f"{PLOTS}/{name}" for name in drawn}
    if held - contents.entries:
        raise OutputError(
            f"{folder}: holds '{min(held - contents.entries)}', which mosaicsim did not write, "
            "beside a result; move it or give another folder"
        )
    return target


def _missing_parents(target: Path) -> list[Path]:
    """Parents that have to be made, innermost first."""
    return [parent for parent in target.parents if not parent.exists()]


def _move(partial: Path, target: Path) -> None:
    """Put the finished folder in place; the earlier one stays until the new one is there."""
    earlier = partial.with_suffix(".earlier")
    if target.exists():
        target.rename(earlier)
    try:
        partial.rename(target)
    except OSError:
        if earlier.exists():
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _write_files(result: Result, folder: Path) -> None:
    import yaml

    from mosaicsim.report.tables import calls_table, timeline_table, workload_table

    scenario = yaml.safe_dump(plain(result.scenario), sort_keys=False, allow_unicode=True, width=100)
    (folder / SCENARIO).write_text(scenario, encoding="utf-8")
    (folder / SUMMARY).write_text(summary_text(result), encoding="utf-8")
    (folder / WALL).write_text(json.dumps(plain(result.wall), indent=1) + "\n", encoding="utf-8")
    _write_table(calls_table(result), folder / CALLS)
    _write_table(timeline_table(result), folder / TIMELINE)
    _write_table(_with_names(workload_table(result), result), folder / WORKLOAD)


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table.unify_dictionaries(), path, compression="zstd", compression_level=1)


def _with_names(table: pa.Table, result: Result) -> pa.Table:
    """Add what rows cannot hold: the workers, and each replicate's experts in first-seen order."""
    names = {
        "workers": list(result.workers),
        "workloads": [
            {"name": w.name, "experts": list(w.experts), "labels": w.labels} for w in result.workloads
        ],
    }
    return table.replace_schema_metadata({"mosaicsim": json.dumps(names)})


def plain(value: Any) -> Any:
    """Python's own types all through, so that JSON and YAML can hold them; None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read_files(folder: Path) -> Result:
    import pyarrow.parquet as pq
    import yaml

    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    table = pq.read_table(folder / WORKLOAD)
    names = json.loads(table.schema.metadata[b"mosaicsim"])
    workloads = _read_workloads(table, names["workloads"])
    return Result(
        scenario=yaml.safe_load((folder / SCENARIO).read_text(encoding="utf-8")),
        summary=summary,
        workloads=workloads,
        workers=tuple(names["workers"]),
        runs=_read_runs(folder, summary, workloads, names["workers"]),
    )


def _read_workloads(table: pa.Table, names: list[dict[str, Any]]) -> tuple[Workload, ...]:
    import pyarrow.compute as pc

    from mosaicsim.report.tables import read_workload

    return tuple(
        read_workload(table.filter(pc.equal(table["replicate"], replicate)), **of)
        for replicate, of in enumerate(names)
    )


def _read_runs(
    folder: Path, summary: dict[str, Any], workloads: tuple[Workload, ...], workers: list[str]
) -> tuple[Run, ...]:
    import pyarrow.parquet as pq

    from mosaicsim.report.tables import read_calls, read_timeline, split_runs

    calls, timeline = (split_runs(pq.read_table(folder / name)) for name in (CALLS, TIMELINE))
    plans = {(plan.pop("scheduler"), plan.pop("replicate")): plan for plan in map(dict, summary["plans"])}
    fits = {(fit.pop("gate"), fit.pop("replicate")): fit for fit in map(dict, summary.get("gates", ()))}
    runs = []
    for metrics in summary["runs"]:
        key = metrics["scheduler"], metrics["gate"], metrics["replicate"]
        workload = workloads[metrics["replicate"]]
        runs.append(
            Run(
                *key,
                sees_lengths=metrics["sees_lengths"],
                metrics=metrics,
                calls=read_calls(calls[key], workload, workers),
                timeline=read_timeline(timeline[key], workload, workers),
                gpu_time=metrics["gpu_time"],
                plan_info=plans[metrics["scheduler"], metrics["replicate"]],
                gate_info=fits.get((metrics["gate"], metrics["replicate"]), {}),
            )
        )
    return tuple(runs)
