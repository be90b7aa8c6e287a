"""Local coordinates about a mixture, in which a labelled observation has information I; curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.components.weights import is_held
from jaxgmm.data import Data, summarise
from jaxgmm.density import posterior
from jaxgmm.kernels.blocked_sum import block_rows, sum_rows
from jaxgmm.kernels.linalg import (
    PRECISION,
    cholesky,
    eigvalsh,
    einsum,
    embed_diagonal,
    epsilon,
    lower_inverse,
    triangular_factor,
)
from jaxgmm.mixture import GMMParams, kept, translate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries:
    """One number, or an array of them, for each entry of a mixture in natural coordinates.

    Attributes:
      weights: (..., K).
      means: (..., K, D).
      covariances: (..., K, D, D), dense whatever the structure.
    """

    weights: Array  # (..., K)
    means: Array  # (..., K, D)
    covariances: Array  # (..., K, D, D)


def entries(params: GMMParams) -> Entries:
    """A mixture's own weights, means and dense covariances."""
    return Entries(params.weights, params.means, params.covariances)


def without_off(params: GMMParams, e: Entries) -> Entries:
    """Entries of a mixture, NaN for the mean and the covariance of a component that is switched off."""
    off = params.log_weights == -jnp.inf
    means = jnp.where(off[:, None], jnp.nan, e.means)
    return Entries(e.weights, means, jnp.where(off[:, None, None], jnp.nan, e.covariances))


class Local(NamedTuple):
    """Free coordinates t (P,) about a mixture, which lies at t = 0."""

    at: Callable[[Array], GMMParams]  # means relative to the shift
    chart: Callable[[GMMParams], Array]  # its moments, about the mixture and in units of its widths
    shift: Array  # (D,)  subtracted from the data
    basis: Array  # (P, P)  dφ/dt, with φ the plain coordinates of `plain`
    inverse_basis: Array  # (P, P)  dt/dφ, upper triangular
    free: Array  # (P,)  bool; False where a coordinate moves only what is switched off


class Curvature(NamedTuple):
    """Sums over samples of what the log-likelihood's first two derivatives in t are made of."""

    information: Array  # (P, P)  −Σ w ∇² log p(x)
    opg: Array  # (P, P)  Σ w² s sᵀ, with s = ∇ log p(x)
    score: Array  # (P,)  Σ w s
    log_likelihood: Array  # ()  Σ w log p(x)
    total_weight: Array  # ()


class Inverse(NamedTuple):
    """The inverse of the information: its factor, and whether it exists."""

    factor: Array  # (P, P)  lower Cholesky factor of the information; NaN where it is not positive definite
    least: Array  # ()  smallest eigenvalue of the information per unit of weight
    valid: Array  # ()  bool
    distance: Array  # ()  sqrt(sᵀ H⁻¹ s), with s the score and H the information

    def half(self, right: Array) -> Array:
        """L⁻¹ right, for right (P, q)."""
        return jnp.matmul(lower_inverse(self.factor), right, precision=PRECISION)

    def other_half(self, right: Array) -> Array:
        """L⁻ᵀ right, for right (P, q)."""
        return jnp.matmul(lower_inverse(self.factor).T, right, precision=PRECISION)

    def solve(self, right: Array) -> Array:
        """H⁻¹ right, for right (P, q)."""
        return self.other_half(self.half(right))


