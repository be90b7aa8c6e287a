"""Criterion curves: one line per covariance structure over the number of components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxgmm.plot.style import HALO, PALETTE, SMALL, label, line_look, new_axes, tidy

# A difference above ten is very strong evidence (Kass & Raftery 1995, section 3.2, for BIC).
_LINEAR = 10.0


def plot_criteria(
    table: Sequence[Mapping[str, Any]], *, criterion: str = "bic", ax: Axes | None = None
) -> Axes:
    """Draw a criterion over the number of components, one line per covariance structure, the best one marked.

    What is drawn is the difference from the best fit, linear up to 10 and logarithmic above.

    Args:
      table: one mapping per fit, with ``"covariance_type"``, ``"n_components"`` and the criterion under its
        own name (smaller is better). A value that is not finite leaves a gap.
      criterion: which one to draw.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: the table has no finite value.

    Example:
      >>> from jaxgmm.plot import plot_criteria
      >>> rows = [{"covariance_type": "full", "n_components": k, "bic": abs(k - 2.0)} for k in (1, 2, 3)]
      >>> ax = plot_criteria(rows)
    """
    finite = [row for row in table if np.isfinite(float(row[criterion]))]
    if not finite:
        raise ValueError(f"plot_criteria: the table has no finite {criterion}")
    axes = new_axes(ax, 3.0)
    best = min(finite, key=lambda row: float(row[criterion]))
    lowest = float(best[criterion])
    top = max(float(row[criterion]) for row in finite) - lowest or 1.0
    wide = top > _LINEAR
    if wide:
        # Linear where fits compete, logarithmic where not: a bad structure must not flatten the others.
        axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1)
    lines: list[Line2D] = []
    for i, name in enumerate(dict.fromkeys(str(row["covariance_type"]) for row in finite)):
        own = [row for row in table if row["covariance_type"] == name]
        rows = sorted(own, key=lambda row: int(row["n_components"]))
        k = np.array([row["n_components"] for row in rows], int)
        y = np.array([row[criterion] for row in rows], float) - lowest
        y[~np.isfinite(y)] = np.nan
        lines += axes.plot(k, y, label=name, **line_look(i))
    axes.plot(int(best["n_components"]), 0, "o", ms=10, mfc="none", mec="black", mew=1.2, clip_on=False)
    axes.margins(x=0.05)
    # Smaller is better, so below the best there is nothing but the room that its label takes, in points.
    points = 72 / axes.figure.dpi
    box = axes.get_window_extent()
    room = min(24 / (box.height * points), 0.5)
    height = _LINEAR * (1 + np.log10(top / _LINEAR)) if wide else top
    axes.set_ylim(-height * room / (1 - room), 1.15 * top)
    decades = [0.0, *(10.0**e for e in range(1, int(np.log10(top)) + 1))]
    axes.set_yticks(decades if wide else [v for v in axes.get_yticks() if 0 <= v <= 1.15 * top])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines["left"].set_bounds(0, axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _label_height(axes, criterion.upper(), f" (log above {_LINEAR:g})" if wide else "")
    tidy(axes)
    _mark(axes, int(best["n_components"]), f"best: {best['covariance_type']}, K = {best['n_components']}")
    name_lines(axes, lines)
    return axes


def _label_height(axes: Axes, criterion: str, scale: str) -> None:
    """Label the axes, with the longest words that their height, or a tenth more, has room for."""
    room = 1.1 * axes.get_window_extent().height
    for words in (f"{criterion} above the best{scale}", f"{criterion} above the best", f"{criterion} − best"):
        label(axes, "number of components K", words)
        if axes.yaxis.label.get_window_extent().height <= room:
            break


def _mark(axes: Axes, k: int, text: str) -> None:
    """Write below the best what it is, within the axes."""
    width = axes.get_window_extent().width * 72 / axes.figure.dpi
    middle, half = axes.transLimits.transform((k, 0))[0] * width, 0.3 * SMALL * len(text)
    place = min(max(middle, half + 2), width - half) - middle, -8
    font: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": SMALL, "path_effects": HALO}
    axes.annotate(text, (k, 0), xytext=place, textcoords="offset points", **font)


def name_lines(axes: Axes, lines: Sequence[Line2D]) -> None:
    """Write the names of lines at their right-hand ends; where colours come twice, in a legend."""

    def end(line: Line2D) -> float:
        y = np.asarray(line.get_ydata(), float)
        return float(y[np.isfinite(y)][-1])

    # In the order of the ends; one without any number is not there.
    lines = sorted((line for line in lines if np.isfinite(line.get_ydata()).any()), key=end, reverse=True)
    if len(lines) <= len(PALETTE):
        _label_ends(axes, [(end(line), str(line.get_label()), str(line.get_color())) for line in lines])
        return
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    place |= {"fontsize": SMALL, "frameon": False, "handlelength": 2.6, "labelspacing": 0.25}
    axes.legend(handles=list(lines), **place)


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name at its right-hand end, moved up or down until no two overlap."""
    gap = 1.25 * SMALL * axes.figure.dpi / 72 / axes.get_window_extent().height
    ends = sorted(ends)
    to_axes = axes.transScale + axes.transLimits
    heights = [float(to_axes.transform((1, y))[1]) for y, _, _ in ends]
    for _ in range(200):
        for i in range(1, len(heights)):
            overlap = max(0.0, gap - (heights[i] - heights[i - 1]))
            heights[i - 1], heights[i] = heights[i - 1] - overlap / 2, heights[i] + overlap / 2
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1 - gap * (len(heights) - 1 - i))
    for (_, name, colour), at in zip(ends, heights, strict=True):
        font: dict[str, Any] = {"color": colour, "fontsize": SMALL, "va": "center"}
        axes.annotate(name, (1, at), (5, 0), "axes fraction", "offset points", **font)
