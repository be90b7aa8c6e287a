"""mclust's structures without correlations and with shared parts: EII, EEI, VEI and EVI.

The letters say volume, shape and orientation: E equal, V varying, I identity. VVI is `diag`, VII `spherical`.
The scale is described in `volume`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Collapse, Covariance, all_as_points, any_axis, any_volume
from jaxgmm.components.covariance.diagonal import nan_sqrt, positive
from jaxgmm.components.covariance.eigen_parts import (
    common_shape,
    common_volume,
    grown,
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    pooled,
    shares,
    widths,
)
from jaxgmm.kernels.linalg import embed_diagonal

Scale = dict[str, Array]


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


def _relative(scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Array, Array]:
    """Shares (K,), and the components' own variances (K, D) in units of the current ones; 1 where off."""
    on, share = shares(weight)
    spread = second / jnp.where(on, weight, 1)[:, None]
    target = positive(spread - mean * mean + ridge[None, :] / jnp.square(widths(scale)), spread)
    return share, jnp.where(on[:, None], target, 1)


def _change(target: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(jnp.square(target - 1), shape).sum(-1)


def _eii_update(scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Scale, Array]:
    share, variances = _relative(scale, weight, mean, second, ridge)
    target = pooled(variances, share).mean(-1, keepdims=True)
    return {"width": scale["width"] * jnp.sqrt(target)}, _change(target, mean.shape)


def _eei_update(scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Scale, Array]:
    target = pooled(*_relative(scale, weight, mean, second, ridge)[::-1])
    return {"width": scale["width"] * jnp.sqrt(target)}, _change(target, mean.shape)


def _vei_update(scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Scale, Array]:
    volume, shape = common_shape(*_relative(scale, weight, mean, second, ridge)[::-1])
    volume = jnp.where((weight > 0)[:, None], volume, 1)
    return grown(scale, volume, shape), _change(volume * shape, mean.shape)


def _evi_update(scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Scale, Array]:
    volume, shape = common_volume(*_relative(scale, weight, mean, second, ridge)[::-1])
    return grown(scale, volume, shape), _change(volume * shape, mean.shape)


def _equal(n_components: int, dtype: Any) -> Array:
    return jnp.full(n_components, 1 / n_components, dtype)


def _eii_from_variances(variances: Array) -> Scale:
    return {"width": nan_sqrt(variances.mean(keepdims=True))}


def _eei_from_variances(variances: Array) -> Scale:
    return {"width": nan_sqrt(variances.mean(0, keepdims=True))}


@jax.jit
def _nearest_vei(variances: Array) -> Scale:
    good = (variances > 0).all(-1, keepdims=True)
    safe = jnp.where(good, variances, 1)
    volume, shape = common_shape(safe, _equal(variances.shape[0], variances.dtype))
    return {"width": jnp.where(good, jnp.sqrt(volume), jnp.nan), "shape": jnp.sqrt(shape)}


@jax.jit
def _nearest_evi(variances: Array) -> Scale:
    good = (variances > 0).all(-1, keepdims=True)
    safe = jnp.where(good, variances, 1)
    volume, shape = common_volume(safe, _equal(variances.shape[0], variances.dtype))
    return {"width": jnp.sqrt(volume), "shape": jnp.where(good, jnp.sqrt(shape), jnp.nan)}


# Functions of a record can be pickled by their names; what `jit` makes of one cannot.
def vei_from_variances(variances: Array) -> Scale:
    """The width (K, 1) and shape (1, D) nearest to variances (K, D); NaN where they are not positive."""
    return _nearest_vei(variances)


def evi_from_variances(variances: Array) -> Scale:
    """The width (1, 1) and shape (K, D) nearest to variances (K, D); NaN where they are not positive."""
    return _nearest_evi(variances)


def _eii_from_covariance(variance: Array) -> Scale:
    return {"width": nan_sqrt(variance)[None, None]}


def _eei_from_covariance(variances: Array) -> Scale:
    return {"width": nan_sqrt(variances)[None, :]}


def _to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    logs = logs_to(reference, weights, scale, shift.shape[-1])
    precision = jnp.square(widths(reference) / widths(scale))
    return {**logs, "shift": jnp.sqrt(weights)[:, None] * precision * shift}


def _from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    shift = natural["shift"] / jnp.sqrt(weights)[:, None]
    scale = logs_from(reference, weights, natural, shift.shape[-1])
    return scale, shift * jnp.square(widths(scale) / widths(reference))


def _free(scale: Scale) -> dict[str, Array]:
    return logs_free(scale)


def _bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    return logs_bound(free)


def _eii_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return ()


def _eei_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return (n_features,)


def _variances_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return n_components, n_features


def _eii_n_parameters(n_components: Any, n_features: int) -> Any:
    return 1


def _eei_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_features


def _vei_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components + n_features - 1


def _evi_n_parameters(n_components: Any, n_features: int) -> Any:
    return 1 + n_components * (n_features - 1)


def rescale_width(scale: Scale, unit: Array) -> Scale:
    """The same shapes and orientations with widths (1 or K, 1 or D) multiplied by the one unit."""
    return {**scale, "width": scale["width"] * unit[None, :1]}


def _eei_rescale(scale: Scale, unit: Array) -> Scale:
    return {"width": scale["width"] * unit[None, :]}


def _evi_collapse(n_features: int) -> Collapse:
    # With one feature there is no shape, and the volume is common.
    return any_axis(n_features) if n_features > 1 else all_as_points(n_features)


EII = Covariance(
    name="EII",
    covariance_shape=_eii_shape,
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="diagonal",
    update=_eii_update,
    to_covariance=_to_covariance,
    from_covariance=_eii_from_covariance,
    from_variances=_eii_from_variances,
    n_parameters=_eii_n_parameters,
    to_natural=_to_natural,
    from_natural=_from_natural,
    to_unconstrained=_free,
    from_unconstrained=_bound,
    prior="EII",
    rescale=rescale_width,
    collapse=all_as_points,
)

EEI = EII._replace(
    name="EEI",
    covariance_shape=_eei_shape,
    update=_eei_update,
    from_covariance=_eei_from_covariance,
    from_variances=_eei_from_variances,
    n_parameters=_eei_n_parameters,
    prior="EEI",
    rescale=_eei_rescale,
    by_feature=True,
)

VEI = EII._replace(
    name="VEI",
    free_volumes=True,
    covariance_shape=_variances_shape,
    update=_vei_update,
    from_covariance=vei_from_variances,
    from_variances=vei_from_variances,
    n_parameters=_vei_n_parameters,
    prior="VVI",
    collapse=any_volume,
)

EVI = VEI._replace(
    name="EVI",
    free_volumes=False,
    update=_evi_update,
    from_covariance=evi_from_variances,
    from_variances=evi_from_variances,
    n_parameters=_evi_n_parameters,
    prior="VVI",
    collapse=_evi_collapse,
)
