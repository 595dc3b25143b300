"""``mosaicsim run``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mosaicsim.errors import InfeasibleError, MosaicsimError, ProfileError, ScenarioError


@contextmanager
def named(scenario: Path) -> Iterator[None]:
    """Say which scenario is meant where an error speaks of its keys only."""
    try:
        yield
    except (ScenarioError, ProfileError, InfeasibleError) as error:
        raise type(error)(f"{scenario}: {error}") from error


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a key, e.g. seed=7.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Result folder; results/<scenario name> by default, none with --json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json on stdout instead of the table.")
@click.option("--plots/--no-plots", default=True, help="Draw the plots of the result folder.")
@click.option("--resume", is_flag=True, help="Go on with a run of this scenario that was cut short.")
@click.option("--dry-run", is_flag=True, help="Check and print the resolved scenario; run nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(
    scenario: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    plots: bool,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Simulate SCENARIO: who wins, by how much, where the GPUs idle, and what the gate saves and costs."""
    from mosaicsim.scenario import dump_scenario, load_scenario

    study = load_scenario(scenario, overrides)
    if dry_run:
        from mosaicsim.analysis.study import check

        with named(scenario):
            check(study)
        click.echo(dump_scenario(study), nl=False)
        return

    from mosaicsim.analysis.journal import Journal
    from mosaicsim.analysis.study import simulate
    from mosaicsim.report.folder import check_writable, summary_text, write_result
    from mosaicsim.report.progress import show_progress

    folder = out if out or as_json else Path("results") / study.name
    if resume and folder is None:
        raise click.UsageError("--resume needs the result folder: add -o DIR")
    journal = None
    if folder is not None:
        check_writable(folder)
        journal = Journal(folder, study, resume=resume)
    try:
        with show_progress(enabled=not quiet) as progress, named(scenario):
            result = simulate(study, progress, journal)
        if folder is not None:
            write_result(result, folder, plots=plots)
    except (KeyboardInterrupt, MosaicsimError):
        if journal is not None and journal.finished:
            click.echo(f"{journal.finished} finished runs are kept; --resume goes on with them", err=True)
        raise
    if journal is not None:
        journal.close()
    if as_json:
        click.echo(summary_text(result), nl=False)
        return

    from rich.console import Console

    from mosaicsim.report.console import print_result

    print_result(result, Console())
    click.echo(f"results in {folder}", err=True)
