"""Structures without correlations: `diag` keeps standard deviations (K, D), `spherical` one for each (K,)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Covariance, Scale, any_axis, any_volume
from jaxgmm.components.covariance.eigen_parts import nan_sqrt, positive, widths
from jaxgmm.components.covariance.full import SQRT_HALF
from jaxgmm.components.covariance.letters import properties
from jaxgmm.kernels.linalg import embed_diagonal


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    inverse = 1 / widths(scale)
    return lambda residuals: residuals * inverse[:, :, None]


def _colour(scale: Scale, y: Array) -> Array:
    return y * widths(scale)[:, :, None]


def _log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    return 2 * jnp.broadcast_to(jnp.log(widths(scale)), shape).sum(-1)


def _diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(widths(scale)), shape)


def _inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(1 / jnp.square(widths(scale)), shape)


def _to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    variances = jnp.square(widths(scale))
    return embed_diagonal(jnp.broadcast_to(variances, (*variances.shape[:-2], *shape)))


def relative_variances(scale: Scale, weight: Array, square: Array, second: Array, ridge: Array) -> Array:
    """(K, 1 or D) the next variances over the present ones, from moments and squared means; 1 if off."""
    on = (weight > 0)[:, None]
    spread = second / jnp.where(on, weight[:, None], 1)
    target = positive(spread - square + ridge[None, :] / jnp.square(widths(scale)), spread)
    return jnp.where(on, target, 1)


def _diag_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    target = relative_variances(scale, weight, mean * mean, second, ridge)
    return scale * jnp.sqrt(target), jnp.square(target - 1).sum(-1)


def _to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    precision, root = jnp.square(widths(reference) / widths(scale)), jnp.sqrt(weights)[:, None]
    length = SQRT_HALF * (shift.shape[1] / precision.shape[1]) ** 0.5
    return {"precision": length * root * precision, "shift": root * precision * shift}


def _from_natural(reference: Array, weights: Array, natural: dict[str, Array]) -> tuple[Array, Array]:
    root, shift = jnp.sqrt(weights)[:, None], natural["shift"]
    length = SQRT_HALF * (shift.shape[1] / natural["precision"].shape[1]) ** 0.5
    precision = natural["precision"] / (length * root)
    valid = precision > 0
    safe = jnp.where(valid, precision, 1)
    scale = jnp.where(valid, widths(reference) / jnp.sqrt(safe), jnp.nan)
    return scale.reshape(reference.shape), shift / (root * safe)


def _log(scale: Array) -> Array:
    return jnp.log(scale)


def _exp(free: Array, shape: tuple[int, int]) -> Array:
    return jnp.exp(free)


def _diag_rescale(scale: Array, unit: Array) -> Array:
    return scale * unit[None, :]


diag = Covariance(
    name="diag",
    **properties("VVI"),
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="diagonal",
    update=_diag_update,
    to_covariance=_to_covariance,
    from_covariance=nan_sqrt,
    from_variances=nan_sqrt,
    to_natural=_to_natural,
    from_natural=_from_natural,
    to_unconstrained=_log,
    from_unconstrained=_exp,
    prior="VVI",
    rescale=_diag_rescale,
    by_feature=True,
    collapse=any_axis,
)


def _spherical_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    d = mean.shape[-1]
    square = jnp.square(mean).mean(-1, keepdims=True)
    target = relative_variances(scale, weight, square, second[:, None] / d, ridge.mean(keepdims=True))[:, 0]
    return scale * jnp.sqrt(target), d * jnp.square(target - 1)


def _spherical_to_covariance(scale: Array, shape: tuple[int, int]) -> Array:
    return _to_covariance({"width": scale[..., None]}, shape)


def _spherical_from_variances(variances: Array) -> Array:
    return jnp.sqrt(variances.mean(-1))


def _spherical_rescale(scale: Array, unit: Array) -> Array:
    return scale * unit[:1]


spherical = diag._replace(
    name="spherical",
    **properties("VII"),
    second_moment="trace",
    update=_spherical_update,
    to_covariance=_spherical_to_covariance,
    from_variances=_spherical_from_variances,
    prior="VII",
    rescale=_spherical_rescale,
    by_feature=False,
    collapse=any_volume,
)
