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

from jaxgmm.components.covariance.diagonal import diag
from jaxgmm.components.covariance.full import full
from jaxgmm.components.gaussian import gaussian
from jaxgmm.density import check_gaussian
from jaxgmm.distributions._operations import factors as factors_of
from jaxgmm.kernels.linalg import triangular_factor
from jaxgmm.kernels.programs import jit
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
    dist = _numpyro()

    def triangular(means: Array, factors: Array) -> Any:
        return dist.MultivariateNormal(means, scale_tril=factors)

    return _sent(
        params, dist, triangular, lambda means, deviations: dist.Normal(means, deviations).to_event(1)
    )


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
    dist = _numpyro()
    mixing, component = _taken(
        "from_numpyro", distribution, dist, "mixing_distribution", "component_distribution"
    )
    if isinstance(component, dist.MultivariateNormal):
        return _mixture(mixing.logits, component.loc, component.scale_tril, component.batch_shape)
    inner = component.base_dist if isinstance(component, dist.Independent) else component
    if isinstance(inner, dist.Normal) and len(component.event_shape) <= 1:
        # One feature may have no axis.
        batch, shape = component.batch_shape, inner.shape()
        loc, scale = (jnp.broadcast_to(a, shape).reshape(*batch, -1) for a in (inner.loc, inner.scale))
        return _mixture(mixing.logits, loc, scale, batch)
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
    return _sent(params, dist, dist.MultivariateNormalTriL, dist.MultivariateNormalDiag)


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
    mixing, component = _taken("from_tfp", distribution, dist)
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
    dist = _distrax()
    return _sent(params, dist, dist.MultivariateNormalTri, dist.MultivariateNormalDiag)


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
    dist = _distrax()
    mixing, component = _taken("from_distrax", distribution, dist)
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


def _numpyro() -> Any:
    return _import("numpyro.distributions", "NumPyro", "pip install 'jaxgmm[numpyro]'")


def _tfp() -> Any:
    how = "pip install tfp-nightly, where the newest release does not work beside this JAX"
    return _import("tensorflow_probability.substrates.jax", "TensorFlow Probability", how).distributions


def _distrax() -> Any:
    return _import("distrax", "distrax", "pip install distrax")


def _unknown(function: str, wanted: str, got: Any) -> TypeError:
    return TypeError(f"{function} takes {wanted}; got {type(got).__name__}")


def _sent(params: GMMParams, dist: Any, triangular: Any, independent: Any) -> Any:
    """The mixture in a library, of its distribution by means and factors, and of that by deviations."""
    check_gaussian(params, "a distribution of another library")
    logits, means, factors = _parts(params)
    component = (independent if factors.ndim == 2 else triangular)(means, factors)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), component)


def _taken(
    function: str, distribution: Any, dist: Any, mixing: str = "mixture_distribution",
    components: str = "components_distribution",
) -> tuple[Any, Any]:  # fmt: skip
    """The two parts of a library's mixture, by the names of the attributes that hold them."""
    found = getattr(distribution, mixing, None)
    if not isinstance(distribution, dist.MixtureSameFamily) or not hasattr(found, "logits"):
        raise _unknown(function, f"{dist.__name__}.MixtureSameFamily", distribution)
    return found, getattr(distribution, components)


@jit
def _parts(params: GMMParams) -> tuple[Array, Array, Array]:
    """Logits (K,), means (K, D), and lower factors (K, D, D) or standard deviations (K, D)."""
    logits = jnp.maximum(params.log_weights, jnp.finfo(params.log_weights.dtype).min)
    k, d = params.n_components, params.n_features
    # Without correlations the features' quadratic form needs squares alone.
    if params.covariance.second_moment in ("diagonal", "trace"):
        return logits, params.means, jnp.sqrt(params.covariance.diagonal(params.scatter, (k, d)))
    return logits, params.means, factors_of(params)


def _mixture(logits: Any, means: Any, factors: Any, batch: tuple[int, ...]) -> GMMParams:
    """The mixture of K components whose own batch shape must be (K,)."""
    dtype = jnp.promote_types(jnp.result_type(means, factors), jnp.float32)
    logits, means, factors = (jnp.asarray(a, dtype) for a in (logits, means, factors))
    if len(batch) != 1 or logits.shape != batch:
        raise ValueError(
            f"distribution must be one mixture, its components' batch_shape (n_components,); got {batch} "
            f"and logits of shape {logits.shape}. Use jax.vmap for a batch"
        )
    return _built(logits, means, factors)


@jit
def _built(logits: Array, means: Array, factors: Array) -> GMMParams:
    shape = k, d = *logits.shape, means.shape[-1]
    independent = factors.ndim == means.ndim
    off = logits <= jnp.finfo(logits.dtype).min / 2
    return GMMParams(
        jnp.where(off, -jnp.inf, jax.nn.log_softmax(logits)),
        jnp.broadcast_to(means, shape),
        jnp.broadcast_to(factors, shape if independent else (k, d, d)),
        gaussian(diag if independent else full),
    )
