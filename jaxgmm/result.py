"""`FitResult`, what every fit returns."""

from __future__ import annotations

import dataclasses
import functools

import jax
from jax import Array

from jaxgmm.params import GMMParams


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "log_likelihood", "objective", "n_iter", "status", "history"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class FitResult:
    """A fitted mixture and how the fit ended; under `vmap` every array has leading batch axes.

    Attributes:
      params: the mixture.
      log_likelihood: () mean per unit of sample weight, in nats, of `params` themselves.
      objective: () what the fit climbs, per unit of sample weight: log_likelihood, plus log_prior / Σ w where
        there is a prior. A ridge's penalty, of the order of reg_covar, is not counted.
      n_iter: () int32, EM steps taken on the way to `params`, rejected extrapolations included.
      status: () int32, a `Status`.
      history: (history_size,) log_likelihood after 1, 2, … steps; NaN past n_iter. Where the data lie far
        from the origin, before the means are rounded to their place there; log_likelihood is after. What the
        quadratic kernel reported on the way has its rounding.
    """

    params: GMMParams
    log_likelihood: Array  # ()
    objective: Array  # ()
    n_iter: Array  # ()
    status: Array  # ()
    history: Array  # (history_size,)
