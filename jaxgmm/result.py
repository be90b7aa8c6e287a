"""`FitResult`, what every fit returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgmm import _display as display
from jaxgmm.mixture import GMMParams, components, kind
from jaxgmm.solvers.squarem import Status


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FitResult(display.Shown):
    """A fitted mixture and how the fit ended; under `vmap` every array has leading batch axes.

    Attributes:
      params: the mixture.
      log_likelihood: () mean per unit of sample weight, in nats, of `params` themselves.
      objective: () what the fit climbs, per unit of sample weight: log_likelihood, plus log_prior / Σ w where
        there is a prior. A ridge's penalty, of the order of reg_covar, is not counted.
      n_iter: () int32, EM steps taken on the way to `params`, rejected extrapolations included.
      status: () int32, a `Status`.
      history: (history_size,) log_likelihood after 1, 2, … steps; −inf past n_iter. Where the data lie far
        from the origin, before the means are rounded to their place there; log_likelihood is after. What the
        quadratic kernel reported on the way has its rounding.
    """

    params: GMMParams
    log_likelihood: Array  # ()
    objective: Array  # ()
    n_iter: Array  # ()
    status: Array  # ()
    history: Array  # (history_size,)

    def __repr__(self) -> str:
        """One line: what was fitted and how it ended. Printed, it has the mixture's table."""
        return f"{type(self).__name__}({kind(self.params)}: {', '.join([*ending(self), *self._remarks()])})"

    def _table(self) -> display.Table | None:
        return components(self.params)

    def _remarks(self) -> list[str]:
        """What a subclass adds to the line."""
        return []


def ending(result: FitResult) -> list[str]:
    """How a fit ended, or several, in words."""
    status, steps, values = (display.look(a) for a in (result.status, result.n_iter, result.log_likelihood))
    if status is None or steps is None or values is None:
        return ["its numbers cannot be seen here"]
    if status.ndim == 0 and steps.ndim == 0 and values.ndim == 0:
        after = f"{steps:g} EM step{'' if steps == 1 else 's'}"
        return [f"{in_words(status)} after {after}", f"log-likelihood {float(values):.6g}"]
    ends, counts = np.unique(status, return_counts=True)
    said = [f"{n} {in_words(end)}" for end, n in zip(ends, counts, strict=True)]
    finite = values[np.isfinite(values)]
    if finite.size:
        said.append(f"log-likelihoods {float(finite.min()):.6g} to {float(finite.max()):.6g}")
    return said


def in_words(status: np.ndarray[Any, Any]) -> str:
    """A `Status` as one says it."""
    try:
        return display.STATUS[Status(status.item()).name]
    except ValueError:  # a number of somebody's own
        return f"status {status}"
