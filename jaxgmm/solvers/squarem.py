"""Fixed points of a map that climbs an objective: safeguarded SQUAREM, stopping rule, status.

Nothing here knows of mixtures. A map F is given as a function that *evaluates* a point θ: F(θ) together with
what is known at θ itself: the objective, how long the step θ → F(θ) is, and how much of either is rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.kernels.linalg import epsilon
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.solvers.implicit import RAW, Chart, Derivative, Evaluation, with_derivative

PyTree = Any

RUNNING = -1
_FIRST_RADIUS = 4.0  # the longest extrapolation that is tried before any has succeeded
_MAX_RATE = 0.9999  # of convergence: beyond it, a ratio of two steps is not known well enough to be used
_FORGET = 0.7  # how much of an estimated horizon is remembered from one pass to the next


class Status(IntEnum):
    """How an iteration ended. Inside jit it is an int32; compare it with these members."""

    CONVERGED = 0  #: the estimated distance to the fixed point is below tol, or below rounding
    MAX_ITER = 1  #: max_iter steps were taken first
    NONFINITE = 2  #: the objective was NaN or infinite (data that overflow, NaN in the data)
    DECREASED = 3  #: a step lowered the objective by more than rounding explains
    DEGENERATE = 4  #: a point lies outside the domain (a covariance that has collapsed, or a singular start)


class Memory(NamedTuple):
    """What an iteration has learnt, for one that goes on from where it ended."""

    radius: Array  # ()  the longest extrapolation that may be tried
    horizon: Array  # ()  the distance still to go, in units of the latest step


class Solution(NamedTuple):
    """The last point whose evaluation was good, and how the iteration ended there."""

    point: PyTree
    report: Array  # ()
    n_iter: Array  # ()  int32: applications of F on the way to `point`
    status: Array  # ()  int32, a Status
    history: Array  # (history_size,)  -inf past n_iter
    memory: Memory


class State(NamedTuple):
    """Where an iteration is."""

    base: PyTree  # the last good point
    image: PyTree  # F(base)
    point: PyTree  # to be evaluated next: F(base), or an extrapolation
    extrapolated: Array  # ()  bool: which of the two
    at_radius: Array  # ()  bool: the extrapolation was cut to the radius
    radius: Array  # ()
    objective: Array  # ()  at base
    report: Array  # ()  at base
    step: Array  # ()  at base
    horizon: Array  # ()  ρ/(1 − ρ): the distance still to go, in units of the latest step
    n_iter: Array  # ()  int32
    status: Array  # ()  int32
    history: Array  # (history_size,)


def select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """One tree or the other, by a condition ()."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _has_nan(tree: PyTree) -> Array:
    # Not "is finite": the logarithm of a weight of zero is −inf, and belongs there.
    return jnp.isnan(ravel_pytree(tree)[0]).any()


def _extrapolate(
    chart: Chart, points: tuple[PyTree, PyTree, PyTree], radius: Array, finest: Array
) -> tuple[PyTree, Array]:
    """SQUAREM's θ0 + 2αr + α²v in the chart about the middle point; also whether α was cut to `radius`."""
    # All three at once and as one vector: a third of the code, which is what takes long to compile.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    coordinates = jax.vmap(functools.partial(chart.to, points[1]))(stacked)
    _, unravel = ravel_pytree(jax.tree.map(lambda a: a[0], coordinates))
    flat = jnp.concatenate([a.reshape(3, -1) for a in jax.tree.leaves(coordinates)], axis=1)
    c0, r = flat[0], flat[1] - flat[0]
    v = (flat[2] - flat[1]) - r
    lengths = jnp.sqrt(jnp.square(jnp.stack([r, v])).sum(1))
    wanted = jnp.maximum(lengths[0] / jnp.maximum(lengths[1], float(jnp.finfo(radius.dtype).tiny)), 1)
    # α² multiplies the rounding in v: beyond sqrt(step / noise) the extrapolation would be made of noise.
    alpha = jnp.minimum(jnp.minimum(wanted, radius), finest)
    moved = unravel(c0 + 2 * alpha * r + alpha * alpha * v)
    return chart.back(points[1], moved), (wanted >= radius) & (radius <= finest)


def no_memory(dtype: Any) -> Memory:
    """What is known before anything has been tried."""
    return Memory(jnp.full((), _FIRST_RADIUS, dtype), jnp.zeros((), dtype))


