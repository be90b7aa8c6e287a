"""Decision boundaries in two features: of a mixture's components, or of the classes of a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm._host_arrays import host_array
from jaxgmm.mixture import GMMParams
from jaxgmm.plot.picture import Array, Picture, needed
from jaxgmm.plot.style import GREY, MARKERS, PALETTE, add_legend, label, new_axes, tidy

_GRID = 201
_TIE = 1e-6
_LEAST = 1e-13  # of a classifier's probabilities, so that they have logarithms


def plot_boundaries(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    features: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    columns: Sequence[str] | None = None,
    max_points: int = 5000,
) -> Axes:
    """Draw the region of each component, or class, where it is the likeliest, under the samples.

    The regions of a mixture are those of the marginal of two features; its samples have the component that is
    likeliest by all D. The regions of a classifier are those of its predictions.

    Args:
      model: one mixture with D ≥ 2; or a fitted classifier of two features, a `GaussianMixtureClassifier` or
        any object with `predict_proba` and `classes_`.
      X: (N, D); for a mixture also `Data`, of which the rows that have both features are drawn.
      y: (N,) for a classifier, the classes of the samples; what is not in `classes_` is drawn in grey. None:
        those that it predicts.
      features: the two features of a mixture to draw.
      ax: where to draw; None makes a figure.
      columns: names of the D features; for a classifier by default its `feature_names_in_`.
      max_points: a scatter of more points than this shows a random sample of that many.

    Returns:
      The axes.

    Raises:
      TypeError: the model is neither.
      ValueError: D is 1, `features` are not two of the D, y is given for a mixture, a classifier has other
        than two features, or the shapes do not fit.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_boundaries
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], "spherical")
      >>> ax = plot_boundaries(params, jaxgmm.sample(jax.random.key(0), params, 50)[0])
    """
    X = needed(X, "plot_boundaries")
    if isinstance(model, GMMParams):
        if y is not None:
            raise ValueError(
                "y is for a classifier; a mixture draws each sample with its likeliest component"
            )
        picture = Picture(model, X, columns, None, max_points)
        return _of_mixture(picture, picture.two("plot_boundaries", features), new_axes(ax))
    if not (hasattr(model, "predict_proba") and hasattr(model, "classes_")):
        hint = "; pass result.params" if isinstance(getattr(model, "params", None), GMMParams) else ""
        hint = "; fit it first" if hasattr(model, "fit") else hint
        raise TypeError(
            "model must be GMMParams, or a fitted classifier with predict_proba and classes_; got "
            f"{type(model).__name__}{hint}"
        )
    return _of_classifier(model, X, y, ax, columns, max_points)


def _of_mixture(picture: Picture, features: tuple[int, int], axes: Axes) -> Axes:
    i, j = features
    x, y = (np.linspace(*picture.limits(feature), _GRID) for feature in features)
    numbers = picture.numbers
    _draw_regions(axes, x, y, picture.pair_log_shares(i, j, x[None, :], y[:, None]), numbers)
    handles = []
    for k, number in enumerate(numbers):
        mine = picture.points[picture.labels == k]
        handles.append(_draw_samples(axes, mine[:, [i, j]], int(number), str(number)))
        mean = picture.means[k]
        if x[0] < mean[i] < x[-1] and y[0] < mean[j] < y[-1]:
            picture.number(axes, k, mean[i], mean[j])
    names = picture.columns[i], picture.columns[j]
    return _finish(axes, x, y, names, handles, "component: samples drawn")


def _of_classifier(
    model: Any, X: Any, y: Any, ax: Axes | None, columns: Sequence[str] | None, max_points: int
) -> Axes:
    points = np.asarray(host_array(X, "X", missing=True), np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or getattr(model, "n_features_in_", 2) != 2:
        wanted = getattr(model, "n_features_in_", 2)
        raise ValueError(
            f"plot_boundaries draws a classifier of 2 features; got one of {wanted} and X of shape "
            f"{points.shape}"
        )
    classes = np.asarray(model.classes_)
    if y is not None and np.shape(y) != (len(points),):
        raise ValueError(f"y must have shape ({len(points)},), one class for each sample; got {np.shape(y)}")
    names = getattr(model, "feature_names_in_", ("x1", "x2")) if columns is None else columns
    if len(names) != 2:
        raise ValueError(f"columns must name 2 features, got {len(names)}")
    # A fixed seed: the same call draws the same picture.
    shown = np.sort(np.random.default_rng(0).permutation(len(points))[:max_points])
    points = points[shown]
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    margin = np.where(high > low, 0.08 * (high - low), 1.0)
    across, up = np.linspace(low - margin, high + margin, _GRID).T
    grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    axes = new_axes(ax)
    log_proba = _log_proba(model, grid).T.reshape(len(classes), _GRID, _GRID)
    _draw_regions(axes, across, up, log_proba, np.arange(len(classes)))
    labels = classes[_log_proba(model, points).argmax(1)] if y is None else np.asarray(y)[shown]
    handles = []
    for k, name in enumerate(classes):
        handles.append(_draw_samples(axes, points[labels == name], k, str(name)))
    other = points[~np.isin(labels, classes)]
    if len(other):
        handles.append(_draw_samples(axes, other, None, "no class"))
    return _finish(axes, across, up, (str(names[0]), str(names[1])), handles, "class: samples drawn")


def _log_proba(model: Any, X: Array) -> Array:
    """(N, n_classes) logarithms of a classifier's probabilities, which bound regions more smoothly."""
    with warnings.catch_warnings():
        # The grid is an array, also where the classifier was fitted to a data frame.
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        if hasattr(model, "predict_log_proba"):
            with np.errstate(divide="ignore"):  # scikit-learn's own, of a probability of 0
                found = np.asarray(model.predict_log_proba(X), np.float64)
            return np.maximum(found, np.log(_LEAST))
        return np.log(np.maximum(np.asarray(model.predict_proba(X), np.float64), _LEAST))


