"""Data summary: feature means and variances, and from them the centring of the data and the ridge."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm import priors
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.exact import location_and_variance
from jaxgmm.kernels.linalg import epsilon


class Context(NamedTuple):
    """What EM knows of the data before it begins: their centring, their variances, the ridge, the prior."""

    shift: Array  # (D,)  subtracted from the data, so that means are not rounded at a large offset
    variance: Array  # (D,)  of the features; 1 for a constant feature
    ridge: Array  # (D,)  what is added to the diagonals of the covariances
    prior: priors.Pseudo | None = None  # about the shift
    quadratic: quadratic.Coordinates | None = None  # where the quadratic kernel is to be used
    rough: Array | None = None  # ()  bool: whether it is used now; None for always
    centre: Array | None = None  # (D,)  the data's mean, where a survey has it


def centring(mean: Any, variance: Any) -> Any:
    """(D,) the shift taken off the data: a feature's mean, or 0 where it is below the standard deviation.

    Where the offset is small beside the spread, a shift would only add its own rounding to the data. Of NumPy
    arrays it is one; of JAX arrays too.
    """
    where = np.where if isinstance(mean, np.ndarray) else jnp.where
    return where(mean * mean > variance, mean, 0)


def ridge(reg_covar: Array, variance: Any) -> Array:
    """(D,) what is added to the variances: reg_covar · min(1, Var x_j).

    Absolute for features as wide as 1 or wider, and relative below, so that a feature in small units is not
    swamped.
    """
    minimum = np.minimum if isinstance(variance, np.ndarray) else jnp.minimum
    return reg_covar * minimum(variance, 1)


def constant(mean: Any, dtype: Any) -> Any:
    """(D,) the variance of a feature that is constant to rounding at that mean, or less."""
    return (8 * epsilon(dtype) * abs(mean)) ** 2


def summarise(x: Array, w: Array | None, reg_covar: Array) -> Context:
    """The data summary, from the means and variances of the rows. A constant feature counts as width 1."""
    mean, variance = location_and_variance(x, w)
    # NaN, of squares out of range, stays: the fit then ends as NONFINITE.
    variance = jnp.where(variance <= constant(mean, x.dtype), 1, variance)
    shift = jax.lax.stop_gradient(centring(mean, variance))
    return Context(shift, variance, ridge(reg_covar, variance), centre=mean)
