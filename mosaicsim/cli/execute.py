"""``mosaicsim execute``."""

from __future__ import annotations

from pathlib import Path

import click

from mosaicsim.cli.run import named
from mosaicsim.errors import MosaicsimError


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a key, e.g. seed=7.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Result folder; results/<scenario name>-real by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json on stdout instead of the table.")
@click.option("--plots/--no-plots", default=True, help="Draw the plots of the result folder.")
@click.option("--resume", is_flag=True, help="Go on with an execution of this scenario that was cut short.")
@click.option("--dry-run", is_flag=True, help="Check everything that needs no model loaded; run nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_context
def execute(
    ctx: click.Context,
    scenario: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    plots: bool,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Run SCENARIO on real vLLM engines: its section `execution` names the questions and the models.

    Every call is kept as it finishes; --resume goes on after a crash or Ctrl-C. Exit code 1 when calls had to
    be given up.
    """
    import shutil

    from mosaicsim.analysis.execution import check_execution, execute
    from mosaicsim.report.executed import write_execution
    from mosaicsim.report.folder import check_writable, summary_text
    from mosaicsim.report.progress import show_progress
    from mosaicsim.scenario import dump_scenario, load_scenario

    study = load_scenario(scenario, overrides)
    if dry_run:
        with named(scenario):
            notes = check_execution(study)
        click.echo(dump_scenario(study), nl=False)
        _say(notes)
        return
    folder = out or Path("results") / f"{study.name}-real"
    check_writable(folder)
    work = folder.resolve().with_name(f"{folder.name}.unfinished")
    try:
        with show_progress(enabled=not quiet) as progress, named(scenario):
            execution = execute(study, work, progress, resume=resume)
        write_execution(execution, work, folder, plots=plots)
    except (KeyboardInterrupt, MosaicsimError):
        if work.exists():
            click.echo(f"what finished is kept in {work}; --resume goes on with it", err=True)
        raise
    shutil.rmtree(work)
    if as_json:
        click.echo(summary_text(execution.result), nl=False)
    else:
        from rich.console import Console

        from mosaicsim.report.console import print_result

        print_result(execution.result, Console())
        click.echo(f"results in {folder}", err=True)
    _say(execution.notes)
    if execution.given_up:
        _say([f"given up: {what}" for what in execution.given_up])
        ctx.exit(MosaicsimError.exit_code)


def _say(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)
