"""Unrolled EM: a fixed number of steps, differentiated step by step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import em, priors
from jaxgmm.data import Data, summarise
from jaxgmm.density import inputs
from jaxgmm.em import REG_COVAR, TOL
from jaxgmm.kernels import exact
from jaxgmm.kernels.exact import WHITENED, rows_for
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.implicit import Evaluation
from jaxgmm.solvers.squarem import Status


def status_of(evaluation: Evaluation, stopped: Array, tol: Array) -> Array:
    """() int32, the Status of parameters that were reached by other means than `fit`."""
    e = evaluation
    near = (e.step <= tol) | (e.step <= e.noise)
    code = jnp.where(near & ~stopped, int(Status.CONVERGED), int(Status.MAX_ITER))
    code = jnp.where(e.valid, code, int(Status.DEGENERATE))
    return jnp.where(jnp.isfinite(e.objective), code, int(Status.NONFINITE)).astype(jnp.int32)


def checked(
    params: GMMParams, X: ArrayLike, sample_weight: ArrayLike | None, tol: ArrayLike, reg_covar: ArrayLike,
    block_size: int | None,
) -> tuple[GMMParams, Data, Array, Array, int]:  # fmt: skip
    """A mixture, its data, tol, reg_covar, and the rows per block."""
    params, x = inputs(params, X)
    rows = rows_for(params.component, x.shape[0], *params.means.shape)
    if block_size is not None:
        rows = min(validate.count(block_size, "block_size", 1), x.shape[0])
    numbers = ((tol, "tol"), (reg_covar, "reg_covar"))
    tol, reg = (validate.not_negative(value, name, x.dtype) for value, name in numbers)
    return params, Data(x, validate.weight(sample_weight, x)), tol, reg, rows


def total_weight(data: Data) -> Array:
    """() the sum of the weights."""
    return jnp.asarray(data.x.shape[0], data.x.dtype) if data.weight is None else data.weight.sum()


@functools.partial(jit, static_argnames=("n_steps", "block_size"))
def _unrolled(
    params: GMMParams, data: Data, tol: Array, reg_covar: Array, prior: Prior | None,
    *, n_steps: int, block_size: int,
) -> FitResult:  # fmt: skip
    f = summarise(data.x, data.weight, reg_covar)
    f = em.with_prior(f, prior, params.model, params.means.shape)
    problem = em.Problem(data, f)
    evaluate = functools.partial(em.evaluate, WHITENED, block_size, None)

    # Reverse mode keeps the parameters of each step and computes the rest of it again.
    @jax.checkpoint
    def step(p: GMMParams) -> tuple[GMMParams, Array, Array]:
        e = evaluate(p, problem, hold=False)
        return e.image, e.report, jnp.isfinite(e.objective) & e.valid

    def iterate(carry: tuple[GMMParams, Array, Array], _: None) -> tuple[Any, Array]:
        p, good, n = carry
        image, report, fine = step(p)
        good = good & fine
        p = jax.tree.map(lambda a, b: jnp.where(good, a, b), image, p)
        return (p, good, n + good.astype(jnp.int32)), report

    start = (translate(em.admissible(params), -f.shift), jnp.asarray(True), jnp.zeros((), jnp.int32))
    (point, good, n_iter), reports = lax.scan(iterate, varying_like(start, problem), length=n_steps)
    end = evaluate(lax.stop_gradient(point), lax.stop_gradient(problem))
    fitted, total = translate(point, f.shift), total_weight(data)
    log_likelihood = exact.sums(fitted, data, block_size=block_size).log_likelihood / total
    objective = log_likelihood
    if f.prior is not None:
        objective = log_likelihood + priors.log_density(point, f.prior)[0] / total
    history = jnp.concatenate([reports[1:], log_likelihood[None]])
    history = jnp.where(jnp.arange(n_steps, dtype=jnp.int32) < n_iter, history, -jnp.inf)
    return FitResult(fitted, log_likelihood, objective, n_iter, status_of(end, ~good, tol), history)


def fit_unrolled(
    params: GMMParams,
    X: ArrayLike,
    n_steps: int,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike = TOL,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    block_size: int | None = None,
) -> FitResult:
    """Take n_steps plain EM steps, differentiable through each of them: also in the start and in a prior.

    For a fixed small number of steps, where what is wanted is the derivative of those steps and not of the
    fixed point: learning a start, forward mode through a few steps, or a fit that is not to converge. Reverse
    mode keeps the parameters of every step and computes each step again; time grows with n_steps. For the
    derivative of a converged fit, `fit` is cheaper and exact.

    Args:
      params: where to start.
      X: (N, D).
      n_steps: how many steps; static.
      sample_weight: (N,) or None for ones.
      tol: the status is CONVERGED if one more step would be no longer than this (see `fit`); nothing stops
        sooner.
      reg_covar: as in `m_step`.
      prior: as in `fit`.
      block_size: as in `fit`.

    Returns:
      FitResult with history (n_steps,). If a step fails, the parameters before it are kept, and `status`
      says why.

    Raises:
      ValueError, TypeError: as `fit`, and for n_steps < 1.

    Example:
      >>> import jax, jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = jax.numpy.array([[-2.0], [-1.5], [1.0], [2.0]])
      >>> gradient = jax.grad(lambda p: jaxgmm.gradients.fit_unrolled(p, X, 5).log_likelihood)(start)
      >>> gradient.means.shape
      (2, 1)
    """
    params, data, tol, reg, rows = checked(params, X, sample_weight, tol, reg_covar, block_size)
    if prior is not None:
        prior = priors.check(prior, params.component, params.means.shape, data.x.dtype)
    n = validate.count(n_steps, "n_steps", 1)
    return _unrolled(params, data, tol, reg, prior, n_steps=n, block_size=rows)
