"""``mosaicsim plot``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the plots; FOLDER/plots by default.",
)
@click.option("--format", "fmt", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True)
def plot(folder: Path, out: Path | None, fmt: str) -> None:
    """Draw the plots of the result folder FOLDER again, from its files; print where they are."""
    from mosaicsim.errors import OutputError
    from mosaicsim.report.folder import PLOTS, read_result
    from mosaicsim.report.plots import save_plots

    result, target = read_result(folder), out or folder / PLOTS
    try:
        paths = save_plots(result, target, fmt)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from None
    for path in paths:
        click.echo(path)