def plain(params: GMMParams) -> tuple[int, Callable[[Array], GMMParams]]:
    """The plain free coordinates φ (P,) about a mixture: how many there are, and φ -> the mixture moved by φ.

    In this order: log π_k − log π_last for all components but the last that is switched on, the means, and
    the covariance structure's own `to_unconstrained`. Weights that are equal or fixed have none.
    """
    c, (n_components, n_features) = params.component, params.means.shape
    to, back = c.covariance.to_unconstrained, c.covariance.from_unconstrained
    if to is None or back is None:
        raise ValueError(
            f"the structure {c.covariance.name!r} has no free coordinates, which standard errors and "
            "influences need: fill in to_unconstrained and from_unconstrained of its record"
        )
    used = params.means.size + c.covariance.n_parameters(n_components, n_features)
    if c.n_parameters(c, n_components, n_features) < used:
        raise ValueError(
            f"components {c.name!r} do not use all of their means and covariances, so that the information "
            "is singular; standard errors and influences need a mixture without a background"
        )
    extra = () if c.to_free is None else c.to_free(c, params.scale)
    own = to(params.scatter)
    origin, unravel = ravel_pytree((own, extra))
    rule = params.weights_rule
    n_logits, n_means = rule.n_free(n_components), n_components * n_features
    # What a fit holds has no coordinates.
    free_means = np.repeat(~is_held(rule.means, n_components), n_features)
    free_scale = np.ones(origin.size, bool)
    if rule.covariances is True:
        free_scale[:] = False
    elif rule.covariances is not False:
        held = is_held(rule.covariances, n_components)
        sizes = [a.size // n_components for a in jax.tree.leaves(own)]
        free_scale = np.concatenate([np.repeat(~held, size) for size in sizes])
    free = np.flatnonzero(np.concatenate([np.ones(n_logits, bool), free_means, free_scale]))
    n_whole = n_logits + n_means + origin.size

    on = params.log_weights > -jnp.inf
    k = jnp.arange(n_components, dtype=jnp.int32)
    last = jnp.where(on, k, 0).max()
    source = jnp.clip(k - (k > last).astype(jnp.int32), 0, max(n_logits - 1, 0))

    def at(phi: Array) -> GMMParams:
        phi = phi if free.size == n_whole else jnp.zeros(n_whole, phi.dtype).at[free].set(phi)
        log_weights = params.log_weights
        if n_logits:
            moved = jnp.where(k == last, jnp.zeros((), phi.dtype), phi[:n_logits][source])
            log_weights = jax.nn.log_softmax(jnp.where(on, log_weights + moved, -jnp.inf))
        means = params.means + phi[n_logits : n_logits + n_means].reshape(params.means.shape)
        scatter, extra = unravel(origin + phi[n_logits + n_means :])
        scale = params.scale if c.from_free is None else c.from_free(c, params.scale, extra)
        mixture = GMMParams(log_weights, means, scale, *params.model)
        return kept(params, mixture.with_scatter(back(scatter, (n_components, n_features))))

    return free.size, at


def localise(params: GMMParams, data: Data) -> Local:
    """Coordinates t = Rφ in which a labelled observation (x, k) has the information I at the mixture.

    RᵀR = Σ_k π_k [(∂ log π_k)² + (C_k⁻¹ ∂μ_k)² + ½ (C_k⁻¹ ∂Σ_k C_k⁻ᵀ)²], by a QR factorisation of what is
    squared. In them the observed information per sample has eigenvalues that are at most 1 in expectation, so
    that neither the units of the data nor correlations within a component cost digits in float32.
    """
    shift = summarise(data, jnp.zeros((), data.x.dtype)).shift
    params = translate(params, -shift)
    size, plainly = plain(params)
    here = lax.stop_gradient(params)
    on = here.log_weights > -jnp.inf
    share = jnp.sqrt(jnp.where(on, here.weights, 0))
    whiten, c = here.covariance.whitener(here.scatter), here.component

    def chart(p: GMMParams) -> Array:
        shift = whiten((p.means - here.means)[:, :, None])
        dense = p.covariance.to_covariance(p.scatter, (p.n_components, p.n_features))
        identity = jnp.eye(p.n_features, dtype=share.dtype)[None, :, :]
        wider = whiten(whiten(dense).swapaxes(1, 2)) - identity
        moments = jnp.ones_like(share), shift, float(0.5**0.5) * (wider + shift * shift.swapaxes(1, 2))
        share_of = p.weights / jnp.where(on, share, 1)
        flat = [(share_of[:, None] * a.reshape(share.size, -1)).reshape(-1) for a in moments]
        if c.to_free is not None:
            flat.append(c.to_free(c, p.scale).reshape(-1))
        return jnp.concatenate(flat)

    origin = jnp.zeros(size, params.means.dtype)
    # What is computed in these coordinates does not depend on which they are: they need no derivative.
    jacobian = lax.stop_gradient(jax.jacfwd(lambda phi: chart(plainly(phi)))(origin))
    free = (jacobian != 0).any(0)
    fixed = embed_diagonal(jnp.where(free, 0, 1).astype(origin.dtype))
    lower = triangular_factor(jnp.concatenate([jacobian, fixed]).T)
    upper, basis = lower.T, lower_inverse(lower).T

    def at(t: Array) -> GMMParams:
        return plainly(jnp.matmul(basis, t, precision=PRECISION))

    return Local(at, chart, shift, basis, upper, free)


def scores(local: Local, rows: Data) -> tuple[Array, Array]:
    """log p(x) (B,) and its gradients s (B, P) at t = 0, for rows less the shift."""

    def values(t: Array) -> tuple[Array, Array]:
        log_prob = posterior(local.at(t), rows)[1]
        return log_prob, log_prob

    s, log_prob = jax.jacfwd(values, has_aux=True)(jnp.zeros(local.free.size, rows.x.dtype))
    return log_prob, s


def tangent_rows(local: Local, data: Data, n_components: int) -> int:
    """Rows per block where every row meets every coordinate."""
    n, d = data.x.shape[0], data.n_features
    return block_rows(n, n_components, d if data.is_complete else d * d, local.free.size)


def about(local: Local, weight: Array, rows: Data) -> Data:
    """Rows less the shift, and 0 for those that do not count."""
    moved = rows.less(local.shift)
    return dataclasses.replace(moved, x=jnp.where((weight > 0)[:, None], moved.x, 0))


def curvature(local: Local, data: Data, n_components: int) -> Curvature:
    """`Curvature` of the rows, a block at a time: memory does not grow with N P²."""

    def block(wb: Array, rows: Data) -> Curvature:
        b = about(local, wb, rows)

        def derivatives(t: Array) -> tuple[tuple[Array, Array], Array]:
            values, pull = jax.vjp(lambda u: posterior(local.at(u), b)[1], t)
            return (values, pull(wb)[0]), values

        origin = jnp.zeros(local.free.size, b.x.dtype)
        (s, hessian), values = jax.jacfwd(derivatives, has_aux=True)(origin)
        weighted = wb[:, None] * s
        return Curvature(
            information=-0.5 * (hessian + hessian.T),
            opg=einsum("bp,bq->pq", weighted, weighted),
            score=weighted.sum(0),
            log_likelihood=(wb * values).sum(),
            total_weight=wb.sum(),
        )

    # One of these sums is quadratic in the weights; but a row of weight zero adds nothing to it, and that is
    # all that `sum_rows` needs.
    rows = tangent_rows(local, data, n_components)
    total: Any = sum_rows(block, data.weight, data.rows, block_size=rows)
    return total


def root(a: Array) -> Array:
    """The square root, with the derivative 0 at 0, where that of a fixed entry's variance belongs."""
    zero = a == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, a)))


