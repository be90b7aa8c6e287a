"""Full covariances, one for each component: lower Cholesky factors (K, D, D).

What structures with correlations compute from factors C, Σ = C Cᵀ, is here too. Their scale is lower factors,
or those of determinant 1 and a width, or orthogonal axes and the standard deviations along them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.covariance.base import Covariance, Partial, Scale, compiled
from jaxgmm.components.covariance.eigen_parts import logs_from, logs_to, widths
from jaxgmm.components.covariance.letters import properties
from jaxgmm.kernels.linalg import (
    cholesky,
    column_squares,
    einsum,
    embed_diagonal,
    epsilon,
    eye,
    lower_inverse,
    safe_cholesky,
    times_each,
    tril,
)

SQRT_HALF = float(np.sqrt(0.5))


def factors_of(scale: Scale) -> Array:
    """C (..., 1 or K, D, D), Σ = C Cᵀ."""
    if not isinstance(scale, dict):
        return tril(scale)
    if "factor" in scale:
        return scale["width"][..., None] * tril(scale["factor"])
    return scale["orientation"] * widths(scale)[..., None, :]


def inverses_of(scale: Scale) -> Array:
    """C⁻¹ (1 or K, D, D)."""
    if not isinstance(scale, dict):
        return lower_inverse(scale)
    if "factor" in scale:
        return lower_inverse(scale["factor"]) / scale["width"][:, :, None]
    return scale["orientation"].swapaxes(-1, -2) / widths(scale)[:, :, None]


def whitener(scale: Scale) -> Callable[[Array], Array]:
    """`Covariance.whitener`."""
    return functools.partial(times_each, inverses_of(scale))


def colour(scale: Scale, y: Array) -> Array:
    """`Covariance.colour`."""
    return times_each(factors_of(scale), y)


def log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    """`Covariance.log_det`, of lower factors; one of determinant 1 to rounding counts as what it is."""
    logs = jnp.log(jnp.diagonal(factors_of(scale), axis1=-2, axis2=-1))
    return 2 * jnp.broadcast_to(logs, shape).sum(-1)


def diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    """`Covariance.diagonal`."""
    return jnp.broadcast_to(jnp.square(factors_of(scale)).sum(-1), shape)


def inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    """`Covariance.inverse_diagonal`."""
    return jnp.broadcast_to(column_squares(inverses_of(scale)), shape)


def to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    """`Covariance.to_covariance`."""
    factors = factors_of(scale)
    dense = einsum("...de,...fe->...df", factors, factors)
    return jnp.broadcast_to(dense, (*dense.shape[:-3], shape[0], *dense.shape[-2:]))


def covariance_step(spread: Array, mean: Array, inverse: Array, ridge: Array) -> tuple[Array, Array]:
    """Whitened covariances `spread` − mean meanᵀ + C⁻¹ diag(ridge) C⁻ᵀ (..., D, D), and a jitter for them.

    The jitter is the rounding of the subtraction, so that a mean that moved by thousands of widths, or a
    covariance that vanished, gives a small positive one and never NaN.
    """
    eps = epsilon(spread.dtype)
    jitter = 4 * eps * jnp.diagonal(spread, axis1=-2, axis2=-1) + eps * eps
    return spread - mean + einsum("...de,...fe->...df", inverse * ridge, inverse), jitter


def whitened_step(
    scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Array, Array]:
    """Each component's next covariance (K, D, D), whitened; its lower factor, and ‖its change‖²_F (K,)."""
    on = (weight > 0)[:, None, None]
    identity = eye(mean.shape[-1], mean.dtype, 3)
    spread = second / jnp.where(on, weight[:, None, None], 1)
    outer = mean[:, :, None] * mean[:, None, :]
    target, jitter = covariance_step(spread, outer, inverses_of(scale), ridge[None, None, :])
    target = jnp.where(on, target, identity)
    return safe_cholesky(target, jitter), jnp.square(target - identity).sum((-2, -1))


def _update(scale: Array, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Array, Array]:
    lower, change = whitened_step(scale, weight, mean, second, ridge)
    return einsum("kde,kef->kdf", tril(scale), lower), change


def _from_variances(variances: Array) -> Array:
    return embed_diagonal(jnp.sqrt(variances))


def _factor_of_inverse(precision: Array) -> tuple[Array, Array]:
    """Cholesky factors of the inverses of (..., D, D), and whether these are positive definite (..., 1, 1).

    Elsewhere the factor is the identity, so that nothing computed from it is NaN.

    It reads the symmetric part, not one triangle: as coordinates of a covariance, the matrices then have an
    orthogonal projection as their redundancy, and the EM map's Jacobian in them is symmetric.
    """
    first, definite = _or_identity(cholesky_of(precision))
    inverse = lower_inverse(first)
    factors, also = _or_identity(cholesky(einsum("...ed,...ef->...df", inverse, inverse)))
    return factors, definite & also


