"""Dense view: mixtures of any structure as one kind, so that what does not depend on it is compiled once."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.full import full
from jaxgmm.components.gaussian import gaussian
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.linalg import einsum
from jaxgmm.mixture import GMMParams


class Factors(NamedTuple):
    """The scale of such a mixture: Σ_k = C_k C_kᵀ by factors that are dense, but need not be triangular.

    With the structure's own C⁻¹ beside C nothing is inverted again, and nothing lost of thin covariances.
    """

    colour: Array  # (K, D, D)  C
    white: Array  # (K, D, D)  C⁻¹
    log_det: Array  # (K,)  log |Σ|


# For E-steps and moments. It has no M-step of its own: that is what structures differ in.
ALIKE = gaussian(
    full._replace(
        name="alike",
        whitener=lambda scale: lambda residuals: einsum("kde,keb->kdb", scale.white, residuals),
        colour=lambda scale, y: einsum("kde,keb->kdb", scale.colour, y),
        log_det=lambda scale, shape: scale.log_det,
    )
)


def factors(params: GMMParams) -> Factors:
    """The dense factors of one mixture."""
    shape = (params.n_components, params.n_features)
    identity = jnp.eye(shape[1], dtype=params.means.dtype)
    identity = jnp.broadcast_to(identity[None], (*shape, shape[1]))
    covariance, scatter = params.covariance, params.scatter
    return Factors(
        covariance.colour(scatter, identity),
        covariance.whitener(scatter)(identity),
        covariance.log_det(scatter, shape),
    )


def alike(params: GMMParams, scale: Factors | None) -> GMMParams:
    """A mixture by its dense factors; itself where there are none. Any leading axes."""
    return params if scale is None else GMMParams(params.log_weights, params.means, scale, ALIKE)


def as_seen_by(params: GMMParams, scale: Factors | None, moments: Statistics) -> Statistics:
    """Statistics about a mixture's means in the metric of `scale`, as the structure of `params` keeps them.

    Of a structure only its `second_moment` is known, which is linear in the responsibilities. So the second
    moments become 2D samples that have them: with R the correlations, 4R = (I + R)² − (I − R)².
    """
    if scale is None:
        return moments
    covariance, scatter, n = params.covariance, params.scatter, moments.weight
    on = n > 0
    mean_square = moments.second / jnp.where(on, n, 1)[:, None, None]
    width = jnp.sqrt(jnp.diagonal(mean_square, axis1=-2, axis2=-1))
    inverse = 1 / jnp.where(width > 0, width, 1)
    correlation = inverse[:, :, None] * mean_square * inverse[:, None, :]
    identity = jnp.eye(width.shape[1], dtype=width.dtype)[None]
    samples = jnp.concatenate([identity + correlation, identity - correlation], axis=2)
    residuals = einsum("kde,keb->kdb", scale.colour, width[:, :, None] * samples)
    whiten = covariance.whitener(scatter)
    sign = jnp.repeat(jnp.asarray([0.25, -0.25], n.dtype), width.shape[1])
    return dataclasses.replace(
        moments,
        first=whiten(einsum("kde,ke->kd", scale.colour, moments.first)[:, :, None])[:, :, 0],
        second=covariance.moments(scatter, whiten(residuals), n[:, None] * sign[None, :]),
    )
