"""Trimming curves: one line per number of components over the trimmed share."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from jaxgmm.plot.criteria import label_ends
from jaxgmm.plot.style import MARKERS, PALETTE, STYLES, label, new_axes, tidy
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
    axes, ends = new_axes(ax, 3.0), []
    order = np.argsort(curve.trims)
    x = np.asarray(curve.trims)[order]
    for i, (k, row) in enumerate(zip(curve.n_components, curve.total, strict=True)):
        y = row[order]
        colour, style = PALETTE[i % len(PALETTE)], STYLES[i // len(PALETTE) % len(STYLES)]
        axes.plot(x, y, style, color=colour, marker=MARKERS[i % len(MARKERS)], ms=4, lw=1.2, clip_on=False)
        if np.isfinite(y).any():
            ends.append((float(y[np.isfinite(y)][-1]), f"K = {k}", colour))
    axes.set_xticks(x)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label(axes, "trimmed share α", "trimmed log-likelihood (nats)")
    tidy(axes)
    label_ends(axes, ends)
    return axes
