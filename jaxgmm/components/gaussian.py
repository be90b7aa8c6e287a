"""Gaussian components: N(x | μ_k, Σ_k) with the covariances of a structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import gammainc, gammaincc

from jaxgmm.components.base import Columns, Component, Scale, Seen, Shape, Sums, Target
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.registry import get_covariance
from jaxgmm.kernels.linalg import einsum

# Residuals beyond 2**40 are scaled down before they are squared: float32 overflows at 2**64 squared.
_FAR = float(2.0**40)


class Prepared(NamedTuple):
    """Means (K, D), the scatter's arrays, and the function that whitens residuals (K, D, B)."""

    means: Array
    scatter: Any
    whiten: Callable[[Array], Array]


def prepare(c: Component, means: Array, scale: Scale) -> Prepared:
    """What an iteration needs of the parameters once."""
    scatter = c.scatter(c, scale)
    return Prepared(means, scatter, c.covariance.whitener(scatter))


def finite_length(length: Array) -> Array:
    """Squared lengths, so bounded that where every one overflows they are all as far, and nothing is NaN."""
    return jnp.minimum(length, float(jnp.finfo(length.dtype).max) / 8)


def distances(prepared: Prepared, x: Array) -> tuple[Array, Array]:
    """Half squared Mahalanobis distances q (K, B) and row scales t (B,): the distance is t² q."""
    residuals = x[None, :, :] - prepared.means[:, :, None]
    t = lax.stop_gradient(jnp.maximum(jnp.abs(residuals).max((0, 1)) / _FAR, 1))
    y = prepared.whiten(residuals / t[None, None, :])
    return 0.5 * jnp.square(y).sum(1), t


def log_normaliser(c: Component, scale: Scale, shape: Shape) -> Array:
    """(K,) log N(μ_k | μ_k, Σ_k) = −½ (D log 2π + log |Σ_k|)."""
    constant = float(shape[1] * np.log(2 * np.pi))
    return -0.5 * (constant + c.covariance.log_det(c.scatter(c, scale), shape))


def move(
    c: Component, means: Array, scale: Scale, target: Target, ridge: Array
) -> tuple[Array, Scale, Array]:
    """Means and scatter matrices moved to a `Target`, and the squared Fisher length of that, (K,).

    ‖C_k⁻¹ Δμ_k‖² + ½ ‖C_k⁻¹ ΔΣ_k C_k⁻ᵀ‖²_F.
    """
    scatter = c.scatter(c, scale)
    moved = c.covariance.colour(scatter, target.mean[:, :, None])[:, :, 0]
    new, change = c.covariance.update(scatter, target.weight, target.centre, target.second, ridge)
    length = jnp.square(target.mean).sum(-1) + 0.5 * change
    return means + moved, c.with_scatter(c, scale, new), length


def moments(c: Component, prepared: Prepared, y: Array, weight: Array) -> Sums:
    """First and second moments of y (K, D, B) weighted by (K, B)."""
    first = einsum("kdb,kb->kd", y, weight)
    return Sums(first, c.covariance.moments(prepared.scatter, y, weight))


def mean_of(first: Array, weight: Array) -> Array:
    """(K, D) first moments over weights (K,); 0 where there is no weight."""
    on = (weight > 0)[:, None]
    return jnp.where(on, first / jnp.where(on, weight[:, None], 1), 0)


def _expect(c: Component, prepared: Prepared, x: Array) -> tuple[Array, Array]:
    y = prepared.whiten(x[None, :, :] - prepared.means[:, :, None])
    return -0.5 * finite_length(jnp.square(y).sum(1)), y


def _log_density(c: Component, prepared: Prepared, x: Array, on: Array) -> tuple[Array, Array]:
    # The nearest component's distance is taken out of the others before anything is exponentiated, so that
    # responsibilities stay finite where every density underflows.
    q, t = distances(prepared, x)
    nearest = lax.stop_gradient(jnp.where(on[:, None], q, jnp.inf).min(0))
    return -t[None, :] * (t[None, :] * (q - nearest[None, :])), -t * (t * nearest)


def _maximise(
    c: Component, means: Array, scale: Scale, weight: Array, sums: Sums, target: Target | None, ridge: Array
) -> tuple[Array, Scale, Array]:
    return move(c, means, scale, plain_target(weight, sums) if target is None else target, ridge)


def plain_target(weight: Array, sums: Sums) -> Target:
    """The means and second moments themselves, as without a prior."""
    mean = mean_of(sums.first, weight)
    return Target(mean, weight, mean, sums.second)


def _marginal(c: Component, scale: Scale, seen: Seen) -> tuple[Array, Array]:
    return seen.base - 0.5 * seen.length, seen.y


def _outlier(c: Component, scale: Scale, seen: Seen) -> tuple[Array, Array]:
    # Squared distances of n entries have a χ² distribution with n degrees of freedom.
    n = jnp.asarray(seen.n_observed, seen.length.dtype)
    half = jnp.broadcast_to(0.5 * n, seen.length.shape)
    some, both = half > 0, (jnp.maximum(half, 0.5), 0.5 * seen.length)
    return jnp.where(some, gammainc(*both), 0), jnp.where(some, gammaincc(*both), 1)


def _part(
    c: Component, scale: Scale, columns: Columns, covariance: Covariance, scatter: Any, seen: Seen | None
) -> tuple[Component, Scale]:
    return gaussian(covariance), scatter


def _start(c: Component, variances: Array) -> Scale:
    return c.covariance.from_variances(variances)


def _scatter(c: Component, scale: Scale) -> Any:
    return scale


def _with_scatter(c: Component, scale: Scale, scatter: Any) -> Scale:
    return scatter


def _n_parameters(c: Component, n_components: Any, n_features: int) -> Any:
    return n_components * n_features + c.covariance.n_parameters(n_components, n_features)


_FULL = get_covariance("full")
_GAUSSIAN = Component(
    name=_FULL.name,
    covariance=_FULL,
    prepare=prepare,
    expect=_expect,
    log_normaliser=log_normaliser,
    log_density=_log_density,
    statistics=moments,
    maximise=_maximise,
    start=_start,
    scatter=_scatter,
    with_scatter=_with_scatter,
    n_parameters=_n_parameters,
    marginal=_marginal,
    accepts=("missing", "noise", "projection"),
    outlier=_outlier,
    part=_part,
    is_gaussian=True,
)


def gaussian(covariance: str | Covariance = "full") -> Component:
    """Gaussian components N(x | μ_k, Σ_k), of any covariance structure; their names are the structures'.

    Args:
      covariance: a name, such as "VVE", or a `Covariance`.

    Raises:
      ValueError, TypeError: for a name that is not in the table, or what is neither.

    Example:
      >>> from jaxgmm.components import gaussian
      >>> gaussian("VVE")
      Component('VVE')
    """
    structure = get_covariance(covariance)
    return _GAUSSIAN._replace(name=structure.name, covariance=structure)
