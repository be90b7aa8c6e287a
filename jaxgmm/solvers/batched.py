"""Many fixed points at once in a few slots, each of which takes the next start when its own has ended.

Plain `vmap` over a `while_loop` turns until the slowest lane has converged, and computes all of the others
again on every turn. Here the lanes that are still under way fill the batch, so that what a turn costs is
shared and none of it is wasted before the starts run out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.solvers.implicit import Chart, Derivative, Evaluation
from jaxgmm.solvers.squarem import (
    RUNNING,
    Memory,
    Solution,
    State,
    begin,
    no_memory,
    solution,
    turn,
)

PyTree = Any


class _Table(NamedTuple):
    slots: State  # (W, ...)
    lane: Array  # (W,) int32: whose state it is; R for nobody's
    waiting: Array  # () int32: the first lane that has not begun
    ended: State  # (R, ...)


def _put(into: PyTree, at: Array, values: PyTree) -> PyTree:
    return jax.tree.map(lambda a, v: a.at[at].set(v, mode="drop"), into, values)


def _take(tree: PyTree, at: Array) -> PyTree:
    return jax.tree.map(lambda a: jnp.take(a, at, axis=0, mode="clip"), tree)


def solve(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    starts: PyTree,
    data_of: Callable[[Array], PyTree],
    *,
    width: int,
    chart: Chart | None,
    tol: Array,
    max_iter: Array,
    accelerate: Array,
    history_size: int,
    derivative: Derivative,
    memory: Memory | None = None,
    turning: Callable[[PyTree, PyTree], Evaluation] | None = None,
) -> Solution:
    """`squarem.solve` from each of some starts.

    Args:
      evaluate: as there.
      starts: points with a leading axis R.
      data_of: () int32 -> the data of that lane. What does not depend on the lane is shared by all of them.
      width: W, how many lanes are under way at once; static.
      chart: as there.
      tol: as there.
      max_iter: (R,) int32, each lane's own.
      accelerate: as there.
      history_size: as there.
      derivative: as there.
      memory: as there, with a leading axis R.
      turning: `evaluate` for the turns, of which nobody asks a derivative; None for the same.

    Returns:
      A `Solution` with a leading axis R.
    """
    n_lanes = int(max_iter.shape[0])
    width = min(width, n_lanes)
    lanes = jnp.arange(n_lanes, dtype=jnp.int32)
    if memory is None:
        memory = jax.tree.map(lambda a: jnp.broadcast_to(a, (n_lanes,)), no_memory(tol.dtype))
    first = jax.vmap(lambda p, m: begin(p, m, history_size))(*lax.stop_gradient((starts, memory)))

    def one(s: State, lane: Array) -> State:
        data = lax.stop_gradient(data_of(lane))
        limit = jnp.take(max_iter, lane, mode="clip")
        return turn((turning or evaluate)(s.point, data), s, chart, tol, limit, accelerate)

    def together(t: _Table) -> _Table:
        slots = jax.vmap(one)(t.slots, t.lane)
        over = (slots.status != RUNNING) & (t.lane < n_lanes)
        # Most turns end nothing, and to put away nothing costs as much as to put away all.
        after = varying_like((t._replace(slots=slots), over), outside)
        return lax.cond(over.any(), lambda *a: varying_like(replaced(*a), outside), lambda t, _: t, *after)

    def replaced(t: _Table, over: Array) -> _Table:
        ended = _put(t.ended, jnp.where(over, t.lane, n_lanes), t.slots)
        following = t.waiting + jnp.cumsum(over.astype(jnp.int32)) - 1
        lane = jnp.where(over, jnp.minimum(following, n_lanes), t.lane)
        fresh = over & (lane < n_lanes)
        taken = _take(first, lane)
        slots = jax.tree.map(
            lambda a, b: jnp.where(fresh.reshape(-1, *(1,) * (a.ndim - 1)), a, b), taken, t.slots
        )
        return _Table(slots, lane, t.waiting + over.sum(dtype=jnp.int32), ended)

    outside = first, max_iter, tol, accelerate, jax.eval_shape(data_of, lanes[0])
    begun = _Table(_take(first, lanes[:width]), lanes[:width], jnp.asarray(width, jnp.int32), first)
    end = lax.while_loop(lambda t: (t.lane < n_lanes).any(), together, varying_like(begun, outside)).ended
    return jax.vmap(lambda s, lane: solution(evaluate, derivative, s, data_of(lane)))(end, lanes)
