"""Program of a fit over a mesh: the loop inside `shard_map`, its derivative outside.

A derivative in reverse mode gives every device a part of a cotangent. A linear solve inside `shard_map` would
see that part, and take as many iterations as suit it; outside there is one solve, of the products of all
rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from jaxgmm import priors
from jaxgmm._batch import run_many
from jaxgmm.data import Context, Data, summarise, total_weight
from jaxgmm.em import Problem, Settings, evaluate, run, with_prior
from jaxgmm.kernels.base import Kernel
from jaxgmm.kernels.blocked_sum import rows_over
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.implicit import Evaluation, with_derivative
from jaxgmm.solvers.squarem import Status

shard_map: Any
try:
    shard_map = functools.partial(jax.shard_map, check_vma=False)
except AttributeError:  # before JAX 0.6
    from jax.experimental.shard_map import shard_map as _older

    shard_map = functools.partial(_older, check_rep=False)

Numbers = tuple[Array, Array, Array, Array]  # tol, max_iter, reg_covar, accelerate


class How(NamedTuple):
    """What is static about a fit over a mesh."""

    mesh: Mesh
    axis_name: str
    restarts_axis: str | None
    block_size: int
    history_size: int
    unconverged_gradient: str
    kernels: tuple[Kernel, ...]


def starts_over(axis: str | None) -> PartitionSpec:
    """How several starts are divided: over an axis, or not at all."""
    return PartitionSpec() if axis is None else PartitionSpec(axis)


Ends = tuple[GMMParams, Array, Array]  # a fit's params, log_likelihood and objective


def _found(
    how: How, params: GMMParams, data: Data, numbers: Numbers, prior: Prior | None, trim: Array | None
) -> FitResult:
    many = params.means.ndim == 3

    def part(
        params: GMMParams, data: Data, numbers: Numbers, prior: Prior | None, trim: Array | None
    ) -> FitResult:
        fixed = ("block_size", "history_size", "kernels", "axis_name")
        options: dict[str, Any] = {name: getattr(how, name) for name in fixed}
        if many:
            # Devices that have other fits may take more iterations: they share no sum with these.
            return run_many(params, data, *numbers, lambda index: prior, trim, **options)
        return run(params, data, *numbers, prior, trim, **options)

    rows, everywhere, starts = PartitionSpec(how.axis_name), PartitionSpec(), starts_over(how.restarts_axis)
    places = (starts, rows, everywhere, everywhere, everywhere)
    mapped = shard_map(part, mesh=how.mesh, in_specs=places, out_specs=starts)
    result: FitResult = mapped(params, data, numbers, prior, trim)
    return result


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(
    how: How, ends: Ends, status: Array, data: Data, numbers: Numbers, prior: Prior | None,
    trim: Array | None,
) -> Ends:  # fmt: skip
    """What a fit found as it is, with the derivative that the implicit function theorem gives."""
    return ends


@_with_derivative.defjvp
def _tangents(how: How, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Ends, Ends]:
    # Through itself, so that a second derivative sees that the ends depend on the data.
    ends = _with_derivative(how, *primals)
    _, status, data, numbers, prior, trim = primals
    params, many = ends[0], ends[0].means.ndim == 3
    rows, everywhere = PartitionSpec(how.axis_name), PartitionSpec()
    model, shape = params.model, params.means.shape[-2:]

    def over_all(function: Any, *specs: PartitionSpec) -> Any:
        return shard_map(function, mesh=how.mesh, in_specs=specs, out_specs=everywhere)

    def summarised(data: Data, reg_covar: Array) -> Context:
        with rows_over(how.axis_name):
            return summarise(data, reg_covar)

    def step(point: GMMParams, problem: Problem) -> Evaluation:
        def own(point: GMMParams, data: Data, f: Context) -> Evaluation:
            return evaluate(WHITENED, how.block_size, how.axis_name, point, Problem(data, f))

        inside = over_all(own, everywhere, rows, everywhere)
        found: Evaluation = inside(point, problem.data, problem.context)
        return found

    settings = Settings(numbers[0], numbers[3], unconverged_gradient=how.unconverged_gradient)
    derivative = settings.derivative(model, how.block_size, shape)

    def of(data: Data, reg_covar: Array, prior: Prior | None, trim: Array | None) -> Ends:
        f = over_all(summarised, rows, everywhere)(data, reg_covar)
        f = with_prior(f._replace(trim=trim), prior, model, shape)

        def one(params: GMMParams, report: Array, status: Array) -> Ends:
            point = lax.stop_gradient(translate(params, -f.shift))
            converged = status == Status.CONVERGED
            point, report = with_derivative(step, derivative, point, report, converged, Problem(data, f))
            objective = report
            if f.prior is not None:
                total = total_weight(data) if trim is None else total_weight(data) - trim
                objective = report + priors.log_density(point, f.prior)[0] / total
            return translate(point, f.shift), report, objective

        ended = (*lax.stop_gradient((params, ends[1])), status)
        return jax.vmap(one)(*ended) if many else one(*ended)

    given = data, numbers[2], prior, trim
    _, dots = jax.jvp(of, given, (tangents[2], tangents[3][2], tangents[4], tangents[5]))
    return ends, dots


@functools.partial(jit, static_argnames="how")
def fit_parts(
    params: GMMParams, data: Data, numbers: Numbers, prior: Prior | None, trim: Array | None, *, how: How
) -> FitResult:
    """A fit, or several, of rows divided over an axis of a mesh; weights are 0 where a row does not count."""
    found = _found(how, *lax.stop_gradient((params, data, numbers, prior, trim)))
    ends = found.params, found.log_likelihood, found.objective
    fitted, log_likelihood, objective = _with_derivative(how, ends, found.status, data, numbers, prior, trim)
    return FitResult(fitted, log_likelihood, objective, found.n_iter, found.status, found.history)