def _draw_regions(axes: Axes, x: Array, y: Array, log_shares: Array, numbers: Array) -> None:
    """Colour where each is the largest of log_shares (K, G, G), and draw the lines between."""
    largest = log_shares.argmax(0)
    for k, number in enumerate(numbers):
        others = np.delete(log_shares, k, axis=0)
        ahead = log_shares[k] - others.max(0) if len(others) else np.ones_like(log_shares[k])
        # Of several that are equal the first has the region, as in a prediction: no place is without colour.
        ahead = np.where(largest == k, np.maximum(ahead, _TIE), np.minimum(ahead, -_TIE))
        if ahead.max() > 0:
            colour = PALETTE[number % len(PALETTE)]
            axes.contourf(x, y, ahead, [0, np.inf], colors=[colour], alpha=0.2, zorder=0)
        if ahead.min() < 0 < ahead.max():
            axes.contour(x, y, ahead, [0.0], colors=["black"], linewidths=0.8, zorder=1)


def _draw_samples(axes: Axes, points: Array, number: int | None, name: str) -> Line2D:
    """The samples of one component or class, or of none, and their entry in the legend."""
    look: tuple[str, str] = (GREY, ".")
    if number is not None:
        look = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
    colour, marker = look
    axes.scatter(
        points[:, 0], points[:, 1], 9, colour, marker=marker, lw=0, alpha=0.8, rasterized=True, zorder=2
    )
    return Line2D([], [], color=colour, marker=marker, lw=0, ms=3.5, label=f"{name}: {len(points):,}")


def _finish(
    axes: Axes, x: Array, y: Array, names: tuple[str, str], handles: list[Line2D], title: str
) -> Axes:
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    label(axes, *names)
    tidy(axes)
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = 4 if longest <= 9 else 3 if longest <= 15 else 2
    add_legend(axes, handles, columns, title=title, columnspacing=1, handlelength=1)
    return axes
