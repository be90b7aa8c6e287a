"""Tied covariance, one for all components: its lower Cholesky factor (D, D)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Collapse, Covariance
from jaxgmm.components.covariance.full import (
    SQRT_HALF,
    cholesky_of,
    covariance_step,
    factor_from_unconstrained,
    factor_of_inverse,
    factor_to_unconstrained,
    relative_precision,
    rescale_factors,
    to_dense,
)
from jaxgmm.kernels.linalg import (
    column_squares,
    einsum,
    embed_diagonal,
    lower_inverse,
    safe_cholesky,
    times_each,
)


def _whitener(scale: Array) -> Callable[[Array], Array]:
    inverse = lower_inverse(scale)[None]
    return lambda residuals: times_each(inverse, residuals)


def _colour(scale: Array, y: Array) -> Array:
    return times_each(jnp.tril(scale)[None], y)


def _log_det(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(2 * jnp.log(jnp.diagonal(scale)).sum(), shape[:1])


def _diagonal(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(scale).sum(-1)[None, :], shape)


def _inverse_diagonal(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(column_squares(lower_inverse(scale))[None, :], shape)


def _update(scale: Array, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Array, Array]:
    total = weight.sum()
    share = weight / jnp.where(total > 0, total, 1)
    identity = jnp.eye(mean.shape[-1], dtype=mean.dtype)
    spread = second / jnp.where(total > 0, total, 1)
    between = einsum("k,kd,ke->de", share, mean, mean)
    target, jitter = covariance_step(spread, between, lower_inverse(scale), ridge[None, :])
    target = jnp.where(total > 0, target, identity)
    factor = einsum("de,ef->df", jnp.tril(scale), safe_cholesky(target, jitter))
    return factor, jnp.broadcast_to(jnp.square(target - identity).sum(), weight.shape)


def _to_covariance(scale: Array, shape: tuple[int, int]) -> Array:
    dense = to_dense(scale, shape)[..., None, :, :]
    return jnp.broadcast_to(dense, (*dense.shape[:-3], shape[0], *dense.shape[-2:]))


def _from_variances(variances: Array) -> Array:
    return embed_diagonal(jnp.sqrt(variances.mean(0)))


def _to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    precision = relative_precision(reference, scale)
    return {
        "precision": SQRT_HALF * precision,
        "shift": jnp.sqrt(weights)[:, None] * einsum("de,ke->kd", precision, shift),
    }


def _from_natural(reference: Array, weights: Array, natural: dict[str, Array]) -> tuple[Array, Array]:
    factor, definite = factor_of_inverse(natural["precision"] / SQRT_HALF)
    shift = einsum("de,fe,kf->kd", factor, factor, natural["shift"] / jnp.sqrt(weights)[:, None])
    return jnp.where(definite, einsum("de,ef->df", reference, factor), jnp.nan), shift


def _covariance_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return n_features, n_features


def _n_parameters(n_components: Any, n_features: int) -> Any:
    return n_features * (n_features + 1) // 2


def _collapse(n_features: int) -> Collapse:
    return Collapse(pooled=n_features + 1)


tied = Covariance(
    name="tied",
    covariance_shape=_covariance_shape,
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="pooled",
    update=_update,
    to_covariance=_to_covariance,
    from_covariance=cholesky_of,
    from_variances=_from_variances,
    n_parameters=_n_parameters,
    to_natural=_to_natural,
    from_natural=_from_natural,
    to_unconstrained=factor_to_unconstrained,
    from_unconstrained=factor_from_unconstrained,
    prior="EEE",
    rescale=rescale_factors,
    by_feature=True,
    collapse=_collapse,
)
