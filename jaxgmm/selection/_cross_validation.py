"""Cross-validation by sample weights, over one X."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.data import Data
from jaxgmm.density import log_prob
from jaxgmm.em import run
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.selection._programs import Settings, prior_for


def assign(key: Array, n_samples: int, n_folds: int) -> Array:
    """(N,) int32, each sample's fold: as equal in size as can be, at random."""
    return jax.random.permutation(key, jnp.arange(n_samples, dtype=jnp.int32) % n_folds)


@functools.partial(jit, static_argnames=("default", "block_size"))
def _refit(
    params: GMMParams, n_active: Array, weights: Array, s: Settings, *, default: bool, block_size: int
) -> Array:
    """() weighted sum of log-likelihoods of what one fold leaves out, for each mixture of a batch (L,)."""
    whole = jnp.ones(s.x.shape[0], s.x.dtype) if s.w is None else s.w

    def one(p: GMMParams, size: Array) -> Array:
        prior = prior_for(s._replace(w=weights), default, p.covariance, size)
        result = run(
            p, Data(s.x, weights), s.tol, s.max_iter, s.reg_covar, s.accelerate, prior,
            block_size=block_size, history_size=0,
        )  # fmt: skip
        out = whole - weights
        values = log_prob(result.params, s.x)
        return jnp.where(out > 0, out * values, 0).sum()

    return jax.vmap(one)(params, n_active)


def held_out(
    key: Array,
    params: GMMParams,
    sizes: Any,
    s: Settings,
    n_folds: int,
    n_used: int,
    block_size: int,
    default: bool,
) -> Array:
    """(L,) mean log-likelihood of the samples that are left out, for mixtures of `sizes` (L,) components.

    For each of the first `n_used` of `n_folds` folds the mixture is fitted again, from where it is, to the
    other folds: by sample weights of zero, so that nothing is copied and one program serves all folds.
    """
    fold = assign(key, s.x.shape[0], n_folds)
    whole = jnp.ones(s.x.shape[0], s.x.dtype) if s.w is None else s.w
    total = jnp.zeros(params.log_weights.shape[:1], s.x.dtype)
    mass = jnp.zeros((), s.x.dtype)
    for i in range(n_used):
        weights = jnp.where(fold == i, jnp.zeros((), s.x.dtype), whole)
        total = total + _refit(params, sizes, weights, s, default=default, block_size=block_size)
        mass = mass + (whole - weights).sum()
    return total / mass
