"""What the result folder of a real run holds beside that of a simulated one.

outputs.parquet   a row a call: the text, the answer, lengths, times, confidence
answers.parquet   a row a question and run: the answer, whose it is, the votes
engines.json      the settings that each model's engine chose itself
runs/             a journal a run: every fact as it came
workers/          what the worker processes printed
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa

from mosaicsim.analysis.execution import JOURNAL, OUTPUTS, RUNS, WORKERS, Execution
from mosaicsim.report.folder import ANSWERS, ENGINES, JOURNALS, OUTPUT_FILE, WORKER_LOGS, write_result
from mosaicsim.report.outputs import merge, write_parquet

ANSWERS_SCHEMA = pa.schema(
    [
        ("scheduler", pa.string()),
        ("gate", pa.string()),
        ("replicate", pa.int32()),
        ("question_id", pa.string()),
        ("category", pa.string()),
        ("answer", pa.string()),
        ("source", pa.string()),
        ("votes", pa.list_(pa.string())),
        ("gold", pa.string()),
        ("correct", pa.bool_()),
    ]
)


def write_execution(execution: Execution, work: Path, folder: Path, *, plots: bool = True) -> None:
    """Write ``execution``, whose journals and outputs are in ``work``, to ``folder``. Raises OutputError."""

    def add(partial: Path) -> None:
        runs = sorted(path for path in (work / RUNS).iterdir())
        merge([run / OUTPUTS for run in runs], partial / OUTPUT_FILE)
        write_parquet(pa.Table.from_pylist(execution.answers, ANSWERS_SCHEMA), partial / ANSWERS)
        (partial / ENGINES).write_text(json.dumps(execution.engines, indent=1) + "\n")
        (partial / JOURNALS).mkdir()
        for run in runs:
            shutil.copyfile(run / JOURNAL, partial / JOURNALS / f"{run.name}.jsonl")
        shutil.copytree(work / WORKERS, partial / WORKER_LOGS)

    write_result(execution.result, folder, plots=plots, more=add)
