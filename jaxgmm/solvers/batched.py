"""Batched fixed-point solver: several at a time; those that have converged are replaced by waiting ones.

Plain `vmap` over a `while_loop` iterates until the slowest of all has converged, and computes all of the
others again in every iteration. Here a point that has converged is replaced by the next that waits, so that
the cost of an iteration is shared, and none of it is wasted before the last starts are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.solvers.implicit import Chart, Evaluation
from jaxgmm.solvers.squarem import RUNNING, State, update

PyTree = Any


Packed = dict[Any, Array]  # by dtype, one row (P,) for each state


class _Batch(NamedTuple):
    """W states that are iterated together, and the R of all fixed points."""

    states: Packed  # (W, P)
    number: Array  # (W,) int32: whose state it is; R for nobody's
    waiting: Array  # () int32: the first index that has not begun
    ended: Packed  # (R, P)


def _packed(states: PyTree) -> Packed:
    """The numbers of each state as one row: to move a row is a program of its own, for each array anew."""
    flat: dict[Any, list[Array]] = {}
    for leaf in jax.tree.leaves(states):
        flat.setdefault(leaf.dtype, []).append(leaf.reshape(leaf.shape[0], -1))
    return {dtype: jnp.concatenate(leaves, axis=1) for dtype, leaves in flat.items()}


def _unpacked(packed: Packed, like: PyTree) -> Any:
    """States again, of the structure and the shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    begun, found = dict.fromkeys(packed, 0), []
    for leaf in leaves:
        begin, rows = begun[leaf.dtype], packed[leaf.dtype]
        begun[leaf.dtype] = end = begin + leaf[0].size
        found.append(rows[:, begin:end].reshape(rows.shape[0], *leaf.shape[1:]))
    return jax.tree.unflatten(structure, found)


def advance(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    states: State,
    data_of: Callable[[Array], PyTree],
    *,
    width: int,
    chart: Chart | None,
    tol: Array,
    max_iter: Array,
    accelerate: Array,
) -> State:
    """Iterations from states (R, ...) until the status of each says that it has ended. Not differentiated.

    Args:
      evaluate: as in `squarem.solve`.
      states: where to begin; those that have ended stay.
      data_of: () int32 -> the data of that index. What does not depend on the index is shared by all of them.
      width: W, how many are computed together; static.
      chart: as in `squarem.solve`.
      tol: as there.
      max_iter: (R,) int32, a limit for each.
      accelerate: as there.
    """
    n_all = int(max_iter.shape[0])
    width = min(width, n_all)
    indices = jnp.arange(n_all, dtype=jnp.int32)
    states = lax.stop_gradient(states)

    def one(s: State, index: Array) -> State:
        limit = jnp.take(max_iter, index, mode="clip")
        return update(evaluate(s.point, lax.stop_gradient(data_of(index))), s, chart, tol, limit, accelerate)

    def iterate(b: _Batch) -> _Batch:
        after = jax.vmap(one)(_unpacked(b.states, states), b.number)
        over = (after.status != RUNNING) & (b.number < n_all)
        # Most iterations end nothing, and to replace none costs as much as to replace all.
        seen = varying_like((b._replace(states=_packed(after)), over), outside)
        return lax.cond(over.any(), lambda *a: varying_like(replaced(*a), outside), lambda b, _: b, *seen)

    def replaced(b: _Batch, over: Array) -> _Batch:
        at = jnp.where(over, b.number, n_all)
        ended = jax.tree.map(lambda a, v: a.at[at].set(v, mode="drop"), b.ended, b.states)
        following = b.waiting + jnp.cumsum(over.astype(jnp.int32)) - 1
        index = jnp.where(over, jnp.minimum(following, n_all), b.number)
        fresh = (over & (index < n_all))[:, None]
        taken = jax.tree.map(lambda a: jnp.take(a, index, axis=0, mode="clip"), starts)
        kept = jax.tree.map(functools.partial(jnp.where, fresh), taken, b.states)
        return _Batch(kept, index, b.waiting + over.sum(dtype=jnp.int32), ended)

    outside = states, max_iter, tol, accelerate, jax.eval_shape(data_of, indices[0])
    starts = _packed(states)
    first = jax.tree.map(lambda a: a[:width], starts)
    begun = _Batch(first, indices[:width], jnp.asarray(width, jnp.int32), starts)
    end = lax.while_loop(lambda b: (b.number < n_all).any(), iterate, varying_like(begun, outside))
    return cast(State, _unpacked(end.ended, states))
