"""``mosaicsim validate``: the simulation against real runs of a scenario, or a log of real requests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mosaicsim.cli.run import named
from mosaicsim.errors import MosaicsimError

if TYPE_CHECKING:
    from mosaicsim.scenario import Scenario

MISSED = 3
"""Exit code for a threshold that was missed."""

OF_A_LOG = ("log_file", "profile", "fit_fraction")
OF_A_SCENARIO = (
    *("repeats", "results", "draws", "out", "max_makespan_error", "max_e2e_mape", "plots", "resume", "quiet"),
)
"""Parameters that go with one of the two only."""


@click.command()
@click.argument("scenario", required=False, type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a key of the scenario; with --log, the engine's own settings, "
    "e.g. engine.num_gpu_blocks=2588.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of tables.")
@click.option(
    "--repeats", type=click.IntRange(1, 100), default=2, show_default=True, help="How often to run for real."
)
@click.option(
    "--from",
    "results",
    multiple=True,
    metavar="RESULT",
    type=click.Path(path_type=Path, file_okay=False),
    help="A result folder of `mosaicsim execute` to use instead of new runs; each is a repeat.",
)
@click.option(
    "--draws", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Forecasts of each run."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Result folder; results/<scenario name>-validation by default, none with --from and --json.",
)
@click.option(
    "--max-makespan-error",
    type=click.FloatRange(min=0),
    metavar="PCT",
    help="Exit code 3 if a replay's makespan is further off.",
)
@click.option(
    "--max-e2e-mape",
    type=click.FloatRange(min=0),
    metavar="PCT",
    help="Exit code 3 if the calls of a replay are further off in e2e, on average.",
)
@click.option("--plots/--no-plots", default=True, help="Draw real and replayed Gantt charts.")
@click.option("--resume", is_flag=True, help="Go on with a validation of this scenario that was cut short.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option(
    "--log",
    "log_file",
    type=click.Path(path_type=Path),
    help="CSV (or .csv.gz) of real requests: arrival_s, prompt_tokens, generated_tokens, first_token_s, "
    "last_token_s.",
)
@click.option(
    "--profile",
    metavar="FILE|DEVICE/MODEL[/TIMING]",
    help="With --log: step times, from a profile file or by name as rtx4090/llama-3.1-8b.",
)
@click.option(
    "--fit-overhead",
    "fit_fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="FRACTION",
    help="With --log: fit the host time of a step on this first part of it; errors are of the rest.",
)
@click.pass_context
def validate(
    ctx: click.Context,
    /,
    scenario: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    log_file: Path | None,
    profile: str | None,
    fit_fraction: float | None,
    max_makespan_error: float | None,
    max_e2e_mape: float | None,
    **of_a_scenario: Any,
) -> None:
    """Run SCENARIO for real, simulate the same, and say how far apart the two are.

    Three comparisons. Replay: the recorded sessions and lengths on the simulated engine. Plan: planned blind,
    real lengths. Forecast: lengths drawn from the calibration trace. Exit code 3 when a threshold is missed.

    With --log instead of SCENARIO: replay a log of real requests on the simulated engine.
    """
    if (scenario is None) == (log_file is None):
        raise click.UsageError("give either SCENARIO or --log FILE")
    _require_none(ctx, OF_A_LOG if scenario else OF_A_SCENARIO, "--log" if scenario else "SCENARIO")
    if log_file is not None:
        if profile is None:
            raise click.UsageError("--log needs --profile")
        _of_log(log_file, profile, overrides, fit_fraction, as_json)
        return
    assert scenario is not None
    missed = _of_scenario(scenario, overrides, as_json, (max_makespan_error, max_e2e_mape), **of_a_scenario)
    for failure in missed:
        click.echo(f"mosaicsim: {failure}", err=True)
    if missed:
        ctx.exit(MISSED)


def _require_none(ctx: click.Context, parameters: tuple[str, ...], belongs: str) -> None:
    """Refuse options that the mode at hand would ignore."""
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if parameter.name in parameters and given:
            raise click.UsageError(f"{parameter.opts[-1]} goes with {belongs} only")


def _of_log(
    log_file: Path, profile: str, overrides: tuple[str, ...], fit_fraction: float | None, as_json: bool
) -> None:
    from mosaicsim.analysis.log_replay import read_log, replay_engine, validate_log
    from mosaicsim.errors import InfeasibleError
    from mosaicsim.report.log_replay import print_log_replay

    log, engine = read_log(log_file), replay_engine(profile, overrides)
    try:
        figures = validate_log(log, engine, fit_fraction)
    except InfeasibleError as error:
        raise InfeasibleError(f"{log_file}: {error}; --set engine.num_gpu_blocks=N sets them") from None
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        print_log_replay(figures)


def _of_scenario(
    scenario: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    limits: tuple[float | None, float | None],
    *,
    repeats: int,
    results: tuple[Path, ...],
    draws: int,
    out: Path | None,
    plots: bool,
    resume: bool,
    quiet: bool,
) -> list[str]:
    """Validate and show; returns the thresholds that were missed, in words."""
    from rich.console import Console

    from mosaicsim.analysis.validation import validate as compare
    from mosaicsim.report.folder import check_writable
    from mosaicsim.report.validation import (
        CONTENTS,
        missed,
        print_validation,
        validation_text,
        write_validation,
    )
    from mosaicsim.scenario import load_scenario

    if results and resume:
        raise click.UsageError("--resume goes on with real runs; there are none with --from")
    study = load_scenario(scenario, overrides)
    folder = out or (None if results and as_json else Path("results") / f"{study.name}-validation")
    if folder is not None:
        check_writable(folder, CONTENTS)
    made: list[Path] = []
    notes: list[str] = []
    work = None if results or folder is None else folder.resolve().with_name(f"{folder.name}.unfinished")
    if work is not None:
        made, notes = _execute(scenario, study, repeats, work, resume=resume, quiet=quiet)
    with named(scenario):
        validation = compare(study, results or made, draws=draws)
    if folder is not None:
        write_validation(validation, study, folder, made, plots=plots)
    if work is not None:
        shutil.rmtree(work)
    if as_json:
        click.echo(validation_text(validation), nl=False)
    else:
        print_validation(validation, Console())
    if folder is not None:
        click.echo(f"results in {folder}", err=True)
    for note in [*notes, *validation.notes]:
        click.echo(f"note: {note}", err=True)
    return missed(validation, *limits)


def _execute(
    path: Path, study: Scenario, repeats: int, work: Path, *, resume: bool, quiet: bool
) -> tuple[list[Path], list[str]]:
    """The real runs; what finished stays when they are cut short."""
    from mosaicsim.analysis.repeats import execute_repeats
    from mosaicsim.report.progress import show_progress

    try:
        with show_progress(enabled=not quiet) as progress, named(path):
            return execute_repeats(study, repeats, work, progress, resume=resume)
    except (KeyboardInterrupt, MosaicsimError):
        if work.exists():
            click.echo(f"what finished is kept in {work}; --resume goes on with it", err=True)
        raise
