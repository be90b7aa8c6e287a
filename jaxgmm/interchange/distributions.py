"""Distributions of NumPyro, TensorFlow Probability and distrax: mixtures to and from them.

Each of them has `MixtureSameFamily`, of a categorical distribution over components and a batch of normal
ones. Covariances go as triangular factors and are never squared; structures without correlations go as
standard deviations. Everything can be traced, and so differentiated. A weight of 0 is sent as the smallest
logit that is finite, for NumPyro takes no other, and comes back as 0.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import diag
from jaxgmm.components.covariance.full import full
from jaxgmm.components.gaussian import gaussian
from jaxgmm.density import check_gaussian
from jaxgmm.kernels.linalg import triangular_factor
from jaxgmm.mixture import GMMParams


def to_numpyro(params: GMMParams) -> Any:
    """A mixture as `numpyro.distributions.MixtureSameFamily`; inside `jit` too.

    Args:
      params: one mixture.

    Returns:
      The distribution, of event shape (D,). Its components are `MultivariateNormal`, or independent `Normal`
      where the structure has no correlations.

    Raises:
      ImportError: if NumPyro is not installed (extra `numpyro`).
      ValueError, TypeError: if params is not one mixture.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import to_numpyro
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
      >>> to_numpyro(params).mean.tolist()
      [2.0]
    """
    dist = _import("numpyro.distributions", "NumPyro", "pip install 'jaxgmm[numpyro]'")
    logits, means, factors = _parts(params)
    if factors.ndim == 2:
        component = dist.Normal(means, factors).to_event(1)
    else:
        component = dist.MultivariateNormal(means, scale_tril=factors)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def from_numpyro(distribution: Any) -> GMMParams:
    """The mixture of a `numpyro.distributions.MixtureSameFamily` of normal components.

    Args:
      distribution: components `MultivariateNormal`, which become "full", or `Normal`, which become "diag":
        `.to_event(1)` of (K, D), or of (K,) for one feature. No batch of mixtures.

    Raises:
      ImportError: if NumPyro is not installed (extra `numpyro`).
      TypeError: for any other distribution.
      ValueError: for a batch.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import from_numpyro, to_numpyro
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[2.0]]])
      >>> from_numpyro(to_numpyro(params))
      GMMParams(full, K = 2, D = 1, float32)
    """
    dist = _import("numpyro.distributions", "NumPyro", "pip install 'jaxgmm[numpyro]'")
    mixing: Any = getattr(distribution, "mixing_distribution", None)
    component: Any = getattr(distribution, "component_distribution", None)
    if not isinstance(distribution, dist.MixtureSameFamily) or not hasattr(mixing, "logits"):
        raise _unknown("from_numpyro", "numpyro.distributions.MixtureSameFamily", distribution)
    if isinstance(component, dist.MultivariateNormal):
        return _mixture(mixing.logits, component.loc, component.scale_tril, component.batch_shape)
    inner = component.base_dist if isinstance(component, dist.Independent) else component
    if isinstance(inner, dist.Normal) and len(component.event_shape) <= 1:
        return _mixture(mixing.logits, inner.loc, inner.scale, component.batch_shape, inner.shape())
    raise _unknown("from_numpyro", "components that are MultivariateNormal or Normal", component)


def to_tfp(params: GMMParams) -> Any:
    """A mixture as `MixtureSameFamily` of TensorFlow Probability on JAX; inside `jit` too.

    Args:
      params: one mixture.

    Returns:
      The distribution, of event shape (D,).

    Raises:
      ImportError: if `tensorflow_probability.substrates.jax` cannot be imported. Release 0.25 cannot beside a
        current JAX; the nightly builds can.
      ValueError, TypeError: if params is not one mixture.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import to_tfp
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
      >>> to_tfp(params).mean().tolist()  # doctest: +SKIP
      [2.0]
    """
    dist = _tfp()
    logits, means, factors = _parts(params)
    if factors.ndim == 2:
        component = dist.MultivariateNormalDiag(means, factors)
    else:
        component = dist.MultivariateNormalTriL(means, factors)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def from_tfp(distribution: Any) -> GMMParams:
    """The mixture of a TensorFlow Probability `MixtureSameFamily` of multivariate normal components.

    Args:
      distribution: any multivariate normal components, `MultivariateNormalDiag` becoming "diag" and all
        others "full". No batch of mixtures.

    Raises:
      ImportError: as `to_tfp`.
      TypeError: for any other distribution.
      ValueError: for a batch.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import from_tfp, to_tfp
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[2.0]]])
      >>> from_tfp(to_tfp(params))  # doctest: +SKIP
      GMMParams(full, K = 2, D = 1, float32)
    """
    dist = _tfp()
    mixing: Any = getattr(distribution, "mixture_distribution", None)
    component: Any = getattr(distribution, "components_distribution", None)
    if not isinstance(distribution, dist.MixtureSameFamily) or not isinstance(mixing, dist.Categorical):
        raise _unknown("from_tfp", "a MixtureSameFamily of TensorFlow Probability on JAX", distribution)
    logits = mixing.logits_parameter()
    if isinstance(component, dist.MultivariateNormalDiag):
        return _mixture(logits, component.mean(), component.stddev(), component.batch_shape)
    if isinstance(component, dist.MultivariateNormalLinearOperator):
        factor = triangular_factor(jnp.asarray(component.scale.to_dense()))
        return _mixture(logits, component.mean(), factor, component.batch_shape)
    raise _unknown("from_tfp", "components that are multivariate normal", component)


def to_distrax(params: GMMParams) -> Any:
    """A mixture as `distrax.MixtureSameFamily`; inside `jit` too.

    Args:
      params: one mixture.

    Returns:
      The distribution, of event shape (D,).

    Raises:
      ImportError: if distrax cannot be imported: it needs a TensorFlow Probability that can, as `to_tfp`.
      ValueError, TypeError: if params is not one mixture.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import to_distrax
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
      >>> to_distrax(params).mean().tolist()  # doctest: +SKIP
      [2.0]
    """
    dist = _import("distrax", "distrax", "pip install distrax")
    logits, means, factors = _parts(params)
    if factors.ndim == 2:
        component = dist.MultivariateNormalDiag(means, factors)
    else:
        component = dist.MultivariateNormalTri(means, factors)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def from_distrax(distribution: Any) -> GMMParams:
    """The mixture of a `distrax.MixtureSameFamily` of multivariate normal components.

    Args:
      distribution: components `MultivariateNormalDiag`, which become "diag", or `MultivariateNormalTri` or
        `MultivariateNormalFullCovariance`, which become "full". No batch of mixtures.

    Raises:
      ImportError: as `to_distrax`.
      TypeError: for any other distribution.
      ValueError: for a batch.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import from_distrax, to_distrax
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[2.0]]])
      >>> from_distrax(to_distrax(params))  # doctest: +SKIP
      GMMParams(full, K = 2, D = 1, float32)
    """
    dist = _import("distrax", "distrax", "pip install distrax")
    mixing: Any = getattr(distribution, "mixture_distribution", None)
    component: Any = getattr(distribution, "components_distribution", None)
    if not isinstance(distribution, dist.MixtureSameFamily) or not isinstance(mixing, dist.Categorical):
        raise _unknown("from_distrax", "a distrax.MixtureSameFamily", distribution)
    if isinstance(component, dist.MultivariateNormalDiag):
        return _mixture(mixing.logits, component.loc, component.scale_diag, component.batch_shape)
    if isinstance(component, dist.MultivariateNormalTri) and component.is_lower:
        return _mixture(mixing.logits, component.loc, component.scale_tri, component.batch_shape)
    raise _unknown("from_distrax", "components MultivariateNormalDiag or …Tri", component)


def _import(module: str, name: str, how: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{name} could not be imported ({error}); {how}") from error
    except AttributeError as error:  # what a release that is too old for this JAX dies of
        raise ImportError(f"{name} does not work beside JAX {jax.__version__} ({error}); {how}") from error


def _tfp() -> Any:
    how = "pip install tfp-nightly, where the newest release does not work beside this JAX"
    return _import("tensorflow_probability.substrates.jax", "TensorFlow Probability", how).distributions


def _unknown(function: str, wanted: str, got: Any) -> TypeError:
    return TypeError(f"{function} takes {wanted}; got {type(got).__name__}")


def _parts(params: GMMParams) -> tuple[Array, Array, Array]:
    """Logits (K,), means (K, D), and lower factors (K, D, D) or standard deviations (K, D)."""
    check_gaussian(params, "a distribution of another library")
    logits = jnp.maximum(params.log_weights, jnp.finfo(params.log_weights.dtype).min)
    k, d = params.n_components, params.n_features
    # Without correlations the features' quadratic form needs squares alone.
    if params.covariance.second_moment in ("diagonal", "trace"):
        return logits, params.means, jnp.sqrt(params.covariance.diagonal(params.scatter, (k, d)))
    if params.covariance == full:
        return logits, params.means, jnp.tril(params.scatter)
    eye = jnp.broadcast_to(jnp.eye(d, dtype=params.means.dtype), (k, d, d))
    return logits, params.means, triangular_factor(params.covariance.colour(params.scatter, eye))


def _mixture(logits: Any, means: Any, factors: Any, batch: tuple[int, ...], event: Any = None) -> GMMParams:
    """The mixture of K components whose own batch shape must be (K,)."""
    means, factors = jnp.asarray(means), jnp.asarray(factors)
    dtype = jnp.result_type(means, factors)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
        dtype = jnp.dtype(jnp.float32)
    if event is not None:
        means, factors = jnp.broadcast_to(means, event), jnp.broadcast_to(factors, event)
        if len(event) == 1:  # one feature, and no axis for it
            means, factors = means[:, None], factors[:, None]
    logits = jnp.asarray(logits, dtype)
    k, d = (*batch, 0)[0], means.shape[-1]
    if len(batch) != 1 or logits.shape != (k,):
        raise ValueError(
            f"distribution must be one mixture, its components' batch_shape (n_components,); got {batch} "
            f"and logits of shape {logits.shape}. Use jax.vmap for a batch"
        )
    structure: Covariance = diag if factors.ndim == means.ndim else full
    factors = jnp.broadcast_to(factors, (k, d) if structure == diag else (k, d, d)).astype(dtype)
    off = logits <= jnp.finfo(dtype).min / 2
    log_weights = jnp.where(off, -jnp.inf, jax.nn.log_softmax(logits))
    return GMMParams(log_weights, jnp.broadcast_to(means, (k, d)).astype(dtype), factors, gaussian(structure))
