"""Policies of third parties, found through entry points and checked before they are used."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mosaicsim.errors import UserInputError


def find_plugins(kind: str, group: str, taken: Collection[str]) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name, not loaded. Raises UserInputError for a name that is ``taken``."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if entry.name in taken or (entry.name in found and found[entry.name].value != entry.value):
            raise UserInputError(f"{kind} plug-in '{entry.name}' ({entry.value}) takes a name already in use")
        found[entry.name] = entry
    return found


def load_plugin(kind: str, entry: EntryPoint, needed: Collection[str]) -> Any:
    """Import a plug-in's class. Raises UserInputError if it cannot be imported or lacks an attribute."""
    try:
        policy = entry.load()
    except Exception as error:
        raise UserInputError(
            f"{kind} plug-in '{entry.name}' ({entry.value}) cannot be loaded: {error}"
        ) from error
    missing = [name for name in needed if not hasattr(policy, name)]
    if missing:
        raise UserInputError(f"{kind} plug-in '{entry.name}' ({entry.value}) lacks {', '.join(missing)}")
    return policy
