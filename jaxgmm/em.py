"""Expectation–maximisation: the E-step, the M-step, their composition, and `fit`, its fixed point.

From top to bottom: the E-step, the M-step, one iteration, the loop, the fit, and the same loop step by step.
The loop's accelerator and stopping rule are `solvers.squarem.update`; the E-step's normalisation is
`density.shares_of`; rows are summed by a `kernels.base.Kernel`, which `kernels.quadratic.choose` picks, in
blocks (`kernels.blocked_sum.sum_rows`); the density and the M-step of a component are a
`components.base.Component`.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _coordinates as coordinates
from jaxgmm import _rounding as rounding
from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm._defaults import MAX_ITER as MAX_ITER
from jaxgmm._defaults import REG_COVAR as REG_COVAR
from jaxgmm.components.gaussian import plain_target
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model, is_held
from jaxgmm.data import Context, Data, summarise
from jaxgmm.density import (
    check_accepts,
    check_ungrouped,
    data_of,
    get_data,
    joint,
    of_rows,
    padded_data,
    posterior_of,
)
from jaxgmm.kernels import exact, kept_share, observed, quadratic, trimmed
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.blocked_sum import AxisName, map_rows, rows_over, sum_rows
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import is_concrete, jit
from jaxgmm.mixture import GMMParams, has_component_axis, kept, scale_like, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import squarem
from jaxgmm.solvers.implicit import Derivative, Evaluation
from jaxgmm.solvers.squarem import RUNNING, Solution, State, Status

HISTORY_SIZE = 256


def e_step(params: GMMParams, X: ArrayLike | Data) -> tuple[Array, Array]:
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
    return of_rows(posterior_of, params, X)


def maximise(params: GMMParams, statistics: Statistics, context: Context) -> tuple[GMMParams, Array]:
    """The M-step: parameters from statistics about `params`; and the squared Fisher length of the step.

    The length is Δ² = Σ_k π_k ((Δ log π_k)² + ‖C_k⁻¹ Δμ_k‖² + ½ ‖C_k⁻¹ ΔΣ_k C_k⁻ᵀ‖²_F), the metric of a
    complete observation (x, k). A component without weight is switched off and keeps its place and shape.
    With a prior, one that is on may do without data: its place and shape are then the prior's.
    """
    counts, target = statistics.weight if statistics.share is None else statistics.share, None
    if context.prior is not None:
        if statistics.share is not None:
            raise ValueError("prior must be None for rows in groups: it counts rows")
        counts, target = priors.posterior(params, counts, statistics.first, statistics.second, context.prior)
    c, rule = params.component, params.weights_rule
    if rule.holds:
        target = plain_target(statistics.weight, statistics.sums) if target is None else target
        target = target.about_held(is_held(rule.means, params.n_components))
    means, scale, change = c.maximise(
        c, params.means, params.scale, statistics.weight, statistics.sums, target, context.ridge
    )
    if rule.covariances is not False and target is not None:
        still = is_held(rule.covariances, params.n_components)
        change = jnp.where(still, jnp.square(target.mean).sum(-1), change)
    log_weights = params.weights_rule.update(params.log_weights, counts)
    was_on = (counts > 0) & (params.log_weights > -jnp.inf)
    log_change = jnp.where(was_on, log_weights - jnp.where(was_on, params.log_weights, 0), 0)
    length = (jnp.where(was_on, jnp.exp(params.log_weights), 0) * (jnp.square(log_change) + change)).sum()
    return kept(params, GMMParams(log_weights, means, scale, *params.model)), length


def reference_params(model: Model, means: Array, variance: Array) -> GMMParams:
    """Equal weights at `means` (K, D), every component as wide as the features' `variance` (D,)."""
    log_weights = jnp.full(means.shape[0], -jnp.log(means.shape[0]), means.dtype)
    c = model.component
    return GMMParams(log_weights, means, c.start(c, jnp.broadcast_to(variance[None, :], means.shape)), *model)


