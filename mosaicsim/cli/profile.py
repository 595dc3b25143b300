"""`mosaicsim profile`: make a profile file, by measuring here or from measured operator times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mosaicsim.profiling.request import On


@click.command()
@click.option("--model", help="Model to measure: a folder or a hub name. With --from-operators: its name.")
@click.option("--device", help="Name of this machine's device in scenarios, as a100-80g or epyc-core.")
@click.option("--name", help="Name of the model in scenarios; its folder's by default.")
@click.option(
    "--concurrent",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Engines measured at the same time, each on a core or GPUs of its own, as they will run.",
)
@click.option(
    "--engine",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A vLLM EngineArgs keyword, as max_num_seqs=64; may be given several times.",
)
@click.option(
    "--on",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to measure; auto: on GPUs where there are any.",
)
@click.option("--quick", is_flag=True, help="Measure for seconds instead of minutes: rougher.")
@click.option(
    "--from-operators",
    "folder",
    type=click.Path(path_type=Path),
    help="Sum measured operator times instead: a folder of dense, per_sequence, attention .csv or .csv.gz.",
)
@click.option("--source", help="With --from-operators: where its measurements come from.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; stdout by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def profile(
    model: str | None,
    device: str | None,
    name: str | None,
    concurrent: int,
    settings: tuple[str, ...],
    on: On,
    quick: bool,
    folder: Path | None,
    source: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Make a profile file: what a model costs on a device.

    Measured on this machine with a real engine, in a few minutes: loading, decode steps, prefill, both
    together, KV capacity, the host's time. Or summed from measured operator times (--from-operators).
    """
    if folder is not None:
        from mosaicsim.hardware.operators import profile_from_operators

        _write(profile_from_operators(folder, device=device, model=model, origin=source), output)
        return
    if model is None or device is None:
        raise click.UsageError("give --model and --device to measure here, or --from-operators DIR")
    from mosaicsim.hardware.profile_file import check_profile_output
    from mosaicsim.profiling.document import error_lines, profile_document, profile_text
    from mosaicsim.profiling.launch import measure_together
    from mosaicsim.profiling.request import checked_request

    asked = checked_request(
        model, device, name=name, concurrent=concurrent, settings=settings, on=on, quick=quick
    )
    if output is not None:
        check_profile_output(output)
    measured = measure_together(asked.engine, asked.places, asked.budget_s, _Progress())
    document = profile_document(
        measured,
        asked.model,
        asked.device,
        {k: v for k, v in asked.asked.items() if k not in measured.resolved} | {"concurrent": concurrent},
        new_device=asked.new_device,
    )
    errors = error_lines(measured)
    text = profile_text(document, errors)
    click.echo(errors, err=True)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    if output is not None or not as_json:
        _write(text, output)


def _write(content: str, output: Path | None) -> None:
    from mosaicsim.hardware.profile_file import write_profile_file

    if output is None:
        click.echo(content, nl=False)
        return
    write_profile_file(output, content)
    click.echo(f"{output}: written", err=True)


class _Progress:
    """What is being done, on stderr: each stage once, and on a terminal the points as they pass."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, done: int, total: int, stage: str) -> None:
        if sys.stderr.isatty():
            count = f" {done + 1}/{total}" if total else ""
            end = "\n" if stage == "finishing" else ""
            click.echo(f"\r\033[Kprofile: {stage}{count}{end}", err=True, nl=False)
        elif stage != self._stage:
            click.echo(f"profile: {stage}", err=True)
        self._stage = stage
