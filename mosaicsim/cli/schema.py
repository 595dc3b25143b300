"""``mosaicsim schema``."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of a scenario, for editors and validators."""
    from mosaicsim.scenario import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
