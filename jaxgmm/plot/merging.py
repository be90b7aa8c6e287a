"""Pictures of clusters made of components: the entropies of a merging, and the valley of a ridgeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxgmm.distributions import Ridgeline
from jaxgmm.plot.style import GREY, HALO, PALETTE, SMALL, add_legend, label, new_axes, tidy
from jaxgmm.selection import Merging


def plot_merging(merging: Merging, *, rescaled: bool = False, ax: Axes | None = None) -> Axes:
    """Draw the entropy of the labels against the number of clusters, and the number that was chosen.

    Dashed lines are fitted to the points on either side of the chosen number: where the elbow is clear, they
    meet at an angle there, and the lower one is level.

    Args:
      merging: what `jaxgmm.selection.merge_components` returned.
      rescaled: draw against the cumulated number of rows merged, with the number of clusters beside each
        point. There mergers of large and of small clusters can be compared.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: for anything but one merging.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_merging
      >>> means = [[0.0], [1.5], [3.0], [20.0]]
      >>> params = jaxgmm.make_params([0.25] * 4, means, [1.0] * 4, "spherical")
      >>> X, _ = jaxgmm.sample(jax.random.key(0), params, 200)
      >>> ax = plot_merging(jaxgmm.selection.merge_components(params, X))

    References:
      Baudry, Raftery, Celeux, Lo & Gottardo (2010), Combining mixture components for clustering: the entropy
      plot and the rescaled one.
    """
    entropies = np.asarray(merging.entropies, np.float64)
    if entropies.ndim != 1:
        raise ValueError(f"plot_merging: one merging is drawn; got batch axes {entropies.shape[:-1]}")
    there = np.isfinite(entropies)
    numbers, y = np.flatnonzero(there) + 1, entropies[there]
    x = np.asarray(merging.merged, np.float64)[there] if rescaled else numbers.astype(float)
    chosen = int(np.flatnonzero(numbers == int(merging.n_clusters))[0])
    axes = new_axes(ax, 3.0)
    for side in (slice(None, chosen + 1), slice(chosen, None)):
        if len(x[side]) > 1 and np.ptp(x[side]) > 0:
            ends = x[side][[0, -1]]
            axes.plot(ends, np.polyval(np.polyfit(x[side], y[side], 1), ends), "--", color=GREY, lw=1)
    axes.plot(x, y, "-o", color=PALETTE[0], ms=4, lw=1.2, clip_on=False, zorder=3)
    axes.plot(x[chosen], y[chosen], "o", ms=10, mfc="none", mec="black", mew=1.2, clip_on=False, zorder=4)
    if rescaled:
        for number, place, height in zip(numbers, x, y, strict=True):
            font: dict[str, Any] = {"fontsize": SMALL, "path_effects": HALO, "ha": "center", "va": "bottom"}
            axes.annotate(str(number), (place, height), (0, 6), textcoords="offset points", **font)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=min(0.0, y.min()), top=1.05 * (y.max() or 1.0))
    label(
        axes, "rows merged, cumulated" if rescaled else "number of clusters", "entropy of the labels (nats)"
    )
    text = f"chosen by {merging.by}: {numbers[chosen]}"
    handles = [
        Line2D([], [], color=PALETTE[0], marker="o", ms=4, lw=1.2, label="entropy"),
        Line2D([], [], color="black", marker="o", ms=8, mfc="none", lw=0, label=text),
    ]
    add_legend(axes, handles, 2)
    tidy(axes)
    return axes


def plot_ridgeline(ridgeline: Ridgeline, *, ax: Axes | None = None) -> Axes:
    """Draw the density of two components along their ridgeline, and how deep its valley is.

    The abscissa is the length of the ridgeline up to a point over all of its length.

    Args:
      ridgeline: what `jaxgmm.distributions.ridgeline` returned.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.plot import plot_ridgeline
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_ridgeline(jaxgmm.distributions.ridgeline(params, 0, 1))
    """
    log_prob, points = np.asarray(ridgeline.log_prob, np.float64), np.asarray(ridgeline.points, np.float64)
    way = np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    way = way / (way[-1] or 1.0)
    density = np.exp(log_prob - log_prob.max())
    axes = new_axes(ax, 3.0)
    axes.plot(way, density, color=PALETTE[0], lw=1.4)
    valley, depth = float(ridgeline.valley), float(ridgeline.depth)
    if np.isfinite(valley):
        at = int(np.abs(np.asarray(ridgeline.alpha) - valley).argmin())
        low = density[at]
        axes.plot(way[at], low, "v", color=PALETTE[1], ms=6, zorder=3, clip_on=False)
        axes.vlines(way[at], low, low * np.exp(depth), color=PALETTE[1], ls=":", lw=1.2)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, 1)
    label(axes, "along the ridgeline", "density over its highest")
    text = f"valley, {depth:.2g} nats deep" if np.isfinite(valley) else "no valley"
    marker: dict[str, Any] = {"marker": "v", "ms": 6} if np.isfinite(valley) else {}
    colour = PALETTE[1] if marker else "none"
    add_legend(axes, [Line2D([], [], color=colour, lw=0, label=text, **marker)], 1)
    tidy(axes)
    return axes
