"""Data: the rows and their weights; the data summary, from which centring and ridge follow."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.kernels.blocked_sum import in_range, sum_rows, zero_unused
from jaxgmm.kernels.linalg import einsum, epsilon


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    """The rows and all that is known of each: a pytree whose leaves have N rows.

    Attributes:
      x: (N, D).
      weight: (N,) sample weights, or None for ones.
    """

    x: Array  # (N, D)
    weight: Array | None = None  # (N,)


class Context(NamedTuple):
    """What EM knows beside the rows: the data summary and the prior."""

    shift: Array  # (D,)  the centring: subtracted from the data, against rounding at a large offset
    variance: Array  # (D,)  of the features; 1 for a constant feature
    ridge: Array  # (D,)  what is added to the diagonals of the covariances
    mean: Array  # (D,)  of the features
    prior: Any = None  # `priors.Pseudo` about the shift, or None


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
    shift = lax.stop_gradient(centring(mean, variance))
    return Context(shift, variance, ridge(reg_covar, variance), mean)


def location_and_variance(
    x: Array, sample_weight: Array | None, block_size: int = 2048
) -> tuple[Array, Array]:
    """Weighted mean (D,) and variance (D,) of the features, the variance about the mean.

    Where squares leave the range of the dtype, the variance is NaN; or the least that can be told from zero,
    of a feature whose squares underflow beside those of another one.
    """

    def safe(w: Array, b: Array) -> Array:
        return jnp.where(in_range(w, b), b, jnp.zeros((), b.dtype))

    total, first = sum_rows(
        lambda w, b: (w.sum(), (w[:, None] * safe(w, b)).sum(0)), sample_weight, x, block_size=block_size
    )
    mean = first / total

    def deviations(w: Array, b: Array) -> tuple[Array, Array, Array]:
        d = safe(w, b) - mean[None, :]
        return (w[:, None] * d).sum(0), (w[:, None] * d * d).sum(0), lax.stop_gradient(w @ jnp.abs(d))

    rest, squares, absolute = sum_rows(deviations, sample_weight, x, block_size=block_size)
    variance = squares / total - jnp.square(rest / total)
    # A variance is at least the square of the mean absolute deviation. A constant feature has neither.
    info = jnp.finfo(x.dtype)
    least = float(info.tiny / info.eps)
    varies = absolute / total > 8 * epsilon(x.dtype) * jnp.abs(mean)
    variance = jnp.where(jnp.isfinite(variance), variance, jnp.nan)
    lost = varies & (jnp.square(absolute / total) < least)
    instead = jnp.where((varies & ~lost).any(), least, jnp.nan)
    return mean + rest / total, jnp.where(lost, instead, variance)


def scatter(
    x: Array,
    sample_weight: Array | None,
    centre: Array,
    block_size: int = 2048,
) -> tuple[Array, Array]:
    """Σ w () and Σ w (x − c)(x − c)ᵀ (D, D) about a centre c (D,)."""

    def products(w: Array, b: Array) -> tuple[Array, Array]:
        w, b = zero_unused(w, b)
        b = b - centre[None, :]
        return w.sum(), einsum("bd,be->de", b * w[:, None], b)

    total: tuple[Array, Array] = sum_rows(products, sample_weight, x, block_size=block_size)
    return total
