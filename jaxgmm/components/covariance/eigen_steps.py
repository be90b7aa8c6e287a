"""M-steps of mclust's structures with correlations and shared parts.

`eigen` describes their scale: a "factor" and a "width", or an "orientation" and widths along it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.covariance.eigen_parts import (
    common_shape,
    common_volume,
    grown,
    pooled,
    shares,
    widths,
)
from jaxgmm.components.covariance.full import (
    covariance_step,
)
from jaxgmm.components.covariance.rotations import (
    common_axes,
    orthogonalise,
    principal_axes,
)
from jaxgmm.kernels.linalg import cholesky, einsum, lower_inverse, safe_cholesky

Scale = dict[str, Array]

FACTOR_PASSES = 8  # of `_common_factor`


def factors_of(scale: Scale) -> Array:
    """C (..., 1 or K, D, D), Σ = C Cᵀ."""
    if "factor" in scale:
        return scale["width"][..., None] * jnp.tril(scale["factor"])
    return scale["orientation"] * widths(scale)[..., None, :]


def inverses_of(scale: Scale) -> Array:
    """C⁻¹ (1 or K, D, D)."""
    if "factor" in scale:
        return lower_inverse(scale["factor"]) / scale["width"][:, :, None]
    return scale["orientation"].swapaxes(-1, -2) / widths(scale)[:, :, None]


def _targets(
    scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array, Array]:
    """Which components are on, their shares, and lower factors (K, D, D) of their whitened covariances."""
    on, share = shares(weight)
    identity = jnp.eye(mean.shape[-1], dtype=mean.dtype)[None]
    spread = second / jnp.where(on, weight, 1)[:, None, None]
    outer = mean[:, :, None] * mean[:, None, :]
    target, jitter = covariance_step(spread, outer, inverses_of(scale), ridge[None, None, :])
    return on, share, safe_cholesky(jnp.where(on[:, None, None], target, identity), jitter)


def _change(relative: Array) -> Array:
    """(K,) ‖R Rᵀ − I‖² of factors R (K, D, D) relative to the current ones."""
    product = einsum("kde,kfe->kdf", relative, relative)
    return jnp.square(product - jnp.eye(relative.shape[-1], dtype=relative.dtype)[None]).sum((-2, -1))


def _log_diagonal(factors: Array) -> Array:
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).mean(-1)


def unimodular(factors: Array) -> Array:
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
        return unimodular(cholesky((share[:, None, None] * product).sum(0)))

    def volumes(factor: Array) -> Array:
        relative = einsum("de,kef->kdf", lower_inverse(factor), factors)
        return jnp.square(relative).sum((-2, -1)) / n_features

    def one(volume: Array, _: None) -> tuple[Array, None]:
        return volumes(common(volume)), None

    start = jnp.exp(2 * _log_diagonal(factors))
    volume, _ = lax.scan(one, start, None, length=FACTOR_PASSES)
    factor = common(volume)
    return jnp.sqrt(volumes(factor))[:, None], factor


def vee_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of VEE, with its change, as `Covariance.update` has it."""
    on, share, lower = _targets(scale, *moments)
    width, factor = _common_factor(lower, share)
    width = jnp.where(on[:, None], width, 1)
    relative = width[:, :, None] * factor[None]
    grown = unimodular(einsum("kde,ef->kdf", jnp.tril(scale["factor"]), factor))
    return {"width": scale["width"] * width, "factor": grown}, _change(relative)


def evv_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of EVV, with its change, as `Covariance.update` has it."""
    _, share, lower = _targets(scale, *moments)
    own = jnp.exp(_log_diagonal(lower))[:, None, None]
    width = jnp.sqrt((share * jnp.square(own[:, 0, 0])).sum())
    factor = unimodular(einsum("kde,kef->kdf", jnp.tril(scale["factor"]), lower))
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


def eev_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of EEV, with its change, as `Covariance.update` has it."""
    _, share, rotation, variances, orientation = _own_axes(scale, moments)
    new = {"orientation": orientation, "width": scale["width"] * jnp.sqrt(pooled(variances, share))}
    return new, _turned_change(scale, new, rotation)


def vev_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of VEV, with its change, as `Covariance.update` has it."""
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


def eve_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of EVE, with its change, as `Covariance.update` has it."""
    share, rotation, variances, orientation = _shared_axes(scale, moments, equal_volume=True)
    volume, shape = common_volume(variances, share)
    new = grown({**scale, "orientation": orientation}, volume, shape)
    return new, _turned_change(scale, new, rotation)


def vve_update(scale: Scale, *moments: Array) -> tuple[Scale, Array]:
    """The M-step of VVE, with its change, as `Covariance.update` has it."""
    _, rotation, variances, orientation = _shared_axes(scale, moments, equal_volume=False)
    new = {"orientation": orientation, "width": scale["width"] * jnp.sqrt(variances)}
    return new, _turned_change(scale, new, rotation)