def begin(start: PyTree, memory: Memory, history_size: int) -> State:
    """The state before the first iteration from a start.

    What is not known yet is infinite and not NaN, which JAX's debugging tools report.
    """
    dtype = memory.radius.dtype
    lowest = jnp.full((), -jnp.inf, dtype)
    return State(
        base=start,
        image=start,
        point=start,
        extrapolated=jnp.asarray(False),
        at_radius=jnp.asarray(False),
        radius=memory.radius,
        objective=lowest,
        report=lowest,
        step=-lowest,
        horizon=memory.horizon,
        n_iter=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
        history=jnp.full((history_size,), -jnp.inf, dtype),
    )


def onward(end: State) -> State:
    """The state before a new iteration from where another ended, whose steps and memory count on.

    The map may be another one, so that nothing is compared with what the first said of the point.
    """
    fresh = begin(end.base, Memory(end.radius, end.horizon), 0)
    return fresh._replace(n_iter=end.n_iter, history=end.history)


def hand_over(ended: State, fresh: State) -> State:
    """The state before an iteration on another map: `onward`, or `fresh` if this one has failed."""
    sound = (ended.status == Status.CONVERGED) | (ended.status == Status.MAX_ITER)
    return select(sound, onward(ended), fresh)


def update(
    e: Evaluation, s: State, chart: Chart | None, tol: Array, max_iter: Array, accelerate: Array
) -> State:
    """One iteration, after the map has been evaluated at the state's point, with the rule that stops it."""
    dtype = tol.dtype
    eps = epsilon(dtype)
    history_size = s.history.size

    finite = jnp.isfinite(e.objective)
    fell = e.objective < s.objective - jnp.where(s.extrapolated, eps * jnp.abs(s.objective), e.slack)
    first = s.objective == -jnp.inf
    good = finite & ~(fell & ~first) & (e.valid | ~s.extrapolated)

    # An extrapolation hides the slow modes: the estimated remaining distance decays by
    # `_FORGET` from one iteration to the next.
    # Not 0 / 0, where steps of length 0 are asked for (tol=0).
    rate = jnp.clip(e.step / jnp.maximum(s.step, float(jnp.finfo(dtype).tiny)), 0, _MAX_RATE)
    seen = jnp.maximum(rate / (1 - rate), s.horizon * _FORGET)
    horizon = jnp.where(s.extrapolated | first, s.horizon, seen)
    near = (e.step * jnp.maximum(1, horizon) <= tol) | (e.step <= e.noise)
    converged = near & (tol > 0) & good & ~s.extrapolated & ~first

    def code(status: int) -> Array:
        return jnp.asarray(status, jnp.int32)

    status = jnp.where(s.n_iter >= max_iter, code(Status.MAX_ITER), code(RUNNING))
    status = jnp.where(converged, code(Status.CONVERGED), status)
    plain = jnp.where(e.valid, status, code(Status.DEGENERATE))
    plain = jnp.where(fell & ~first, code(Status.DECREASED), plain)
    outside = jnp.where(e.objective == -jnp.inf, code(Status.DEGENERATE), code(Status.NONFINITE))
    plain = jnp.where(finite, plain, outside)
    status = jnp.where(s.extrapolated, status, plain)

    # `cond` and not `where`: XLA would compute `good` again for each of the arrays that are selected.
    report = jnp.where(first, jnp.nan, s.report)
    new, old = varying_like(
        (
            (s.point, e.image, e.objective, e.report, e.step),
            (s.base, s.image, s.objective, report, s.step),
        ),
        good,
    )
    base, image, objective, report, step = lax.cond(good, lambda new, _: new, lambda _, old: old, new, old)
    point, extrapolated, at_radius = image, jnp.asarray(False), jnp.asarray(False)
    if chart is not None:
        finest = jnp.sqrt(jnp.maximum(e.step / jnp.maximum(e.noise, float(jnp.finfo(dtype).tiny)), 1))
        wanted = ~s.extrapolated & ~first

        def leap(_: None) -> tuple[PyTree, Array, Array]:
            trial, cut = _extrapolate(chart, (s.base, s.point, e.image), s.radius, finest)
            taken = wanted & ~_has_nan(trial)
            return select(taken, trial, image), taken, cut & taken

        # Plain EM of a batch also does without: whether to accelerate is the same for all.
        seen_by_both = (image, wanted, s.radius, finest, s.base, s.point, e.image)

        def leap_or_not(found: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
            return varying_like(found, seen_by_both)

        point, extrapolated, at_radius = lax.cond(
            accelerate,
            lambda _: leap_or_not(leap(None)),
            lambda _: leap_or_not((image, jnp.zeros_like(wanted), jnp.zeros_like(wanted))),
            None,
        )
    longer, shorter = 4 * s.radius, jnp.maximum(s.radius / 4, _FIRST_RADIUS)
    radius = jnp.where(s.extrapolated & s.at_radius, jnp.where(good, longer, shorter), s.radius)

    slot = jnp.where(first, history_size, s.n_iter - 1)
    return State(
        base=base,
        image=image,
        point=point,
        extrapolated=extrapolated,
        at_radius=at_radius,
        radius=radius,
        objective=objective,
        report=report,
        step=step,
        horizon=horizon,
        n_iter=s.n_iter + jnp.where(status == RUNNING, 1, 0).astype(jnp.int32),
        status=status,
        history=jnp.where(jnp.arange(history_size, dtype=jnp.int32) == slot, report, s.history),
    )


def solve(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    start: PyTree,
    data: PyTree,
    *,
    chart: Chart | None,
    tol: Array,
    max_iter: Array,
    accelerate: Array,
    history_size: int,
    derivative: Derivative = RAW,
    memory: Memory | None = None,
) -> Solution:
    """Iterate θ ← F(θ) to its fixed point, with safeguarded squared extrapolation (SQUAREM).

    Two plain steps θ0 → θ1 → θ2 give r = θ1 − θ0, v = (θ2 − θ1) − r and the trial θ0 + 2αr + α²v with
    α = ‖r‖/‖v‖ cut to [1, radius]. The trial is kept if its objective is no lower than θ1's; otherwise the
    iteration goes on from θ2, so that it is never slower than the plain one by more than the trial. Each
    iteration of the loop evaluates F once, whatever it is evaluated at: the map is compiled once.

    It stops when the distance still to go is below `tol`: with ρ the ratio of two consecutive plain steps, a
    step of length Δ leaves Δρ/(1 − ρ). It also stops when Δ is down to rounding (`Evaluation.noise`). With
    `tol` 0 it takes max_iter steps.

    Args:
      evaluate: (θ, data) -> Evaluation; a function that closes over nothing that is differentiated.
      start: the first θ; its derivative is zero.
      data: whatever else the map depends on. Derivatives of the solution with respect to it, forward and
        reverse, are those of the fixed point, at the cost of a linear solve with products of F's Jacobian.
      chart: coordinates for extrapolation, or None for the plain iteration.
      tol: () distance to the fixed point, in the metric of `Evaluation.step`.
      max_iter: () int32, how often F may be applied.
      accelerate: () bool.
      history_size: how many entries of `report` are kept; entry i is the best point's after i + 1 steps.
      derivative: how the solution is differentiated; static.
      memory: what an iteration that ended at `start` had learnt, if there was one.

    Returns:
      A `Solution`, whose `report` belongs to the very point that is returned.

    References:
      Varadhan & Roland (2008), Simple and globally convergent methods for accelerating the convergence of any
      EM algorithm, Scandinavian Journal of Statistics 35, scheme S3; Henderson & Varadhan (2019), Damped
      Anderson acceleration with restarts and monotonicity control, JCGS 28.
    """
    start, stopped = lax.stop_gradient((start, data))
    known = no_memory(tol.dtype) if memory is None else lax.stop_gradient(memory)
    first = begin(start, known, history_size)
    end = advance(evaluate, first, stopped, chart=chart, tol=tol, max_iter=max_iter, accelerate=accelerate)
    return solution(evaluate, derivative, end, data)


def advance(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    state: State,
    data: PyTree,
    *,
    chart: Chart | None,
    tol: Array,
    max_iter: Array,
    accelerate: Array,
) -> State:
    """Iterations from a state until its status says that it has ended. Not differentiated."""
    outside = data, tol, max_iter, accelerate

    def one(s: State) -> State:
        after = update(evaluate(s.point, data), s, chart, tol, max_iter, accelerate)
        return varying_like(after, outside)

    return lax.while_loop(lambda s: s.status == RUNNING, one, varying_like(state, outside))


def solution(
    evaluate: Callable[[PyTree, PyTree], Evaluation], derivative: Derivative, end: State, data: PyTree
) -> Solution:
    """What an iteration that has ended found, with its derivative with respect to the data."""
    converged = end.status == Status.CONVERGED
    point, report = with_derivative(evaluate, derivative, end.base, end.report, converged, data)
    memory = Memory(end.radius, end.horizon)
    return Solution(point, report, end.n_iter, end.status, end.history, memory)
