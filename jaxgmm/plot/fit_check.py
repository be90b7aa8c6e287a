"""Goodness-of-fit picture of a one-dimensional mixture: distribution functions, and quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxgmm.distributions import cdf, quantile
from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Array, Picture, needed
from jaxgmm.plot.style import GREY, PALETTE, add_legend, label, new_figure, tidy

_MOST_STEPS = 5000  # of a line, and points of a Q–Q plot


def plot_fit_check(
    params: GMMParams,
    X: Any,
    *,
    figure: Figure | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
) -> Figure:
    """Draw how well a one-dimensional mixture fits: two distribution functions, and a Q–Q plot.

    On the left the empirical distribution function of the samples and the mixture's, with the largest
    distance between them, the statistic of Kolmogorov and Smirnov; its usual p-values do not hold for a
    mixture that was fitted to the same samples. On the right each sample over the mixture's quantile of the
    same probability, (i − ½) / N for the i-th smallest; where the mixture fits, the points are on the
    diagonal.

    Args:
      params: one mixture of D = 1.
      X: (N, 1), the data; or `Data`, of which the samples that are not missing are drawn.
      figure: an empty figure to draw on; None makes one. Its size is set to suit.
      columns: the name of the feature, as a sequence of one.
      sample_weight: (N,), weights of the samples.

    Returns:
      The figure.

    Raises:
      ValueError: D is above 1 (use `jaxgmm.distributions.marginal`), there are no samples, or the shapes do
        not fit.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_fit_check
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [3.0]], [1.0, 1.0], "spherical")
      >>> figure = plot_fit_check(params, jaxgmm.sample(jax.random.key(0), params, 50)[0])

    References:
      Wilk & Gnanadesikan (1968), Probability plotting methods for the analysis of data; Scrucca, Fraley,
      Murphy & Raftery (2023), Model-Based Clustering, Classification, and Density Estimation Using mclust in
      R, chapter 5.
    """
    picture = Picture(params, needed(X, "plot_fit_check"), columns, sample_weight, 1)
    if picture.n_features > 1:
        raise ValueError(
            f"plot_fit_check draws mixtures of one feature, got {picture.n_features}; choose one by "
            "jaxgmm.distributions.marginal"
        )
    values, weight = picture.observed(0)
    if not len(values):
        raise ValueError("plot_fit_check needs samples: all of X is missing")
    order = np.argsort(values, kind="stable")
    values, weight = values[order], weight[order] / weight.sum()
    left, right = new_figure((7.2, 3.4), figure).subplots(1, 2)

    dtype = np.asarray(params.means).dtype

    def of(function: Callable[..., Any], at: Array) -> Array:
        return np.asarray(function(params, at.astype(dtype)), np.float64)

    steps, place = np.unique(values, return_inverse=True)
    empirical = np.cumsum(np.bincount(place, weights=weight))
    before, mixture = np.append(0, empirical[:-1]), of(cdf, steps)
    distance = max(np.abs(empirical - mixture).max(), np.abs(before - mixture).max())
    low, high = picture.limits(0)
    shown = _evenly(len(steps))
    x, y = np.append(low, steps[shown]), np.append(0, empirical[shown])
    left.plot(np.append(x, high), np.append(y, 1), color="black", lw=1, drawstyle="steps-post")
    grid, _ = picture.log_shares(0)
    left.plot(grid, of(cdf, grid), color=PALETTE[0], lw=1.4)
    left.set_xlim(low, high)
    left.set_ylim(0, 1.02)
    label(left, picture.columns[0], "distribution function")
    handles = [
        Line2D([], [], color="black", lw=1, label=f"data, {len(values):,} rows"),
        Line2D([], [], color=PALETTE[0], lw=1.4, label=f"mixture; largest distance {distance:.3f}"),
    ]
    add_legend(left, handles, 2)

    shown = _evenly(len(values))
    middle = np.cumsum(weight) - 0.5 * weight
    expected, drawn = of(quantile, middle[shown]), values[shown]
    ends = [min(expected.min(), drawn.min()), max(expected.max(), drawn.max())]
    right.plot(ends, ends, color=GREY, lw=1)
    right.scatter(expected, drawn, 7, PALETTE[0], lw=0, alpha=0.7, rasterized=True)
    label(right, f"{picture.columns[0]}: quantiles of the mixture", "quantiles of the data")
    add_legend(right, [Line2D([], [], color=GREY, lw=1, label="equal quantiles")], 1)
    for axes in (left, right):
        tidy(axes)
    return left.figure


def _evenly(n: int) -> Array:
    """The numbers from 0 to n − 1, of many of them some, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_STEPS)).astype(int))
