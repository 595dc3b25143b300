"""`mosaicsim schedulers`: the policies and their options."""

from __future__ import annotations

import json
from typing import Any

import click

from mosaicsim.schedulers.base import Scheduler


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def schedulers(as_json: bool) -> None:
    """List the schedulers, third parties' included, and the options each takes in a scenario."""
    from mosaicsim.schedulers.registry import available

    listing = [describe(policy) for policy in available().values()]
    if as_json:
        click.echo(json.dumps({"schedulers": listing}, indent=2))
        return
    for entry in listing:
        marked = "  [sees true lengths]" if entry["sees_lengths"] else ""
        click.echo(f"{click.style(entry['name'], bold=True)}  {entry['summary']}{marked}")
        for option in entry["options"]:
            default = json.dumps(option["default"])
            click.echo(f"    {option['name']}  {option['type']}, default {default}: {option['meaning']}")


def describe(policy: type[Scheduler]) -> dict[str, Any]:
    """A policy as plain data: name, summary, whether it sees lengths, and its options."""
    schema = policy.Options.model_json_schema()
    return {
        "name": policy.name,
        "summary": policy.summary,
        "sees_lengths": policy.sees_lengths,
        "options": [
            {
                "name": name,
                "type": _type_text(prop),
                "default": prop.get("default"),
                "meaning": prop.get("description", ""),
            }
            for name, prop in schema["properties"].items()
        ],
    }


def _type_text(prop: dict[str, Any]) -> str:
    """A JSON-schema type in words: ``integer >= 1 or null``, ``'lpt' or 'list'``."""
    if "anyOf" in prop:
        return " or ".join(_type_text(choice) for choice in prop["anyOf"])
    if "enum" in prop:
        return " or ".join(repr(choice) for choice in prop["enum"])
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {prop[key]:g}" for key, sign in signs.items() if key in prop]
    return " ".join([str(prop.get("type", "any")), *limits])