def without_empty(params: GMMParams, statistics: Statistics) -> GMMParams:
    """The same mixture, with components that were given no sample switched off: no prior revives them."""
    log_weights = jnp.where(statistics.weight > 0, params.log_weights, -jnp.inf)
    return dataclasses.replace(params, log_weights=log_weights)


def with_prior(context: Context, prior: Prior | None, model: Model, shape: tuple[int, ...]) -> Context:
    """The context with a checked prior for K components in D dimensions, shape (K, D), in it."""
    if prior is None:
        return context
    return context._replace(prior=priors.pseudo(prior, model.covariance, shape, context.shift))


def weighted_m_step(r: Array, data: Data, context: Context, model: Model, block_size: int) -> GMMParams:
    """The M-step from given responsibilities (N, K), with means relative to the shift of the context."""
    means = jnp.broadcast_to((context.mean - context.shift)[None, :], (r.shape[1], data.n_features))
    params = reference_params(model, means, context.variance)

    def measured(params: GMMParams, _: None) -> tuple[GMMParams, None]:
        statistics = exact.sums(params, data, context.shift, block_size=block_size, resp=r)
        new = maximise(without_empty(params, statistics), statistics, context)[0]
        return varying_like(new, r, data, context), None

    # Twice: the second pass measures about the first one's result, where nothing cancels. Compiled once.
    return lax.scan(measured, varying_like(params, r, data, context), None, length=2)[0]


def _checked(prior: Prior | None, model: Model, shape: tuple[int, ...], x: Array) -> Prior | None:
    return None if prior is None else priors.check(prior, model, shape, x.dtype)


@functools.partial(jit, static_argnames=("model", "block_size"))
def _m_step(
    r: Array, data: Data, reg_covar: Array, prior: Prior | None, *, model: Model, block_size: int
) -> GMMParams:
    context = summarise(data, reg_covar)
    context = with_prior(context, prior, model, (r.shape[1], data.x.shape[1]))
    return translate(weighted_m_step(r, data, context, model, block_size), context.shift)


def m_step(
    resp: ArrayLike,
    X: ArrayLike,
    *,
    covariance_type: ModelLike = "full",
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
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
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
    if isinstance(X, Data):
        raise TypeError(
            "m_step needs complete rows, as an array: with gaps or noise its maximum depends on params"
        )
    x = validate.data(X)
    w = validate.weight(sample_weight, x)
    r = validate.responsibilities(resp, x, w)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    model = get_model(covariance_type)
    scale_like(model.component, r.shape[1], x.shape[1])
    checked = _checked(prior, model, (r.shape[1], x.shape[1]), x)
    rows = exact.rows_for(model.component, x.shape[0], r.shape[1], x.shape[1])
    if prior is None and (unit := units.units_of(x, w, model)) is not None:
        data = Data(units.divide(x, unit), w)
        new = _m_step(r, data, units.ridge_in_units(reg, unit), None, model=model, block_size=rows)
        return units.rescale(new, unit)
    return _m_step(r, Data(x, w), reg, checked, model=model, block_size=rows)


@jit
def _elbo(params: GMMParams, r: Array, data: Data, w: Array) -> Array:
    rows = exact.rows_of(data, params.component, params.n_components)

    def block(rb: Array, xb: Data) -> Array:
        relative, offset = joint(params, xb)
        both = (relative + offset[None, :]).T
        some = rb > 0
        terms = rb * (jnp.where(some, both, 0) - jnp.log(jnp.where(some, rb, 1)))
        return jnp.where(some, terms, 0).sum(1)

    return (w * map_rows(block, r, data, block_size=rows)).sum()


def elbo(
    params: GMMParams, resp: ArrayLike, X: ArrayLike | Data, sample_weight: ArrayLike | None = None
) -> Array:
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
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "elbo")
    x, w = data.x, data.weight
    r = validate.responsibilities(resp, x, w)
    if r.shape[1] != params.n_components:
        raise ValueError(
            f"resp must have shape {(x.shape[0], params.n_components)}, one column for each component of "
            f"params; got shape {r.shape}"
        )
    data = dataclasses.replace(data, weight=None, pattern=None, patterns=None)
    return _elbo(params, r, data, jnp.ones(x.shape[0], x.dtype) if w is None else w)


