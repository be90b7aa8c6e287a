"""Histories: the log-likelihood of each start, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxgmm.plot.style import GREYS, PALETTE, SMALL, TEXT, new_figure, tidy
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
    axes = new_figure((3.5, 3.0)).add_subplot() if ax is None else ax
    for i in sorted(range(len(runs)), key=lambda i: i == winner):
        steps = np.flatnonzero(np.isfinite(runs[i]))
        if not steps.size:
            continue
        short = np.maximum(best - runs[i, steps], rounding)
        colour = PALETTE[0] if i == winner else PALETTE[1] if failed[i] else "#8a8a8a"
        axes.plot(
            steps + 1, short, ":" if failed[i] else "-", color=colour, lw=1.4 if i == winner else 0.8,
            alpha=1 if i == winner or failed[i] else 0.7,
        )  # fmt: skip
        axes.plot(steps[-1] + 1, short[-1], "x" if failed[i] else "o", color=colour, ms=4)
    axes.axhspan(rounding / 2, 2 * rounding, color=GREYS[0], lw=0, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=rounding / 2)
    axes.set_xlabel("EM steps", fontsize=TEXT)
    axes.set_ylabel("nats per sample below the best", fontsize=TEXT)
    handles = [Line2D([], [], color=PALETTE[0], marker="o", ms=4, lw=1.4, label="the best")]
    others = len(runs) - 1 - int(np.delete(failed, winner).sum())
    if others:
        handles.append(
            Line2D(
                [],
                [],
                color="#8a8a8a",
                marker="o",
                ms=4,
                lw=0.8,
                label=f"{others} other{'s' if others > 1 else ''}",
            )
        )
    if failed.any():
        handles.append(
            Line2D([], [], color=PALETTE[1], ls=":", marker="x", ms=4, label=f"{failed.sum()} failed")
        )
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2,
        columnspacing=1.2, handlelength=1.6, fontsize=SMALL, frameon=False,
    )  # fmt: skip
    tidy(axes)
    return axes
