"""`mosaicsim validate`: the simulation against a log of real requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

ROWS = (
    ("TTFT mean", "ttft_mean_s", "ttft_mean_error_pct", 1.0, "s"),
    ("TPOT mean", "tpot_mean_s", "tpot_mean_error_pct", 1e3, "ms"),
    ("E2E mean", "e2e_mean_s", "e2e_mean_error_pct", 1.0, "s"),
    ("makespan", "makespan_s", "makespan_error_pct", 1.0, "s"),
)
"""Name, figure, its error, and the unit it is shown in."""


@click.command()
@click.option(
    "--log",
    "log_file",
    required=True,
    type=click.Path(path_type=Path),
    help="CSV (or .csv.gz) of real requests: arrival_s, prompt_tokens, generated_tokens, first_token_s, "
    "last_token_s.",
)
@click.option(
    "--profile",
    required=True,
    metavar="FILE|DEVICE/MODEL[/TIMING]",
    help="Step times: a profile file, or a name as rtx4090/llama-3.1-8b.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="The engine's own settings, e.g. engine.num_gpu_blocks=2588; host time is none by default.",
)
@click.option(
    "--fit-overhead",
    "fit_fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="FRACTION",
    help="Fit the host time of a step on this first part of the log; errors are of the rest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(
    log_file: Path, profile: str, overrides: tuple[str, ...], fit_fraction: float | None, as_json: bool
) -> None:
    """Replay a log of real requests on the simulated engine and say how far apart the two are."""
    from mosaicsim.analysis.log_replay import read_log, replay_engine, validate_log
    from mosaicsim.errors import InfeasibleError

    log, engine = read_log(log_file), replay_engine(profile, overrides)
    try:
        figures = validate_log(log, engine, fit_fraction)
    except InfeasibleError as error:
        raise InfeasibleError(f"{log_file}: {error}; --set engine.num_gpu_blocks=N sets them") from None
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print_table(figures)


def _print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{figures['requests_compared']} real requests and their replay", caption=_caption(figures)
    )
    table.add_column("")
    for column in ("real", "simulated", "error"):
        table.add_column(column, justify="right")
    for name, figure, error, scale, unit in ROWS:
        seconds = (figures[side][figure] for side in ("real", "simulated"))
        table.add_row(name, *(_cell(s, scale, unit) for s in seconds), _percent(figures[error], "+"))
    table.add_row("E2E, mean absolute error a request", "", "", _percent(figures["e2e_mape_pct"], ""))
    table.add_row("preemptions, all requests", "", f"{figures['preemptions']:,}", "")
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(table)


def _caption(figures: dict[str, Any]) -> str:
    host = f"host time a step {figures['host_overhead_s'] * 1e3:.3f} ms"
    if figures["requests_fitted"]:
        return f"{host}, fitted on the {figures['requests_fitted']:,} requests before"
    return f"{host}; nothing fitted to the log"


def _cell(seconds: float | None, scale: float, unit: str) -> str:
    return "-" if seconds is None else f"{seconds * scale:,.2f} {unit}"


def _percent(error: float | None, sign: str) -> str:
    return "-" if error is None else f"{error:{sign}.2f} %"
