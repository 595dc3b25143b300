"""`mosaicsim trace`: make traces from foreign files, look into them, check them."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mosaicsim.errors import TraceError, UserInputError

if TYPE_CHECKING:
    from rich.table import Table

    from mosaicsim.workload.importers import ImportOptions
    from mosaicsim.workload.trace import Trace

MAX_LINES = 100
"""Problems that `trace validate` prints for one file."""


class _TraceGroup(click.Group):
    """Loads `generate`, a module of its own, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "generate"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "generate":
            from mosaicsim.cli.generate import generate

            return generate
        return super().get_command(ctx, cmd_name)


@click.group(cls=_TraceGroup)
def trace() -> None:
    """Make, import, check and describe traces."""


@trace.command(name="import")
@click.argument("file", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Trace (Parquet) to write.")
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="COLUMN=THEIRS",
    help="Which of the file's columns is the trace column COLUMN; may be given several times.",
)
@click.option("--dataset", help="Dataset name of every row; needed where the file has no such column.")
@click.option(
    "--exclude", multiple=True, metavar="EXPERT", help="An expert of the file to leave out; may be repeated."
)
@click.option(
    "--reasoning", multiple=True, metavar="EXPERT", help="An expert that thinks first; may be repeated."
)
@click.option(
    "--visible-tokens",
    metavar="N|COLUMN",
    help="What the aggregator reads of a reasoning expert: a number, modelled, or a column.  [default: 330]",
)
@click.option("--aggregator", metavar="EXPERT", help="The expert whose rows are the aggregator's.")
@click.option(
    "--incomplete",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="What to do with questions that some expert has not answered.",
)
@click.option(
    "--conflicting",
    type=click.Choice(["keep", "drop", "error"]),
    default="keep",
    show_default=True,
    help="What to do with questions that were graded by different gold answers.",
)
def import_(
    file: str,
    output: str,
    mapping: tuple[str, ...],
    dataset: str | None,
    exclude: tuple[str, ...],
    reasoning: tuple[str, ...],
    visible_tokens: str | None,
    aggregator: str | None,
    incomplete: str,
    conflicting: str,
) -> None:
    """Read FILE (.csv or .jsonl, also .gz), a row a (question, expert, sample), and write a trace."""
    from mosaicsim.workload.importers import REASONING_VISIBLE_TOKENS, ImportOptions, import_trace
    from mosaicsim.workload.trace import write_trace

    columns = _mapping(mapping)
    constant = REASONING_VISIBLE_TOKENS
    if visible_tokens is not None and visible_tokens.isdecimal():
        constant = int(visible_tokens)
    elif visible_tokens is not None:
        columns["visible_tokens"] = visible_tokens
    options = ImportOptions(
        columns=columns,
        dataset=dataset,
        exclude=exclude,
        reasoning=reasoning,
        visible_tokens=constant,
        aggregator=aggregator,
        drop_incomplete=incomplete == "drop",
        conflicting=conflicting,
    )
    options = replace(options, command=_command(file, output, options))
    imported = import_trace(file, options)
    written = write_trace(output, imported.table, imported.metadata)
    sizes = f"{len(written):,} rows, {len(written.questions):,} questions, {len(written.experts)} experts"
    click.echo(f"{output}: {sizes}")
    for note in written.metadata.provenance.notes:
        click.echo(f"note: {note}", err=True)


@trace.command()
@click.argument("source", metavar="SCENARIO|RESULT", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Trace to write.")
@click.option("--questions", type=click.Path(), help="Question file to ask instead of the scenario's.")
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a key of the scenario."
)
@click.option(
    "--samples", type=click.IntRange(1, 64), default=1, show_default=True, help="Answers of each expert."
)
@click.option("--run", default=0, show_default=True, help="Which run of a result folder.")
@click.option("--resume", is_flag=True, help="Go on with a recording that was cut short.")
@click.option("--quiet", is_flag=True, help="No progress.")
def record(
    source: Path,
    output: Path,
    questions: str | None,
    overrides: tuple[str, ...],
    samples: int,
    run: int,
    resume: bool,
    quiet: bool,
) -> None:
    """Record a trace on real engines.

    From a SCENARIO with an `execution` section: every expert answers every question, the aggregator reads k
    of them. From the RESULT folder of `mosaicsim execute`: the calls of one of its runs, as they went.
    """
    if source.is_dir():
        from mosaicsim.analysis.recording import record_run

        words = [
            "mosaicsim",
            "trace",
            "record",
            source.name,
            "-o",
            output.name,
            *(["--run", str(run)] if run else []),
        ]
        written = record_run(source, output, command=shlex.join(words), run=run)
    else:
        written = _record_block(source, output, questions, overrides, samples, resume, quiet)
    sizes = f"{len(written):,} rows, {len(written.questions):,} questions, {len(written.experts)} experts"
    click.echo(f"{output}: {sizes}")
    for note in written.metadata.provenance.notes:
        click.echo(f"note: {note}", err=True)