@functools.partial(jit, static_argnames=("block_size", "axis_name"))
def _em_step(
    params: GMMParams,
    data: Data,
    reg_covar: Array,
    prior: Prior | None,
    trim: Array | None,
    *,
    block_size: int,
    axis_name: AxisName,
) -> tuple[GMMParams, Statistics]:
    with rows_over(axis_name):
        context = summarise(data, reg_covar)
        context = with_prior(context, prior, params.model, params.means.shape)
        relative = translate(params, -context.shift)
        data = trimmed.kept(relative, data, context.shift, trim, block_size)
        statistics = exact.sums(relative, data, context.shift, block_size=block_size)
    new, _ = maximise(relative, statistics, context)
    return translate(new, context.shift), statistics


def _prepare(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None,
    block_size: int | None,
    trim: ArrayLike | None,
) -> tuple[GMMParams, Data, int, Array | None]:
    """Checked arguments; the rows as sums over them are fastest, in another order, and filled up."""
    params, data = data_of(params, X, sample_weight)
    amount = kept_share.amount(trim, data)
    if is_concrete(params):
        data = observed.in_tiles(padded_data(data), params.covariance)
    if block_size is None:
        rows = exact.rows_of(data, params.component, params.n_components)
    else:
        rows = min(validate.count(block_size, "block_size", 1), data.x.shape[0])
        rows = max(rows - rows % max(data.tile, 1), data.tile)
    return params, data, rows, amount


def em_step(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    trim: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: AxisName = None,
) -> tuple[GMMParams, Statistics]:
    """One EM iteration, m_step ∘ e_step, by row blocks: nothing of size (N, K) is ever stored.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) or None for ones.
      reg_covar: as in `m_step`.
      prior: as in `m_step`.
      trim: as in `fit`; the statistics are then those of the kept rows. Not with axis_name, where N is that
        of a part.
      block_size: rows per block; None chooses from the shapes.
      axis_name: inside `shard_map`, `pmap` or `vmap`, the name of a mapped axis of which X holds one part of
        the rows: the step is then that of all of them, and the same in every part. Static.

    Returns:
      The next params, and the `Statistics` about `params`; statistics.log_likelihood is the total at
      `params`.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN or negative weights.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> params, statistics = jaxgmm.em_step(params, [[-2.0], [-1.0], [1.0], [2.0]])
      >>> params.weights.tolist()
      [0.5, 0.5]
    """
    params, data, rows, amount = _prepare(params, X, sample_weight, block_size, trim)
    if axis_name is not None:
        check_ungrouped(data, "em_step with axis_name")
        if trim is not None:
            raise ValueError("trim must be None with axis_name: it is a share of all rows; use fit_sharded")
    x, w = data.x, data.weight
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    checked = _checked(prior, params.model, params.means.shape, x)
    unit = units.of_data(data, params.model) if prior is None and axis_name is None else None
    if unit is not None:
        new, statistics = _em_step(
            units.rescale(params, 1 / unit), Data(units.divide(x, unit), w), units.ridge_in_units(reg, unit),
            None, amount, block_size=rows, axis_name=None,
        )  # fmt: skip
        log_unit = jnp.asarray(np.log(unit).sum(), x.dtype)
        total = statistics.log_likelihood - statistics.total_weight * log_unit
        return units.rescale(new, unit), dataclasses.replace(statistics, log_likelihood=total)
    return _em_step(params, data, reg, checked, amount, block_size=rows, axis_name=axis_name)


