"""Fits of a batch of starts: `em.run` for several mixtures of one model over one data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm import _coordinates as coordinates
from jaxgmm import priors
from jaxgmm.data import Context, Data, summarise
from jaxgmm.em import Problem, Settings, admissible, evaluate, holding, result_of, with_prior
from jaxgmm.kernels import exact, trimmed
from jaxgmm.kernels.blocked_sum import rows_over
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import batched, squarem
from jaxgmm.solvers.squarem import Solution

_TOGETHER = 1 << 18  # numbers that fits side by side may work on for each block of rows: a CPU's cache


def concurrency(n_fits: int, n_samples: int, numbers: int) -> int:
    """How many fits to compute together; each computes `numbers` numbers per row.

    A CPU gains by several only as long as they fit its cache; an accelerator takes as many as there are.
    """
    if jax.default_backend() != "cpu":
        return n_fits
    most = max(1, min(n_fits, _TOGETHER // (numbers * min(n_samples, 2048))))
    # As many in the last round as in the others, where all take as long.
    return -(-n_fits // max(1, round(n_fits / most)))


def run_many(
    params: GMMParams,
    data: Data,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior_of: Callable[[Array], Prior | None] | None = None,
    trim: Array | None = None,
    *,
    context: Context | None = None,
    **static: Any,
) -> FitResult:
    """`em.run` from starts with a leading axis R; `prior_of` gives the prior of a fit by its index ().

    What is trimmed may be the same for all () or that of each fit (R,).
    """
    s = Settings(tol, accelerate, **static)
    with rows_over(s.axis_name):
        context = summarise(data, reg_covar) if context is None else context
    model, (n_fits, k, d) = params.model, params.means.shape
    indices = jnp.arange(n_fits, dtype=jnp.int32)
    limit = jnp.broadcast_to(max_iter, (n_fits,))

    def prior_at(index: Array) -> priors.Pseudo | None:
        prior = None if prior_of is None else prior_of(index)
        found: priors.Pseudo | None = with_prior(context, prior, model, (k, d)).prior
        return found

    pseudo = jax.vmap(prior_at)(indices)
    amounts = None if trim is None else jnp.broadcast_to(trim, (n_fits,))

    def at(problem: Problem, index: Array) -> Problem:
        each = (pseudo, amounts)
        prior, own = jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), each)
        return problem._replace(context=problem.context._replace(prior=prior, trim=own))

    starts = jax.vmap(lambda p: translate(admissible(p), -context.shift))(params)
    begun = lax.stop_gradient(starts)
    fresh = jax.vmap(lambda p: squarem.begin(p, squarem.no_memory(tol.dtype), s.history_size))(begun)
    states, step, problem = fresh, None, Problem(data, context)
    for i, kernel in enumerate(s.kernels):
        width = concurrency(n_fits, data.x.shape[0], k * d if kernel is WHITENED else k)
        step = functools.partial(evaluate, kernel, s.block_of(kernel, params, data, width), s.axis_name)
        with rows_over(s.axis_name):
            problem = problem._replace(prepared=kernel.prepare(params.component, data, context))
        if i:
            states = jax.vmap(squarem.hand_over)(states, fresh)
        states = batched.advance(
            step, states, functools.partial(at, problem), width=width, tol=tol, max_iter=limit,
            accelerate=accelerate, chart=coordinates.extrapolation(model),
        )  # fmt: skip
    assert step is not None

    def one(state: squarem.State, index: Array, begun: GMMParams) -> FitResult:
        mine = at(problem, index)
        solution = squarem.solution(step, s.derivative(model, data.x.shape[0], (k, d)), state, mine)
        return holding(begun, result_of(_as_rounded(solution, data, mine.context, s), data, mine.context, s))

    return jax.vmap(one)(states, indices, params)


def _as_rounded(solution: Solution, data: Data, context: Context, s: Settings) -> Solution:
    """A fit's solution with the likelihood of its means as they are rounded when the shift is added back."""
    shift = context.shift

    def measured(point: GMMParams) -> Array:
        moved = translate(point, shift)
        with rows_over(s.axis_name):
            rows = trimmed.kept(moved, data, None, context.trim, s.block_size)
            statistics = exact.sums(moved, rows, block_size=s.block_size)
        mean = statistics.log_likelihood / statistics.total_weight
        return jnp.where(jnp.isfinite(solution.report), mean, solution.report)

    # The condition is the same for all fits of the data, so that of many none does what is not needed.
    seen = solution.report, solution.point, context, data
    report = lax.cond(
        (shift != 0).any(),
        lambda point: varying_like(measured(point), seen),
        lambda _: varying_like(solution.report, seen),
        solution.point,
    )
    return solution._replace(report=report)
