"""EM loop under scikit-learn's stopping rule, compiled, a number of iterations at a time."""

from __future__ import annotations

import functools
from typing import NamedTuple

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

    params: GMMParams
    bound: Array
    bounds: Array
    n_iter: Array
    converged: Array
    sound: Array


@functools.partial(jit, static_argnames="block_size")
def climb(
    params: GMMParams,
    x: Array,
    w: Array,
    bound: Array,
    tol: Array,
    limit: Array,
    ridge: Array,
    prior: priors.Prior | None,
    margin: Array,
    *,
    block_size: int,
) -> Climb:
    """At most `limit` ≤ CHUNK iterations of EM on x (N, D) with weights (N,), from where another call ended.

    Args:
      params: where to begin.
      x: (N, D).
      w: (N,).
      bound: () the bound of the iteration before; −inf at first.
      tol: () of the change of the bound from one iteration to the next.
      limit: () int32.
      ridge: (D,) added to the variances.
      prior: a checked prior, its mean in the coordinates of x, or None.
      margin: () what `resolved` asks of the components.
      block_size: rows per block; static.
    """
    pseudo = None
    if prior is not None:
        pseudo = priors.pseudo(prior, params.covariance, params.means.shape, jnp.zeros_like(x[0]))

    zero = jnp.zeros_like(ridge)
    context = Context(zero, jnp.ones_like(ridge), ridge, zero, pseudo)

    def going(state: Climb) -> Array:
        return (state.n_iter < limit) & ~state.converged & state.sound

    def iterate(state: Climb) -> Climb:
        moments = exact.sums(state.params, Data(x, w), block_size=block_size)
        image, _ = maximise(state.params, moments, context)
        value = moments.log_likelihood / moments.total_weight
        if pseudo is not None:
            value = value + priors.log_density(state.params, pseudo)[0] / moments.total_weight
        sound = resolved(state.params, margin) & jnp.isfinite(value)
        return Climb(
            params=image,
            bound=value,
            bounds=state.bounds.at[state.n_iter].set(value),
            n_iter=state.n_iter + 1,
            converged=sound & settled(value, state.bound, tol),
            sound=sound,
        )

    none = jnp.full(CHUNK, -jnp.inf, x.dtype)
    zero, no = jnp.zeros((), jnp.int32), jnp.asarray(False)
    return lax.while_loop(going, iterate, Climb(admissible(params), bound, none, zero, no, ~no))
