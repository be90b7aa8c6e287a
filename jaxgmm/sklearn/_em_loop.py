"""EM loop under scikit-learn's stopping rule, compiled, a number of iterations at a time."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm import priors
from jaxgmm.data import Context, Data
from jaxgmm.em import admissible, maximise
from jaxgmm.kernels import exact
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.sklearn._conversion import resolved
from jaxgmm.variational._ascent import settled

CHUNK = 128  # iterations between two looks of the host


class Climb(NamedTuple):
    """Some iterations of EM.

    Attributes:
      params: after the last M-step.
      bound: () the mean log-likelihood, and the prior's share, before that M-step, as scikit-learn has it.
      bounds: (CHUNK,) the same for every iteration; −inf past n_iter.
      n_iter: () int32.
      converged: () bool, the bound changed by less than tol.
      sound: () bool; False where a covariance has collapsed or the likelihood is not finite.
    """

    params: Any
    bound: Array
    bounds: Array
    n_iter: Array
    converged: Any
    sound: Any


@functools.partial(jit, static_argnames="block_size")
def climb(
    params: GMMParams,
    data: Data,
    limit: Array,
    bound: Array,
    tol: Array,
    reg_covar: Array,
    margin: Array,
    prior: priors.Prior | None,
    *,
    block_size: int,
) -> Climb:
    """At most `limit` ≤ CHUNK iterations of EM, from where another call ended.

    Args:
      params: where to begin.
      data: rows (N, D) and their weights (N,).
      limit: () int32.
      bound: () the bound of the iteration before; −inf at first.
      tol: () of the change of the bound from one iteration to the next.
      reg_covar: () added to the variances.
      margin: () what `resolved` asks of the components.
      prior: a checked prior, its mean in the coordinates of the data, or None.
      block_size: rows per block; static.
    """
    zero = jnp.zeros_like(data.x[0])
    pseudo = None
    if prior is not None:
        pseudo = priors.pseudo(prior, params.covariance, params.means.shape, zero)
    context = Context(zero, jnp.ones_like(zero), jnp.full_like(zero, reg_covar), zero, pseudo)

    def iterate(state: Climb) -> Climb:
        moments = exact.sums(state.params, data, block_size=block_size)
        image, _ = maximise(state.params, moments, context)
        value = moments.log_likelihood / moments.total_weight
        if pseudo is not None:
            value = value + priors.log_density(state.params, pseudo)[0] / moments.total_weight
        sound = resolved(state.params, margin) & jnp.isfinite(value)
        bounds = state.bounds.at[state.n_iter].set(value)
        return Climb(image, value, bounds, state.n_iter + 1, sound & settled(value, state.bound, tol), sound)

    none, yes = jnp.full(CHUNK, -jnp.inf, zero.dtype), jnp.asarray(True)
    start = Climb(admissible(params), bound, none, jnp.zeros((), jnp.int32), ~yes, yes)
    return lax.while_loop(lambda s: (s.n_iter < limit) & ~s.converged & s.sound, iterate, start)
