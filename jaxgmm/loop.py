"""The loop of a fit, from one start or from many: its kernels in turn, and what it reports in the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm import fixed_point, priors, quadratic, slots
from jaxgmm.em_map import Frame, admissible, chart, coordinates, evaluate, frame, with_prior
from jaxgmm.families.family import Family
from jaxgmm.fixed_point import Memory, Solution, Status, no_memory
from jaxgmm.implicit import Derivative, Evaluation
from jaxgmm.linalg import AxisName, block_rows, rows_over, sum_rows
from jaxgmm.moments import accumulate
from jaxgmm.params import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult

TOL = 1e-5
MAX_ITER = 1000
REG_COVAR = 1e-6
HISTORY_SIZE = 256
_TOGETHER = 1 << 18  # numbers that the lanes of one turn may work on for each block of rows: a CPU's cache

# (the map, starts, what is known of the data, limits on the steps, memory, lanes at once) -> where they end
Solve = Callable[[Callable[..., Evaluation], GMMParams, Frame, Array, Memory | None, int], Solution]


def concurrency(n_lanes: int, n_samples: int, numbers: int) -> int:
    """How many lanes to have under way at once, for so many numbers to work on in each for every sample.

    A CPU gains by several only as long as they fit its cache; an accelerator takes as many as there are.
    """
    if jax.default_backend() != "cpu":
        return n_lanes
    return max(1, min(n_lanes, _TOGETHER // (numbers * min(n_samples, 2048))))


class Settings(NamedTuple):
    """What the fits have in common."""

    x: Array
    w: Array | None
    tol: Array
    accelerate: Array
    block_size: int
    history_size: int
    unconverged: str
    kernel: str
    axis_name: AxisName = None


def _continued(
    first: Solution, begin: GMMParams, again: Callable[[GMMParams, Array, Memory], Solution], max_iter: Array
) -> Solution:
    """A fit that begins where another one ended, as one fit; from `begin`, if that one came to harm.

    Of one fit, or of fits with a leading axis.
    """
    sound = (first.status == Status.CONVERGED) | (first.status == Status.MAX_ITER)

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(sound.reshape(sound.shape + (1,) * (a.ndim - sound.ndim)), a, b)

    taken = jnp.where(sound, first.n_iter, 0)
    fresh = no_memory(first.report.dtype)
    memory = jax.tree.map(lambda a, b: jnp.where(sound, a, b), first.memory, fresh)
    rest = again(jax.tree.map(choose, first.point, begin), max_iter - taken, memory)
    history = rest.history
    size = history.shape[-1]
    if size:
        at = jnp.arange(size, dtype=jnp.int32).reshape((1,) * taken.ndim + (-1,))
        later = jnp.take_along_axis(history, jnp.clip(at - taken[..., None], 0, size - 1), axis=-1)
        history = jnp.where(at < taken[..., None], first.history, later)
    return rest._replace(n_iter=taken + rest.n_iter, history=history)


def _solve(begin: GMMParams, f: Frame, s: Settings, solve: Solve, limit: Array, n_lanes: int = 1) -> Solution:
    """Where the iterations from `begin` end, on the kernels that are asked for."""
    family, n_samples, (k, d) = begin.family, s.x.shape[0], begin.means.shape[-2:]
    kind = family.quadratic

    def exact(point: GMMParams, limit: Array, memory: Memory | None = None) -> Solution:
        width = concurrency(n_lanes, n_samples, k * d)
        step = functools.partial(evaluate, s.block_size, axis_name=s.axis_name)
        return solve(step, point, f, limit, memory, width)

    if s.kernel == "whitened" or kind is None:
        return exact(begin, limit)
    width = concurrency(n_lanes, n_samples, k)
    # Features and responsibilities of a block, twice over: as they are and as they are multiplied.
    rows = block_rows(n_samples, quadratic.n_features_of(kind, d) + width * k, 2)
    step = functools.partial(evaluate, rows, axis_name=s.axis_name)
    with rows_over(s.axis_name):
        raw = f._replace(quadratic=quadratic.coordinates(kind, s.x, s.w, f.shift))
    first = solve(step, begin, raw, limit, None, width)
    if s.kernel == "quadratic":
        return first
    return _continued(lax.stop_gradient(first), begin, exact, limit)


def _options(family: Family, s: Settings) -> dict[str, Any]:
    derivative = Derivative(coordinates(family), s.unconverged, symmetric=family.to_natural is not None)
    return {
        "chart": chart(family),
        "tol": s.tol,
        "accelerate": s.accelerate,
        "history_size": s.history_size,
        "derivative": derivative,
    }


def _report(solution: Solution, f: Frame, s: Settings) -> FitResult:
    """A fit's result, in the data's own place."""
    fitted = translate(solution.point, f.shift)

    def as_rounded(p: GMMParams) -> Array:
        # At a large offset the last digits of the means are lost when the shift is added back, and what is
        # reported is the likelihood of what is returned.
        with rows_over(s.axis_name):
            moments = accumulate(p, s.x, s.w, block_size=s.block_size)
        return moments.log_likelihood / moments.total_weight

    shifted = (f.shift != 0).any() & jnp.isfinite(solution.report)
    log_likelihood = lax.cond(shifted, as_rounded, lambda p: solution.report, fitted)
    objective = log_likelihood
    if f.prior is not None:
        with rows_over(s.axis_name):
            total = sum_rows(lambda w, _: w.sum(), s.w, s.x, block_size=s.block_size)
        objective = log_likelihood + priors.log_density(solution.point, f.prior)[0] / total
    return FitResult(fitted, log_likelihood, objective, solution.n_iter, solution.status, solution.history)


def run(
    params: GMMParams,
    x: Array,
    w: Array | None,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior: Prior | None = None,
    *,
    block_size: int,
    history_size: int,
    surveyed: Frame | None = None,
    unconverged: str = "nan",
    kernel: str = "whitened",
    axis_name: AxisName = None,
) -> FitResult:
    """`fit` without its checks, for code that is already inside `jit` or `vmap`.

    `surveyed` is what `frame` says of the data, where the caller already has it. With the name of an axis of
    `shard_map`, x and w are one part of the rows, and the fit is that of all of them.
    """
    s = Settings(x, w, tol, accelerate, block_size, history_size, unconverged, kernel, axis_name)
    with rows_over(axis_name):
        f = frame(x, w, reg_covar) if surveyed is None else surveyed
    f = with_prior(f, prior, params.family, params.means.shape)
    options = _options(params.family, s)

    def solve(
        step: Callable[..., Evaluation],
        start: GMMParams,
        f: Frame,
        limit: Array,
        memory: Memory | None,
        _: int,
    ) -> Solution:
        return fixed_point.solve(step, start, (x, w, f), max_iter=limit, memory=memory, **options)

    begin = translate(admissible(params), -f.shift)
    return _report(_solve(begin, f, s, solve, max_iter), f, s)


def run_many(
    params: GMMParams,
    x: Array,
    w: Array | None,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior_of: Callable[[Array], Prior | None] | None = None,
    *,
    block_size: int,
    history_size: int,
    surveyed: Frame | None = None,
    unconverged: str = "nan",
    kernel: str = "whitened",
    axis_name: AxisName = None,
) -> FitResult:
    """`run` from starts with a leading axis R.

    `prior_of` gives the prior of a lane () int32.
    """
    s = Settings(x, w, tol, accelerate, block_size, history_size, unconverged, kernel, axis_name)
    with rows_over(axis_name):
        f = frame(x, w, reg_covar) if surveyed is None else surveyed
    family, (n_lanes, *shape) = params.family, params.means.shape
    lanes = jnp.arange(n_lanes, dtype=jnp.int32)
    options = _options(family, s)

    def own(lane: Array) -> priors.Pseudo | None:
        return with_prior(f, None if prior_of is None else prior_of(lane), family, tuple(shape)).prior

    pseudo = jax.vmap(own)(lanes)

    def framed(f: Frame, lane: Array) -> Frame:
        return f._replace(prior=jax.tree.map(lambda a: jnp.take(a, lane, axis=0, mode="clip"), pseudo))

    def solve(
        step: Callable[..., Evaluation],
        starts: GMMParams,
        f: Frame,
        limits: Array,
        memory: Memory | None,
        width: int,
    ) -> Solution:
        return slots.solve(
            step,
            starts,
            lambda lane: (x, w, framed(f, lane)),
            width=width,
            max_iter=limits,
            memory=memory,
            **options,
        )

    begin = jax.vmap(lambda p: translate(admissible(p), -f.shift))(params)
    solution = _solve(begin, f, s, solve, jnp.broadcast_to(max_iter, (n_lanes,)), n_lanes)
    return jax.vmap(lambda end, lane: _report(end, framed(f, lane), s))(solution, lanes)
