"""mclust's structures with correlations and shared parts: VEE, EVV, EEV, VEV, EVE and VVE.

The letters say volume, shape and orientation: E equal, V varying. EEE is `tied`, VVV `full`. Where both shape
and orientation are shared, or neither, scale holds a lower "factor" of determinant 1, (1, D, D) or
(K, D, D), and a "width"; otherwise an "orientation", orthogonal with the axes in its columns, and the
standard deviations along them, as `volume` describes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.covariance.base import Collapse, Covariance, all_as_points, any_direction
from jaxgmm.components.covariance.eigen_diagonal import evi_from_variances, rescale_width, vei_from_variances
from jaxgmm.components.covariance.eigen_parts import (
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    widths,
)
from jaxgmm.components.covariance.eigen_steps import (
    eev_update,
    eve_update,
    evv_update,
    factors_of,
    inverses_of,
    unimodular,
    vee_update,
    vev_update,
    vve_update,
)
from jaxgmm.components.covariance.full import (
    SQRT_HALF,
    factor_from_unconstrained,
    factor_of_inverse,
    factor_to_unconstrained,
    relative_precision,
)
from jaxgmm.components.covariance.rotations import (
    rotation_from_free,
    rotation_to_free,
)
from jaxgmm.kernels.linalg import cholesky, column_squares, einsum, embed_diagonal, times_each

Scale = dict[str, Array]

_SHORTEST, _LONGEST = 1e-2, 1e6  # bounds on the Fisher length of an angle


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    if "factor" in scale:
        inverse = inverses_of(scale)
        return lambda residuals: times_each(inverse, residuals)
    # The division comes after the sum: a small width must not be rounded with the directions of large ones.
    turn, inverse = scale["orientation"].swapaxes(-1, -2), 1 / widths(scale)
    return lambda residuals: times_each(turn, residuals) * inverse[:, :, None]


def _colour(scale: Scale, y: Array) -> Array:
    return times_each(factors_of(scale), y)


def _log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    logs = jnp.log(widths(scale))
    if "factor" in scale:
        # Its determinant is 1 to rounding, and counts as what it is.
        logs = logs + jnp.log(jnp.diagonal(scale["factor"], axis1=-2, axis2=-1))
    return 2 * jnp.broadcast_to(logs, shape).sum(-1)


def _diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(factors_of(scale)).sum(-1), shape)


def _inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(column_squares(inverses_of(scale)), shape)


def _to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    factors = factors_of(scale)
    dense = einsum("...de,...fe->...df", factors, factors)
    return jnp.broadcast_to(dense, (*dense.shape[:-3], shape[0], *dense.shape[-2:]))


def _start(variances: Array, n_orientations: int) -> Array:
    d = variances.shape[-1]
    return jnp.broadcast_to(jnp.eye(d, dtype=variances.dtype), (n_orientations, d, d))


def _vee_from_variances(variances: Array) -> Scale:
    scale = vei_from_variances(variances)
    return {"width": scale["width"], "factor": embed_diagonal(scale["shape"])}


def _evv_from_variances(variances: Array) -> Scale:
    scale = evi_from_variances(variances)
    return {"width": scale["width"], "factor": embed_diagonal(scale["shape"])}


def _eev_from_variances(variances: Array) -> Scale:
    return {
        "orientation": _start(variances, variances.shape[0]),
        "width": jnp.sqrt(variances.mean(0, keepdims=True)),
    }


def _vev_from_variances(variances: Array) -> Scale:
    return {"orientation": _start(variances, variances.shape[0]), **vei_from_variances(variances)}


def _eve_from_variances(variances: Array) -> Scale:
    return {"orientation": _start(variances, 1), **evi_from_variances(variances)}


def _vve_from_variances(variances: Array) -> Scale:
    return {"orientation": _start(variances, 1), "width": jnp.sqrt(variances)}


# Compiled, because `make_params` calls it outside of `jit`, where every operation would be a program.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nearest(
    update: Callable[..., tuple[Scale, Array]],
    from_variances: Callable[[Array], Scale],
    row: str,
    covariances: Array,
) -> Scale:
    """What the M-step makes of covariances (K, D, D) of equal weight; NaN in rows of those that fail."""
    k, d, _ = covariances.shape
    dtype = covariances.dtype
    good = jnp.isfinite(cholesky(covariances)).all((-2, -1))
    safe = jnp.where(good[:, None, None], covariances, jnp.eye(d, dtype=dtype)[None])
    scale = from_variances(jnp.diagonal(safe, axis1=-2, axis2=-1))
    zeros = jnp.zeros((k, d), dtype)
    # Twice, as every M-step from afar: the second measures in units of the first.
    for _ in range(2):
        inverse = jnp.broadcast_to(inverses_of(scale), safe.shape)
        whitened = einsum("kde,kef,kgf->kdg", inverse, safe, inverse)
        scale, _ = update(scale, jnp.ones(k, dtype), zeros, whitened, zeros[0])
    mask = good.reshape((k,) + (1,) * (scale[row].ndim - 1))
    return {**scale, row: jnp.where(mask, scale[row], jnp.nan)}


def _vee_from_covariance(covariances: Array) -> Scale:
    return _nearest(vee_update, _vee_from_variances, "width", covariances)


def _evv_from_covariance(covariances: Array) -> Scale:
    return _nearest(evv_update, _evv_from_variances, "factor", covariances)


def _eev_from_covariance(covariances: Array) -> Scale:
    return _nearest(eev_update, _eev_from_variances, "orientation", covariances)


def _vev_from_covariance(covariances: Array) -> Scale:
    return _nearest(vev_update, _vev_from_variances, "width", covariances)


def _eve_from_covariance(covariances: Array) -> Scale:
    return _nearest(eve_update, _eve_from_variances, "shape", covariances)


def _vve_from_covariance(covariances: Array) -> Scale:
    return _nearest(vve_update, _vve_from_variances, "width", covariances)


def _factor_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    precision = relative_precision(reference["factor"], scale["factor"])
    root = jnp.sqrt(weights if precision.shape[0] == weights.shape[0] else weights.sum(keepdims=True))
    relative = precision * jnp.square(reference["width"] / scale["width"])[:, :, None]
    return {
        **logs_to(reference, weights, scale, shift.shape[-1]),
        "precision": SQRT_HALF * root[:, None, None] * precision,
        "shift": jnp.sqrt(weights)[:, None] * times_each(relative, shift[:, :, None])[:, :, 0],
    }


def _factor_from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    precision = natural["precision"]
    root = jnp.sqrt(weights if precision.shape[0] == weights.shape[0] else weights.sum(keepdims=True))
    factors, definite = factor_of_inverse(precision / (SQRT_HALF * root[:, None, None]))
    relative = unimodular(factors)
    logs = logs_from(reference, weights, natural, precision.shape[-1])
    factor = einsum("kde,kef->kdf", jnp.tril(reference["factor"]), relative)
    scale = {**logs, "factor": jnp.where(definite, factor, jnp.nan)}
    spread = relative * (scale["width"] / reference["width"])[:, :, None]
    shift = natural["shift"] / jnp.sqrt(weights)[:, None]
    turned = times_each(spread.swapaxes(-1, -2), shift[:, :, None])
    return scale, times_each(spread, turned)[:, :, 0]


def _turn_lengths(reference: Scale, weights: Array) -> Array:
    """(1 or K, D(D − 1)/2) what a small angle between two axes is in Fisher length."""
    w = widths(reference)
    rows, columns = np.tril_indices(w.shape[-1], -1)
    # Between equal widths an angle has no length, and no information.
    ratio = w[:, rows] / w[:, columns]
    squares = jnp.square(jnp.clip(ratio - 1 / ratio, -_LONGEST, _LONGEST))
    if reference["orientation"].shape[0] == 1:
        squares = (weights[:, None] * squares).sum(0, keepdims=True)
    else:
        squares = weights[:, None] * squares
    return jnp.sqrt(squares + _SHORTEST**2)


def _turn_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    turn = einsum("ked,kef->kdf", reference["orientation"], scale["orientation"])
    return {
        **logs_to(reference, weights, scale, shift.shape[-1]),
        "turn": _turn_lengths(reference, weights) * rotation_to_free(turn),
        "shift": jnp.sqrt(weights)[:, None] * shift,
    }


def _turn_from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    n_features = natural["shift"].shape[-1]
    turn = rotation_from_free(natural["turn"] / _turn_lengths(reference, weights), n_features)
    scale = {
        **logs_from(reference, weights, natural, n_features),
        "orientation": einsum("kde,kef->kdf", reference["orientation"], turn),
    }
    return scale, natural["shift"] / jnp.sqrt(weights)[:, None]


def _factor_free(scale: Scale) -> dict[str, Array]:
    free = factor_to_unconstrained(scale["factor"])
    return {**logs_free({"width": scale["width"]}), **free, "log_diagonal": free["log_diagonal"][..., :-1]}


def _factor_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    logs = free["log_diagonal"]
    logs = jnp.concatenate([logs, -logs.sum(-1, keepdims=True)], axis=-1)
    factor = factor_from_unconstrained({"log_diagonal": logs, "lower": free["lower"]}, shape)
    return {**logs_bound({"width": free["width"]}), "factor": factor}


def _turn_free(scale: Scale) -> dict[str, Array]:
    return {**logs_free(scale), "turn": rotation_to_free(scale["orientation"])}


def _turn_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    return {**logs_bound(free), "orientation": rotation_from_free(free["turn"], shape[1])}


def _shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return n_components, n_features, n_features


def _n_angles(n_features: int) -> int:
    return n_features * (n_features - 1) // 2


def _vee_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components - 1 + n_features + _n_angles(n_features)


def _evv_n_parameters(n_components: Any, n_features: int) -> Any:
    return 1 + n_components * (n_features - 1 + _n_angles(n_features))


def _eev_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_features + n_components * _n_angles(n_features)


def _vev_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components + n_features - 1 + n_components * _n_angles(n_features)


def _eve_n_parameters(n_components: Any, n_features: int) -> Any:
    return 1 + n_components * (n_features - 1) + _n_angles(n_features)


def _vve_n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components * n_features + _n_angles(n_features)


def _vee_collapse(n_features: int) -> Collapse:
    return Collapse(each=2, pooled=n_features + 1, by_volume=True)


def _vev_collapse(n_features: int) -> Collapse:
    return Collapse(each=2, largest=n_features + 1, by_volume=True)


def _eev_collapse(n_features: int) -> Collapse:
    return Collapse(largest=n_features + 1)


def _shape_collapse(n_features: int) -> Collapse:
    # With one feature there is no shape, and the volume is common. A common orientation does not help: it may
    # have an axis across the few samples of any one component.
    return any_direction(n_features) if n_features > 1 else all_as_points(n_features)


VEE = Covariance(
    name="VEE",
    free_volumes=True,
    covariance_shape=_shape,
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="matrix",
    update=vee_update,
    to_covariance=_to_covariance,
    from_covariance=_vee_from_covariance,
    from_variances=_vee_from_variances,
    n_parameters=_vee_n_parameters,
    to_natural=_factor_to_natural,
    from_natural=_factor_from_natural,
    to_unconstrained=_factor_free,
    from_unconstrained=_factor_bound,
    rescale=rescale_width,
    collapse=_vee_collapse,
)

EVV = VEE._replace(
    name="EVV",
    free_volumes=False,
    update=evv_update,
    from_covariance=_evv_from_covariance,
    from_variances=_evv_from_variances,
    n_parameters=_evv_n_parameters,
    collapse=_shape_collapse,
)

EEV = VEE._replace(
    name="EEV",
    free_volumes=False,
    update=eev_update,
    from_covariance=_eev_from_covariance,
    from_variances=_eev_from_variances,
    n_parameters=_eev_n_parameters,
    to_natural=_turn_to_natural,
    from_natural=_turn_from_natural,
    to_unconstrained=_turn_free,
    from_unconstrained=_turn_bound,
    collapse=_eev_collapse,
)

VEV = EEV._replace(
    name="VEV",
    free_volumes=True,
    update=vev_update,
    from_covariance=_vev_from_covariance,
    from_variances=_vev_from_variances,
    n_parameters=_vev_n_parameters,
    collapse=_vev_collapse,
)

EVE = EEV._replace(
    name="EVE",
    update=eve_update,
    from_covariance=_eve_from_covariance,
    from_variances=_eve_from_variances,
    n_parameters=_eve_n_parameters,
    collapse=_shape_collapse,
)

VVE = EEV._replace(
    name="VVE",
    free_volumes=True,
    update=vve_update,
    from_covariance=_vve_from_covariance,
    from_variances=_vve_from_variances,
    n_parameters=_vve_n_parameters,
    collapse=any_direction,
)