@dataclasses.dataclass(frozen=True)
class EMOptions:
    """Options of a fit that rarely need changing; static under `jit`.

    Attributes:
      block_size: rows per block; None chooses from the shapes.
      history_size: how many entries `FitResult.history` has.
      unconverged_gradient: what becomes of a derivative that cannot be trusted, because the fit has not
        converged or its linear solve left a residual. "nan" makes it NaN, and outside `jit` the fit that has
        not converged issues a RuntimeWarning. "warn" leaves it as it is and issues a RuntimeWarning when it
        is computed, also inside `jit`; JAX does not keep such a program on disk, nor export it. "ignore"
        leaves it. A fit that does not enter what is differentiated has no effect on the rest.
      kernel: how the sums over samples are computed. "whitened": about each component, right to rounding.
        "quadratic": by one matrix product about the data's mean, several times faster; its rounding grows
        with the squared distance of the components in units of their widths, and ends a fit early there.
        "auto": for large problems the quadratic one as far as its rounding allows, and from there, for the
        steps that decide convergence and the result, the whitened one.

    Raises:
      ValueError, TypeError: when it is built, for values that are none of these.

    Example:
      >>> import jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = [[-2.0], [-1.0], [1.0], [2.0]]
      >>> jaxgmm.fit(start, X, options=jaxgmm.EMOptions(kernel="whitened", history_size=5)).history.shape
      (5,)
    """

    block_size: int | None = None
    history_size: int = HISTORY_SIZE
    unconverged_gradient: str = "nan"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what no fit understands."""
        if self.block_size is not None:
            validate.count(self.block_size, "block_size", 1)
        validate.count(self.history_size, "history_size", 0)
        validate.choice(self.unconverged_gradient, "unconverged_gradient", ("nan", "warn", "ignore"))
        validate.choice(self.kernel, "kernel", ("auto", "whitened", "quadratic"))

    def only(self, caller: str, *fields: str) -> None:
        """Raise where an option is set that `caller` has no use for; `fields` are those it uses."""
        for field in dataclasses.fields(self):
            if field.name not in fields and getattr(self, field.name) != field.default:
                raise ValueError(f"{caller} does not use options.{field.name}; leave it as it is")


def check_options(options: Any) -> EMOptions:
    """The options, or an error that says what to write."""
    if not isinstance(options, EMOptions):
        raise TypeError(
            f"options must be an EMOptions, such as EMOptions(kernel='whitened'); got {options!r}"
        )
    return options


DEFAULT_OPTIONS = EMOptions()


class Problem(NamedTuple):
    """What does not change while EM runs: a pytree, with respect to which a fit is differentiated."""

    data: Data
    context: Context
    prepared: Any = None  # what the kernel knows of the data


class Settings(NamedTuple):
    """How a fit runs; the first two are traced."""

    tol: Array
    accelerate: Array
    kernels: tuple[Kernel, ...] = (WHITENED,)
    block_size: int = 2048  # of the whitened kernel
    history_size: int = HISTORY_SIZE
    unconverged_gradient: str = "nan"
    axis_name: AxisName = None  # of `shard_map`, where the rows are one part of all

    def block_of(self, kernel: Kernel, params: GMMParams, data: Data, n_fits: int = 1) -> int:
        """Rows per block of a kernel, for a batch of n_fits fits."""
        if kernel is WHITENED:
            return self.block_size
        k, d = params.means.shape[-2:]
        return kernel.rows(params.component, data.x.shape[0], k, d, n_fits)

    def derivative(self, model: Model, n_samples: int, shape: tuple[int, ...]) -> Derivative:
        """How the fixed point of a fit of N rows is differentiated; shape (K, D)."""
        symmetric = model.covariance.to_natural is not None and model.component.is_gaussian
        # Two linear solves are twice the program: not for products that take less than a millisecond.
        twice = symmetric and n_samples * shape[0] * shape[1] ** 2 > 1e6
        return Derivative(coordinates.isometric(model), self.unconverged_gradient, symmetric=twice)


def evaluate(
    kernel: Kernel,
    block_size: int,
    axis_name: AxisName,
    params: GMMParams,
    problem: Problem,
    *,
    hold: bool = True,
) -> Evaluation:
    """One EM iteration from `params`, as the solver wants it: the next parameters, and what is known here."""
    shift, trim = problem.context.shift, problem.context.trim
    with rows_over(axis_name):
        data = trimmed.kept(params, problem.data, shift, trim, block_size)
        statistics = kernel.sums(params, data, shift, problem.prepared, block_size)
    rounded = kernel.rounding(params, problem.prepared)
    return assessed(params, statistics, problem.context, rounded, hold=hold)


def assessed(
    params: GMMParams, statistics: Statistics, context: Context, rounded: Array, *, hold: bool = True
) -> Evaluation:
    """The M-step as the solver wants it, from statistics about `params` with the kernel's rounding.

    Without `hold` the place of a switched-off component has derivatives.
    """
    image, length = maximise(params, statistics, context)
    return rounding.assess(params, _hold(image) if hold else image, length, statistics, context, rounded)


def _hold(image: GMMParams) -> GMMParams:
    """The same, where a switched-off component has no derivative: it stays where the start put it."""
    off = image.log_weights == -jnp.inf
    own = has_component_axis(image.component, image.n_components, image.n_features)

    def held(a: Array) -> Array:
        return jnp.where(off.reshape(-1, *(1,) * (a.ndim - 1)), jax.lax.stop_gradient(a), a)

    scale = jax.tree.map(lambda a, rows: held(a) if rows else a, image.scale, own)
    return GMMParams(image.log_weights, held(image.means), scale, *image.model)


def admissible(params: GMMParams) -> GMMParams:
    """Where a fit may begin: with equal weights, if the model has them so."""
    return dataclasses.replace(params, log_weights=params.weights_rule.start(params.log_weights))


def result_of(solution: Solution, data: Data, context: Context, s: Settings) -> FitResult:
    """A fit's result, with means in the coordinates of the data."""
    objective = solution.report
    if context.prior is not None:
        with rows_over(s.axis_name):
            total = sum_rows(lambda w, _: w.sum(), data.weight, data.x, block_size=s.block_size)
        total = total if context.trim is None else total - context.trim
        objective = solution.report + priors.log_density(solution.point, context.prior)[0] / total
    fitted = translate(solution.point, context.shift)
    return FitResult(fitted, solution.report, objective, solution.n_iter, solution.status, solution.history)


