"""Structures without correlations: `diag` keeps standard deviations (K, D), `spherical` one for each (K,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Covariance, any_axis, any_volume
from jaxgmm.components.covariance.full import SQRT_HALF
from jaxgmm.kernels.linalg import embed_diagonal, epsilon


def _diag_whitener(scale: Array) -> Callable[[Array], Array]:
    inverse = 1 / scale
    return lambda residuals: residuals * inverse[:, :, None]


def positive(target: Array, spread: Array) -> Array:
    """`target`, or the rounding of the subtraction that made it from `spread` where it is not positive."""
    eps = epsilon(target.dtype)
    return jnp.where(target > 0, target, 4 * eps * spread + eps * eps)


def _diag_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    active = (weight > 0)[:, None]
    spread = second / jnp.where(active, weight[:, None], 1)
    target = positive(spread - mean * mean + ridge[None, :] / (scale * scale), spread)
    target = jnp.where(active, target, 1)
    return scale * jnp.sqrt(target), jnp.square(target - 1).sum(-1)


def _diag_to_covariance(scale: Array, shape: tuple[int, int]) -> Array:
    return embed_diagonal(scale * scale)


def nan_sqrt(variances: Array) -> Array:
    """Standard deviations of variances; NaN where one is not positive."""
    return jnp.where(variances > 0, jnp.sqrt(jnp.where(variances > 0, variances, 1)), jnp.nan)


def _or_one(precision: Array) -> tuple[Array, Array]:
    """Precisions, with 1 for those that are not positive, so that nothing is NaN; and which are positive."""
    valid = precision > 0
    return jnp.where(valid, precision, 1), valid


def _diag_to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    precision = jnp.square(reference / scale)
    root = jnp.sqrt(weights)[:, None]
    return {"precision": SQRT_HALF * root * precision, "shift": root * precision * shift}


def _diag_from_natural(reference: Array, weights: Array, natural: dict[str, Array]) -> tuple[Array, Array]:
    root = jnp.sqrt(weights)[:, None]
    precision = natural["precision"] / (SQRT_HALF * root)
    precision, valid = _or_one(precision)
    scale = jnp.where(valid, reference / jnp.sqrt(precision), jnp.nan)
    return scale, natural["shift"] / (root * precision)


def _diag_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return n_components, n_features


def _diag_colour(scale: Array, y: Array) -> Array:
    return y * scale[:, :, None]


def _diag_log_det(scale: Array, shape: tuple[int, int]) -> Array:
    return 2 * jnp.log(scale).sum(-1)


def _diag_variances(scale: Array, shape: tuple[int, int]) -> Array:
    return scale * scale


def _diag_precisions(scale: Array, shape: tuple[int, int]) -> Array:
    return 1 / (scale * scale)


def _diag_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components * n_features


def _log(scale: Array) -> Array:
    return jnp.log(scale)


def _exp(free: Array, shape: tuple[int, int]) -> Array:
    return jnp.exp(free)


def _diag_rescale(scale: Array, unit: Array) -> Array:
    return scale * unit[None, :]


diag = Covariance(
    name="diag",
    covariance_shape=_diag_shape,
    whitener=_diag_whitener,
    colour=_diag_colour,
    log_det=_diag_log_det,
    diagonal=_diag_variances,
    inverse_diagonal=_diag_precisions,
    second_moment="diagonal",
    update=_diag_update,
    to_covariance=_diag_to_covariance,
    from_covariance=nan_sqrt,
    from_variances=nan_sqrt,
    n_parameters=_diag_n_parameters,
    to_natural=_diag_to_natural,
    from_natural=_diag_from_natural,
    to_unconstrained=_log,
    from_unconstrained=_exp,
    prior="VVI",
    free_volumes=True,
    rescale=_diag_rescale,
    by_feature=True,
    collapse=any_axis,
)


def _spherical_whitener(scale: Array) -> Callable[[Array], Array]:
    inverse = 1 / scale
    return lambda residuals: residuals * inverse[:, None, None]


def _spherical_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    n_features = mean.shape[-1]
    active = weight > 0
    spread = second / (n_features * jnp.where(active, weight, 1))
    between = jnp.square(mean).sum(-1) / n_features
    target = positive(spread - between + ridge.mean() / (scale * scale), spread)
    target = jnp.where(active, target, 1)
    return scale * jnp.sqrt(target), n_features * jnp.square(target - 1)


def _spherical_to_covariance(scale: Array, shape: tuple[int, int]) -> Array:
    variances = (scale * scale)[..., None]
    return embed_diagonal(jnp.broadcast_to(variances, (*variances.shape[:-1], shape[1])))


def _spherical_to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    precision = jnp.square(reference / scale)
    root = jnp.sqrt(weights)
    length = SQRT_HALF * shift.shape[-1] ** 0.5
    return {"precision": length * root * precision, "shift": (root * precision)[:, None] * shift}


def _spherical_from_natural(
    reference: Array, weights: Array, natural: dict[str, Array]
) -> tuple[Array, Array]:
    root = jnp.sqrt(weights)
    length = SQRT_HALF * natural["shift"].shape[-1] ** 0.5
    precision = natural["precision"] / (length * root)
    precision, valid = _or_one(precision)
    scale = jnp.where(valid, reference / jnp.sqrt(precision), jnp.nan)
    return scale, natural["shift"] / (root * precision)[:, None]


def _spherical_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return (n_components,)


def _spherical_colour(scale: Array, y: Array) -> Array:
    return y * scale[:, None, None]


def _spherical_log_det(scale: Array, shape: tuple[int, int]) -> Array:
    return 2 * shape[1] * jnp.log(scale)


def _spherical_variances(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to((scale * scale)[:, None], shape)


def _spherical_precisions(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to((1 / (scale * scale))[:, None], shape)


def _spherical_from_variances(variances: Array) -> Array:
    return jnp.sqrt(variances.mean(-1))


def _spherical_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components


def _spherical_rescale(scale: Array, unit: Array) -> Array:
    return scale * unit[:1]


spherical = Covariance(
    name="spherical",
    covariance_shape=_spherical_shape,
    whitener=_spherical_whitener,
    colour=_spherical_colour,
    log_det=_spherical_log_det,
    diagonal=_spherical_variances,
    inverse_diagonal=_spherical_precisions,
    second_moment="trace",
    update=_spherical_update,
    to_covariance=_spherical_to_covariance,
    from_covariance=nan_sqrt,
    from_variances=_spherical_from_variances,
    n_parameters=_spherical_n_parameters,
    to_natural=_spherical_to_natural,
    from_natural=_spherical_from_natural,
    to_unconstrained=_log,
    from_unconstrained=_exp,
    prior="VII",
    free_volumes=True,
    rescale=_spherical_rescale,
    collapse=any_volume,
)
