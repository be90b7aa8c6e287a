"""mclust's structures with correlations and shared parts: VEE, EVV, EEV, VEV, EVE and VVE.

The letters say volume, shape and orientation: E equal, V varying. EEE is `tied`, VVV `full`. Where both shape
and orientation are shared, or neither, scale holds a lower "factor" of determinant 1, (1, D, D) or
(K, D, D), and a "width"; otherwise an "orientation", orthogonal with the axes in its columns, and the
standard deviations along them, as `eigen_parts` describes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.components.covariance.base import Covariance, Partial, compiled
from jaxgmm.components.covariance.diagonal import log_det, rescale_width
from jaxgmm.components.covariance.eigen_parts import (
    Scale,
    from_variances,
    grown,
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    nearest,
    shares,
    widths,
)
from jaxgmm.components.covariance.full import (
    factor_from_unconstrained,
    factor_to_unconstrained,
    full,
    inverses_of,
    log_diagonal,
    unimodular,
    whitened_step,
)
from jaxgmm.components.covariance.letters import properties
from jaxgmm.components.covariance.rotations import (
    common_axes,
    orthogonalise,
    principal_axes,
    rotation_from_free,
    rotation_to_free,
)
from jaxgmm.kernels.linalg import cholesky, einsum, embed_diagonal, eye, lower_inverse, times_each, tril

FACTOR_PASSES = 8  # of `_common_factor`
_SHORTEST, _LONGEST = 1e-2, 1e6  # bounds on the Fisher length of an angle


def _from_variances(letters: str, variances: Array) -> Scale:
    scale = from_variances(letters, variances)
    if letters[1] == letters[2]:
        return {"width": scale["width"], "factor": embed_diagonal(scale["shape"])}
    k, d = variances.shape
    identity = eye(d, variances.dtype)
    return {**scale, "orientation": jnp.broadcast_to(identity, (k if letters[2] == "V" else 1, d, d))}


def _change(relative: Array) -> Array:
    """(K,) ‖R Rᵀ − I‖² of factors R (K, D, D) relative to the current ones."""
    product = einsum("kde,kfe->kdf", relative, relative)
    return jnp.square(product - eye(relative.shape[-1], relative.dtype, 3)).sum((-2, -1))


def _common_factor(factors: Array, share: Array) -> tuple[Array, Array]:
    """Widths (K, 1) and a lower factor (D, D) of determinant 1 for covariances L_k L_kᵀ ~ λ_k C.

    Alternates C ∝ Σ_k n_k Σ_k / λ_k with λ_k = tr(C⁻¹ Σ_k) / D, as `eigen_parts.nearest` does.

    References:
      Celeux & Govaert (1995), model [λ_k D A D'].
    """

    def best(volume: Array) -> tuple[Array, Array]:
        own = factors / jnp.sqrt(volume)[:, None, None]
        product = einsum("kde,kfe->kdf", own, own)
        factor = unimodular(cholesky((share[:, None, None] * product).sum(0)))
        relative = einsum("de,kef->kdf", lower_inverse(factor), factors)
        return jnp.square(relative).sum((-2, -1)) / factors.shape[-1], factor

    start = jnp.exp(2 * log_diagonal(factors))
    volume, _ = lax.scan(lambda v, _: (best(v)[0], None), start, None, length=FACTOR_PASSES)
    volume, factor = best(volume)
    return jnp.sqrt(volume)[:, None], factor


def _factor_update(letters: str, scale: Scale, weight: Array, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of VEE and EVV, with its change, as `Covariance.update` has it."""
    on, share = shares(weight)
    lower, _ = whitened_step(scale, weight, *moments)
    if letters == "VEE":
        width, factor = _common_factor(lower, share)
        width, factor = jnp.where(on[:, None], width, 1), factor[None]
    else:
        own = jnp.exp(log_diagonal(lower))
        width = jnp.sqrt((share * jnp.square(own)).sum()).reshape(1, 1)
        factor = lower / own[:, None, None]
    moved = unimodular(einsum("kde,kef->kdf", tril(scale["factor"]), factor))
    return {"width": scale["width"] * width, "factor": moved}, _change(width[:, :, None] * factor)


def _turned_update(letters: str, scale: Scale, weight: Array, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of EEV, VEV, EVE and VVE, with its change, as `Covariance.update` has it."""
    on, share = shares(weight)
    lower, _ = whitened_step(scale, weight, *moments)
    width, orientation = widths(scale), scale["orientation"]
    stretched = width[:, :, None] * lower
    if letters[2] == "V":
        rotation, deviations = principal_axes(stretched)
        # An axis that went on pointing where it pointed is the same axis: its sign is kept.
        sign = jnp.where(jnp.diagonal(rotation, axis1=-2, axis2=-1) < 0, -1, 1).astype(rotation.dtype)
        rotation = rotation * sign[:, None, :]
        variances = jnp.square(deviations / width)
    else:
        rotation, variances = common_axes(stretched, share, equal_volume=letters[0] == "E")
        rotation = rotation[None]
        variances = jnp.where(on[:, None], variances / jnp.square(width), 1)
    turned = orthogonalise(einsum("kde,kef->kdf", orientation, rotation))
    if letters[2] == "V":
        turned = jnp.where(on[:, None, None], turned, orientation)
    volume, shape = nearest(letters, variances, share)
    if letters[0] == "V":
        volume = jnp.where(on[:, None], volume, 1)
    new = {**grown(scale, volume, shape), "orientation": turned}
    return new, _change(rotation * widths(new)[:, None, :] / width[:, :, None])


def _update(letters: str, *arguments: Any) -> tuple[Scale, Array]:
    return (_factor_update if letters[1] == letters[2] else _turned_update)(letters, *arguments)


def _from_covariance(letters: str, covariances: Array) -> Scale:
    """What the M-step makes of covariances (K, D, D) of equal weight; NaN in rows of those that fail."""
    k, d, _ = covariances.shape
    dtype = covariances.dtype
    good = jnp.isfinite(cholesky(covariances)).all((-2, -1))
    safe = jnp.where(good[:, None, None], covariances, eye(d, dtype, 3))
    scale = _from_variances(letters, jnp.diagonal(safe, axis1=-2, axis2=-1))
    zeros = jnp.zeros((k, d), dtype)

    def step(_: Any, scale: Scale) -> Scale:
        inverse = jnp.broadcast_to(inverses_of(scale), safe.shape)
        whitened = einsum("kde,kef,kgf->kdg", inverse, safe, inverse)
        return _update(letters, scale, jnp.ones(k, dtype), zeros, whitened, zeros[0])[0]

    # Twice, as every M-step from afar: the second measures in units of the first.
    scale = lax.fori_loop(0, 2, step, scale)
    row = {"EVV": "factor", "EEV": "orientation", "EVE": "shape"}.get(letters, "width")
    mask = good.reshape((k,) + (1,) * (scale[row].ndim - 1))
    return {**scale, row: jnp.where(mask, scale[row], jnp.nan)}


def _factor_free(scale: Scale) -> dict[str, Array]:
    free = factor_to_unconstrained(scale["factor"])
    return {**logs_free({"width": scale["width"]}), **free, "log_diagonal": free["log_diagonal"][..., :-1]}


def _factor_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    logs = free["log_diagonal"]
    logs = jnp.concatenate([logs, -logs.sum(-1, keepdims=True)], axis=-1)
    factor = factor_from_unconstrained({"log_diagonal": logs, "lower": free["lower"]}, shape)
    return {**logs_bound({"width": free["width"]}), "factor": factor}


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    # The division comes after the sum: a small width must not be rounded with the directions of large ones.
    turn, inverse = scale["orientation"].swapaxes(-1, -2), 1 / widths(scale)
    return lambda residuals: times_each(turn, residuals) * inverse[:, :, None]


def _turn_lengths(reference: Scale, weights: Array) -> Array:
    """(1 or K, D(D − 1)/2) what a small angle between two axes is in Fisher length."""
    w = widths(reference)
    rows, columns = np.tril_indices(w.shape[-1], -1)
    # Between equal widths an angle has no length, and no information.
    ratio = w[:, rows] / w[:, columns]
    squares = weights[:, None] * jnp.square(jnp.clip(ratio - 1 / ratio, -_LONGEST, _LONGEST))
    if reference["orientation"].shape[0] == 1:
        squares = squares.sum(0, keepdims=True)
    return jnp.sqrt(squares + _SHORTEST**2)


def _turn_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    turn = einsum("ked,kef->kdf", reference["orientation"], scale["orientation"])
    return {
        **logs_to(reference, weights, scale, shift.shape[-1]),
        "turn": _turn_lengths(reference, weights) * rotation_to_free(turn),
        "shift": jnp.sqrt(weights)[:, None] * shift,
    }


def _turn_from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    d = natural["shift"].shape[-1]
    turn = rotation_from_free(natural["turn"] / _turn_lengths(reference, weights), d)
    orientation = einsum("kde,kef->kdf", reference["orientation"], turn)
    scale = {**logs_from(reference, weights, natural, d), "orientation": orientation}
    return scale, natural["shift"] / jnp.sqrt(weights)[:, None]


def _turn_free(scale: Scale) -> dict[str, Array]:
    return {**logs_free(scale), "turn": rotation_to_free(scale["orientation"])}


def _turn_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    return {**logs_bound(free), "orientation": rotation_from_free(free["turn"], shape[1])}


_FACTORS = full._replace(to_unconstrained=_factor_free, from_unconstrained=_factor_bound)
_AXES = full._replace(
    whitener=_whitener,
    log_det=log_det,
    to_natural=_turn_to_natural,
    from_natural=_turn_from_natural,
    to_unconstrained=_turn_free,
    from_unconstrained=_turn_bound,
)


def _record(letters: str) -> Covariance:
    return (_FACTORS if letters[1] == letters[2] else _AXES)._replace(
        name=letters,
        **properties(letters),
        update=Partial(_update, letters),
        from_covariance=Partial(compiled, Partial(_from_covariance, letters)),
        from_variances=Partial(_from_variances, letters),
        rescale=rescale_width,
        by_feature=False,
    )


VEE, EVV, EEV, VEV, EVE, VVE = map(_record, ("VEE", "EVV", "EEV", "VEV", "EVE", "VVE"))
