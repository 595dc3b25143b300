"""A session of a steered run, from its plan to its end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Job:
    """A session, planned or under way: ``calls`` have not ended, in the order they are queued.

    ``number`` is None until it starts, predicted to load for ``load_s``. A ``drained`` one has been found to
    have no call that waits. Of the ``kept`` among its calls the executor is not told until the engine has a
    sequence free. ``taken`` counts the calls it was given, less those that left it unfinished; ``learnt``,
    how many had ended when its pace was last looked at. ``coming``: the number of a session, and how
    many of its started calls this one is to get. ``mixed``: such calls came or went, so it tells no pace.
    ``stays``: it was asked for started calls and gave none.
    """

    workers: tuple[int, ...]
    expert: int
    calls: dict[int, None]
    phase: int = 0
    kept: dict[int, None] = field(default_factory=dict)
    number: int | None = None
    started_s: float = 0.0
    load_s: float = 0.0
    ready: bool = False
    ready_s: float = 0.0
    taken: int = 0
    learnt: int = 0
    stopping: bool = False
    drained: bool = False
    stays: bool = False
    coming: tuple[int, int] | None = None
    mixed: bool = False
