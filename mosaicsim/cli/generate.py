"""`mosaicsim trace generate`: make a synthetic trace from a spec and show targets beside what came out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mosaicsim.workload.trace import Trace


MAX_QUESTIONS = 200_000
"""More would take over 1 GB of memory to generate."""


@click.command()
@click.argument("spec", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Parquet file to write.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the trace.  [default: the spec's]")
@click.option(
    "--questions",
    type=click.IntRange(min=1, max=MAX_QUESTIONS),
    help="Number of questions; slots and targets shrink or grow in proportion.  [default: the spec's]",
)
@click.option("--calibration", is_flag=True, help="Generate the calibration questions of the spec instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def generate(
    spec: str, output: str, seed: int | None, questions: int | None, calibration: bool, as_json: bool
) -> None:
    """Generate a synthetic trace from the YAML file SPEC."""
    trace = make(spec, output, seed, questions, calibration)
    report = trace.metadata.provenance.report
    if as_json:
        click.echo(
            json.dumps({"trace": output, "content_hash": trace.metadata.content_hash, **report}, indent=2)
        )
    else:
        _print(output, trace, report)


def make(spec_path: str, output: str, seed: int | None, questions: int | None, calibration: bool) -> Trace:
    """Generate and write; the metadata keeps the command that makes the same file again."""
    from dataclasses import replace

    from mosaicsim.workload import synthetic
    from mosaicsim.workload.trace import write_trace

    spec = synthetic.load_spec(spec_path)
    if questions is not None and calibration:
        spec = spec.model_copy(update={"calibration_questions": questions})
    elif questions is not None:
        spec = spec.scaled(questions)
    seed = spec.seed if seed is None else seed
    table, metadata = synthetic.generate(spec, synthetic.generator(seed), calibration=calibration)
    command = _command(spec_path, output, seed, questions, calibration)
    provenance = metadata.provenance.model_copy(update={"command": command})
    return write_trace(output, table, replace(metadata, provenance=provenance))


def _command(spec: str, output: str, seed: int, questions: int | None, calibration: bool) -> str:
    parts = ["mosaicsim trace generate", spec, "-o", output, "--seed", str(seed)]
    parts += ["--questions", str(questions)] if questions is not None else []
    return " ".join([*parts, "--calibration"] if calibration else parts)


def _print(output: str, trace: Trace, report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{output}: {len(trace):,} rows, {report['questions']:,} questions")
    table.add_column("figure")
    for column in ("target", "recorded", "redrawn"):
        table.add_column(column, justify="right")
    table.add_column("source of the target", overflow="fold")
    for line in report["figures"]:
        table.add_row(
            line["figure"], *(_show(line[key]) for key in ("target", "recorded", "redrawn")), line["source"]
        )
    console = Console()
    console.print(table)
    console.print(f"fitted: {report['fitted']}", highlight=False)
    console.print(f"content hash {trace.metadata.content_hash}", highlight=False)


def _show(value: float | list[float] | tuple[float, ...] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"
