"""Expectation–maximisation: its two steps, their composition, and the fit that is its fixed point."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.components.covariance.base import Family
from jaxgmm.components.covariance.registry import get_family
from jaxgmm.data import Context, summarise
from jaxgmm.density import inputs, joint, posterior_of
from jaxgmm.em_map import admissible, chart, evaluate, maximise, weighted_m_step, with_prior
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.blocked_sum import AxisName, block_rows, map_rows, rows_over
from jaxgmm.kernels.exact import Moments, accumulate, rows_for
from jaxgmm.kernels.programs import jit
from jaxgmm.loop import (
    DEFAULT_OPTIONS,
    MAX_ITER,
    REG_COVAR,
    TOL,
    EMOptions,
    check_options,
    run,
)
from jaxgmm.mixture import GMMParams, scale_like, translate
from jaxgmm.parallel import _sharded as sharded
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import Status


def e_step(params: GMMParams, X: ArrayLike) -> tuple[Array, Array]:
    """The E-step: which component each sample came from, and how likely the sample is.

    r_nk = π_k N(x_n | μ_k, Σ_k) / p(x_n). The responsibilities sum to 1 in every row for samples as far away
    as the dtype can hold, where log_prob may be −inf.

    Args:
      params: the mixture.
      X: (N, D).

    Returns:
      resp (N, K), log_prob (N,).

    Raises:
      ValueError: if X is not (N, D) with the mixture's D, or holds NaN.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> resp, log_prob = jaxgmm.e_step(params, [[0.0], [5.0]])
      >>> resp.round(2).tolist()[0]
      [0.5, 0.5]

    References:
      Dempster, Laird & Rubin (1977), §4.3; Bishop (2006), equation 9.23.
    """
    return posterior_of(*inputs(params, X))


def _checked(prior: Prior | None, family: Family, shape: tuple[int, ...], x: Array) -> Prior | None:
    return None if prior is None else priors.check(prior, family, shape, x.dtype)


@functools.partial(jit, static_argnames=("family", "block_size"))
def _m_step(
    r: Array,
    x: Array,
    w: Array | None,
    reg_covar: Array,
    prior: Prior | None,
    *,
    family: Family,
    block_size: int,
) -> GMMParams:
    f = with_prior(summarise(x, w, reg_covar), prior, family, (r.shape[1], x.shape[1]))
    return translate(weighted_m_step(r, x, w, f, family, block_size), f.shift)


def m_step(
    resp: ArrayLike,
    X: ArrayLike,
    *,
    covariance_type: str | Family = "full",
    sample_weight: ArrayLike | None = None,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
) -> GMMParams:
    """The M-step: the mixture that maximises the expected complete-data log-likelihood under `resp`.

    π_k = n_k / Σ n, μ_k = Σ_n w r x / n_k, Σ_k = Σ_n w r (x − μ_k)(x − μ_k)ᵀ / n_k + ridge, with
    n_k = Σ_n w_n r_nk, and Σ_k restricted to the covariance structure.

    Args:
      resp: (N, K), rows summing to 1.
      X: (N, D).
      covariance_type: a name or a `Family`.
      sample_weight: (N,) or None for ones.
      reg_covar: ridge on the diagonals, in units of X squared; reg_covar · Var x_j for a feature whose
        variance is below 1.
      prior: None, or a `Prior` that takes part in the maximum: its equations stand there.

    Returns:
      GMMParams. A component without responsibility is switched off and lies at the mean of the data.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN, negative weights or an unknown name.

    Example:
      >>> import jaxgmm
      >>> resp = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
      >>> params = jaxgmm.m_step(resp, [[0.0], [2.0], [7.0], [9.0]])
      >>> params.means.tolist()
      [[1.0], [8.0]]

    References:
      Bishop (2006), equations 9.24–9.26.
    """
    x = validate.data(X)
    w = validate.weight(sample_weight, x)
    r = validate.responsibilities(resp, x, w)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    family = get_family(covariance_type)
    scale_like(family, r.shape[1], x.shape[1])
    checked = _checked(prior, family, (r.shape[1], x.shape[1]), x)
    options: dict[str, Any] = {
        "family": family,
        "block_size": rows_for(family, x.shape[0], r.shape[1], x.shape[1]),
    }
    if prior is None and (unit := units.units_of(x, w, family)) is not None:
        ridge = units.ridge_in_units(reg, unit)
        return units.rescale(_m_step(r, units.divide(x, unit), w, ridge, None, **options), unit)
    return _m_step(r, x, w, reg, checked, **options)


@jit
def _elbo(params: GMMParams, r: Array, x: Array, w: Array) -> Array:
    rows = block_rows(x.shape[0], *params.means.shape)

    def block(rb: Array, xb: Array) -> Array:
        relative, offset = joint(params, xb)
        both = (relative + offset[None, :]).T
        some = rb > 0
        terms = rb * (jnp.where(some, both, 0) - jnp.log(jnp.where(some, rb, 1)))
        return jnp.where(some, terms, 0).sum(1)

    return (w * map_rows(block, r, x, block_size=rows)).sum()


def elbo(params: GMMParams, resp: ArrayLike, X: ArrayLike, sample_weight: ArrayLike | None = None) -> Array:
    """() the evidence lower bound Σ_n w_n Σ_k r_nk (log π_k N(x_n | μ_k, Σ_k) − log r_nk), a total in nats.

    EM is coordinate ascent on it: for given params `e_step` gives the responsibilities that maximise it, for
    given responsibilities `m_step` (with reg_covar=0) the params. It is below the total log-likelihood
    Σ w_n log p(x_n), and equal to it at `e_step`'s responsibilities.

    Args:
      params: the mixture.
      resp: (N, K), rows summing to 1.
      X: (N, D).
      sample_weight: (N,) or None for ones.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> resp, log_prob = jaxgmm.e_step(params, [[0.0], [2.0]])
      >>> bool(abs(jaxgmm.elbo(params, resp, [[0.0], [2.0]]) - log_prob.sum()) < 1e-5)
      True

    References:
      Neal & Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants,
      equation 7.
    """
    params, x = inputs(params, X)
    w = validate.weight(sample_weight, x)
    r = validate.responsibilities(resp, x, w)
    if r.shape[1] != params.n_components:
        raise ValueError(
            f"resp must have shape {(x.shape[0], params.n_components)}, one column for each component of "
            f"params; got shape {r.shape}"
        )
    return _elbo(params, r, x, jnp.ones(x.shape[0], x.dtype) if w is None else w)


@functools.partial(jit, static_argnames=("block_size", "axis_name"))
def _em_step(
    params: GMMParams,
    x: Array,
    w: Array | None,
    reg_covar: Array,
    prior: Prior | None,
    *,
    block_size: int,
    axis_name: AxisName,
) -> tuple[GMMParams, Moments]:
    with rows_over(axis_name):
        f = with_prior(summarise(x, w, reg_covar), prior, params.family, params.means.shape)
        relative = translate(params, -f.shift)
        moments = accumulate(relative, x, w, shift=f.shift, block_size=block_size)
    new, _ = maximise(relative, moments, f.ridge, f.prior)
    return translate(new, f.shift), moments


def _prepare(
    params: GMMParams, X: ArrayLike, sample_weight: ArrayLike | None, block_size: int | None
) -> tuple[GMMParams, Array, Array | None, int]:
    params, x = inputs(params, X)
    w = validate.weight(sample_weight, x)
    if block_size is None:
        rows = rows_for(params.family, x.shape[0], *params.means.shape)
    else:
        rows = min(validate.count(block_size, "block_size", 1), x.shape[0])
    return params, x, w, rows


def em_step(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    block_size: int | None = None,
    axis_name: AxisName = None,
) -> tuple[GMMParams, Moments]:
    """One EM iteration, m_step ∘ e_step, by row blocks: nothing of size (N, K) is ever stored.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) or None for ones.
      reg_covar: as in `m_step`.
      prior: as in `m_step`.
      block_size: rows per block; None chooses from the shapes.
      axis_name: inside `shard_map`, `pmap` or `vmap`, the name of a mapped axis of which X holds one part of
        the rows: the step is then that of all of them, and the same in every part. Static.

    Returns:
      The next params, and the `Moments` about `params`; moments.log_likelihood is the total at `params`.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN or negative weights.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> params, moments = jaxgmm.em_step(params, [[-2.0], [-1.0], [1.0], [2.0]])
      >>> params.weights.tolist()
      [0.5, 0.5]
    """
    params, x, w, rows = _prepare(params, X, sample_weight, block_size)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    checked = _checked(prior, params.family, params.means.shape, x)
    if prior is None and axis_name is None and (unit := units.units_of(x, w, params.family)) is not None:
        new, moments = _em_step(
            units.rescale(params, 1 / unit), units.divide(x, unit), w, units.ridge_in_units(reg, unit), None,
            block_size=rows, axis_name=None,
        )  # fmt: skip
        log_unit = jnp.asarray(np.log(unit).sum(), x.dtype)
        total = moments.log_likelihood - moments.total_weight * log_unit
        return units.rescale(new, unit), dataclasses.replace(moments, log_likelihood=total)
    return _em_step(params, x, w, reg, checked, block_size=rows, axis_name=axis_name)


_fit = jit(
    run,
    static_argnames=("block_size", "history_size", "unconverged", "kernel"),
)


def fit(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool | Array = True,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Fit a mixture by EM from starting parameters: one jitted `while_loop`, to its fixed point.

    Args:
      params: where to start; its family and number of components are kept.
      X: (N, D); float32 or, where JAX allows it, float64. Other types are promoted.
      sample_weight: (N,) or None for ones; a weight of 0 leaves the row out exactly.
      tol: stop when the estimated distance to the fixed point is below it. The distance is the Fisher length
        of `maximise`: about the mixture's own standard deviations, per sample; the log-likelihood is then
        short of its optimum by about tol²/2 per sample. In float32 a fit also stops when its steps are down
        to rounding. 0 takes max_iter steps.
      max_iter: limit on EM steps.
      reg_covar: as in `m_step`.
      prior: None, or a `Prior`: the fit then maximises the posterior, total log-likelihood + `log_prior`. A
        component that is on stays on without data, where the prior puts it; one that is off stays off.
      accelerate: SQUAREM extrapolation; False for plain EM. For a family without natural coordinates,
        always plain.
      options: `EMOptions`: the kernel, block size, history, and what becomes of untrusted derivatives.

    On a CPU whose cores JAX shows as devices (`use_cores`), a large fit is divided among them.

    Of these only the options are static: other values compile nothing anew.

    Derivatives of the result with respect to X, sample_weight, reg_covar and prior, forward and reverse, are
    those of the fixed point, by the implicit function theorem; params, the start, have none. At a sample
    weight of 0 they are one-sided. `fit_diagnostics` says how well conditioned they are.

    Returns:
      FitResult. Nothing raises when a fit goes wrong: `status` tells, and `params` are the last good ones.
      `check(result)` raises.

    Raises:
      ValueError, TypeError: for arguments that do not fit together, NaN data, negative tol.

    Example:
      >>> import jax, jaxgmm
      >>> truth = jaxgmm.make_params([0.3, 0.7], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> X, _ = jaxgmm.sample(jax.random.key(0), truth, 2000)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> result = jaxgmm.fit(start, X)
      >>> jaxgmm.Status(int(result.status)).name
      'CONVERGED'

    References:
      Dempster, Laird & Rubin (1977); Varadhan & Roland (2008) for the extrapolation.
    """
    block_size = check_options(options).block_size
    params, x, w, rows = _prepare(params, X, sample_weight, block_size)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype)
    checked = _checked(prior, params.family, params.means.shape, x)
    static: dict[str, Any] = {
        "block_size": rows,
        "history_size": options.history_size,
        "unconverged": options.unconverged_gradient,
        "kernel": quadratic.choose(options.kernel, params.family, x.shape[0], *params.means.shape),
    }
    if prior is None and (unit := units.units_of(x, w, params.family)) is not None:
        tol_, limit, reg, plain = numbers
        result = _fit(
            units.rescale(params, 1 / unit), units.divide(x, unit), w, tol_, limit,
            units.ridge_in_units(reg, unit), plain, None, **static
        )  # fmt: skip
        return units.multiply_back(result, unit)
    if (mesh := sharded.over_cores(params, x, w, numbers, checked)) is not None:
        result = sharded.fit_divided(params, x, w, numbers, checked, mesh=mesh, **static)
        return jax.device_put(result, x.sharding)
    return _fit(params, x, w, *numbers, checked, **static)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["iteration", "context"], meta_fields=["block_size"]
)
@dataclasses.dataclass(frozen=True)
class EMState:
    """The accelerated iteration between two calls of `step`; a pytree.

    Attributes:
      iteration: what the solver knows: the last good point, its image, the next point to evaluate.
      context: what is known of the data: the shift of the centring, the ridge and the prior.
      block_size: rows per block; static.
    """

    iteration: squarem.State
    context: Context
    block_size: int

    @property
    def params(self) -> GMMParams:
        """The mixture so far: the latest EM step, or the last good point once the iteration has ended."""
        s = self.iteration
        going_on = s.status == squarem.RUNNING  # with the leading axes of a batch, if there are any

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(going_on.reshape(going_on.shape + (1,) * (a.ndim - going_on.ndim)), a, b)

        latest = jax.tree.map(choose, s.image, s.base)
        return dataclasses.replace(latest, means=latest.means + self.context.shift[..., None, :])