def run(
    params: GMMParams,
    data: Data,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior: Prior | None = None,
    trim: Array | None = None,
    *,
    context: Context | None = None,
    **static: Any,
) -> FitResult:
    """`fit` without its checks: EM on one kernel after another, in one `while_loop` that is compiled once.

    Around the loop is one over stages: EM on each kernel, from where the one before ended or, if that failed,
    from the start; and one evaluation of what will be returned, where the shift rounds it, for the likelihood
    that is reported.

    Args:
      params: as in `fit`, as is the rest.
      data: the rows. With the name of an axis of `shard_map` they are one part of all.
      tol: () float.
      max_iter: () int32.
      reg_covar: () or (D,).
      accelerate: () bool.
      prior: a checked one, or None.
      trim: () the weight that is trimmed, on the whitened kernel; or None.
      context: the data summary, where the caller already has it, with what is trimmed.
      **static: fields of `Settings`.
    """
    s = Settings(tol, accelerate, **static)
    first, last, n_kernels = s.kernels[0], s.kernels[-1], len(s.kernels)
    with rows_over(s.axis_name):
        context = summarise(data, reg_covar)._replace(trim=trim) if context is None else context
        context = with_prior(context, prior, params.model, params.means.shape)
        problem = Problem(data, context, first.prepare(params.component, data, context))
    start = translate(admissible(params), -context.shift)
    fixed, begun = lax.stop_gradient((problem, start))
    fresh = squarem.begin(begun, squarem.no_memory(tol.dtype), s.history_size)
    chart = coordinates.extrapolation(params.model)
    blocks = [s.block_of(kernel, start, data) for kernel in (first, WHITENED)]
    outside = fixed, tol, accelerate, max_iter

    def stage(i: Array, carried: tuple[State, Array]) -> tuple[State, Array]:
        ended, report = carried
        closing = i == n_kernels
        begin = squarem.select(closing, squarem.onward(ended), squarem.hand_over(ended, fresh))
        # At a large offset the last digits of the means are lost when the shift is added back.
        back = jnp.where(closing, fixed.context.shift, 0)
        needed = ~closing | ((back != 0).any() & jnp.isfinite(ended.report))
        begin = begin._replace(
            point=translate(begin.point, back), status=jnp.where(needed, begin.status, ended.status)
        )
        # In the end only the likelihood is asked for: a prior stands about the shift as it was.
        here = fixed.context._replace(shift=fixed.context.shift - back)
        limit = jnp.where(closing, 0, max_iter)

        def by(kernel: Kernel, block_size: int, point: GMMParams) -> Statistics:
            statistics = kernel.sums(point, fixed.data, here.shift, fixed.prepared, block_size)
            return varying_like(statistics, outside)

        def iterate(state: State) -> State:
            with rows_over(s.axis_name):
                if first is WHITENED:
                    rows = trimmed.kept(state.point, fixed.data, here.shift, here.trim, blocks[1])
                    statistics = exact.sums(state.point, rows, here.shift, block_size=blocks[1])
                    rounded = jnp.zeros((), tol.dtype)
                else:
                    rounded = jnp.where(i == 0, first.rounding(state.point, fixed.prepared), 0)
                    statistics = lax.cond(
                        i == 0,
                        functools.partial(by, first, blocks[0]),
                        functools.partial(by, WHITENED, blocks[1]),
                        state.point,
                    )
            evaluation = assessed(state.point, statistics, here, rounded)
            return varying_like(squarem.update(evaluation, state, chart, tol, limit, accelerate), outside)

        end = lax.while_loop(lambda state: state.status == RUNNING, iterate, varying_like(begin, outside))
        report = jnp.where(closing & ~needed, ended.report, end.report)
        return varying_like((squarem.select(closing, ended, end), report), outside)

    # The number of stages is no constant: XLA would write each of them out.
    n_stages = jnp.asarray(n_kernels + 1, jnp.int32)
    end, report = lax.fori_loop(
        jnp.zeros_like(n_stages), n_stages, stage, varying_like((fresh, fresh.report), outside)
    )
    step = functools.partial(evaluate, last, blocks[0] if last is first else blocks[1], s.axis_name)
    if last is WHITENED:
        problem = problem._replace(prepared=None)
    derivative = s.derivative(params.model, data.x.shape[0], params.means.shape)
    solution = squarem.solution(step, derivative, end._replace(report=report), problem)
    return holding(params, result_of(solution, data, context, s))


