"""`mosaicsim profiles`: the models and devices that are known, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mosaicsim.hardware.catalog import Catalog
    from mosaicsim.hardware.latency import HostOverhead

BATCHES = (1, 64, 256)


@click.command()
@click.option("--model", "models", multiple=True, help="Only this model; may be given several times.")
@click.option("--device", "devices", multiple=True, help="Only this device; may be given several times.")
@click.option("--tp", default=1, show_default=True, help="GPUs to a model (tensor parallel).")
@click.option(
    "--context-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Context of each sequence in the decode steps shown.",
)
@click.option(
    "--engine", default="none", show_default=True, help="Engine whose host time is added to a step."
)
@click.option("--timing", help="Timing to use (two_regime, hinge, ...) instead of each pair's default.")
@click.option(
    "--profile-file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Profile file of your own to add; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the source of every number.")
def profiles(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    tp: int,
    context_tokens: int,
    engine: str,
    timing: str | None,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """List known models on known devices: decode step, KV capacity, load time, sources."""
    from mosaicsim.errors import ProfileError
    from mosaicsim.hardware.catalog import load_catalog

    catalog = load_catalog(files=files)
    host = catalog.host_overhead(engine)
    rows = [
        _row(catalog, model, device, tp, timing, context_tokens, host)
        for model in [catalog.model_name(name) for name in models] or catalog.models
        for device in [catalog.device_name(name) for name in devices] or catalog.devices
    ]
    if all("unavailable" in row for row in rows):
        raise ProfileError(rows[0]["unavailable"])
    if as_json:
        listing = {"context_tokens": context_tokens, "engine": engine, "tp": tp, "profiles": rows}
        click.echo(json.dumps(listing, indent=2))
    else:
        _print_table(rows, context_tokens)


def _row(
    catalog: Catalog,
    model: str,
    device: str,
    tp: int,
    timing: str | None,
    context_tokens: int,
    host: HostOverhead,
) -> dict[str, Any]:
    """One pair's costs, or why it has none; a batch whose KV does not fit has step None."""
    from mosaicsim.errors import ProfileError

    try:
        profile = catalog.profile(model, device, tp=tp, timing=timing)
    except ProfileError as error:
        return {"model": model, "device": device, "unavailable": str(error)}
    tables = profile.latency.compile(max(BATCHES), 0, host)
    fits = {batch: batch * context_tokens <= profile.kv_capacity_tokens for batch in BATCHES}
    return {
        "model": model,
        "device": device,
        "decode_step_s": {
            str(batch): tables.decode_s(batch, batch * context_tokens) if fits[batch] else None
            for batch in BATCHES
        },
        "kv_bytes_per_token": profile.kv_bytes_per_token,
        "kv_capacity_tokens": profile.kv_capacity_tokens,
        "load_s": profile.load_s,
        "disk_s": profile.disk_s,
        "unload_s": profile.unload_s,
        "wake_s": profile.wake_s,
        "reasoning": profile.reasoning,
        "sources": profile.sources,
    }


def _print_table(rows: list[dict[str, Any]], context_tokens: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Decode step in ms, B sequences of {context_tokens} context tokens (-: KV does not fit)",
        caption="--json shows the source of every number",
    )
    for column in ("model", "device"):
        table.add_column(column, no_wrap=True)
    for column in (*(f"B={batch}" for batch in BATCHES), "KV tokens", "load s", "wake s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("timing")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    if "unavailable" in row:
        reason = row["unavailable"].rpartition("; ")[2]
        return [row["model"], row["device"], "-", "-", "-", "-", "-", "-", reason]
    steps = [f"{step * 1e3:.2f}" if step is not None else "-" for step in row["decode_step_s"].values()]
    costs = [f"{row['kv_capacity_tokens']:,}", f"{row['load_s']:.1f}", f"{row['wake_s']:.1f}"]
    return [row["model"], row["device"], *steps, *costs, row["sources"]["latency"].partition(":")[0]]
