"""Trimming curves: one line per number of components over the trimmed share."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.plot.criteria import name_lines
from jaxgmm.plot.style import label, line_look, new_axes, tidy
from jaxgmm.selection import TrimCurve


def plot_trim_curve(curve: TrimCurve, *, ax: Axes | None = None) -> Axes:
    """Draw the trimmed log-likelihood over the trimmed share, one line per number of components.

    A line that lies above the one below it at every share has a cluster more; lines that meet from some share
    on differ by what they make of outliers. A fit that has failed leaves a gap.

    Args:
      curve: what `jaxgmm.selection.trim_curve` gives.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: where every fit has failed.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_trim_curve
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> curve = jaxgmm.selection.trim_curve(jax.random.key(1), X, (1, 2), trims=(0.0, 0.1), n_init=2)
      >>> ax = plot_trim_curve(curve)

    References:
      García-Escudero, Gordaliza, Matrán & Mayo-Iscar (2011), Exploring the number of groups in robust
      model-based clustering, Statistics and Computing 21.
    """
    if not np.isfinite(curve.total).any():
        raise ValueError("plot_trim_curve: every fit of the curve has failed")
    axes = new_axes(ax, 3.0)
    order = np.argsort(curve.trims)
    x = np.asarray(curve.trims)[order]
    lines: list[Line2D] = []
    for i, (k, row) in enumerate(zip(curve.n_components, curve.total, strict=True)):
        lines += axes.plot(x, row[order], label=f"K = {k}", **line_look(i))
    axes.set_xticks(x)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label(axes, "trimmed share α", "trimmed log-likelihood (nats)")
    tidy(axes)
    name_lines(axes, lines)
    return axes
