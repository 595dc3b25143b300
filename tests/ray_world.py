"""What tests on a real Ray share."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mosaicsim.execution import ExecutionSection


def section(**more: object) -> ExecutionSection:
    return ExecutionSection.model_validate(
        {"questions": "none", "models": {}, "executor": "ray", "start_timeout_s": 300, **more}
    )


def descendants(pid: int) -> set[int]:
    """Processes under a process, in whatever session they are."""
    parent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {pid}
    while new:
        found |= new
        new = {child for child, of in parent.items() if of in new} - found
    return found - {pid}
