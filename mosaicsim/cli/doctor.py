"""`mosaicsim doctor`: whether this machine and environment can run real engines, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mosaicsim.installation import Installation

GB = 1e9


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Say what is installed, what this machine has, and what keeps real execution from working.

    Exit code 0 where real engines can run, 1 where not. Loads no model.
    """
    from mosaicsim.installation import inspect

    found = inspect(Path.cwd())
    if as_json:
        click.echo(json.dumps({**asdict(found), "ready": found.ready}, indent=2))
    else:
        _print(found)
    return 0 if found.ready else 1


def _print(found: Installation) -> None:
    for name, installed in found.packages.items():
        click.echo(f"{name:13} {installed or '-'}")
    for i, gpu in enumerate(found.gpus):
        click.echo(f"{f'gpu {i}':13} {gpu.name}, {gpu.memory / GB:.1f} GB, {gpu.free / GB:.1f} GB free")
    if not found.gpus:
        click.echo(f"{'gpu':13} none")
    memory = "" if found.memory is None else f", {found.memory / GB:.1f} GB of memory"
    free = "" if found.memory_free is None else f", {found.memory_free / GB:.1f} GB free"
    click.echo(
        f"{'cpu':13} {found.cores} cores{memory}{free}; {', '.join(found.cpu_flags) or 'flags unknown'}"
    )
    click.echo(f"{'disk':13} {found.disk_free / GB:.1f} GB free here")
    for finding in found.findings:
        mend = f"\n  mend: {finding.mend}" if finding.mend else ""
        click.echo(f"{finding.kind}: {finding.what}{mend}")
    click.echo("real execution: " + ("ready" if found.ready else "not possible yet"))