class EMInfo(NamedTuple):
    """What one call of `step` found at the point that it evaluated; if it was rejected, at the last good one.

    Attributes:
      log_likelihood: () mean log-likelihood per unit of sample weight.
      step_length: () Fisher length of the EM step from there.
      n_iter: () int32, EM steps so far.
      accelerated: () bool, whether the next point is an extrapolation.
      status: () int32, a `Status`; MAX_ITER as long as the iteration goes on.
    """

    log_likelihood: Array  # ()
    step_length: Array  # ()
    n_iter: Array  # ()  int32
    accelerated: Array  # ()  bool
    status: Array  # ()  int32


@jit
def _init(params: GMMParams, x: Array, w: Array | None, reg_covar: Array, prior: Prior | None) -> Any:
    f = with_prior(summarise(x, w, reg_covar), prior, params.family, params.means.shape)
    begin = translate(admissible(params), -f.shift)
    return squarem.begin(begin, squarem.no_memory(x.dtype), 0), f


def init(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    block_size: int | None = None,
) -> EMState:
    """The state of `fit`'s accelerated iteration before its first step, for a loop of one's own.

    `fit` is `init`, then `step` until the status says that it has ended. In a loop of one's own there can be
    logging, a stopping rule, or a schedule between two steps.

    Args:
      params: where to start, as in `fit`.
      X: (N, D); each `step` must be given the same data.
      sample_weight: (N,) or None for ones.
      reg_covar: as in `m_step`.
      prior: as in `fit`.
      block_size: rows per block; None chooses from the shapes.

    Returns:
      EMState, a pytree that goes through `jit`, `lax.scan` and `vmap`; `state.params` is the mixture so far.

    Raises:
      ValueError, TypeError: as in `fit`.

    Example:
      >>> import jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = [[-2.0], [-1.0], [1.0], [2.0]]
      >>> state = jaxgmm.em.init(start, X)
      >>> for _ in range(100):
      ...     state, info = jaxgmm.em.step(state, X)
      ...     if info.status != jaxgmm.Status.MAX_ITER:
      ...         break
      >>> jaxgmm.Status(int(info.status)).name
      'CONVERGED'
    """
    params, x, w, rows = _prepare(params, X, sample_weight, block_size)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    checked = _checked(prior, params.family, params.means.shape, x)
    iteration, fixed = _init(params, x, w, reg, checked)
    return EMState(iteration, fixed, rows)


