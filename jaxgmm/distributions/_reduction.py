"""Reduction of a mixture to fewer components, on its parameters alone."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.full import full
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.density import check_gaussian
from jaxgmm.distributions._operations import factors
from jaxgmm.kernels.linalg import embed_diagonal, triangular_factor
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams


class Reduction(NamedTuple):
    """A mixture of fewer components.

    Attributes:
      params: the mixture, of n_components.
      bound: () an upper bound of the Kullback–Leibler divergence KL(original ‖ params), in nats.
      labels: (K,) int32, which of the new components each of the original ones went into; −1 for those that
        are switched off.
    """

    params: GMMParams
    bound: Array
    labels: Array


class _State(NamedTuple):
    log_weights: Array  # (K,) −inf for those that were merged into another
    means: Array  # (K, D)
    lower: Array  # (K, D, D)
    cost: Array  # (K, K) B_ij for i < j, both on; else inf
    bound: Array  # ()
    labels: Array  # (K,) int32 the component that each of the original ones is in


def _held(roots: Array, structure: Covariance) -> Array:
    """Lower factors (..., D, D) of the covariances M Mᵀ, M (..., D, n), or of what a structure holds of them.

    "diag" keeps the variances, "spherical" their mean.
    """
    if structure == full:
        return triangular_factor(roots)
    variances = jnp.square(roots).sum(-1)
    if structure == spherical:
        variances = jnp.broadcast_to(variances.mean(-1, keepdims=True), variances.shape)
    return embed_diagonal(jnp.sqrt(variances))


def _merged(s: _State, i: Array, j: Array, structure: Covariance) -> tuple[Array, Array, Array]:
    """Log weight (), mean (D,) and factor (D, D) of two components as one, with the moments of the two."""
    pair = jnp.stack([s.log_weights[i], s.log_weights[j]])
    total = jax.nn.logsumexp(pair)
    # Of two that are switched off nothing is used, but it must be finite.
    share = jnp.where(jnp.isfinite(total), jnp.exp(pair - jnp.where(jnp.isfinite(total), total, 0)), 0.5)
    gap = s.means[j] - s.means[i]
    root = jnp.where(share > 0, jnp.sqrt(jnp.where(share > 0, share, 1)), 0)
    parts = [root[0] * s.lower[i], root[1] * s.lower[j], (root[0] * root[1] * gap)[:, None]]
    return total, s.means[i] + share[1] * gap, _held(jnp.concatenate(parts, axis=1), structure)


def _costs(s: _State, i: Array, structure: Covariance) -> Array:
    """(K,) B_ij, from the ratios of the factors' diagonals: log |Σ| may be large, its difference small."""
    k = s.means.shape[0]

    def one(j: Array) -> Array:
        diagonal = jnp.diagonal(_merged(s, i, j, structure)[2])
        own, other = (jnp.log(diagonal / jnp.diagonal(s.lower[n])).sum() for n in (i, j))
        return jnp.exp(s.log_weights[i]) * own + jnp.exp(s.log_weights[j]) * other

    each = jnp.arange(k, dtype=jnp.int32)
    on = s.log_weights > -jnp.inf
    return jnp.where(on & on[i] & (each != i), jax.vmap(one)(each), jnp.inf)


