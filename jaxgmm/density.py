"""Densities of a mixture: log-densities, responsibilities, labels, scores and samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm._host_arrays import padded
from jaxgmm.data import Data
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, cast, log_normaliser, scale_like

R = TypeVar("R")


def log_constants(params: GMMParams) -> tuple[Array, Array]:
    """log π_k and `log_normaliser` together (K,), less their largest (), and that one.

    It can be thousands of nats, of features of small scale: what all components share is added after the
    responsibilities are made, or it would round them.
    """
    constant = params.log_weights + log_normaliser(params)
    largest = lax.stop_gradient(constant.max())
    common = jnp.where(jnp.isfinite(largest), largest, 0)
    return constant - common, common


def shares_of(joint: Array) -> tuple[Array, Array, Array]:
    """The E-step's normalisation of log joint densities (K, B), of which in each column one is finite.

    Returns:
      Shares (K, B), exponentials that are not yet divided by their sums; these sums (B,), and the logarithm
      (B,) that was taken out: responsibilities are shares / total, and log p(x) = top + log(total).
    """
    top = lax.stop_gradient(joint.max(0))
    shares = jnp.exp(joint - top[None, :])
    return shares, shares.sum(0), top


def _exponents(params: GMMParams, x: Array, on: Array) -> tuple[Array, Array]:
    """The exponents of the components' densities (K, B) as relative (K, B) + offset (B,); see `Component`."""
    c = params.component
    return c.log_density(c, c.prepare(c, params.means, params.scale), x.T, on)


def joint(params: GMMParams, x: Array) -> tuple[Array, Array]:
    """log π_k f(x | μ_k, θ_k) = relative (K, B) + offset (B,), where relative never overflows to all −inf."""
    relative, offset = _exponents(params, x, params.log_weights > -jnp.inf)
    constant, common = log_constants(params)
    return constant[:, None] + relative, common + offset


def posterior(params: GMMParams, x: Array) -> tuple[Array, Array]:
    """The E-step of one block: resp (B, K) and log p(x) (B,)."""
    relative, offset = joint(params, x)
    shares, total, top = shares_of(relative)
    return (shares / total[None, :]).T, top + jnp.log(total) + offset


def _component(params: GMMParams, x: Array) -> Array:
    relative, offset = _exponents(params, x, jnp.ones(params.n_components, bool))
    return (log_normaliser(params)[:, None] + (relative + offset[None, :])).T


def check_mixture(params: GMMParams) -> None:
    """Raise unless it is one mixture whose arrays fit each other."""
    if not isinstance(params, GMMParams):
        hint = "; pass result.params" if isinstance(getattr(params, "params", None), GMMParams) else ""
        raise TypeError(f"params must be GMMParams; got {type(params).__name__}{hint}")
    if not all(
        hasattr(a, "shape") for a in (params.log_weights, params.means, *jax.tree.leaves(params.scale))
    ):
        raise TypeError("params must hold arrays; build them with make_params(weights, means, covariances)")
    like = scale_like(params.component, *params.means.shape) if params.means.ndim == 2 else None
    validate.single_mixture(params.log_weights, params.means, params.scale, like)


def check_gaussian(params: GMMParams, what: str) -> None:
    """Raise unless it is one mixture of Gaussian components, which `what` needs."""
    check_mixture(params)
    if not params.component.is_gaussian:
        raise ValueError(f"{what} needs Gaussian components; params have {params.component.name!r}")


def inputs(params: GMMParams, X: ArrayLike) -> tuple[GMMParams, Array]:
    """One checked mixture and its data (N, D), both in the data's dtype."""
    check_mixture(params)
    x = validate.data(X, n_features=params.n_features)
    return cast(params, x.dtype), x


def padded_data(x: Array, w: Array | None) -> Data:
    """Rows and their weights; few rows with zeros below, of weight 0."""
    below = x if w is not None and not validate.is_concrete(w) else padded(x)
    if below is x:
        return Data(x, w)
    weight = np.ones(x.shape[0], x.dtype) if w is None else np.asarray(w)
    placed: Data = jax.device_put(Data(below, padded(weight)))
    return placed


def of_rows(program: Callable[[GMMParams, Array], R], params: GMMParams, X: ArrayLike) -> R:
    """What a program gives of each row. Few are padded, so that other numbers of them compile nothing."""
    params, x = inputs(params, X)
    below = padded(x) if validate.is_concrete(params) else x
    found = program(params, below)
    if below is x:
        return found
    # Slices of a JAX array are programs of their own.
    kept: R = jax.tree.map(lambda a: jax.device_put(np.asarray(a)[: x.shape[0]]), found)
    return kept


@jit
def posterior_of(params: GMMParams, x: Array) -> tuple[Array, Array]:
    """The E-step of all rows, a block at a time; log_weights need not sum to 1."""
    rows = block_rows(x.shape[0], *params.means.shape)
    return map_rows(lambda b: posterior(params, b), x, block_size=rows)


