"""`mosaicsim profile`: make a profile file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--from-operators",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of measured operator times: dense, per_sequence and attention, .csv or .csv.gz.",
)
@click.option("--device", help="Device they were measured on; by default from the folder's name.")
@click.option("--model", help="Model they were measured of; by default from the folder's name.")
@click.option("--source", help="Where the measurements come from; the folder's name by default.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; stdout by default.")
def profile(
    folder: Path, device: str | None, model: str | None, source: str | None, output: Path | None
) -> None:
    """Make a profile file from measured operator times; nothing is fitted to a run."""
    from mosaicsim.hardware.operators import profile_from_operators

    content = profile_from_operators(folder, device=device, model=model, origin=source)
    if output is None:
        click.echo(content, nl=False)
        return
    from mosaicsim.hardware.profile_file import write_profile_file

    write_profile_file(output, content)
    click.echo(f"{output}: written", err=True)
