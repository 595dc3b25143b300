"""The gates by name; third parties add theirs through the entry-point group ``mosaicsim.gates``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from mosaicsim.aggregation.always import Always
from mosaicsim.aggregation.base import Gate
from mosaicsim.aggregation.plurality import Plurality


def available() -> dict[str, type[Any]]:
    """Gate classes by name, built-in ones first."""
    gates: dict[str, type[Any]] = {gate.name: gate for gate in (Always, Plurality)}
    for entry in entry_points(group="mosaicsim.gates"):
        gates.setdefault(entry.name, entry.load())
    return gates


def create(name: str, options: dict[str, Any]) -> Gate:
    """Make a gate from its name and (validated or raw) options."""
    gate_class = available()[name]
    gate: Gate = gate_class(gate_class.Options(**options))
    return gate
