"""Uncertainty pictures: samples whose component is in doubt, where they lie and how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.data import Data
from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Picture, needed
from jaxgmm.plot.style import PALETTE, add_legend, label, new_axes, tidy
from jaxgmm.selection import class_error

# The classes of uncertainty, with the area of their marks in points squared and their grey.
_CLASSES = ((0.05, 4, "#c2c2c2"), (0.2, 14, "#8a8a8a"), (1.0, 34, "black"))


def plot_uncertainty(
    params: GMMParams,
    X: Any,
    *,
    features: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
    max_points: int = 5000,
) -> Axes:
    """Draw the samples by how unsure the mixture is of their component: 1 − max_k r_k.

    With D ≥ 2 larger and darker is more uncertain; the ellipses are the components' at one and two standard
    deviations. With D = 1 it is a curve over x, in the colour of the likeliest component, with a mark at its
    foot for each of at most 500 samples.

    Args:
      params: one mixture.
      X: (N, D), or `Data`, of which the rows that have both features are drawn.
      features: with D ≥ 2, the two features to draw; the uncertainty is that of all D.
      ax: where to draw; None makes a figure.
      columns: names of the D features.
      sample_weight: (N,); samples without weight are not drawn.
      max_points: a scatter of more points than this shows a random sample of that many.

    Returns:
      The axes.

    Raises:
      ValueError: `features` are not two of the D, or the shapes do not fit.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_uncertainty
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_uncertainty(params, jaxgmm.sample(jax.random.key(0), params, 50)[0])
    """
    picture = Picture(params, needed(X, "plot_uncertainty"), columns, sample_weight, max_points)
    if picture.n_features == 1:
        return _curve(picture, new_axes(ax))
    i, j = picture.two("plot_uncertainty", features)
    axes, low, handles = new_axes(ax), -1.0, []
    for high, size, grey in _CLASSES:
        mine = picture.points[(low < picture.unsure) & (picture.unsure <= high)]
        axes.scatter(mine[:, i], mine[:, j], size, grey, lw=0, alpha=0.85, rasterized=True)
        text = f"below {high:g}" if low < 0 else f"{low:g} to {high:g}" if high < 1 else f"above {low:g}"
        handles.append(Line2D([], [], color=grey, marker="o", lw=0, ms=size**0.5, label=text))
        low = high
    picture.finish_pair(axes, i, j)
    add_legend(axes, handles, 3, title="uncertainty of the label", handlelength=1)
    return axes


def _curve(picture: Picture, axes: Axes) -> Axes:
    """The uncertainty over the only feature, with a rug of the samples."""
    grid, log_share = picture.log_shares(0)
    share = np.exp(log_share - log_share.max(1, keepdims=True))
    likeliest, unsure = share.argmax(1), 1 - 1 / share.sum(1)
    handles = []
    for k, number in enumerate(picture.numbers):
        colour = picture.colour(k)
        # A piece of the curve reaches to the first point of the next one.
        own = likeliest == k
        reach = own | np.append(False, own[:-1])
        axes.fill_between(grid, unsure, where=reach.tolist(), color=colour, alpha=0.3, lw=0)
        axes.plot(grid, np.where(reach, unsure, np.nan), picture.style(k), color=colour, lw=1.2)
        handles.append(Line2D([], [], color=colour, ls=picture.style(k), lw=1.2, label=str(number)))
    axes.set_xlim(*picture.limits(0))
    axes.set_ylim(0, max(1.05 * float(unsure.max()), 0.05))
    picture.draw_rug(axes, 0)
    label(axes, picture.columns[0], "uncertainty of the label")
    tidy(axes)
    add_legend(axes, handles, 6, title="likeliest component", columnspacing=1)
    return axes


def plot_uncertainty_profile(params: GMMParams, X: Any, truth: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw how unsure the mixture is of each sample's component, from the surest sample to the least sure.

    The uncertainty is 1 − max_k r_k. Where the classes are known, a line marks each sample that is
    misclassified, by `class_error`: where the uncertainty tells of errors, the marks stand to the right.

    Args:
      params: one mixture, of any D.
      X: (N, D), or `Data`.
      truth: (N,) the classes, as numbers or words; or None.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: the shapes do not fit.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_uncertainty_profile
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [3.0]], [1.0, 1.0], "spherical")
      >>> X, labels = jaxgmm.sample(jax.random.key(0), params, 50)
      >>> ax = plot_uncertainty_profile(params, X, labels)
    """
    X = needed(X, "plot_uncertainty_profile")
    rows = np.shape(X.x if isinstance(X, Data) else X)[:1]
    picture = Picture(params, X, None, None, max(rows, default=0))
    n, order = picture.n_samples, np.argsort(picture.unsure, kind="stable")
    unsure, rank = picture.unsure[order], np.arange(1, picture.n_samples + 1)
    axes = new_axes(ax)
    axes.fill_between(rank, unsure, color="#dadada", lw=0, step="mid")
    axes.plot(rank, unsure, color="black", lw=1.2, drawstyle="steps-mid")
    if truth is not None:
        if np.shape(truth) != (n,):
            raise ValueError(
                f"truth must have shape ({n},), one class for each sample; got {np.shape(truth)}"
            )
        wrong = np.zeros(n, bool)
        wrong[class_error(picture.labels, truth).misclassified] = True
        at = np.flatnonzero(wrong[order])
        axes.vlines(rank[at], 0, unsure[at], color=PALETTE[1], lw=0.8)
        axes.scatter(rank[at], unsure[at], 9, PALETTE[1], lw=0, zorder=3, clip_on=False)
        text = f"misclassified: {len(at):,} of {n:,} ({100 * len(at) / n:.1f} %)"
        handle = Line2D([], [], color=PALETTE[1], marker="o", ms=3, lw=0.8, label=text)
        add_legend(axes, [handle], 1)
    axes.set_xlim(0.5, n + 0.5)
    axes.set_ylim(0, max(1.05 * float(unsure[-1]), 0.05))
    label(axes, "samples, in order of uncertainty", "uncertainty of the label")
    tidy(axes)
    return axes
