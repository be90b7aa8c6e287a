"""EM loop on the host, for statistics that come from a file, other processes or an engine.

It takes the iterations that `fit`'s compiled loop takes (`jaxgmm.solvers.squarem`), one call from the host at
a time. Between iterations everything that is known lies in one `State`, so that a fit can be kept and taken
up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm import _coordinates as coordinates
from jaxgmm import priors
from jaxgmm.components.base import Component
from jaxgmm.data import Context, centring, constant, ridge
from jaxgmm.em import admissible, assessed, with_prior
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import RUNNING, State

Numbers = tuple[Array, Array, Array, Array]  # tol, max_iter, reg_covar, accelerate: `validate.iteration`


@dataclasses.dataclass(frozen=True)
class DataSummary:
    """What a fit must know of data before it begins, in float64 on the host.

    Attributes:
      n_samples: rows.
      total_weight: Σ w.
      mean: (D,) weighted mean of the features.
      variance: (D,) weighted variance about it.
      covariance: (D, D) of which that is the diagonal; None where the quadratic kernel is not to be used.
    """

    n_samples: int
    total_weight: float
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray | None = None

    @staticmethod
    def of(x: np.ndarray, w: np.ndarray, *, covariance: bool = False) -> DataSummary:
        """Of rows x (n, D) with weights w (n,), all finite."""
        x, w = x.astype(np.float64), w.astype(np.float64)
        total = w.sum()
        if not total > 0:
            zero = np.zeros(x.shape[1])
            return DataSummary(len(x), 0.0, zero, zero, np.diag(zero) if covariance else None)
        mean = w @ x / total
        gap = x - mean
        # What rounding has left of the gaps' mean is taken out again.
        rest = w @ gap / total
        if not covariance:
            return DataSummary(len(x), float(total), mean + rest, w @ np.square(gap) / total - rest**2)
        spread = (gap * w[:, None]).T @ gap / total - np.outer(rest, rest)
        return DataSummary(len(x), float(total), mean + rest, np.diag(spread).copy(), spread)

    def __add__(self, other: DataSummary) -> DataSummary:
        """Of two sets of rows together, by the formula of Chan, Golub & LeVeque (1979)."""
        if not self.total_weight or not other.total_weight:
            full, empty = (self, other) if self.total_weight else (other, self)
            return dataclasses.replace(full, n_samples=full.n_samples + empty.n_samples)
        total = self.total_weight + other.total_weight
        share = other.total_weight / total
        gap = other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * gap**2
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            covariance = (1 - share) * self.covariance + share * other.covariance
            covariance = covariance + share * (1 - share) * np.outer(gap, gap)
        n_samples = self.n_samples + other.n_samples
        return DataSummary(n_samples, total, self.mean + share * gap, variance, covariance)

    def context(self, reg_covar: Array, prior: Prior | None, params: GMMParams) -> Context:
        """As `data.summarise` makes it of an array, with the prior in it."""
        dtype = params.means.dtype
        variance = np.where(self.variance > constant(self.mean, dtype), self.variance, 1.0)
        shift = centring(self.mean, variance)
        added = ridge(reg_covar, variance.astype(dtype))
        f = Context(
            jnp.asarray(shift, dtype), jnp.asarray(variance, dtype), added, jnp.asarray(self.mean, dtype)
        )
        return with_prior(f, prior, params.model, params.means.shape)

    def coordinates(self, f: Context, component: Component) -> quadratic.Coordinates:
        """As `quadratic.coordinates` makes them of an array, for a structure's kind of second moment."""
        if self.covariance is None:
            raise ValueError("this data summary has no covariance, which the quadratic kernel needs")
        dtype = f.shift.dtype
        centre = jnp.asarray(self.mean - np.asarray(f.shift, np.float64), dtype)
        spread = jnp.asarray(self.covariance, dtype)
        return quadratic.coordinates_of(
            quadratic.kind_of(component), centre, jnp.asarray(self.total_weight, dtype), spread
        )


@functools.partial(jit, static_argnames="kernel")
def _update(
    s: State, statistics: Statistics, f: Context, numbers: Numbers, prepared: Any, *, kernel: Kernel
) -> State:
    tol, max_iter, _, accelerate = numbers
    e = assessed(s.point, statistics, f, kernel.rounding(s.point, prepared))
    return squarem.update(e, s, coordinates.extrapolation(s.point.model), tol, max_iter, accelerate)


def start(params: GMMParams, f: Context, history_size: int) -> State:
    """The state before the first iteration; its means are relative to the shift of the context."""
    begin = translate(admissible(params), -f.shift)
    return squarem.begin(begin, squarem.no_memory(params.means.dtype), history_size)


def climb(
    state: State,
    f: Context,
    numbers: Numbers,
    moments_of: Callable[[GMMParams], Statistics],
    after: Callable[[State], Any] | None = None,
    kernel: Kernel = WHITENED,
    prepared: Any = None,
) -> State:
    """EM iterations until its status says that it has ended.

    Args:
      state: from `start`, or as an earlier `after` was given it.
      f: the context, the same that the state was begun with.
      numbers: tol, max_iter, reg_covar and accelerate, as `validate.iteration` makes them.
      moments_of: from parameters whose means are relative to `f.shift`, the `Statistics` of all rows.
      after: called with each new state; where it raises, nothing of the state is lost to whoever keeps it.
      kernel: by which the statistics are made, for what their rounding does.
      prepared: what the kernel knows of the data.
    """
    while int(state.status) == RUNNING:
        state = _update(state, moments_of(state.point), f, numbers, prepared, kernel=kernel)
        if after is not None:
            after(state)
    return state


def result(
    state: State, f: Context, total_weight: float, moments_of: Callable[[GMMParams], Statistics]
) -> FitResult:
    """What `jaxgmm.fit` would return: parameters in the coordinates of the data, with their own likelihood.

    Where the shift is not zero the last digits of the means may be lost when it is added back, which costs
    one more pass over the data: what is reported is the likelihood of what is returned.
    """
    fitted = translate(state.base, f.shift)
    log_likelihood = state.report
    if bool((f.shift != 0).any()) and bool(jnp.isfinite(state.report)):
        moments = moments_of(translate(fitted, -f.shift))
        log_likelihood = moments.log_likelihood / moments.total_weight
    objective = log_likelihood
    if f.prior is not None:
        objective = log_likelihood + priors.log_density(state.base, f.prior)[0] / total_weight
    return FitResult(fitted, log_likelihood, objective, state.n_iter, state.status, state.history)