def _record_block(
    source: Path,
    output: Path,
    questions: str | None,
    overrides: tuple[str, ...],
    samples: int,
    resume: bool,
    quiet: bool,
) -> Trace:
    import shutil

    from mosaicsim.analysis.recording import record_block
    from mosaicsim.cli.run import named
    from mosaicsim.report.progress import show_progress
    from mosaicsim.scenario import load_scenario

    if questions is not None:
        overrides = (*overrides, f"execution.questions={Path(questions).resolve()}")
    scenario = load_scenario(source, overrides)
    words = ["mosaicsim", "trace", "record", source.name, "-o", output.name]
    words += [] if questions is None else ["--questions", _basename(questions)]
    words += ["--samples", str(samples)] if samples > 1 else []
    work = output.resolve().with_name(f"{output.name}.unfinished")
    with show_progress(enabled=not quiet) as progress, named(source):
        written = record_block(
            scenario, work, output, progress, command=shlex.join(words), samples=samples, resume=resume
        )
    shutil.rmtree(work)
    return written


@trace.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def info(file: str, as_json: bool) -> None:
    """Describe the trace FILE: experts, lengths, accuracy, agreement, where it came from."""
    from mosaicsim.workload.info import describe
    from mosaicsim.workload.trace import read_trace

    figures = describe(read_trace(file))
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)


@trace.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.pass_context
def validate(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check every value of the traces FILES; exit code 2 when a problem is found."""
    reports = [_check(file) for file in files]
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    for report in () if as_json else reports:
        for line in report["problems"]:
            click.echo(line)
        if report["count"] > len(report["problems"]):
            click.echo(f"{report['trace']}: and {report['count'] - len(report['problems']):,} more problems")
        if not report["count"]:
            click.echo(f"{report['trace']}: ok, {report['rows']:,} rows")
    if any(report["count"] for report in reports):
        ctx.exit(TraceError.exit_code)


def _mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """``--map`` values as a dict. Raises UserInputError: not COLUMN=THEIRS, or a column mapped twice."""
    columns: dict[str, str] = {}
    for pair in pairs:
        name, equals, theirs = pair.partition("=")
        if not (name and equals and theirs):
            raise UserInputError(f"--map {pair}: expected COLUMN=THEIRS, as in --map question_id=qid")
        if name in columns:
            raise UserInputError(f"--map {pair}: column '{name}' is already mapped to '{columns[name]}'")
        columns[name] = theirs
    return columns


def _command(file: str, output: str, options: ImportOptions) -> str:
    """The command line that makes the same trace; file names only, since folders are the machine's own."""
    parts = ["mosaicsim", "trace", "import", _basename(file), "-o", _basename(output)]
    parts += [word for name, theirs in options.columns.items() for word in ("--map", f"{name}={theirs}")]
    parts += [] if options.dataset is None else ["--dataset", options.dataset]
    parts += [word for name in options.exclude for word in ("--exclude", name)]
    parts += [word for name in options.reasoning for word in ("--reasoning", name)]
    if "visible_tokens" not in options.columns:
        parts += ["--visible-tokens", str(options.visible_tokens)]
    parts += [] if options.aggregator is None else ["--aggregator", options.aggregator]
    parts += ["--incomplete", "drop"] if options.drop_incomplete else []
    return shlex.join([*parts, "--conflicting", "drop"] if options.conflicting == "drop" else parts)


def _basename(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _check(file: str) -> dict[str, Any]:
    """One file's report; what keeps it from being read counts as its only problem."""
    from mosaicsim.workload.trace import read_trace
    from mosaicsim.workload.validate import violations

    try:
        found = read_trace(file, check=False)
    except TraceError as error:
        return {"trace": file, "rows": None, "count": 1, "problems": [str(error)]}
    broken = violations(found)
    lines = ((violation, row) for violation in broken for row in violation.rows.tolist())
    shown = [
        f"{file}: {violation.line(row)}" for (violation, row), _ in zip(lines, range(MAX_LINES), strict=False)
    ]
    return {"trace": file, "rows": len(found), "count": sum(len(v.rows) for v in broken), "problems": shown}


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    console.print(
        f"{figures['trace']}: {figures['rows']:,} rows, {figures['questions']:,} questions, "
        f"categories {', '.join(figures['categories'])}; dataset {', '.join(figures['datasets'])}",
        markup=False,
        soft_wrap=True,
    )
    table = _table(figures)
    # Wider than the terminal rather than with folded names: a pipe has 80 columns.
    table.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table, crop=False, soft_wrap=True)
    routing = figures["routing"]
    if routing is not None:
        shares = ", ".join(
            f"{votes} of {routing['k']}: {share:.1%}" for votes, share in routing["plurality_votes"].items()
        )
        console.print(
            f"recorded routing, votes for the plurality answer: {shares}", markup=False, soft_wrap=True
        )
    provenance = figures["provenance"]
    for key in ("command", "sources", "notes", "labels", "caps"):
        lines = provenance[key]
        if lines:
            text = lines if isinstance(lines, str) else json.dumps(lines)
            console.print(f"{key}: {text}", markup=False, soft_wrap=True)
    console.print(f"content hash {figures['content_hash']}", markup=False)


def _table(figures: dict[str, Any]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, caption="mean to max: output tokens", caption_justify="left")
    table.add_column("expert", no_wrap=True)
    for column in ("calls", "drawn", "mean", "p50", "p99", "max", "at cap", "accuracy"):
        table.add_column(column, justify="right")
    aggregator = [figures["aggregator"]] if figures["aggregator"] else []
    for row in [*figures["experts"], *aggregator]:
        counts = [f"{row['calls']:,}", f"{row['drawn']:,}"]
        tokens = ["" if row[key] is None else f"{row[key]:,.0f}" for key in ("mean", "p50", "p99", "max")]
        shares = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("cap_share", "accuracy")]
        table.add_row(row["expert"], *counts, *tokens, *shares)
    return table
