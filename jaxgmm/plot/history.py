"""Histories: the log-likelihood of each start, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.plot.style import GREY, GREYS, PALETTE, add_legend, label, new_axes, tidy
from jaxgmm.result import FitResult
from jaxgmm.solvers.squarem import Status


def plot_history(results: FitResult, *, ax: Axes | None = None) -> Axes:
    """Draw the log-likelihood of every start after each EM step, as what it is short of the best of all.

    Logarithmic: a line that falls steadily converges at a constant rate, one that stays level has ended in
    another optimum; the grey band is rounding. The winner is coloured; starts that failed are dotted, and end
    with a cross.

    Args:
      results: one fit, or several with leading axes, as `fit_restarts` gives them; their ``history_size``
        must not be 0, and is what is drawn of longer fits.
      ax: where to draw; None makes a figure.

    Returns:
      The axes.

    Raises:
      ValueError: the results keep no history, or none of it is finite.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.plot import plot_history
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_restarts(jax.random.key(1), X, 2, covariance_type="spherical", n_init=4)
      >>> ax = plot_history(results)
    """
    history = np.asarray(results.history)
    if not history.size or not np.isfinite(history).any():
        raise ValueError("plot_history: the results keep no finite history; fit with history_size above 0")
    runs = history.reshape(-1, history.shape[-1]).astype(np.float64)
    failed = ~np.isin(np.asarray(results.status).ravel(), (Status.CONVERGED, Status.MAX_ITER))
    ends = np.array([h[np.isfinite(h)].max(initial=-np.inf) for h in runs])
    ends[failed] = -np.inf
    winner = int(ends.argmax())
    best = np.nanmax(runs[~failed]) if (~failed).any() else np.nanmax(runs)
    rounding = 4 * float(np.finfo(history.dtype).eps) * max(1.0, abs(best))
    axes = new_axes(ax, 3.0)
    for i in sorted(range(len(runs)), key=lambda i: i == winner):
        steps = np.flatnonzero(np.isfinite(runs[i]))
        if not steps.size:
            continue
        short = np.maximum(best - runs[i, steps], rounding)
        colour = PALETTE[0] if i == winner else PALETTE[1] if failed[i] else GREY
        style, end = (":", "x") if failed[i] else ("-", "o")
        faint = i != winner and not failed[i]
        axes.plot(
            steps + 1, short, style, color=colour, lw=1.4 if i == winner else 0.8, alpha=0.7 if faint else 1
        )
        axes.plot(steps[-1] + 1, short[-1], end, color=colour, ms=4)
    axes.axhspan(rounding / 2, 2 * rounding, color=GREYS[0], lw=0, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=rounding / 2)
    label(axes, "EM steps", "nats per sample below the best")
    others = len(runs) - 1 - int(np.delete(failed, winner).sum())
    handles = [Line2D([], [], color=PALETTE[0], marker="o", ms=4, lw=1.4, label="the best")]
    if others:
        text = f"{others} other{'s' if others > 1 else ''}"
        handles.append(Line2D([], [], color=GREY, marker="o", ms=4, lw=0.8, label=text))
    if failed.any():
        text = f"{failed.sum()} failed"
        handles.append(Line2D([], [], color=PALETTE[1], ls=":", marker="x", ms=4, label=text))
    add_legend(axes, handles, 3)
    tidy(axes)
    return axes
