"""Data summary on the host, and the state in which a fit from it begins."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.base import Component
from jaxgmm.data import Context, centring, constant, ridge
from jaxgmm.em import admissible, with_prior
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import State

_with_prior = jit(with_prior, static_argnames=("model", "shape"))
_coordinates = jit(quadratic.coordinates_of, static_argnames=("kind",))

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
      seen_weight: (D,) Σ w of the rows in which a feature is observed; None where entries cannot be missing.
      counted: whether every weight is 1.
    """

    n_samples: int
    total_weight: float
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray | None = None
    seen_weight: np.ndarray | None = None
    counted: bool = True

    @staticmethod
    def of(x: np.ndarray, w: np.ndarray, *, covariance: bool = False, missing: bool = False) -> DataSummary:
        """Of rows x (n, D) with weights w (n,), all finite; NaN for missing entries, where there may be."""
        x, w = x.astype(np.float64), w.astype(np.float64)
        counted = bool((w == 1).all())
        if missing:
            seen = ~np.isnan(x)
            weights, entries = np.where(seen, w[:, None], 0), np.where(seen, x, 0)
            each = weights.sum(0)
            share = weights / np.where(each > 0, each, 1)
            mean = (share * entries).sum(0)
            gap = entries - mean
            rest = (share * gap).sum(0)
            variance = (share * np.square(gap)).sum(0) - rest**2
            return DataSummary(len(x), float(w.sum()), mean + rest, variance, None, each, counted)
        weight = w.sum()
        total = weight or 1.0
        mean = w @ x / total
        gap = x - mean
        # What rounding has left of the gaps' mean is taken out again.
        rest = w @ gap / total
        variance = w @ np.square(gap) / total - rest**2
        spread = (gap * w[:, None]).T @ gap / total - np.outer(rest, rest) if covariance else None
        return DataSummary(len(x), float(weight), mean + rest, variance, spread, counted=counted)

    @staticmethod
    def unknown(x: np.ndarray, w: np.ndarray, n_features: int, *, missing: bool = False) -> DataSummary:
        """Of rows that show D features through projections: their means count as 0, their variances as 1."""
        total = float(w.sum(dtype=np.float64))
        none, one = np.zeros(n_features), np.ones(n_features)
        return DataSummary(len(x), total, none, one, seen_weight=total * one if missing else None)

    def __add__(self, other: DataSummary) -> DataSummary:
        """Of two sets of rows together, by the formula of Chan, Golub & LeVeque (1979)."""
        total = self.total_weight + other.total_weight
        share: Any = other.total_weight / total if total else 0.0
        seen = None
        if self.seen_weight is not None and other.seen_weight is not None:
            seen = self.seen_weight + other.seen_weight
            share = other.seen_weight / np.where(seen > 0, seen, 1)
        gap = other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * gap**2
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            covariance = (1 - share) * self.covariance + share * other.covariance
            covariance = covariance + share * (1 - share) * np.outer(gap, gap)
        n_samples, counted = self.n_samples + other.n_samples, self.counted and other.counted
        return DataSummary(n_samples, total, self.mean + share * gap, variance, covariance, seen, counted)

    def context(self, reg_covar: Array, prior: Prior | None, params: GMMParams) -> Context:
        """As `data.summarise` makes it of an array, with the prior in it."""
        dtype = params.means.dtype
        variance = np.where(self.variance > constant(self.mean, dtype), self.variance, 1.0)
        shift = centring(self.mean, variance).astype(dtype)
        least: Any = np.asarray(reg_covar)
        added = ridge(least, variance.astype(dtype))
        summary = Context(*map(jnp.asarray, (shift, variance.astype(dtype), added, self.mean.astype(dtype))))
        return summary if prior is None else _with_prior(summary, prior, params.model, params.means.shape)

    def coordinates(self, f: Context, component: Component) -> quadratic.Coordinates:
        """As `quadratic.coordinates` makes them of an array, for a structure's kind of second moment."""
        assert self.covariance is not None
        dtype = f.shift.dtype
        numbers = (self.mean - np.asarray(f.shift, np.float64), self.total_weight, self.covariance)
        return _coordinates(quadratic.kind_of(component), *(jnp.asarray(a, dtype) for a in numbers))


@functools.partial(jit, static_argnames="history_size")
def start(params: GMMParams, shift: Array, history_size: int) -> State:
    """The state before the first iteration; its means are relative to the shift of the context."""
    begin = translate(admissible(params), -shift)
    return squarem.begin(begin, squarem.no_memory(params.means.dtype), history_size)
