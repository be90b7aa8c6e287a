"""Style of all pictures: colours, line styles, sizes of type, and the bare axes."""

from __future__ import annotations

from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008), without black and yellow; the light ones last, because they are weak on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
GREY = "#8a8a8a"  # of lines
GREYS = ("#ededed", "#dadada", "#c2c2c2")
SMALL, TEXT = 7, 8
HALO = [patheffects.withStroke(linewidth=2, foreground="white")]


def new_figure(size: tuple[float, float], figure: Figure | None = None) -> Figure:
    """The figure that was given, in this size, or a new one that a notebook will show; panels keep apart."""
    if figure is None:
        # Only here: pyplot chooses a window system, which a caller with a figure of their own does not want.
        from matplotlib import pyplot

        return pyplot.figure(figsize=size, layout="constrained")
    figure.set_size_inches(size)
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    return figure


def new_axes(axes: Axes | None, height: float = 3.2) -> Axes:
    """The axes that were given, or those of a new figure."""
    return new_figure((3.5, height)).add_subplot() if axes is None else axes


def line_look(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th line of a picture; of the first two dozen no two are alike."""
    n = len(PALETTE)
    look = {"color": PALETTE[i % n], "ls": STYLES[i // n % len(STYLES)], "marker": MARKERS[i % len(MARKERS)]}
    return {**look, "ms": 4, "lw": 1.2, "clip_on": False}


def label(axes: Axes, x: str, y: str) -> None:
    """The axes' labels; a `$` in a column's name is no mathematics."""
    axes.set_xlabel(x, fontsize=TEXT, parse_math=False)
    axes.set_ylabel(y, fontsize=TEXT, parse_math=False)


def add_legend(axes: Axes, handles: list[Any], ncols: int, **options: Any) -> None:
    """A legend above the axes, without a frame."""
    options = {"columnspacing": 1.2, "handlelength": 1.6, "title_fontsize": SMALL, **options}
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(handles=handles, ncols=ncols, fontsize=SMALL, frameon=False, **place, **options)


def tidy(axes: Axes) -> None:
    """Two spines fewer, and small type."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.xaxis.get_offset_text().set_fontsize(SMALL - 1)
    # To the left of the axis: above it another panel may follow.
    axes.yaxis.get_offset_text().set(fontsize=SMALL - 1, ha="right")