@functools.partial(jit, static_argnames=("n_components", "structure"))
def _reduce(params: GMMParams, *, n_components: int, structure: Covariance) -> Reduction:
    k = params.n_components
    each = jnp.arange(k, dtype=jnp.int32)
    lower = factors(params)
    if structure != full:
        lower = _held(lower, structure)
    none = jnp.zeros((k, k), params.means.dtype)
    begin = _State(params.log_weights, params.means, lower, none, none[0, 0], each)
    cost = lax.map(lambda i: _costs(begin, i, structure), each)

    def step(s: _State, _: None) -> tuple[_State, None]:
        n_on = (s.log_weights > -jnp.inf).sum()
        least = jnp.argmin(lax.stop_gradient(s.cost)).astype(jnp.int32)
        first, second = least // k, least % k
        i, j = jnp.minimum(first, second), jnp.maximum(first, second)
        log_weight, mean, factor = _merged(s, i, j, structure)
        t = s._replace(
            log_weights=s.log_weights.at[i].set(log_weight).at[j].set(-jnp.inf),
            means=s.means.at[i].set(mean),
            lower=s.lower.at[i].set(factor),
            bound=s.bound + s.cost[i, j],
            labels=jnp.where(s.labels == j, i, s.labels),
        )
        row = _costs(t, i, structure)
        cost = t.cost.at[i].set(row).at[:, i].set(row).at[j].set(jnp.inf).at[:, j].set(jnp.inf)
        t = t._replace(cost=cost)
        few = n_on <= n_components
        return jax.tree.map(lambda old, new: jnp.where(few, old, new), s, t), None

    end, _ = lax.scan(step, begin._replace(cost=cost), None, length=k - n_components)
    off = end.log_weights == -jnp.inf
    order = jnp.argsort(off, stable=True)[:n_components].astype(jnp.int32)
    place = jnp.cumsum(~off).astype(jnp.int32) - 1
    labels = jnp.where(params.log_weights > -jnp.inf, place[end.labels], -1)
    lower = end.lower[order]
    scale = lower if structure == full else jnp.diagonal(lower, axis1=-2, axis2=-1)
    if structure == spherical:
        scale = scale[:, 0]
    found = GMMParams(end.log_weights[order], end.means[order], scale, gaussian(structure))
    return Reduction(found, end.bound, labels)


def reduce(params: GMMParams, n_components: int, *, covariance_type: ModelLike = "full") -> Reduction:
    """Merge components until few are left: Runnalls' reduction, on the parameters alone, without data.

    Two components become one with their common weight, mean and covariance Σ_ij. Of all pairs it is the one
    for which B_ij = ½ [(π_i + π_j) log |Σ_ij| − π_i log |Σ_i| − π_j log |Σ_j|] is smallest, which bounds the
    divergence of the mixture before from that after. Several mergers telescope: the sum of their B is a bound
    for all of them together. The mean and the covariance of the whole mixture stay as they are.

    For filters, in which every step multiplies the components, and for compression. Works under `jit` and
    `vmap`; derivatives are those of the mergers that were made.

    Args:
      params: a mixture of Gaussian components, of any structure.
      n_components: how many are to be left; static. Where fewer are on, the others stay switched off.
      covariance_type: "full", which holds the merged moments; "diag" or "spherical" hold the variances or
        their mean, and give up the rest.

    Returns:
      `Reduction`: the mixture, the bound, and where each component went. Components are in the order of the
      first that went into each.

    Raises:
      ValueError, TypeError: for components that are not Gaussian, for more components than there are, or a
        structure other than these three.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.25, 0.25, 0.5], [[-1.0], [1.0], [9.0]], [1.0, 1.0, 1.0], "spherical")
      >>> found = jaxgmm.distributions.reduce(params, 2)
      >>> found.params.means.tolist(), found.params.covariances.round(3).ravel().tolist()
      ([[0.0], [9.0]], [2.0, 1.0])
      >>> found.labels.tolist(), round(float(found.bound), 4)  # ½ (0.5 log 2)
      ([0, 0, 1], 0.1733)

    References:
      Runnalls (2007), Kullback–Leibler approach to Gaussian mixture reduction, IEEE Transactions on Aerospace
      and Electronic Systems 43.
    """
    check_gaussian(params, "reduce")
    k = validate.n_components(n_components)
    if k > params.n_components:
        raise ValueError(f"n_components must not exceed the {params.n_components} of params; got {k}")
    structure = get_model(covariance_type).component
    if structure not in tuple(map(gaussian, (full, diag, spherical))):
        raise ValueError(
            f"reduce gives 'full', 'diag' or 'spherical' covariances, which a merger leaves free; "
            f"got {structure.name!r}"
        )
    return _reduce(params, n_components=k, structure=structure.covariance)
