"""Conversion between a mixture and scikit-learn's attributes: covariances, precisions, their factors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams

Host = np.ndarray[Any, Any]


class CollapsedError(ValueError):
    """A covariance is not positive definite; scikit-learn's own words."""

    def __init__(self) -> None:
        super().__init__(
            "Fitting the mixture model failed because some components have ill-defined empirical covariance "
            "(for instance caused by singleton or collapsed samples). Try to decrease the number of "
            "components, increase reg_covar, or scale the input data."
        )


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


def factor_inverse(factors: Host, *, lower: bool) -> Host:
    """Inverse transposes of triangular factors (..., D, D): L⁻ᵀ is upper triangular, U⁻ᵀ is lower."""
    if not lower:
        return factor_inverse(factors[..., ::-1, ::-1], lower=True)[..., ::-1, ::-1]
    inverse = np.zeros(factors.shape)
    # Row by row, for each needs those above it; the rows of all factors together.
    for i in range(factors.shape[-1]):
        row = -np.matmul(factors[..., i : i + 1, :i], inverse[..., :i, :])[..., 0, :]
        row[..., i] += 1
        inverse[..., i, :] = row / factors[..., i, i, None]
    return np.swapaxes(inverse, -1, -2)


def cholesky(matrices: Host) -> Host:
    """Lower Cholesky factors (..., D, D); `CollapsedError` where one is not positive definite."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        raise CollapsedError from None


def lower_of_precision(precisions: Host) -> Host:
    """The lower Cholesky factors of the inverses of (..., D, D), without inverting one."""
    return factor_inverse(cholesky(precisions[..., ::-1, ::-1])[..., ::-1, ::-1], lower=False)


def host(tree: Any, dtype: Any = np.float64) -> Any:
    """Every array on the host, in a dtype."""
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


def device(tree: Any, dtype: Any) -> Any:
    """Every array on the device, in a dtype."""
    return jax.tree.map(lambda a: jax.device_put(np.asarray(a).astype(dtype)), tree)


@jit
def _roots(params: GMMParams) -> Array:
    k, d = params.means.shape
    eye = jnp.broadcast_to(jnp.eye(d, dtype=params.means.dtype), (k, d, d))
    return params.covariance.colour(params.scatter, eye)


def lower_factors(params: GMMParams) -> Host:
    """(K, D, D) lower Cholesky factors of the covariances, from the structure's own: nothing is squared."""
    upper = np.linalg.qr(np.swapaxes(host(_roots(params)), -1, -2), mode="r")
    sign = np.where(np.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.swapaxes(upper * sign[..., :, None], -1, -2)


def shapes_of(model: Model, scale: Any) -> tuple[Host, Host, Host]:
    """Covariances, precisions and their factors: upper U with U Uᵀ = Σ⁻¹; without correlations, 1 / σ.

    All in float64. Of structures beyond scikit-learn's four, scale is their lower factors (K, D, D).
    """
    if model in (DIAG, SPHERICAL):
        return scale**2, 1 / scale**2, 1 / scale
    factor = np.tril(scale)
    upper = factor_inverse(factor, lower=True)
    return factor @ np.swapaxes(factor, -1, -2), upper @ np.swapaxes(upper, -1, -2), upper


def scale_from_cholesky(model: Model, precisions_cholesky: Host) -> Host:
    """The scale, float64, of one of the four structures from the factors of its precisions."""
    upper = np.asarray(precisions_cholesky, np.float64)
    return 1 / upper if model in (DIAG, SPHERICAL) else factor_inverse(upper, lower=False)


def to_device(log_weights: Any, means: Any, scale: Any, model: Model, dtype: Any) -> GMMParams:
    """The mixture in the dtype that JAX computes in."""
    log_weights, means, scale = device((log_weights, means, scale), dtype)
    return GMMParams(log_weights, means, scale, *model)


def log(weights: Host) -> Host:
    """(K,) logarithms of mixing weights; −inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, np.float64))


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
