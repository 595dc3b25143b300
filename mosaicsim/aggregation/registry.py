"""The gates by name; third parties add theirs through the entry-point group ``mosaicsim.gates``."""

from __future__ import annotations

from typing import Any

from mosaicsim.aggregation.always import Always
from mosaicsim.aggregation.base import Gate
from mosaicsim.aggregation.calibrated import Calibrated
from mosaicsim.aggregation.plurality import Plurality
from mosaicsim.plugins import find_plugins, load_plugin

GROUP = "mosaicsim.gates"
BUILT_IN: dict[str, type[Any]] = {gate.name: gate for gate in (Always, Plurality, Calibrated)}


def available() -> dict[str, type[Any]]:
    """Every gate by name, built-in ones first. Raises UserInputError for a plug-in that cannot be used."""
    needed = ("name", "summary", "Options", "decide", "decide_all")
    plugins = find_plugins("gate", GROUP, BUILT_IN)
    return BUILT_IN | {name: load_plugin("gate", entry, needed) for name, entry in plugins.items()}


def create(name: str, options: dict[str, Any]) -> Gate:
    """Make a gate from its name and (validated or raw) options."""
    gate_class = available()[name]
    gate: Gate = gate_class(gate_class.Options(**options))
    return gate
