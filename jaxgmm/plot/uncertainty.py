"""Uncertainty pictures: samples whose component is in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Picture
from jaxgmm.plot.style import add_legend, new_axes

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

    Larger and darker is more uncertain; the ellipses are the components' at one and two standard deviations.

    Args:
      params: one mixture with D ≥ 2.
      X: (N, D), or `Data`, of which the rows that have both features are drawn.
      features: the two features to draw; the uncertainty is that of all D.
      ax: where to draw; None makes a figure.
      columns: names of the D features.
      sample_weight: (N,); samples without weight are not drawn.
      max_points: a scatter of more points than this shows a random sample of that many.

    Returns:
      The axes.

    Raises:
      ValueError: D is 1, `features` are not two of the D, or the shapes do not fit.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_uncertainty
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_uncertainty(params, jaxgmm.sample(jax.random.key(0), params, 50)[0])
    """
    picture = Picture(params, X, columns, sample_weight, max_points)
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
