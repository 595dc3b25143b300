"""What a validation is shown as: tables on a terminal, and a folder.

validation.json          every figure
scenario.resolved.yaml   the scenario, every default written out
plots/                   real and replayed runs one above the other, a picture a gate and replicate
repeats/                 the result folders of the real runs that were made for it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaicsim.analysis.validation import Validation
from mosaicsim.report.folder import PLOTS, SCENARIO, Contents, plain, write_whole
from mosaicsim.scenario import Scenario, dump_scenario

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

VALIDATION, REPEATS = "validation.json", "repeats"
CONTENTS = Contents(frozenset((VALIDATION, SCENARIO)), frozenset((VALIDATION, SCENARIO, PLOTS, REPEATS)))

FIGURES = (
    ("ttft from admission", "calls", "ttft"),
    ("ttft from session ready", "calls", "ttft_from_ready"),
    ("tpot", "calls", "tpot"),
    ("e2e from session ready", "calls", "e2e"),
    ("session: load, first on a worker", "sessions", "load_first"),
    ("session: load, later ones", "sessions", "load_later"),
    ("session: generate", "sessions", "generate"),
    ("session: load and generate", "sessions", "total"),
)
"""Rows of the table of replay errors: name, kind, key."""


def validation_text(validation: Validation) -> str:
    """Content of validation.json."""
    return json.dumps(plain(validation.figures), indent=1, allow_nan=False) + "\n"


def write_validation(
    validation: Validation,
    scenario: Scenario,
    folder: Path,
    repeats: Sequence[Path] = (),
    *,
    plots: bool = True,
) -> None:
    """Write ``validation`` and copies of the ``repeats`` made for it. Raises OutputError."""

    def fill(partial: Path) -> None:
        (partial / VALIDATION).write_text(validation_text(validation), encoding="utf-8")
        (partial / SCENARIO).write_text(dump_scenario(scenario), encoding="utf-8")
        for repeat in repeats:
            shutil.copytree(repeat, partial / REPEATS / repeat.name)
        if plots:
            from mosaicsim.report.plots import save_validation_plots

            save_validation_plots(validation, partial / PLOTS)

    write_whole(folder, fill, CONTENTS)


def print_validation(validation: Validation, console: Console) -> None:
    """Print makespans, replay errors and rankings to ``console``."""
    figures = validation.figures
    repeats = figures["repeats"]
    console.print(
        f"{figures['scenario']}: {repeats} real run{'s' if repeats > 1 else ''} "
        f"of {len(figures['groups'])} schedules, and their simulation",
        soft_wrap=True,
    )
    for gate, table in _makespans(figures):
        console.print(f"\ngate {gate}", soft_wrap=True, highlight=False)
        _print_whole(table, console)
    console.print()
    _print_whole(_replay_errors(figures), console)
    for line in (*_ranking_lines(figures), *_run_notes(figures), *FOOTNOTES):
        console.print(line, soft_wrap=True, highlight=False)


MAKESPAN_COLUMNS = ("real", "spread", "replay", "error", "plan", "error", "forecast", "error")

FOOTNOTES = (
    "replay: recorded sessions and lengths; plan: planned blind, recorded lengths; forecast: lengths drawn "
    "from calibration, their mean",
    "errors: simulated over real; spread: largest less least of the repeats; between repeats: one real run "
    "against another",
)


def _print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is: no number is ever cut."""
    from rich.measure import Measurement

    table.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table, crop=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _makespans(figures: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """A table a gate."""
    for gate in dict.fromkeys(group["gate"] for group in figures["groups"]):
        table = _table("makespan, s", *MAKESPAN_COLUMNS)
        for group in (g for g in figures["groups"] if g["gate"] == gate):
            stage = group["stages"]["makespan_s"]
            cells = [f"{stage['real_mean_s']:,.2f}", _percent(stage["real_spread_pct"], sign="")]
            for mode in ("replay", "plan", "forecast"):
                mean = stage[mode]["mean_s"]
                cells += ["-" if mean is None else f"{mean:,.2f}", _percent(stage[mode]["error_pct"])]
            replicate = f" #{group['replicate']}" if group["replicate"] else ""
            table.add_row(group["scheduler"] + replicate, *cells)
        yield gate, table


def _replay_errors(figures: dict[str, Any]) -> Table:
    table = _table("replay, mean over runs", "n", "real", "simulated", "mean error", "MAPE", "p50", "p95",
                   "between repeats")  # fmt: skip
    for name, kind, key in FIGURES:
        found = [row for group in figures["groups"] if (row := _of(group[kind], kind, key))]
        noise = [row for g in figures["groups"] if (row := _of(g["calls_between_repeats"], kind, key))]
        if found and any(row["n"] for row in found):
            between = _percent(_mean(noise, "mape_pct"), sign="") if kind == "calls" else ""
            table.add_row(
                name,
                f"{_mean(found, 'n') or 0:,.0f}",
                _seconds(_mean(found, "real_mean")),
                _seconds(_mean(found, "simulated_mean")),
                _percent(_mean(found, "mean_error_pct")),
                *(_percent(_mean(found, part), sign="") for part in ("mape_pct", "p50_pct", "p95_pct")),
                between,
            )
    return table


def _of(errors: dict[str, Any], kind: str, key: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (errors.get("all", {}) if kind == "calls" else errors).get(key)
    return found


def _ranking_lines(figures: dict[str, Any]) -> list[str]:
    lines = []
    for ranking in figures["rankings"]:
        decided, pairs = ranking["decided"], len(ranking["pairs"])
        verdict = {True: "right in all of them", False: "WRONG in some", None: "so none can be judged"}
        lines.append(
            f"{ranking['gate']}, {ranking['mode']}: simulated order "
            f"{' < '.join(ranking['order_simulated'])}, real {' < '.join(ranking['order_real'])}; "
            f"{decided} of {pairs} pairs differ by more than repeats do, {verdict[ranking['agrees']]}; "
            f"Kendall tau {ranking['kendall_tau']:.2f}"
        )
    return lines


def _run_notes(figures: dict[str, Any]) -> list[str]:
    return [
        f"{row['scheduler']}, {row['gate']}, repeat {row['repeat'] + 1}: {note}"
        for row in figures["runs"]
        for note in row["notes"]
    ]


def missed(validation: Validation, makespan_pct: float | None, e2e_mape_pct: float | None) -> list[str]:
    """The thresholds that the worst run misses, in words."""
    limits = (
        ("--max-makespan-error", "replay_makespan_error_pct", makespan_pct, "makespan error"),
        ("--max-e2e-mape", "replay_e2e_mape_pct", e2e_mape_pct, "MAPE of the calls' e2e"),
    )
    lines = []
    for option, key, limit, what in limits:
        worst = validation.figures["summary"][key]
        if limit is not None and (worst is None or worst > limit):
            found = "not known" if worst is None else f"{worst:.2f} %"
            lines.append(f"{option} {limit:g} missed: the replay's largest {what} is {found}")
    return lines


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) / len(known) if known else None


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _percent(value: float | None, sign: str = "+") -> str:
    return "-" if value is None else f"{value:{sign}.1f}%"
