"""M-steps of mclust's structures with correlations and shared parts.

`eigen` describes their scale: a "factor" and a "width", or an "orientation" and widths along it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.covariance.eigen_parts import Scale, grown, nearest, shares, widths
from jaxgmm.components.covariance.full import log_diagonal, unimodular, whitened_step
from jaxgmm.components.covariance.rotations import common_axes, orthogonalise, principal_axes
from jaxgmm.kernels.linalg import cholesky, einsum, lower_inverse

FACTOR_PASSES = 8  # of `_common_factor`


def _change(relative: Array) -> Array:
    """(K,) ‖R Rᵀ − I‖² of factors R (K, D, D) relative to the current ones."""
    product = einsum("kde,kfe->kdf", relative, relative)
    return jnp.square(product - jnp.eye(relative.shape[-1], dtype=relative.dtype)[None]).sum((-2, -1))


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


def factor_update(letters: str, scale: Scale, weight: Array, *moments: Array) -> tuple[Scale, Array]:
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
    grown = unimodular(einsum("kde,kef->kdf", jnp.tril(scale["factor"]), factor))
    return {"width": scale["width"] * width, "factor": grown}, _change(width[:, :, None] * factor)


def turned_update(letters: str, scale: Scale, weight: Array, *moments: Array) -> tuple[Scale, Array]:
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
