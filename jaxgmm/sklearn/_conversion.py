"""Conversion between a mixture and scikit-learn's attributes: covariances, precisions, their factors."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.linalg import solve_triangular

from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.mixture import GMMParams

Host = np.ndarray[Any, Any]

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance (for "
    "instance caused by singleton or collapsed samples). Try to decrease the number of components, increase "
    "reg_covar, or scale the input data."
)


class CollapsedError(ValueError):
    """A covariance is not positive definite; scikit-learn's own words."""

    def __init__(self) -> None:
        super().__init__(ILL_DEFINED)


def gaussian_model(covariance_type: ModelLike) -> Model:
    """`get_model`, but an error for components that scikit-learn's attributes cannot describe."""
    model = get_model(covariance_type)
    if not model.component.is_gaussian:
        raise ValueError(
            f"the estimators have Gaussian components; got covariance_type={model.name!r}: fit it with "
            "`jaxgmm.fit` or `jaxgmm.fit_best`"
        )
    return model


# Whose covariances have scikit-learn's own shapes; those of all others are dense, (K, D, D).
SHAPED = FULL, TIED, DIAG, SPHERICAL = tuple(map(get_model, ("full", "tied", "diag", "spherical")))


class Shapes(NamedTuple):
    """A mixture's covariances in all the forms that an estimator shows; float64."""

    covariances: Host
    precisions: Host
    precisions_cholesky: Host  # upper U with U Uᵀ = Σ⁻¹; without correlations, 1 / σ


def factor_inverse(lower: Host) -> Host:
    """L⁻ᵀ of lower triangular factors (..., D, D), upper triangular."""
    eye = np.eye(lower.shape[-1])
    inverses = [solve_triangular(a, eye, lower=True) for a in lower.reshape(-1, *lower.shape[-2:])]
    return np.swapaxes(np.reshape(inverses, lower.shape), -1, -2)


def cholesky(matrices: Host) -> Host:
    """Lower Cholesky factors (..., D, D); `CollapsedError` where one is not positive definite."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        raise CollapsedError from None


def lower_of_upper(upper: Host) -> Host:
    """L = U⁻ᵀ (..., D, D): the lower factors of covariances from the upper ones of their inverses."""
    return np.swapaxes(factor_inverse(np.swapaxes(upper, -1, -2)), -1, -2)


def lower_of_precision(precisions: Host) -> Host:
    """The lower Cholesky factors of the inverses of (..., D, D), without inverting one."""
    return lower_of_upper(cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1])


def _triangular(roots: Host) -> Host:
    """Lower L with L Lᵀ = C Cᵀ and a positive diagonal, of any square roots C (..., D, D)."""
    upper = np.linalg.qr(np.swapaxes(roots, -1, -2), mode="r")
    sign = np.where(np.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.swapaxes(upper * sign[..., :, None], -1, -2)


def host(tree: Any) -> Any:
    """Every array as float64 on the host."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def lower_factors(params: GMMParams) -> Host:
    """(K, D, D) lower Cholesky factors of the covariances, from the structure's own: nothing is squared."""
    k, d = params.means.shape
    eye = jnp.broadcast_to(jnp.eye(d, dtype=params.means.dtype), (k, d, d))
    return _triangular(np.asarray(params.covariance.colour(params.scatter, eye), np.float64))


def shapes_of(model: Model, scale: Any, lower: Host | None = None) -> Shapes:
    """All forms of the covariances of a scale in float64; of structures beyond the four, of `lower`."""
    if model in (DIAG, SPHERICAL):
        return Shapes(scale**2, 1 / scale**2, 1 / scale)
    factor = np.tril(scale) if model in (FULL, TIED) else lower
    assert factor is not None
    upper = factor_inverse(factor)
    covariances = factor @ np.swapaxes(factor, -1, -2)
    precisions = upper @ np.swapaxes(upper, -1, -2)
    return Shapes(covariances, precisions, upper)


def scale_from_cholesky(model: Model, precisions_cholesky: Host) -> Host:
    """The scale, float64, of one of the four structures from the factors of its precisions."""
    upper = np.asarray(precisions_cholesky, np.float64)
    if model in (DIAG, SPHERICAL):
        return 1 / upper
    return lower_of_upper(upper)


def to_device(log_weights: Host, means: Host, scale: Any, model: Model, dtype: Any) -> GMMParams:
    """The mixture in the dtype that JAX computes in."""

    def cast(a: Any) -> Array:
        return jnp.asarray(np.asarray(a).astype(dtype))

    return GMMParams(cast(log_weights), cast(means), jax.tree.map(cast, scale), *model)


def log(weights: Host) -> Host:
    """(K,) logarithms of mixing weights; −inf for 0."""
    with np.errstate(divide="ignore"):
        logarithms: Host = np.log(np.asarray(weights, np.float64))
    return logarithms


# In float32 a component is to be this many roundings of its mean wide, so that residuals have digits left.
MARGIN = 32.0


def resolved(params: GMMParams, margin: Array) -> Array:
    """() bool: finite, and every component that is on is wider than `margin` roundings of its own mean.

    The means are relative to the offset of the data. A margin of 0 asks only for what is finite.
    """
    eps = float(jnp.finfo(params.means.dtype).eps)
    shape = (params.n_components, params.n_features)
    digits = params.covariance.diagonal(params.scatter, shape) + jnp.square(margin * params.means)
    narrow = params.covariance.inverse_diagonal(params.scatter, shape) * ((eps * eps) * digits) >= 1
    leaves = [jnp.isfinite(a).all() for a in (params.means, *jax.tree.leaves(params.scale))]
    on = params.log_weights > -jnp.inf
    return ~(narrow & on[:, None] & (margin > 0)).any() & jnp.stack(leaves).all() & on.any()
