"""All plots of a result, as files. Each plot is also a function of its own, for a page or a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mosaicsim.analysis.result import BASELINE, Result
from mosaicsim.report.charts import gpu_time, speedups
from mosaicsim.report.gantt import gantt
from mosaicsim.report.means import gates_of
from mosaicsim.report.paired_gantt import paired_gantt
from mosaicsim.report.style import RC
from mosaicsim.report.workload_charts import agreement_buckets, lengths, popularity

if TYPE_CHECKING:
    from mosaicsim.analysis.validation import Validation

FORMATS = ("png", "svg", "pdf")

__all__ = [
    "FORMATS",
    "agreement_buckets",
    "gantt",
    "gpu_time",
    "lengths",
    "paired_gantt",
    "popularity",
    "save_plots",
    "save_to",
    "save_validation_plots",
    "speedups",
]


def save_plots(result: Result, folder: Path, fmt: str = "png") -> list[Path]:
    """Draw every plot that ``result`` has data for into ``folder``, which is made if need be; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [save_to(folder / f"{name}.{fmt}", draw) for name, draw in _plots(result)]


def save_validation_plots(validation: Validation, folder: Path, fmt: str = "png") -> list[Path]:
    """Draw real and replayed runs into ``folder``, a picture a gate and replicate; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for gate, replicate in dict.fromkeys((real.gate, real.replicate) for real, _ in validation.pairs):
        pairs = [p for p in validation.pairs if (p[0].gate, p[0].replicate) == (gate, replicate)]
        draw = partial(paired_gantt, pairs, validation.workloads[replicate].experts, validation.workers)
        name = f"real-and-replay-{_slug(gate)}" + (f"-{replicate}" if replicate else "")
        drawn.append(save_to(folder / f"{name}.{fmt}", draw))
    return drawn


def save_to(path: Path, draw: partial[Axes]) -> Path:
    """Draw one plot in the house style and write it; the suffix of ``path`` is the format."""
    with matplotlib.rc_context(RC):
        figure = draw().figure.get_figure(root=True)
        FigureCanvasAgg(figure)
        # no date and no version in the file: the same result gives the same bytes
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(
            path, dpi=160, bbox_inches="tight", pad_inches=0.15, metadata=metadata[path.suffix[1:]]
        )
    return path


def _plots(result: Result) -> Iterator[tuple[str, partial[Axes]]]:
    slugs: list[str] = []
    for gate in gates_of(result):
        slugs.append(_slug(gate))
        twin = f"-{slugs.count(slugs[-1])}" if slugs.count(slugs[-1]) > 1 else ""
        yield f"gantt-{slugs[-1]}{twin}", partial(gantt, result, gate=gate)
    yield "gpu_time", partial(gpu_time, result)
    if {BASELINE} < {run.scheduler for run in result.runs}:
        yield "speedup", partial(speedups, result)
    yield "lengths", partial(lengths, result)
    yield "popularity", partial(popularity, result)
    yield "agreement", partial(agreement_buckets, result)


def _slug(label: str) -> str:
    """A label as part of a file name: ``plurality(tau=0.667)`` becomes ``plurality-tau-0.667``."""
    return re.sub(r"[^\w.]+", "-", label).strip("-")
