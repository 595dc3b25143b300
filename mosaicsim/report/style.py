"""How the plots look: colours, type, and what every plot has in common."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

INK, GREY, RULE = "#222222", "#6b6b6b", "#d9d9d9"
AGGREGATOR = "#4d4d4d"
"""Colour of the aggregator, which is no expert of the pool."""

EXPERTS = (
    "#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44",
    "#882255", "#44aa99", "#999933", "#332288", "#cc6677", "#117733", "#88ccee", "#ddcc77",
)  # fmt: skip
"""Paul Tol's bright, then muted schemes, told apart with any colour vision (SRON/EPS/TN/09-002)."""

STATES = {
    "load": "#bbbbbb",
    "prefill": "#ccbb44",
    "decode": "#4477aa",
    "tail": "#99bbdd",
    "down": "#b8b8b8",
    "idle": "#ffffff",
}
"""Colour of each state of GPU time; idle is blank, as in the Gantt chart."""

LINE_POINTS, KEY_SIZE = 14.0, 8.5
"""Height of a line above the axes, and type size of a legend, in points."""

WIDTH = 9.0
"""Inches; every plot fits a page's width."""

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "xtick.labelcolor": GREY,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.9,
    "svg.hashsalt": "mosaicsim",
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def axes_or_new(ax: Axes | None, height: float, width: float = WIDTH) -> Axes:
    """``ax``, or the axes of a new figure of that size in inches."""
    if ax is not None:
        return ax
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def width_of(ax: Axes) -> float:
    """Width of the figure that ``ax`` is on, in inches."""
    return float(ax.figure.get_figure(root=True).get_size_inches()[0])


def say(ax: Axes, finding: str, detail: str = "", *, room: int = 0) -> None:
    """Put the finding above the axes in plain words, and what it rests on below it in grey.

    ``room`` lines are left free between these and the axes. Call it when the rows have their names: the
    text starts above the longest of them.
    """
    letters = int(10.8 * width_of(ax))
    n_lines = len(textwrap.wrap(finding, letters))
    title = textwrap.wrap(finding, min(letters, int(1.1 * len(finding) / n_lines) + 8))
    details = textwrap.wrap(detail, int(letters * 1.15))
    up = 7 + LINE_POINTS * room
    _above(ax, details, up, fontsize=9, color=GREY)
    _above(ax, title, up + LINE_POINTS * len(details) + 2, fontsize=11, color=INK, fontweight="bold")


def _above(ax: Axes, lines: Sequence[str], up: float, **look: Any) -> None:
    """Text ``up`` points above the axes, from the left end of the rows' names."""
    if lines:
        ax.annotate(
            "\n".join(lines), (0, 1), xytext=(-_names_points(ax), up), xycoords="axes fraction",
            textcoords="offset points", va="bottom", linespacing=1.25, annotation_clip=False, **look,
        )  # fmt: skip


def _names_points(ax: Axes) -> float:
    """How far the names of the rows reach to the left of the axes, in points."""
    labels = [label for label in ax.get_yticklabels() if label.get_text()]
    widths = [text_points(line, x.get_fontsize()) for x in labels for line in x.get_text().split("\n")]
    return max(widths, default=0.0) + 6


def key_above(ax: Axes, handles: Sequence[Patch], *, lift: int = 0) -> int:
    """Put a legend above the axes, over ``lift`` lines that are taken already; return the lines it takes."""
    columns = _columns_that_fit(handles, width_of(ax) * 72 * 0.95)
    root = ax.figure.get_figure(root=True)
    moved = ScaledTranslation(-_names_points(ax) / 72, lift * LINE_POINTS / 72, root.dpi_scale_trans)
    legend = Legend(
        ax, list(handles), [str(handle.get_label()) for handle in handles], ncols=columns, loc="lower left",
        bbox_to_anchor=(0, 1), bbox_transform=ax.transAxes + moved, frameon=False, fontsize=KEY_SIZE,
        handlelength=1.3, handleheight=0.9, columnspacing=1.3, borderaxespad=0.2, borderpad=0,
        labelspacing=0.35,
    )  # fmt: skip
    ax.add_artist(legend)
    legend.set_clip_on(False)  # else the layout takes it to end where the axes end
    return -(-len(handles) // columns)


def _columns_that_fit(handles: Sequence[Patch], points: float) -> int:
    """The most legend columns, filled one after another, that are not wider together than ``points``."""
    widths = [text_points(str(handle.get_label()), KEY_SIZE) + 36 for handle in handles]
    for columns in range(len(widths), 1, -1):
        height = -(-len(widths) // columns)
        if sum(max(widths[i : i + height]) for i in range(0, len(widths), height)) <= points:
            return columns
    return 1


def rows_only(ax: Axes, labels: Sequence[str], at: Sequence[float] | None = None) -> None:
    """Name the rows of a horizontal chart, the first on top; no axis line beside them."""
    ax.set_yticks(list(at) if at is not None else range(len(labels)), labels)
    ax.tick_params(axis="y", length=0, pad=6)
    ax.spines["left"].set_visible(False)
    if not ax.yaxis_inverted():
        ax.invert_yaxis()


def expert_colours(experts: Sequence[str]) -> dict[str, str]:
    """A colour for each expert, the same in every plot of a result; from the fifteenth on they repeat."""
    return {name: EXPERTS[i % len(EXPERTS)] for i, name in enumerate(experts)}


def lighter(colour: str, share: float = 0.5) -> str:
    """``colour`` mixed with white."""
    red, green, blue = (c + (1 - c) * share for c in to_rgb(colour))
    return to_hex((red, green, blue))


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour`` (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return INK if luminance > 0.22 else "white"


@lru_cache(maxsize=1024)
def text_points(text: str, size: float) -> float:
    """Width of ``text`` in points at a font size of ``size`` points."""
    path = TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", size=size))
    return float(np.ptp(path.vertices[:, 0]))


def percent(share: float) -> str:
    """``26%``; ``<1%`` where that would be ``0%`` and is not."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def seconds(value: float) -> str:
    """``4,150 s``."""
    return f"{value:,.0f} s"
