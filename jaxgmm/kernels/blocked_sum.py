"""Blocked sums: rows a block at a time, compensated from block to block."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.kernels.manual_axes import varying_like

# Working set of one row block in numbers: on a CPU the (K, D, block) residuals should stay in its second
# cache. An accelerator wants blocks that keep all of it busy, and has the memory.
_BLOCK_NUMBERS = {"cpu": 1 << 18}
_ACCELERATOR_BLOCK_NUMBERS = 1 << 27


def block_rows(
    n_samples: int, n_components: int, n_features: int, n_fits: int = 1, *, one_at_a_time: bool = False
) -> int:
    """Rows per block: on a CPU as many as keep (K, D, block) in cache, 128 (8 for many fits) to 2048.

    Where components come one after the other, it is one component's residuals that are to be kept there, the
    same whitened and weighted, and its matrices; and of all of them no more than 16 MB, if 128 rows are not
    more already.
    """
    numbers = _BLOCK_NUMBERS.get(jax.default_backend(), _ACCELERATOR_BLOCK_NUMBERS)
    held = max(4, n_components // 16) if one_at_a_time else n_components
    rows = numbers // max(1, held * n_features * n_fits)
    power = 1 << max(rows, 1).bit_length() - 1
    most = 2048 if jax.default_backend() in _BLOCK_NUMBERS else 1 << 20
    # Products of D × D matrices with blocks of few rows run at a fraction of their speed.
    least = 128 if one_at_a_time else max(128, 8 * n_features)
    return min(n_samples, min(most, max(least if n_fits == 1 else 8, power)))


def _compensated(total: Array, excess: Array, term: Array) -> tuple[Array, Array]:
    """One step of a compensated sum (Kahan): what rounding added to the new total goes to `excess`.

    Three loops over the arrays as XLA makes them on a CPU; Knuth's two-sum, renormalised, took four.
    """
    new = total + (term - excess)
    return new, (new - total) - (term - excess)


AxisName = str | tuple[str, ...] | None
_axis: contextvars.ContextVar[AxisName] = contextvars.ContextVar("axis", default=None)


@contextlib.contextmanager
def rows_over(axis_name: AxisName) -> Iterator[None]:
    """While this is traced, `sum_rows` also sums over a mapped axis: the rows of others in `shard_map`."""
    token = _axis.set(axis_name)
    try:
        yield
    finally:
        _axis.reset(token)


def sum_rows(body: Callable[..., Any], weight: Array | None, *rows: Any, block_size: int) -> Any:
    """Sum `body(weight_block, *row_blocks)` over blocks of rows, compensated from block to block.

    Args:
      body: maps a block's weights (block,) and rows (block, ...) to a pytree of sums over that block.
        It must be linear in the weights, for the last block overlaps the one before, with weight zero for
        the rows already counted: nothing is padded and nothing copied.
      weight: (N,), or None for ones.
      *rows: arrays of leading size N, or pytrees of them.
      block_size: rows per block.

    A plain float32 running sum of 1e8 responsibilities stops growing at 2**24; this one stays right to
    rounding, because within a block the sum is short and between blocks nothing is lost.
    """
    if _axis.get() is None and _length(rows) <= block_size:
        return body(_ones_or(weight, rows), *rows)
    return _everywhere(sum_own_rows(body, weight, *rows, block_size=block_size))


def _length(rows: Any) -> int:
    """N, of pytrees of arrays (N, ...)."""
    n_samples: int = jax.tree.leaves(rows)[0].shape[0]
    return n_samples


def _cut(rows: Any, start: Array, block_size: int) -> Any:
    """So many rows of pytrees of arrays (N, ...)."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, block_size), rows)


def _ones_or(weight: Array | None, rows: Any) -> Array:
    first = jax.tree.leaves(rows)[0]
    return jnp.ones(first.shape[0], first.dtype) if weight is None else weight


def sum_own_rows(body: Callable[..., Any], weight: Array | None, *rows: Any, block_size: int) -> Any:
    """`sum_rows` without the sum over a mapped axis (`rows_over`): for blocks inside a block."""
    n_samples = _length(rows)
    weight = _ones_or(weight, rows)
    if n_samples <= block_size:
        return body(weight, *rows)

    # Reverse mode computes a block again rather than keep what it computed for every row.
    remade = jax.checkpoint(body)

    def one(carry: Any, index: Array) -> tuple[Any, None]:
        first = index * block_size
        start = jnp.minimum(first, n_samples - block_size)
        blocks = _cut((weight, *rows), start, block_size)
        new = start + jnp.arange(block_size, dtype=jnp.int32) >= first
        terms = remade(jnp.where(new, blocks[0], jnp.zeros((), blocks[0].dtype)), *blocks[1:])
        leaves = [_compensated(t, e, x) for (t, e), x in zip(carry, jax.tree.leaves(terms), strict=True)]
        return leaves, None

    shapes = jax.eval_shape(body, weight[:block_size], *jax.tree.map(lambda a: a[:block_size], rows))
    # A sum varies as its terms do, some of which may depend on other values than the rows.
    zeros = [(varying_like(jnp.zeros(s.shape, s.dtype), s),) * 2 for s in jax.tree.leaves(shapes)]
    n_blocks = -(-n_samples // block_size)
    carry, _ = lax.scan(one, zeros, jnp.arange(n_blocks, dtype=jnp.int32))
    return jax.tree.unflatten(jax.tree.structure(shapes), [total - excess for total, excess in carry])


def _everywhere(sums: Any) -> Any:
    """Sums over one's own rows as sums over all of them, in one message."""
    if _axis.get() is None:
        return sums
    flat, unravel = ravel_pytree(sums)
    return unravel(lax.psum(flat, _axis.get()))


def in_range(w: Array, x: Array) -> Array:
    """(B, D) which entries of rows x (B, D) may enter sums weighted by w (B,).

    All entries of rows that count. A row of weight 0 may hold anything, and what it holds must be finite when
    it is squared twice, as it would be for rows that count: 0 · ∞ is NaN.
    """
    return (w > 0)[:, None] | (jnp.abs(x) < float(jnp.finfo(x.dtype).max) ** 0.25)


def zero_unused(w: Array, x: Array) -> tuple[Array, Array]:
    """Weights (B,) and rows (B, D), with 0 for the entries out of range of rows of weight 0.

    There is then no derivative with respect to such a row's weight.
    """
    usable = in_range(w, x)
    return jnp.where(usable.all(1), w, 0), jnp.where(usable, x, jnp.zeros((), x.dtype))


def map_rows(body: Callable[..., Any], *rows: Any, block_size: int) -> Any:
    """Apply `body(*row_blocks)` a block of rows at a time; its outputs (block, ...) become (N, ...)."""
    n_samples = _length(rows)
    if n_samples <= block_size:
        return body(*rows)
    n_blocks = -(-n_samples // block_size)
    overlap = n_blocks * block_size - n_samples

    def one(_: None, index: Array) -> tuple[None, Any]:
        start = jnp.minimum(index * block_size, n_samples - block_size)
        return None, body(*_cut(rows, start, block_size))

    _, blocks = lax.scan(one, None, jnp.arange(n_blocks, dtype=jnp.int32))

    def join(a: Array) -> Array:
        head = a[:-1].reshape((-1, *a.shape[2:]))
        return jnp.concatenate([head, a[-1, overlap:]])

    return jax.tree.map(join, blocks)