@jit
def _step(state: EMState, x: Array, w: Array | None, tol: Array, accelerate: Array) -> tuple[EMState, EMInfo]:
    before = state.iteration
    family = before.base.family
    evaluation = evaluate(state.block_size, before.point, (x, w, state.context))
    never = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
    after = squarem.turn(evaluation, before, chart(family), tol, never, accelerate)
    ended = before.status != squarem.RUNNING
    after = jax.tree.map(lambda a, b: jnp.where(ended, a, b), before, after)
    status = jnp.where(after.status == squarem.RUNNING, int(Status.MAX_ITER), after.status).astype(jnp.int32)
    info = EMInfo(after.report, after.step, after.n_iter, after.extrapolated, status)
    return dataclasses.replace(state, iteration=after), info


def step(
    state: EMState,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike = TOL,
    accelerate: bool | Array = True,
) -> tuple[EMState, EMInfo]:
    """One EM step of the accelerated iteration that `init` began, on the whitened kernel.

    Once the iteration has ended, converged or failed, further steps change nothing.

    Args:
      state: as `init` or the step before gave it.
      X: (N, D), the data that `init` was given.
      sample_weight: (N,), or None as it was there.
      tol: as in `fit`; 0 never converges.
      accelerate: as in `fit`; may change from step to step.

    Returns:
      The next state, and an `EMInfo`.

    Raises:
      ValueError, TypeError: for a state that is none, or data that do not fit it.

    Example:
      >>> import jax, jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = jax.random.normal(jax.random.key(0), (100, 1))
      >>> state, infos = jax.lax.scan(
      ...     lambda s, _: jaxgmm.em.step(s, X), jaxgmm.em.init(start, X), length=20
      ... )
      >>> infos.log_likelihood.shape
      (20,)

    References:
      Varadhan & Roland (2008), Simple and globally convergent methods for accelerating the convergence of any
      EM algorithm, Scandinavian Journal of Statistics 35.
    """
    if not isinstance(state, EMState):
        raise TypeError(f"state must be what jaxgmm.em.init gives; got {type(state).__name__}")
    point = state.iteration.base
    x = validate.data(X, n_features=point.n_features)
    if x.dtype != point.means.dtype:
        raise TypeError(f"X must have the dtype of the data of init, {point.means.dtype}; got {x.dtype}")
    w = validate.weight(sample_weight, x)
    tolerance = validate.not_negative(tol, "tol", x.dtype)
    return _step(state, x, w, tolerance, validate.flag(accelerate, "accelerate"))
