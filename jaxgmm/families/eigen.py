"""mclust's structures with correlations that share something: VEE, EVV, EEV, VEV, EVE and VVE.

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
from jax import Array, lax

from jaxgmm.families.eigen_diagonal import evi_from_variances, vei_from_variances
from jaxgmm.families.family import Family
from jaxgmm.families.full import (
    SQRT_HALF,
    covariance_step,
    factor_from_unconstrained,
    factor_of_inverse,
    factor_to_unconstrained,
    relative_precision,
)
from jaxgmm.families.orientation import (
    common_axes,
    orthogonalise,
    principal_axes,
    rotation_from_free,
    rotation_to_free,
)
from jaxgmm.families.volume import (
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
from jaxgmm.linalg import einsum, embed_diagonal, lower_inverse, safe_cholesky

Scale = dict[str, Array]

FACTOR_PASSES = 8  # of `_common_factor`
_SHORTEST, _LONGEST = 1e-2, 1e6  # bounds on the Fisher length of an angle


def _factors(scale: Scale) -> Array:
    """C (..., 1 or K, D, D), Σ = C Cᵀ."""
    if "factor" in scale:
        return scale["width"][..., None] * jnp.tril(scale["factor"])
    return scale["orientation"] * widths(scale)[..., None, :]


def _inverses(scale: Scale) -> Array:
    """C⁻¹ (1 or K, D, D)."""
    if "factor" in scale:
        return lower_inverse(scale["factor"]) / scale["width"][:, :, None]
    return scale["orientation"].swapaxes(-1, -2) / widths(scale)[:, :, None]


def _apply(matrices: Array, vectors: Array) -> Array:
    """(1 or K, D, D) times (K, D, B)."""
    if matrices.shape[0] == 1:
        return einsum("de,keb->kdb", matrices[0], vectors)
    return einsum("kde,keb->kdb", matrices, vectors)


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    if "factor" in scale:
        inverse = _inverses(scale)
        return lambda residuals: _apply(inverse, residuals)
    # The division comes after the sum: a small width must not be rounded with the directions of large ones.
    turn, inverse = scale["orientation"].swapaxes(-1, -2), 1 / widths(scale)
    return lambda residuals: _apply(turn, residuals) * inverse[:, :, None]


def _colour(scale: Scale, y: Array) -> Array:
    return _apply(_factors(scale), y)


def _log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    logs = jnp.log(widths(scale))
    if "factor" in scale:
        # Its determinant is 1 to rounding, and counts as what it is.
        logs = logs + jnp.log(jnp.diagonal(scale["factor"], axis1=-2, axis2=-1))
    return 2 * jnp.broadcast_to(logs, shape).sum(-1)


def _diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(_factors(scale)).sum(-1), shape)


def _inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.broadcast_to(jnp.square(_inverses(scale)).sum(-2), shape)


def _second_moment(scale: Scale, y: Array, resp: Array) -> Array:
    return einsum("kdb,keb->kde", y * resp[:, None, :], y)


def _to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    factors = _factors(scale)
    dense = einsum("...de,...fe->...df", factors, factors)
    return jnp.broadcast_to(dense, (*dense.shape[:-3], shape[0], *dense.shape[-2:]))


def _targets(
    scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array, Array]:
    """Which components are on, their shares, and lower factors (K, D, D) of their whitened covariances."""
    on, share = shares(weight)
    identity = jnp.eye(mean.shape[-1], dtype=mean.dtype)[None]
    spread = second / jnp.where(on, weight, 1)[:, None, None]
    outer = mean[:, :, None] * mean[:, None, :]
    target, jitter = covariance_step(spread, outer, _inverses(scale), ridge[None, None, :])
    return on, share, safe_cholesky(jnp.where(on[:, None, None], target, identity), jitter)


def _change(relative: Array) -> Array:
    """(K,) ‖R Rᵀ − I‖² of factors R (K, D, D) relative to the current ones."""
    product = einsum("kde,kfe->kdf", relative, relative)
    return jnp.square(product - jnp.eye(relative.shape[-1], dtype=relative.dtype)[None]).sum((-2, -1))


def _log_diagonal(factors: Array) -> Array:
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).mean(-1)


def _unimodular(factors: Array) -> Array:
    """Lower factors (..., D, D) divided by the D-th root of their determinant."""
    return factors * jnp.exp(-_log_diagonal(factors))[..., None, None]


def _common_factor(factors: Array, share: Array) -> tuple[Array, Array]:
    """Widths (K, 1) and a lower factor (D, D) of determinant 1 for covariances L_k L_kᵀ ~ λ_k C.

    Alternates C ∝ Σ_k n_k Σ_k / λ_k with λ_k = tr(C⁻¹ Σ_k) / D, as `volume.common_shape` does.

    References:
      Celeux & Govaert (1995), model [λ_k D A D'].
    """
    n_features = factors.shape[-1]

    def common(volume: Array) -> Array:
        own = factors / jnp.sqrt(volume)[:, None, None]
        product = einsum("kde,kfe->kdf", own, own)
        return _unimodular(
            lax.linalg.cholesky((share[:, None, None] * product).sum(0), symmetrize_input=False)
        )

    def volumes(factor: Array) -> Array:
        relative = einsum("de,kef->kdf", lower_inverse(factor), factors)
        return jnp.square(relative).sum((-2, -1)) / n_features

    def one(volume: Array, _: None) -> tuple[Array, None]:
        return volumes(common(volume)), None

    start = jnp.exp(2 * _log_diagonal(factors))
    volume, _ = lax.scan(one, start, None, length=FACTOR_PASSES)
    factor = common(volume)
    return jnp.sqrt(volumes(factor))[:, None], factor


def _vee_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    on, share, lower = _targets(scale, *moments)
    width, factor = _common_factor(lower, share)
    width = jnp.where(on[:, None], width, 1)
    relative = width[:, :, None] * factor[None]
    grown = _unimodular(einsum("kde,ef->kdf", jnp.tril(scale["factor"]), factor))
    return {"width": scale["width"] * width, "factor": grown}, _change(relative)


def _evv_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    _, share, lower = _targets(scale, *moments)
    own = jnp.exp(_log_diagonal(lower))[:, None, None]
    width = jnp.sqrt((share * jnp.square(own[:, 0, 0])).sum())
    factor = _unimodular(einsum("kde,kef->kdf", jnp.tril(scale["factor"]), lower))
    return {"width": scale["width"] * width, "factor": factor}, _change(width * (lower / own))


def _own_axes(scale: Scale, moments: tuple[Array, ...]) -> tuple[Array, Array, Array, Array, Array]:
    """on, shares, the rotations (K, D, D) to the components' own axes, variances (K, D), orientations."""
    on, share, lower = _targets(scale, *moments)
    rotation, deviations = principal_axes(widths(scale)[:, :, None] * lower)
    # An axis that went on pointing where it pointed is the same axis: its sign is kept.
    sign = jnp.where(jnp.diagonal(rotation, axis1=-2, axis2=-1) < 0, -1, 1).astype(rotation.dtype)
    rotation = rotation * sign[:, None, :]
    turned = orthogonalise(einsum("kde,kef->kdf", scale["orientation"], rotation))
    orientation = jnp.where(on[:, None, None], turned, scale["orientation"])
    return on, share, rotation, jnp.square(deviations / widths(scale)), orientation


def _turned_change(old: Scale, new: Scale, rotation: Array) -> Array:
    return _change(rotation * widths(new)[:, None, :] / widths(old)[:, :, None])


def _eev_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    _, share, rotation, variances, orientation = _own_axes(scale, moments)
    new = {"orientation": orientation, "width": scale["width"] * jnp.sqrt(pooled(variances, share))}
    return new, _turned_change(scale, new, rotation)


def _vev_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    on, share, rotation, variances, orientation = _own_axes(scale, moments)
    volume, shape = common_shape(variances, share)
    new = grown({**scale, "orientation": orientation}, jnp.where(on[:, None], volume, 1), shape)
    return new, _turned_change(scale, new, rotation)


def _shared_axes(
    scale: Scale, moments: tuple[Array, ...], *, equal_volume: bool
) -> tuple[Array, Array, Array, Array]:
    """Shares, the rotation (1, D, D), variances (K, D) relative to the current ones, orientation."""
    on, share, lower = _targets(scale, *moments)
    rotation, variances = common_axes(widths(scale)[:, :, None] * lower, share, equal_volume=equal_volume)
    orientation = orthogonalise(einsum("kde,ef->kdf", scale["orientation"], rotation))
    relative = variances / jnp.square(widths(scale))
    return share, rotation[None], jnp.where(on[:, None], relative, 1), orientation


def _eve_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    share, rotation, variances, orientation = _shared_axes(scale, moments, equal_volume=True)
    volume, shape = common_volume(variances, share)
    new = grown({**scale, "orientation": orientation}, volume, shape)
    return new, _turned_change(scale, new, rotation)


def _vve_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    _, rotation, variances, orientation = _shared_axes(scale, moments, equal_volume=False)
    new = {"orientation": orientation, "width": scale["width"] * jnp.sqrt(variances)}
    return new, _turned_change(scale, new, rotation)


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
    good = jnp.isfinite(lax.linalg.cholesky(covariances)).all((-2, -1))
    safe = jnp.where(good[:, None, None], covariances, jnp.eye(d, dtype=dtype)[None])
    scale = from_variances(jnp.diagonal(safe, axis1=-2, axis2=-1))
    zeros = jnp.zeros((k, d), dtype)
    # Twice, as every M-step from afar: the second measures in units of the first.
    for _ in range(2):
        inverse = jnp.broadcast_to(_inverses(scale), safe.shape)
        whitened = einsum("kde,kef,kgf->kdg", inverse, safe, inverse)
        scale, _ = update(scale, jnp.ones(k, dtype), zeros, whitened, zeros[0])
    mask = good.reshape((k,) + (1,) * (scale[row].ndim - 1))
    return {**scale, row: jnp.where(mask, scale[row], jnp.nan)}


def _vee_from_covariance(covariances: Array) -> Scale:
    return _nearest(_vee_update, _vee_from_variances, "width", covariances)


def _evv_from_covariance(covariances: Array) -> Scale:
    return _nearest(_evv_update, _evv_from_variances, "factor", covariances)


def _eev_from_covariance(covariances: Array) -> Scale:
    return _nearest(_eev_update, _eev_from_variances, "orientation", covariances)


def _vev_from_covariance(covariances: Array) -> Scale:
    return _nearest(_vev_update, _vev_from_variances, "width", covariances)


def _eve_from_covariance(covariances: Array) -> Scale:
    return _nearest(_eve_update, _eve_from_variances, "shape", covariances)


def _vve_from_covariance(covariances: Array) -> Scale:
    return _nearest(_vve_update, _vve_from_variances, "width", covariances)


def _factor_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    precision = relative_precision(reference["factor"], scale["factor"])
    root = jnp.sqrt(weights if precision.shape[0] == weights.shape[0] else weights.sum(keepdims=True))
    relative = precision * jnp.square(reference["width"] / scale["width"])[:, :, None]
    return {
        **logs_to(reference, weights, scale, shift.shape[-1]),
        "precision": SQRT_HALF * root[:, None, None] * precision,
        "shift": jnp.sqrt(weights)[:, None] * _apply(relative, shift[:, :, None])[:, :, 0],
    }


def _factor_from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    precision = natural["precision"]
    root = jnp.sqrt(weights if precision.shape[0] == weights.shape[0] else weights.sum(keepdims=True))
    relative = _unimodular(factor_of_inverse(precision / (SQRT_HALF * root[:, None, None])))
    logs = logs_from(reference, weights, natural, precision.shape[-1])
    scale = {**logs, "factor": einsum("kde,kef->kdf", jnp.tril(reference["factor"]), relative)}
    spread = relative * (scale["width"] / reference["width"])[:, :, None]
    shift = natural["shift"] / jnp.sqrt(weights)[:, None]
    turned = _apply(spread.swapaxes(-1, -2), shift[:, :, None])
    return scale, _apply(spread, turned)[:, :, 0]


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


VEE = Family(
    name="VEE",
    covariance_shape=_shape,
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment=_second_moment,
    update=_vee_update,
    to_covariance=_to_covariance,
    from_covariance=_vee_from_covariance,
    from_variances=_vee_from_variances,
    n_parameters=_vee_n_parameters,
    to_natural=_factor_to_natural,
    from_natural=_factor_from_natural,
    to_unconstrained=_factor_free,
    from_unconstrained=_factor_bound,
)

EVV = VEE._replace(
    name="EVV",
    update=_evv_update,
    from_covariance=_evv_from_covariance,
    from_variances=_evv_from_variances,
    n_parameters=_evv_n_parameters,
)

EEV = VEE._replace(
    name="EEV",
    update=_eev_update,
    from_covariance=_eev_from_covariance,
    from_variances=_eev_from_variances,
    n_parameters=_eev_n_parameters,
    to_natural=_turn_to_natural,
    from_natural=_turn_from_natural,
    to_unconstrained=_turn_free,
    from_unconstrained=_turn_bound,
)

VEV = EEV._replace(
    name="VEV",
    update=_vev_update,
    from_covariance=_vev_from_covariance,
    from_variances=_vev_from_variances,
    n_parameters=_vev_n_parameters,
)

EVE = EEV._replace(
    name="EVE",
    update=_eve_update,
    from_covariance=_eve_from_covariance,
    from_variances=_eve_from_variances,
    n_parameters=_eve_n_parameters,
)

VVE = EEV._replace(
    name="VVE",
    update=_vve_update,
    from_covariance=_vve_from_covariance,
    from_variances=_vve_from_variances,
    n_parameters=_vve_n_parameters,
)
