"""Pictures along the directions that separate the components: for data of many features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxgmm.distributions import directions, project
from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Array, Picture
from jaxgmm.plot.style import add_legend, new_axes

_NAMED = 3  # features whose names stand on an axis


def plot_directions(
    params: GMMParams,
    X: Any = None,
    *,
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
    max_points: int = 5000,
) -> Axes:
    """Draw a mixture of any number of features along the two directions that separate its components most.

    As `plot_density` in two dimensions: the density of the two new features, which is exact, the ellipses of
    the components, and the samples in the colour of their likeliest component by all D features. Each axis
    says its direction's part of all eigenvalues, and the features that it is most made of, with their
    coefficients where all features have variance 1 and the direction has length 1.

    Args:
      params: one mixture of Gaussian components with D ≥ 2.
      X: (N, D), complete rows; or None.
      ax: where to draw; None makes a figure.
      columns: names of the D features.
      sample_weight: (N,); samples without weight are not drawn.
      max_points: a scatter of more points than this shows a random sample of that many.

    Returns:
      The axes.

    Raises:
      ValueError: D is 1, X has missing entries, or the shapes do not fit.

    Example:
      >>> import numpy as np, jaxgmm
      >>> from jaxgmm.plot import plot_directions
      >>> params = jaxgmm.make_params([0.5, 0.5], np.eye(2, 5) * 4, np.ones(2), "spherical")
      >>> ax = plot_directions(params)

    References:
      Scrucca (2010), Dimension reduction for model-based clustering, Statistics and Computing 20.
    """
    whole = Picture(params, X, columns, sample_weight, max_points)
    if whole.n_features < 2:
        raise ValueError("plot_directions needs at least 2 features, got 1; use plot_density")
    if whole.incomplete or (whole.X is not None and np.isnan(whole.X).any()):
        raise ValueError("plot_directions needs complete rows: jaxgmm.impute fills missing entries in")
    found = directions(params)
    v = np.asarray(found.directions, np.float64)[:, :2]
    mean = whole.weights @ whole.means
    inside = whole.weights @ np.diagonal(whole.covariances, axis1=1, axis2=2)
    loadings = v * np.sqrt(inside + whole.weights @ (whole.means - mean) ** 2)[:, None]
    loadings /= np.linalg.norm(loadings, axis=0)
    # The sign of a direction means nothing: let the largest loading be positive.
    sign = np.sign(np.take_along_axis(loadings, np.abs(loadings).argmax(0)[None], 0))
    v, loadings = v * sign, loadings * sign
    new = project(params, np.asarray(v, np.asarray(params.means).dtype))
    given = (None, None) if whole.X is None else (whole.X @ v, whole.weight)
    share = np.asarray(found.eigenvalues, np.float64)
    names = [_name(i, loadings[:, i], share[i] / share.sum(), whole.columns) for i in range(2)]
    picture = Picture(new, given[0], names, given[1], max_points)
    if whole.X is not None:  # the same rows, drawn by the same seed
        picture.labels = whole.labels
    axes = new_axes(ax)
    picture.draw_pair(axes, 0, 1)
    add_legend(axes, picture.key(), 2)
    return axes


def _name(i: int, loadings: Array, share: float, columns: Sequence[str]) -> str:
    """What stands on an axis: the direction's number and share, and below it what it is made of."""
    largest = np.argsort(-np.abs(loadings), kind="stable")[:_NAMED]
    parts = [f"{'−' if loadings[j] < 0 else '+'} {abs(loadings[j]):.2f} {columns[j]}" for j in largest]
    more = " …" if len(loadings) > _NAMED else ""
    made = " ".join(parts).removeprefix("+ ") + more
    return f"direction {i + 1}: {100 * share:.0f} % of the eigenvalues\n{made}"
