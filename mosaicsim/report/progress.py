"""Progress of a run, on standard error, where someone is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, str], None]
"""Told (runs done, runs in all, what is next)."""


@contextmanager
def show_progress(*, enabled: bool = True) -> Iterator[Report]:
    """Yield what ``simulate`` reports to: a bar on stderr, or nothing where stderr is not a terminal.

    The bar goes away when the work is done: what stays is the result.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda done, total, what: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield report
