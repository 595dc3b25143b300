"""The table `mosaicsim validate --log` prints."""

from __future__ import annotations

from typing import Any

ROWS = (
    ("TTFT mean", "ttft_mean_s", "ttft_mean_error_pct", 1.0, "s"),
    ("TPOT mean", "tpot_mean_s", "tpot_mean_error_pct", 1e3, "ms"),
    ("E2E mean", "e2e_mean_s", "e2e_mean_error_pct", 1.0, "s"),
    ("makespan", "makespan_s", "makespan_error_pct", 1.0, "s"),
)
"""Name, figure, its error, and the unit it is shown in."""


def print_log_replay(figures: dict[str, Any]) -> None:
    """Print real and simulated figures of a log and their errors."""
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
