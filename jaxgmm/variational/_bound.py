"""Expectations under a variational posterior, and the evidence bound with every constant."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.tied import tied
from jaxgmm.components.gaussian import gaussian
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams, log_normaliser
from jaxgmm.variational._model import VariationalPosterior, VariationalPrior, without_data

LOG_2_PI = float(np.log(2 * np.pi))


def _of_precisions(q: VariationalPosterior) -> tuple[Array, int]:
    """The arguments (L, M) of the gamma functions of precisions, and how often each counts.

    L is the number of precisions, K or for tied 1; M is D for Wishart distributions and 1 for gammas.
    """
    k, d = q.means.shape
    if q.structure == spherical:
        return 0.5 * d * q.dof[:, None], 1
    if q.structure == diag:
        return 0.5 * q.dof[:, None], d
    dof = k * q.dof[:1] if q.structure == tied else q.dof
    return 0.5 * (dof[:, None] - jnp.arange(d, dtype=dof.dtype)[None, :]), 1


def expected(q: VariationalPosterior, reg_covar: Array) -> GMMParams:
    """A mixture whose E-step is the posterior's: log π_k N(x | …) is E[log π_k N(x | μ_k, Λ_k⁻¹)].

    Its weights do not sum to 1. With `reg_covar` the samples themselves are uncertain by that variance.
    """
    k, d = q.means.shape
    arguments, times = _of_precisions(q)
    a = q.concentration
    others = a.sum()[None] if q.rest is None else jnp.concatenate([q.rest, a + q.rest])
    # One call, however many there are of them: it is these functions that take time to compile.
    values = digamma(jnp.concatenate([arguments.ravel(), a, others]))
    precisions, a, others = jnp.split(values, [arguments.size, arguments.size + a.size])
    if q.rest is None:
        log_weights = a - others
    else:
        rest, both = jnp.split(others, 2)
        none = jnp.zeros(1, a.dtype)
        piece, left = jnp.concatenate([a - both, none]), jnp.concatenate([none, jnp.cumsum(rest - both)])
        log_weights = (piece + left)[:k]
    # E[log |Λ_k|] − log |E[Λ_k]|
    scale = 0.5 * (d if q.structure == spherical else k if q.structure == tied else 1) * q.dof
    total = precisions.reshape(arguments.shape).sum(1) * times * (d if q.structure == spherical else 1)
    excess = total - d * jnp.log(scale)
    spread = d / q.mean_precision + reg_covar * q.structure.inverse_diagonal(q.scale, (k, d)).sum(-1)
    return GMMParams(log_weights + 0.5 * (excess - spread), q.means, q.scale, gaussian(q.structure))


def _gammas(q: VariationalPosterior) -> tuple[Array, Array]:
    """Arguments (M,) of the log-gamma functions in the normaliser of q, and their factors (M,)."""
    arguments, times = _of_precisions(q)
    a = q.concentration
    plus = [arguments.ravel(), a] if q.rest is None else [arguments.ravel(), a, q.rest]
    minus = a.sum()[None] if q.rest is None else a + q.rest
    factors = [jnp.full_like(arguments.ravel(), times)]
    factors += [jnp.ones_like(p) for p in plus[1:]]
    return jnp.concatenate([*plus, minus]), jnp.concatenate([*factors, -jnp.ones_like(minus)])


def _powers(q: VariationalPosterior) -> Array:
    """() the logarithm of the normaliser of q, but for gamma functions and powers of π."""
    k, d = q.means.shape
    log_det, dof = q.structure.log_det(q.scale, (k, d)), q.dof
    if q.structure == tied:
        log_det, dof = log_det[:1], k * dof[:1]
    half = 0.5 * (d if q.structure == spherical else 1) * dof
    return -0.5 * (dof * (log_det + d * jnp.log(half))).sum() - 0.5 * d * jnp.log(q.mean_precision).sum()


def evidence_bound(
    params: GMMParams, moments: Statistics, q: VariationalPosterior, prior: VariationalPrior
) -> Array:
    """() the evidence bound of the responsibilities that gave `moments`, and the posterior q that they give.

    E[log p(X, z, θ)] − E[log q(z, θ)] = H(z) − ½ N D log 2π + log Z(q) − log Z(prior), all that is linear in
    the natural parameters having cancelled, for q is optimal. `params` are those of the E-step, `expected`.
    """
    k, d = q.means.shape
    constants = params.log_weights + log_normaliser(params)
    exponents = (moments.weight * jnp.where(moments.weight > 0, constants, 0)).sum()
    second = moments.second
    if q.structure not in (diag, spherical):
        second = jnp.diagonal(second, axis1=-2, axis2=-1)
    entropy = moments.log_likelihood - exponents + 0.5 * second.sum()
    begun = without_data(prior, q.structure, k)
    (after, plus), (before, minus) = _gammas(q), _gammas(begun)
    gammas = jnp.concatenate([plus, -minus]) * gammaln(jnp.concatenate([after, before]))
    change = gammas.sum() + _powers(q) - _powers(begun)
    return entropy - 0.5 * d * LOG_2_PI * moments.weight.sum() + change
