"""Pictures of a mixture: in one or two dimensions, as pairwise marginals, and beside its criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from jaxgmm.mixture import GMMParams
from jaxgmm.plot.criteria import plot_criteria
from jaxgmm.plot.picture import Picture
from jaxgmm.plot.style import SMALL, TEXT, add_legend, new_axes, new_figure


def plot_density(
    params: GMMParams,
    X: Any = None,
    *,
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
    max_points: int = 5000,
) -> Axes:
    """Draw a mixture in one or two dimensions.

    In one dimension: a histogram of ``X``, the density, each component's share π_k N(x | μ_k, σ_k²), and a
    rug, a mark for each of at most 500 samples in the colour of its likeliest component. In two: the regions
    that hold 50, 80 and 95 % of the density, the points in the colour of their likeliest component, and each
    component's ellipses at one and two standard deviations. Components are numbered as in ``params``;
    switched-off ones are not drawn.

    Args:
      params: one mixture with D = 1 or 2.
      X: (N, D), the data; `Data`, of which a panel shows the rows that have its features; or None.
      ax: where to draw; None makes a figure.
      columns: names of the D features, for the axes.
      sample_weight: (N,), weights for the histogram; points without weight are not drawn.
      max_points: a scatter of more points than this shows a random sample of that many, and says so.

    Returns:
      The axes.

    Raises:
      ValueError: D is above 2 (use `plot_pairs`), or the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxgmm
      >>> from jaxgmm.plot import plot_density
      >>> params = jaxgmm.make_params(jnp.ones(2) / 2, jnp.array([[0.0], [3.0]]), jnp.ones(2), "spherical")
      >>> ax = plot_density(params)
    """
    picture = Picture(params, X, columns, sample_weight, max_points)
    if picture.n_features > 2:
        raise ValueError(f"plot_density draws 1 or 2 features, got {picture.n_features}; use plot_pairs")
    axes = new_axes(ax)
    if picture.n_features == 1:
        picture.draw_marginal(axes, 0)
        picture.draw_rug(axes, 0)
    else:
        picture.draw_pair(axes, 0, 1)
    add_legend(axes, picture.key(), 2, title=picture.note())
    return axes


def plot_pairs(
    params: GMMParams,
    X: Any = None,
    *,
    figure: Figure | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
    max_points: int = 2000,
    max_features: int = 8,
) -> Figure:
    """Draw every one- and two-dimensional marginal of a mixture, as a triangle of panels.

    Args:
      params: one mixture with D ≥ 2.
      X: (N, D), the data; `Data`, of which a panel shows the rows that have its features; or None.
      figure: where to draw; None makes one.
      columns: names of the D features.
      sample_weight: (N,), as in `plot_density`.
      max_points: the most points a panel shows.
      max_features: with more features than this, those whose components lie farthest apart are drawn, and the
        figure says so. Apart means: variance between the means ÷ mean variance within the components.

    Returns:
      The figure.

    Raises:
      ValueError: D is 1 (use `plot_density`), or the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxgmm
      >>> from jaxgmm.plot import plot_pairs
      >>> means = jnp.array([[0.0] * 3, [3.0] * 3])
      >>> params = jaxgmm.make_params(jnp.ones(2) / 2, means, jnp.ones(2), "spherical")
      >>> figure = plot_pairs(params)
    """
    picture = Picture(params, X, columns, sample_weight, max_points)
    return _triangle(picture, figure, max_features)[0]


def plot_fit(
    params: GMMParams,
    X: Any = None,
    table: Sequence[Mapping[str, Any]] = (),
    *,
    criterion: str = "bic",
    figure: Figure | None = None,
    columns: Sequence[str] | None = None,
    sample_weight: Any = None,
) -> Figure:
    """Draw a fit on one page: the criterion that chose it, where there was a choice, and the fitted density.

    Args:
      params: one mixture, of any D: `plot_density` up to two features, `plot_pairs` above.
      X: (N, D), the data; `Data`, of which a panel shows the rows that have its features; or None.
      table: as in `plot_criteria`; with fewer than two finite rows there is nothing to compare, and no
        curve.
      criterion: which one to draw.
      figure: an empty figure to draw on; None makes one. Its size is set to suit.
      columns: names of the D features.
      sample_weight: (N,), as in `plot_density`.

    Returns:
      The figure.

    Example:
      >>> import jax.numpy as jnp, jaxgmm
      >>> from jaxgmm.plot import plot_fit
      >>> params = jaxgmm.make_params(jnp.ones(2) / 2, jnp.array([[0.0], [3.0]]), jnp.ones(2), "spherical")
      >>> figure = plot_fit(params)
    """
    choice = sum(bool(np.isfinite(float(row[criterion]))) for row in table) > 1
    if params.n_features > 2:
        picture = Picture(params, X, columns, sample_weight, 2000)
        canvas, corner = _triangle(picture, figure, 8, corner=choice)
        if corner is not None:
            plot_criteria(table, criterion=criterion, ax=corner)
            if _keep_within(corner):
                corner.clear()
                plot_criteria(table, criterion=criterion, ax=corner)
        return canvas
    canvas = new_figure((7.2, 3.4) if choice else (3.6, 3.4), figure)
    panels = canvas.subplots(1, 1 + choice, squeeze=False)[0]
    if choice:
        plot_criteria(table, criterion=criterion, ax=panels[0])
    plot_density(params, X, ax=panels[-1], columns=columns, sample_weight=sample_weight)
    return canvas


def _triangle(
    picture: Picture, figure: Figure | None, max_features: int, corner: bool = False
) -> tuple[Figure, Axes | None]:
    """The triangle of panels and, where it is asked for, axes in its free corner."""
    if picture.n_features < 2:
        raise ValueError("plot_pairs needs at least 2 features, got 1; use plot_density")
    chosen = np.arange(picture.n_features)
    if len(chosen) > max_features:
        chosen = np.sort(np.argsort(-picture.apart(), kind="stable")[:max_features])
    d = len(chosen)
    if d > 4:
        picture.grid, picture.font = 61, 7
    side = float(np.clip(1.5 * d, 5.4, 9.5))
    canvas = new_figure((side, side), figure)
    # Margins in inches: the constrained layout would take long over so many panels, and make room within the
    # triangle for the labels in its corner.
    canvas.set_layout_engine("none")
    left, bottom, right, top = 0.68 / side, 0.5 / side, 1 - 0.08 / side, 1 - 0.5 / side
    grid = GridSpec(d, d, canvas, left, bottom, right, top, wspace=0.12, hspace=0.12)
    for row, j in enumerate(chosen):
        for column, i in enumerate(chosen[: row + 1]):
            axes = canvas.add_subplot(grid[row, column])
            if row == column:
                picture.draw_marginal(axes, int(j), numbered=d <= 4)
                axes.set_yticks([])
                axes.set_ylabel("")
                axes.spines["left"].set_visible(False)
            else:
                picture.draw_pair(axes, int(i), int(j))
            axes.locator_params(nbins=4 if d <= 4 else 3)
            axes.label_outer()
    entries, note = picture.key(), picture.note()
    if d < picture.n_features:
        apart = f"the {d} of {picture.n_features} features whose components lie farthest apart"
        note = f"{apart}; {note}" if note else apart
    font: dict[str, Any] = {"title_fontsize": TEXT, "fontsize": SMALL, "frameon": False}
    canvas.legend(handles=entries, title=note, loc="upper right", ncols=len(entries), **font)
    if not corner:
        return canvas, None
    free = max(1, d // 2)
    space = grid[:free, free:].get_position(canvas)
    width, height = min(space.width - 1.2 / side, 3.4 / side), min(space.height - 0.3 / side, 2.6 / side)
    return canvas, canvas.add_axes((space.x1 - width - 0.55 / side, space.y1 - height, width, height))


def _keep_within(axes: Axes) -> bool:
    """Make the axes in the corner narrower where names of their lines are beyond the page; whether it did."""
    canvas, place, drawn = axes.figure, axes.get_position(), axes.get_tightbbox()
    width = float(canvas.bbox.width)
    beyond = 0.0 if drawn is None else float(drawn.x1) / width - (1 - 0.08 * canvas.dpi / width)
    if beyond > 0:
        axes.set_position((place.x0, place.y0, place.width - beyond, place.height))
    return beyond > 0
