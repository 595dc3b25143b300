"""The bars of a Gantt panel: one a session and worker, made of the states it went through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mosaicsim.analysis.result import Run

AGGREGATOR_NAME = "aggregator"
ROOM = 0.08
"""Blank above and below a bar, in rows."""

SAME_S = 1e-6
"""Sessions that overlap by less follow each other."""


@dataclass(frozen=True)
class Part:
    """One state of a bar: load, generate or tail."""

    state: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Bar:
    """A session on one worker: its parts in order of time, and its rows counted from the panel's top.

    Where a session spans neighbouring workers (tensor parallel), its bars touch and ``label_at`` is the
    middle of them all on the first, None on the others.
    """

    name: str
    parts: tuple[Part, ...]
    top: float
    bottom: float
    label_at: float | None


def bars_of(run: Run, experts: Sequence[str]) -> list[Bar]:
    """A bar for every session of a run on every worker it held; those that share a GPU share its row."""
    parts = _parts(run)
    workers: dict[int, set[int]] = defaultdict(set)
    for session, worker in parts:
        workers[session].add(worker)
    slots = _slots(parts)
    names = dict(zip(run.timeline["session"].tolist(), run.timeline["expert"].tolist(), strict=True))
    bars = []
    for (session, worker), found in parts.items():
        lane, lanes = slots[session, worker]
        name = experts[names[session]] if names[session] >= 0 else AGGREGATOR_NAME
        bars.append(
            _bar(name, found, worker + lane / lanes, 1 / lanes, _neighbours(worker, workers[session]))
        )
    return bars


@dataclass(frozen=True)
class _Neighbours:
    """Where a worker stands among those of its session that follow each other."""

    above: int
    below: int


def _neighbours(worker: int, held: set[int]) -> _Neighbours:
    above = next(n for n in range(len(held) + 1) if worker - n - 1 not in held)
    below = next(n for n in range(len(held) + 1) if worker + n + 1 not in held)
    return _Neighbours(above, below)


def _bar(name: str, parts: list[Part], top: float, height: float, neighbours: _Neighbours) -> Bar:
    return Bar(
        name=name,
        parts=tuple(sorted(parts, key=lambda part: part.start_s)),
        top=top + (0 if neighbours.above else ROOM * height),
        bottom=top + height - (0 if neighbours.below else ROOM * height),
        label_at=None if neighbours.above else top + (height + neighbours.below) / 2,
    )


def _parts(run: Run) -> dict[tuple[int, int], list[Part]]:
    """The states of each (session, worker)."""
    columns = run.timeline
    names = ("session", "worker", "state", "start_s", "end_s")
    found: dict[tuple[int, int], list[Part]] = defaultdict(list)
    for session, worker, *part in zip(*(columns[name].tolist() for name in names), strict=True):
        found[session, worker].append(Part(*part))
    return found


def _slots(parts: dict[tuple[int, int], list[Part]]) -> dict[tuple[int, int], tuple[int, int]]:
    """(lane, number of lanes) of each session on its worker: the whole row unless another runs beside it."""
    spans = {
        key: (min(p.start_s for p in found), max(p.end_s for p in found)) for key, found in parts.items()
    }
    free_at: dict[int, list[float]] = defaultdict(list)
    lanes = {}
    for (session, worker), (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        ends = free_at[worker]
        lane = next((i for i, free in enumerate(ends) if free <= start + SAME_S), len(ends))
        ends[lane : lane + 1] = [end]
        lanes[session, worker] = lane
    return {key: (lanes[key], len(free_at[key[1]])) if _is_shared(key, spans) else (0, 1) for key in spans}


def _is_shared(key: tuple[int, int], spans: dict[tuple[int, int], tuple[float, float]]) -> bool:
    start, end = spans[key]
    return any(
        other != key and other[1] == key[1] and from_s < end - SAME_S and start < to_s - SAME_S
        for other, (from_s, to_s) in spans.items()
    )
