"""Kept shares: which rows are left when a weight of the lowest values is taken off.

The threshold is found by bisection on the bits of the values, as integers of the same order, with a sum of
weights in each step: exact, the same in any order of the rows, and over the devices of a mesh by sums of one
number. Rows of equal value at the threshold are taken off in equal part: the weight that is taken off is
exact too, and a row of weight 2 counts as two rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.kernels.blocked_sum import sum_rows
from jaxgmm.kernels.linalg import epsilon
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import is_concrete

_BLOCK = 1 << 16  # numbers that are summed together: whole weights of that many rows add up exactly


def amount(trim: ArrayLike | None, data: Data, shape: tuple[int, ...] = ()) -> Array | None:
    """() the weight that is trimmed: that of ⌈αN⌉ rows, or of sample weights α Σ w; None without trimming.

    Args:
      trim: α, from 0 to below 1; it may be traced.
      data: all rows, not yet padded.
      shape: of α, where it is not one number.
    """
    if trim is None:
        return None
    if data.group is not None:
        raise ValueError("rows in groups are not for trim: leave groups out of observe")
    dtype, n, w = data.x.dtype, data.x.shape[0], data.weight
    share = validate.below_one(trim, "trim", dtype, shape)
    if not is_concrete(share, w) or (w is not None and not w.is_fully_addressable):
        total = w.sum() if w is not None else jnp.ceil(share * n * (1 - 4 * epsilon(dtype)))
        return total if w is None else share * total
    found = weight_of(trim, n) if w is None else weight_of(trim, None, np.asarray(w, np.float64).sum())
    placed: Array = jax.device_put(found.astype(dtype))
    return placed


def weight_of(trim: ArrayLike, n_samples: int | None, total_weight: float = 0.0) -> np.ndarray:
    """The weight that a share α stands for, in float64 on the host: ⌈αN⌉, or α Σ w where N is None."""
    given = np.asarray(trim, np.float64)
    if n_samples is None:
        return given * np.asarray(total_weight)
    # α is not known beyond its own digits: 0.07 · 100 is 7.
    kind = getattr(trim, "dtype", np.float64)
    rounded = float(jnp.finfo(kind if jnp.issubdtype(kind, jnp.floating) else np.float64).eps)
    rows = np.ceil(given * n_samples * (1 - 4 * rounded))
    if (rows >= n_samples).any():
        raise ValueError(f"trim must leave at least one of {n_samples} rows; got {given.max()}")
    return np.asarray(rows)


def ordered(values: Any, xp: Any = jnp) -> Any:
    """(N,) unsigned integers in the order of the numbers, NaN last; of NumPy's arrays with xp=np."""
    bits = values.dtype.itemsize * 8
    kind = xp.uint32 if bits == 32 else xp.uint64
    values = xp.where(xp.isnan(values), xp.inf, values).astype(values.dtype)
    raw = values.view(kind) if xp is np else lax.bitcast_convert_type(values, kind)
    top = kind(1 << (bits - 1))
    return xp.where(raw >= top, ~raw, raw | top)


def kept_shares(values: Array, weight: Array | None, trim: Array) -> Array:
    """(N,) which part of each row is kept: 1 above the threshold, 0 below it, a part at it.

    Of all rows that `rows_over` an axis has. Differentiable in the weights and in what is trimmed, at a
    threshold that stays where it is.
    """
    keys = ordered(values)
    bits = keys.dtype.itemsize * 8

    w = jnp.ones_like(values) if weight is None else weight
    fixed, wanted = lax.stop_gradient((w, trim))
    zero = jnp.zeros((), w.dtype)

    def below_level(w: Array, keys: Array, level: Array) -> Array:
        return jnp.where(keys < level, w, zero).sum()

    def bisect(i: Array, level: Array) -> Array:
        """The largest level with less than that weight below it, a bit at a time."""
        trial = level | (jnp.ones((), keys.dtype) << (bits - 1 - i).astype(keys.dtype))
        below = sum_rows(lambda w, k: below_level(w, k, trial), fixed, keys, block_size=_BLOCK)
        return varying_like(jnp.where(below < wanted, trial, level), keys, wanted)

    start = varying_like(jnp.zeros((), keys.dtype), keys, wanted)
    level = lax.fori_loop(jnp.int32(0), jnp.int32(bits), bisect, start)
    below, at = sum_rows(
        lambda w, k: (below_level(w, k, level), jnp.where(k == level, w, zero).sum()),
        w, keys, block_size=_BLOCK,
    )  # fmt: skip
    part = (trim - below) / jnp.where(at > 0, at, 1)
    part = part + lax.stop_gradient(jnp.clip(part, 0, 1) - part)  # it leaves this range by rounding only
    return jnp.where(keys == level, 1 - part, (keys > level).astype(w.dtype))