@jit
def _log_prob(params: GMMParams, x: Array) -> Array:
    rows = block_rows(x.shape[0], *params.means.shape)
    return map_rows(lambda b: posterior(params, b)[1], x, block_size=rows)


@jit
def _score(params: GMMParams, x: Array, w: Array | None) -> Array:
    values = _log_prob(params, x)
    if w is None:
        return values.mean()
    # A sample of weight 0 may be so far away that its log-density is −inf.
    return (w * jnp.where((w > 0) | jnp.isfinite(values), values, 0)).sum() / w.sum()


@jit
def _predict(params: GMMParams, x: Array) -> Array:
    rows = block_rows(x.shape[0], *params.means.shape)

    def labels(b: Array) -> Array:
        return jnp.argmax(joint(params, b)[0], axis=0).astype(jnp.int32)

    return map_rows(labels, x, block_size=rows)


@jit
def _component_log_prob(params: GMMParams, x: Array) -> Array:
    rows = block_rows(x.shape[0], *params.means.shape)
    return map_rows(lambda b: _component(params, b), x, block_size=rows)


def log_prob(params: GMMParams, X: ArrayLike) -> Array:
    """(N,) log p(x_n) = log Σ_k π_k f(x_n | μ_k, θ_k), in nats.

    Differentiable in params and X; gradients are finite, also at switched-off components.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.log_prob(params, [[0.0]])[0]), 4)
      -0.9189
    """
    return of_rows(_log_prob, params, X)


def component_log_prob(params: GMMParams, X: ArrayLike) -> Array:
    """(N, K) log N(x_n | μ_k, Σ_k), each component's own log-density, without its mixing weight.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.component_log_prob(params, [[0.0]]).round(4).tolist()
      [[-0.9189..., -1.4189...]]
    """
    return of_rows(_component_log_prob, params, X)


def responsibilities(params: GMMParams, X: ArrayLike) -> Array:
    """(N, K) posterior probabilities of the components; rows sum to 1. `e_step` without log_prob.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.responsibilities(params, [[0.0]]).tolist()
      [[0.5, 0.5]]
    """
    return of_rows(posterior_of, params, X)[0]


def predict(params: GMMParams, X: ArrayLike) -> Array:
    """(N,) int32 labels: the component of the largest responsibility.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.predict(params, [[-3.0], [0.1]]).tolist()
      [0, 1]
    """
    return of_rows(_predict, params, X)


def score(params: GMMParams, X: ArrayLike, sample_weight: ArrayLike | None = None) -> Array:
    """() the mean log-likelihood per unit of sample weight, Σ w_n log p(x_n) / Σ w_n, in nats.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) or None for ones; a sample of weight 0 does not count, wherever it lies.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.score(params, [[0.0], [9.0]], [1.0, 0.0])), 4)
      -0.9189
    """
    params, x = inputs(params, X)
    w = validate.weight(sample_weight, x)
    data = padded_data(x, w) if validate.is_concrete(params) else Data(x, w)
    return _score(params, data.x, data.weight)


@functools.partial(jit, static_argnames="n_samples")
def _sample(key: Array, params: GMMParams, n_samples: int) -> tuple[Array, Array]:
    n_components, n_features = params.means.shape
    component, scatter = params.component, params.scatter
    key_label, key_normal = jax.random.split(key)
    labels = jax.random.categorical(key_label, params.log_weights, shape=(n_samples,)).astype(jnp.int32)
    normal = jax.random.normal(key_normal, (n_samples, n_features), params.means.dtype)
    if component.normal_factor is not None:
        key_factor = jax.random.fold_in(key_normal, 1)
        normal = normal * component.normal_factor(component, key_factor, params.scale, labels)[:, None]

    def block(label: Array, z: Array) -> Array:
        # Every component colours the whole block: K times the arithmetic, but no (n, D, D) array of factors.
        tiled = jnp.broadcast_to(z.T[None], (n_components, n_features, z.shape[0]))
        coloured = params.covariance.colour(scatter, tiled) + params.means[:, :, None]
        return jnp.take_along_axis(coloured, label[None, None, :], axis=0)[0].T

    rows = block_rows(n_samples, n_components, n_features)
    return map_rows(block, labels, normal, block_size=rows), labels


def sample(key: Array, params: GMMParams, n_samples: int) -> tuple[Array, Array]:
    """Draw from the mixture: a component for each sample by its weight, then a point from that component.

    Args:
      key: a JAX PRNG key.
      params: the mixture.
      n_samples: how many; static.

    Returns:
      X (n_samples, D), labels (n_samples,) int32.

    Example:
      >>> import jax, jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-9.0], [9.0]], [1.0, 1.0], "spherical")
      >>> X, labels = jaxgmm.sample(jax.random.key(0), params, 100)
      >>> bool(((X[:, 0] > 0) == (labels == 1)).all())
      True
    """
    check_mixture(params)
    return _sample(validate.key(key), params, validate.count(n_samples, "n_samples", 1))
