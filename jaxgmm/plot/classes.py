"""Classification pictures: the component of each sample, and the components alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Picture, needed
from jaxgmm.plot.style import MARKERS, add_legend, label, new_axes, tidy


def plot_classification(
    params: GMMParams,
    X: Any,
    *,
    features: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
    max_points: int = 5000,
) -> Axes:
    """Draw the samples by their likeliest component: in two features, or in a row of marks for each.

    With D ≥ 2 the samples have the colour and shape of their component, and the components' ellipses are
    drawn. With D = 1 every component has a row: its share π_k N(x | μ_k, σ_k²) of the density, all on one
    scale, and below it a mark for each of its samples, of at most 500 in all.

    Args:
      params: one mixture.
      X: (N, D), or `Data`, of which the rows that have both features are drawn.
      features: with D ≥ 2, the two features to draw; the classification is that of all D.
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
      >>> from jaxgmm.plot import plot_classification
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_classification(params, jaxgmm.sample(jax.random.key(0), params, 50)[0])
    """
    picture = Picture(params, needed(X, "plot_classification"), columns, sample_weight, max_points)
    if picture.n_features == 1:
        return _rows(picture, new_axes(ax))
    i, j = picture.two("plot_classification", features)
    axes, handles = new_axes(ax), []
    for k, number in enumerate(picture.numbers):
        mine = picture.points[picture.labels == k]
        marker, colour = MARKERS[number % len(MARKERS)], picture.colour(k)
        axes.scatter(mine[:, i], mine[:, j], 9, colour, marker=marker, lw=0, alpha=0.7, rasterized=True)
        share = f"{number}: {len(mine):,}"
        handles.append(Line2D([], [], color=colour, marker=marker, lw=0, ms=3.5, label=share))
    picture.finish_pair(axes, i, j)
    add_legend(axes, handles, 4, title="component: samples drawn", columnspacing=1, handlelength=1)
    return axes


def _rows(picture: Picture, axes: Axes) -> Axes:
    """A row for each component, the first at the top: its share of the density, and its samples below it."""
    grid, log_shares = picture.log_shares(0)
    shares = np.exp(log_shares)
    scale, n, handles = 0.6 / shares.max(), len(picture.numbers), []
    for k, number in enumerate(picture.numbers):
        foot, colour = n - 1 - k, picture.colour(k)
        curve = foot + scale * shares[:, k]
        axes.fill_between(grid, foot, curve, color=colour, alpha=0.3, lw=0)
        axes.plot(grid, curve, picture.style(k), color=colour, lw=1)
        axes.vlines(
            picture.marks(0, k), foot - 0.25, foot - 0.04, color=colour, lw=0.8, alpha=picture.faint()
        )
        text = f"{number}: {np.count_nonzero(picture.labels == k):,}"
        handles.append(Line2D([], [], color=colour, ls=picture.style(k), lw=1.2, label=text))
    axes.set_yticks(range(n - 1, -1, -1), [str(number) for number in picture.numbers])
    axes.set_xlim(*picture.limits(0))
    axes.set_ylim(-0.35, n - 0.3)
    label(axes, picture.columns[0], "component")
    tidy(axes)
    add_legend(axes, handles, 4, title="component: samples drawn", columnspacing=1)
    return axes


def plot_ellipses(
    params: GMMParams,
    *,
    features: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
) -> Axes:
    """Draw the components' ellipses at one and two standard deviations, on top of what the axes have.

    Args:
      params: one mixture with D ≥ 2.
      features: the two features whose marginal is drawn.
      ax: where to draw; its limits grow where they must. None makes a figure.
      columns: names of the D features; None leaves the labels of axes that were given.

    Returns:
      The axes.

    Raises:
      ValueError: D is 1, or `features` are not two of the D.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.plot import plot_ellipses
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_ellipses(params)
    """
    picture = Picture(params, None, columns, None, 1)
    i, j = picture.two("plot_ellipses", features)
    if ax is None:
        ax = new_axes(None)
        picture.finish_pair(ax, i, j)
        return ax
    limits = np.array([picture.limits(i), picture.limits(j)])
    if ax.has_data():
        before = np.array([ax.get_xlim(), ax.get_ylim()])
        limits = np.stack([np.minimum(limits, before)[:, 0], np.maximum(limits, before)[:, 1]], axis=1)
    picture.draw_ellipses(ax, i, j)
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    if columns is not None:
        label(ax, picture.columns[i], picture.columns[j])
    return ax