def _or_identity(factors: Array) -> tuple[Array, Array]:
    """Factors (..., D, D), with the identity for those that are not finite; and which are (..., 1, 1)."""
    finite = jnp.isfinite(factors).all((-2, -1), keepdims=True)
    identity = eye(factors.shape[-1], factors.dtype)
    return jnp.where(finite, factors, identity.reshape((1,) * (factors.ndim - 2) + identity.shape)), finite


def log_diagonal(factors: Array) -> Array:
    """(...,) the mean logarithm of the diagonals of lower factors (..., D, D)."""
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).mean(-1)


def unimodular(factors: Array) -> Array:
    """Lower factors (..., D, D) divided by the D-th root of their determinant."""
    return factors * jnp.exp(-log_diagonal(factors))[..., None, None]


def _root_weights(weights: Array, precision: Array) -> Array:
    """(1 or K, 1, 1) the roots of the weights that matrices (1 or K, D, D) have."""
    own = weights if len(precision) == len(weights) else weights.sum(keepdims=True)
    return jnp.sqrt(own)[:, None, None]


def to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    """`Covariance.to_natural`, of lower factors: the precision in coordinates where the reference is I."""
    factor, about = (s["factor"] if isinstance(s, dict) else s for s in (scale, reference))
    relative = einsum("kde,kef->kdf", lower_inverse(factor), tril(about))
    precision = einsum("ked,kef->kdf", relative, relative)
    natural = {"precision": SQRT_HALF * _root_weights(weights, precision) * precision}
    if isinstance(scale, dict):
        natural |= logs_to(reference, weights, scale, shift.shape[1])
        precision = precision * jnp.square(reference["width"] / scale["width"])[:, :, None]
    moved = times_each(precision, shift[:, :, None])[:, :, 0]
    return {**natural, "shift": jnp.sqrt(weights)[:, None] * moved}


def from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    """The way back."""
    precision = natural["precision"]
    relative, definite = _factor_of_inverse(precision / (SQRT_HALF * _root_weights(weights, precision)))
    shift = (natural["shift"] / jnp.sqrt(weights)[:, None])[:, :, None]
    if isinstance(reference, dict):
        relative = unimodular(relative)
        logs = logs_from(reference, weights, natural, precision.shape[-1])
        factor = einsum("kde,kef->kdf", tril(reference["factor"]), relative)
        scale: Scale = {**logs, "factor": jnp.where(definite, factor, jnp.nan)}
        relative = relative * (scale["width"] / reference["width"])[:, :, None]
    else:
        scale = jnp.where(definite, einsum("kde,kef->kdf", tril(reference), relative), jnp.nan)
    return scale, times_each(relative, times_each(relative.swapaxes(1, 2), shift))[:, :, 0]


def cholesky_of(covariances: Array) -> Array:
    """Lower Cholesky factors of (..., D, D); NaN where one is not positive definite."""
    return cholesky(0.5 * (covariances + covariances.swapaxes(-1, -2)))


def factor_to_unconstrained(factors: Array) -> dict[str, Array]:
    """Lower factors (..., D, D) as log diagonals (..., D), and rows below it in units of their diagonals."""
    diagonal = jnp.diagonal(factors, axis1=-2, axis2=-1)
    rows, columns = np.tril_indices(factors.shape[-1], -1)
    return {"log_diagonal": jnp.log(diagonal), "lower": factors[..., rows, columns] / diagonal[..., rows]}


def factor_from_unconstrained(free: dict[str, Array], shape: tuple[int, int]) -> Array:
    """The way back: lower factors (..., D, D) with a positive diagonal."""
    diagonal = jnp.exp(free["log_diagonal"])
    rows, columns = np.tril_indices(shape[1], -1)
    return embed_diagonal(diagonal).at[..., rows, columns].set(free["lower"] * diagonal[..., rows])


def rescale_factors(factors: Array, unit: Array) -> Array:
    """Lower factors (..., D, D) where feature j is multiplied by unit_j, (D,)."""
    return factors * unit.reshape((1,) * (factors.ndim - 2) + (-1, 1))


full = Covariance(
    name="full",
    **properties("VVV"),
    whitener=whitener,
    colour=colour,
    log_det=log_det,
    diagonal=diagonal,
    inverse_diagonal=inverse_diagonal,
    second_moment="matrix",
    update=_update,
    to_covariance=Partial(compiled, to_covariance),
    from_covariance=Partial(compiled, cholesky_of),
    from_variances=_from_variances,
    to_natural=to_natural,
    from_natural=from_natural,
    to_unconstrained=factor_to_unconstrained,
    from_unconstrained=factor_from_unconstrained,
    rescale=rescale_factors,
    by_feature=True,
)