def holding(params: GMMParams, result: FitResult) -> FitResult:
    """A fit's result with what it holds just as it was, and not rounded by the shift."""
    if not params.weights_rule.holds:
        return result
    return dataclasses.replace(result, params=kept(lax.stop_gradient(params), result.params))


_STATIC = ("kernels", "block_size", "history_size", "unconverged_gradient", "axis_name")


def _work(
    params: GMMParams, data: Data, *_: Any, kernels: tuple[Kernel, ...] = (WHITENED,), **__: Any
) -> float:
    return quadratic.work(kernels, len(data.x), *params.means.shape)


_fit = jit(run, static_argnames=_STATIC, work=_work)

# Set by `jaxgmm.parallel.use_cores`: fits that are large are divided among the cores of a CPU.
divided: Callable[..., FitResult | None] | None = None


def fit(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool | Array = True,
    trim: ArrayLike | None = None,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Fit a mixture by EM from starting parameters: one jitted `while_loop`, to its fixed point.

    Args:
      params: where to start; its model and number of components are kept.
      X: (N, D); float32 or, where JAX allows it, float64. Other types are promoted.
      sample_weight: (N,) or None for ones; a weight of 0 leaves the row out exactly.
      tol: stop when the estimated distance to the fixed point is below it. The distance is the Fisher length
        of a complete observation: about the mixture's own standard deviations, per sample; the log-likelihood
        is then short of its optimum by about tol²/2 per sample. None for 0.01/√N, a hundredth of a standard
        error: the total log-likelihood is short by 5e-5. Derivatives of a fit are in error by about tol, too:
        take 1e-6 for them. A fit also stops when its steps are down to rounding, which in float32 can come
        first. 0 takes max_iter steps, unless the fit fails.
      max_iter: limit on EM steps.
      reg_covar: as in `m_step`.
      prior: None, or a `Prior`: the fit then maximises the posterior, total log-likelihood + `log_prior`. A
        component that is on stays on without data, where the prior puts it; one that is off stays off.
      accelerate: SQUAREM extrapolation; False for plain EM. For a structure without natural coordinates,
        always plain.
      trim: None, or α from 0 to below 1: in every step the ⌈αN⌉ rows of lowest density count for nothing
        (García-Escudero et al. 2008, with the weights of a mixture). With sample weights it is the rows of
        lowest density until α Σ w is reached, the last one in part; rows of equal density there share what is
        left equally. The fit climbs the log-likelihood of the kept rows, which `log_likelihood` is per unit
        of kept weight. Bound the components, by a covariance such as "full-ratio(50)": without outliers
        they can shrink all the more. `outliers(params, X, trim=α)` says which rows are trimmed. Rows with
        gaps are compared by the densities of their observed entries, which depend on the units of X.
        Derivatives are those of the fit to the kept rows: the trimmed set stays as it is.
      options: `EMOptions`: the kernel, block size, history, and what becomes of untrusted derivatives.

    After `jaxgmm.parallel.use_cores()`, a large fit is divided among the cores of a CPU.

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
      >>> X, _ = jaxgmm.sample(jax.random.key(0), truth, 200)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> result = jaxgmm.fit(start, X)
      >>> jaxgmm.Status(int(result.status)).name
      'CONVERGED'

    References:
      Dempster, Laird & Rubin (1977); Varadhan & Roland (2008) for the extrapolation; García-Escudero,
      Gordaliza, Matrán & Mayo-Iscar (2008), A general trimming approach to robust cluster analysis, Annals of
      Statistics 36.
    """
    block_size = check_options(options).block_size
    params, data, rows, amount = _prepare(params, X, sample_weight, block_size, trim)
    x, w = data.x, data.weight
    n_samples = np.shape(X.x if isinstance(X, Data) else X)[0]
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype, n_samples)
    checked = _checked(prior, params.model, params.means.shape, x)
    static: dict[str, Any] = {
        "block_size": rows,
        "history_size": options.history_size,
        "unconverged_gradient": options.unconverged_gradient,
        "kernels": quadratic.choose_for(
            data, options.kernel, params.component, params.n_components, trimmed=trim is not None
        ),
    }
    unit = units.of_data(data, params.model) if prior is None else None
    if unit is not None:
        tol_, limit, reg, plain = numbers
        result = _fit(
            units.rescale(params, 1 / unit), Data(units.divide(x, unit), w), tol_, limit,
            units.ridge_in_units(reg, unit), plain, None, amount, **static
        )  # fmt: skip
        return warn_of_nan(units.multiply_back(result, unit), options)
    whole = divided is None or not is_concrete(params, data, numbers, checked, amount)
    found = None if whole or divided is None else divided(params, data, numbers, checked, amount, **static)
    if found is not None:
        return found
    return warn_of_nan(_fit(params, data, *numbers, checked, amount, **static), options)


def warn_of_nan(result: FitResult, options: EMOptions) -> FitResult:
    """The result, with a warning if its derivatives will be NaN.

    Derivatives are under way where the parameters are traced and the status is not. Under `jit` both are. A
    callback would see them there, but JAX neither keeps nor exports a program that has one.
    """
    if options.unconverged_gradient != "nan" or isinstance(result.status, jax.core.Tracer):
        return result
    if not isinstance(result.params.means, jax.core.Tracer):
        return result
    failed = [Status(code).name for code in np.unique(result.status) if code != Status.CONVERGED]
    if failed:
        warnings.warn(
            f"the fit ended with status {', '.join(failed)}, so that its derivatives are NaN: they hold only "
            "at a fixed point. Raise max_iter, or see EMOptions.unconverged_gradient and fit_unrolled.",
            RuntimeWarning,
            stacklevel=3,
        )
    return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EMState:
    """The accelerated iteration between two calls of `step`; a pytree.

    Attributes:
      iteration: what the solver knows: the last good point, its image, the next point to evaluate.
      context: what is known of the data: the shift of the centring, the ridge, the prior, what is trimmed.
      block_size: rows per block; static.
    """

    iteration: State
    context: Context
    block_size: int = dataclasses.field(metadata={"static": True})

    @property
    def params(self) -> GMMParams:
        """The mixture so far: the latest EM step, or the last good point once the iteration has ended."""
        s = self.iteration
        going_on = s.status == RUNNING  # with the leading axes of a batch, if there are any

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
      status: () int32, a `Status`; MAX_ITER here means that the iteration is still running.
    """

    log_likelihood: Array  # ()
    step_length: Array  # ()
    n_iter: Array  # ()  int32
    accelerated: Array  # ()  bool
    status: Array  # ()  int32


@jit
def _init(
    params: GMMParams, data: Data, reg_covar: Array, prior: Prior | None, trim: Array | None
) -> tuple[State, Context]:
    context = summarise(data, reg_covar)._replace(trim=trim)
    context = with_prior(context, prior, params.model, params.means.shape)
    start = translate(admissible(params), -context.shift)
    return squarem.begin(start, squarem.no_memory(data.x.dtype), 0), context


def init(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    trim: ArrayLike | None = None,
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
      trim: as in `fit`.
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
    params, data, rows, amount = _prepare(params, X, sample_weight, block_size, trim)
    reg = validate.not_negative(reg_covar, "reg_covar", data.x.dtype)
    checked = _checked(prior, params.model, params.means.shape, data.x)
    return EMState(*_init(params, data, reg, checked, amount), rows)


@functools.partial(jit, static_argnames="block_size")
def _step(
    state: EMState, data: Data, tol: Array, accelerate: Array, *, block_size: int
) -> tuple[EMState, EMInfo]:
    before = state.iteration
    evaluation = evaluate(WHITENED, block_size, None, before.point, Problem(data, state.context))
    never = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
    chart = coordinates.extrapolation(before.base.model)
    after = squarem.update(evaluation, before, chart, tol, never, accelerate)
    after = squarem.select(before.status != RUNNING, before, after)
    status = jnp.where(after.status == RUNNING, int(Status.MAX_ITER), after.status).astype(jnp.int32)
    info = EMInfo(after.report, after.step, after.n_iter, after.extrapolated, status)
    return dataclasses.replace(state, iteration=after), info


def step(
    state: EMState,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike | None = None,
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
      >>> import jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = [[-2.0], [-1.0], [1.0], [2.0]]
      >>> state, info = jaxgmm.em.step(jaxgmm.em.init(start, X), X)
      >>> info.log_likelihood.shape
      ()

    References:
      Varadhan & Roland (2008), Simple and globally convergent methods for accelerating the convergence of any
      EM algorithm, Scandinavian Journal of Statistics 35.
    """
    if not isinstance(state, EMState):
        raise TypeError(f"state must be what jaxgmm.em.init gives; got {type(state).__name__}")
    point = state.iteration.base
    data = get_data(X, sample_weight, n_features=point.n_features)
    check_accepts(data, point.component, point.n_components)
    dtype, n_samples = data.x.dtype, data.x.shape[0]
    if dtype != point.means.dtype:
        raise TypeError(f"X must have the dtype of the data of init, {point.means.dtype}; got {dtype}")
    rows = state.block_size
    if not data.is_complete:
        data = observed.in_tiles(data, point.covariance) if is_concrete(state) else data
        rows = exact.rows_of(data, point.component, point.n_components)
    tolerance, fast = validate.tolerance(tol, n_samples, dtype), validate.flag(accelerate, "accelerate")
    return _step(state, data, tolerance, fast, block_size=rows)
