"""Full covariances, one for each component: lower Cholesky factors (K, D, D)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.covariance.base import Covariance
from jaxgmm.kernels.linalg import (
    cholesky,
    column_squares,
    einsum,
    embed_diagonal,
    epsilon,
    lower_inverse,
    safe_cholesky,
)

SQRT_HALF = float(np.sqrt(0.5))


def _whitener(scale: Array) -> Callable[[Array], Array]:
    inverse = lower_inverse(scale)
    return lambda residuals: einsum("kde,keb->kdb", inverse, residuals)


def _colour(scale: Array, y: Array) -> Array:
    return einsum("kde,keb->kdb", jnp.tril(scale), y)


def _log_det(scale: Array, shape: tuple[int, int]) -> Array:
    return 2 * jnp.log(jnp.diagonal(scale, axis1=-2, axis2=-1)).sum(-1)


def _diagonal(scale: Array, shape: tuple[int, int]) -> Array:
    return jnp.square(scale).sum(-1)


def _inverse_diagonal(scale: Array, shape: tuple[int, int]) -> Array:
    return column_squares(lower_inverse(scale))


def covariance_step(spread: Array, mean: Array, inverse: Array, ridge: Array) -> tuple[Array, Array]:
    """Whitened covariances `spread` − mean meanᵀ + C⁻¹ diag(ridge) C⁻ᵀ (..., D, D), and a jitter for them.

    The jitter is the rounding of the subtraction, so that a mean that moved by thousands of widths, or a
    covariance that vanished, gives a small positive one and never NaN.
    """
    eps = epsilon(spread.dtype)
    jitter = 4 * eps * jnp.diagonal(spread, axis1=-2, axis2=-1) + eps * eps
    return spread - mean + einsum("...de,...fe->...df", inverse * ridge, inverse), jitter


def _update(scale: Array, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Array, Array]:
    active = (weight > 0)[:, None, None]
    identity = jnp.eye(mean.shape[-1], dtype=mean.dtype)[None]
    spread = second / jnp.where(active, weight[:, None, None], 1)
    outer = mean[:, :, None] * mean[:, None, :]
    target, jitter = covariance_step(spread, outer, lower_inverse(scale), ridge[None, None, :])
    target = jnp.where(active, target, identity)
    factors = einsum("kde,kef->kdf", jnp.tril(scale), safe_cholesky(target, jitter))
    return factors, jnp.square(target - identity).sum((-2, -1))


def to_dense(scale: Array, shape: tuple[int, int]) -> Array:
    """L Lᵀ, with any leading axes."""
    return einsum("...de,...fe->...df", scale, scale)


def _from_variances(variances: Array) -> Array:
    return embed_diagonal(jnp.sqrt(variances))


def relative_precision(reference: Array, scale: Array) -> Array:
    """C_refᵀ Σ⁻¹ C_ref (..., D, D) from lower factors: the precision in coordinates where Σ_ref is I."""
    factors = einsum("...de,...ef->...df", lower_inverse(scale), jnp.tril(reference))
    return einsum("...ed,...ef->...df", factors, factors)


def factor_of_inverse(precision: Array) -> tuple[Array, Array]:
    """Cholesky factors of the inverses of (..., D, D), and whether these are positive definite (..., 1, 1).

    Elsewhere the factor is the identity, so that nothing computed from it is NaN.

    It reads the symmetric part, not one triangle: as coordinates of a covariance, the matrices then have an
    orthogonal projection as their redundancy, and the EM map's Jacobian in them is symmetric.
    """
    first, definite = _or_identity(cholesky(0.5 * (precision + precision.swapaxes(-1, -2))))
    inverse = lower_inverse(first)
    factors, also = _or_identity(cholesky(einsum("...ed,...ef->...df", inverse, inverse)))
    return factors, definite & also


def _or_identity(factors: Array) -> tuple[Array, Array]:
    """Factors (..., D, D), with the identity for those that are not finite; and which are (..., 1, 1)."""
    finite = jnp.isfinite(factors).all((-2, -1), keepdims=True)
    identity = jnp.eye(factors.shape[-1], dtype=factors.dtype)
    return jnp.where(finite, factors, identity.reshape((1,) * (factors.ndim - 2) + identity.shape)), finite


def _to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    precision = relative_precision(reference, scale)
    root = jnp.sqrt(weights)
    return {
        "precision": SQRT_HALF * root[:, None, None] * precision,
        "shift": root[:, None] * einsum("kde,ke->kd", precision, shift),
    }


def _from_natural(reference: Array, weights: Array, natural: dict[str, Array]) -> tuple[Array, Array]:
    root = jnp.sqrt(weights)
    factors, definite = factor_of_inverse(natural["precision"] / (SQRT_HALF * root[:, None, None]))
    shift = einsum("kde,kfe,kf->kd", factors, factors, natural["shift"] / root[:, None])
    return jnp.where(definite, einsum("kde,kef->kdf", reference, factors), jnp.nan), shift


def _covariance_shape(n_components: int, n_features: int) -> tuple[int, ...]:
    return n_components, n_features, n_features


def cholesky_of(covariances: Array) -> Array:
    """Lower Cholesky factors of (..., D, D); NaN where one is not positive definite."""
    return cholesky(0.5 * (covariances + covariances.swapaxes(-1, -2)))


def _n_parameters(n_components: Any, n_features: int) -> Any:
    return n_components * (n_features * (n_features + 1) // 2)


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
    covariance_shape=_covariance_shape,
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
    second_moment="matrix",
    update=_update,
    to_covariance=to_dense,
    from_covariance=cholesky_of,
    from_variances=_from_variances,
    n_parameters=_n_parameters,
    to_natural=_to_natural,
    from_natural=_from_natural,
    to_unconstrained=factor_to_unconstrained,
    from_unconstrained=factor_from_unconstrained,
    free_volumes=True,
    rescale=rescale_factors,
    by_feature=True,
)
