"""Structures without correlations: `diag`, `spherical`, and mclust's EII, EEI, VEI and EVI.

`diag` keeps standard deviations (K, D), `spherical` one for each component (K,). The others share parts,
which `eigen_parts` describes. Letters say volume, shape and orientation: E equal, V varying, I identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Covariance, Partial, Scale, compiled
from jaxgmm.components.covariance.eigen_parts import (
    from_variances,
    grown,
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    nan_sqrt,
    nearest,
    positive,
    shares,
    widths,
)
from jaxgmm.components.covariance.full import SQRT_HALF
from jaxgmm.components.covariance.letters import properties
from jaxgmm.kernels.linalg import embed_diagonal


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    inverse = 1 / widths(scale)
    return lambda residuals: residuals * inverse[:, :, None]


def _colour(scale: Scale, y: Array) -> Array:
    return y * widths(scale)[:, :, None]


def log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    """(K,) log-determinants of structures whose standard deviations along the axes are `widths`."""
    return 2 * jnp.broadcast_to(jnp.log(widths(scale)), shape).sum(-1)


def _diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(widths(scale)), shape)


def _inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(1 / jnp.square(widths(scale)), shape)


def _to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    variances = jnp.square(widths(scale))
    return embed_diagonal(jnp.broadcast_to(variances, (*variances.shape[:-2], *shape)))


def _relative_variances(scale: Scale, weight: Array, square: Array, second: Array, ridge: Array) -> Array:
    """(K, 1 or D) the next variances over the present ones, from moments and squared means; 1 if off."""
    on = (weight > 0)[:, None]
    spread = second / jnp.where(on, weight[:, None], 1)
    target = positive(spread - square + ridge[None, :] / jnp.square(widths(scale)), spread)
    return jnp.where(on, target, 1)


def _diag_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    target = _relative_variances(scale, weight, mean * mean, second, ridge)
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
    log_det=log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="diagonal",
    update=_diag_update,
    to_covariance=Partial(compiled, _to_covariance),
    from_covariance=Partial(compiled, nan_sqrt),
    from_variances=nan_sqrt,
    to_natural=_to_natural,
    from_natural=_from_natural,
    to_unconstrained=_log,
    from_unconstrained=_exp,
    rescale=_diag_rescale,
    by_feature=True,
)


def _spherical_update(
    scale: Array, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    d = mean.shape[-1]
    square = jnp.square(mean).mean(-1, keepdims=True)
    target = _relative_variances(scale, weight, square, second[:, None] / d, ridge.mean(keepdims=True))[:, 0]
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
    to_covariance=Partial(compiled, _spherical_to_covariance),
    from_variances=_spherical_from_variances,
    rescale=_spherical_rescale,
    by_feature=False,
)


def _parts_update(
    letters: str, scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Scale, Array]:
    on, share = shares(weight)
    variances = _relative_variances(scale, weight, mean * mean, second, ridge)
    volume, shape = nearest(letters, variances, share)
    if letters[0] == "V":
        volume = jnp.where(on[:, None], volume, 1)
    change = jnp.broadcast_to(jnp.square(volume * shape - 1), mean.shape).sum(-1)
    return grown(scale, volume, shape), change


def _from_shared(variances: Array) -> Scale:
    """The scale of one variance (), or of one for each feature (D,)."""
    return {"width": nan_sqrt(variances).reshape(1, -1)}


def _parts_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> Scale:
    logs = logs_to(reference, weights, scale, shift.shape[-1])
    precision = jnp.square(widths(reference) / widths(scale))
    return {**logs, "shift": jnp.sqrt(weights)[:, None] * precision * shift}


def _parts_from_natural(reference: Scale, weights: Array, natural: Scale) -> tuple[Scale, Array]:
    shift = natural["shift"] / jnp.sqrt(weights)[:, None]
    scale = logs_from(reference, weights, natural, shift.shape[-1])
    return scale, shift * jnp.square(widths(scale) / widths(reference))


def rescale_width(scale: Scale, unit: Array) -> Scale:
    """The same shapes and orientations with widths (1 or K, 1 or D) multiplied by the one unit."""
    return {**scale, "width": scale["width"] * unit[None, :1]}


def _rescale_features(scale: Scale, unit: Array) -> Scale:
    return {"width": scale["width"] * unit[None, :]}


def _record(letters: str, **fields: Any) -> Covariance:
    return diag._replace(
        name=letters,
        **properties(letters),
        update=Partial(_parts_update, letters),
        from_variances=Partial(from_variances, letters),
        to_natural=_parts_to_natural,
        from_natural=_parts_from_natural,
        to_unconstrained=logs_free,
        from_unconstrained=logs_bound,
        **fields,
    )


_ONE: dict[str, Any] = {"rescale": rescale_width, "by_feature": False}  # unit for all features

EII = _record("EII", from_covariance=Partial(compiled, _from_shared), **_ONE)
EEI = _record("EEI", from_covariance=Partial(compiled, _from_shared), rescale=_rescale_features)
VEI = _record("VEI", from_covariance=Partial(compiled, Partial(from_variances, "VEI")), **_ONE)
EVI = _record("EVI", from_covariance=Partial(compiled, Partial(from_variances, "EVI")), **_ONE)