def invert(local: Local, c: Curvature) -> Inverse:
    """The inverse information; NaN throughout, and not valid, where it is not positive definite."""
    idle = embed_diagonal(jnp.where(local.free, 0, 1).astype(c.score.dtype))
    per_weight = c.information / c.total_weight + idle
    floor = 8 * local.free.size * epsilon(c.score.dtype)
    known = jnp.where(jnp.isfinite(per_weight).all(), lax.stop_gradient(per_weight), 0)
    least = eigvalsh(known)[0]
    valid = least > floor
    factor = cholesky(per_weight) * jnp.sqrt(c.total_weight)
    factor = jnp.where(valid, factor, jnp.nan)
    inverse = Inverse(factor, least, valid, jnp.zeros((), c.score.dtype))
    return inverse._replace(distance=root(jnp.square(inverse.half(c.score[:, None])).sum()))


def jacobian(local: Local, function: Callable[[GMMParams], Any]) -> tuple[Array, Callable[[Array], Any]]:
    """The derivative (q, P) of function(params) as a vector (q,), and the way back from such a vector."""

    def value(t: Array) -> Any:
        return function(translate(local.at(t), local.shift))

    origin = jnp.zeros(local.free.size, local.shift.dtype)
    unravel = ravel_pytree(value(origin))[1]
    return jax.jacfwd(lambda t: ravel_pytree(value(t))[0])(origin), unravel
