"""Block functions of the workers: checks, the data summary and `Statistics`; NumPy in and out.

Sums leave a worker in float64, so that adding those of many blocks loses nothing, whatever the fit's dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxgmm._host_arrays import unmasked
from jaxgmm.data import Data
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.exact import rows_for
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore._host_em import DataSummary

_x64: Any
try:
    _x64 = jax.enable_x64
except AttributeError:  # before JAX 0.8
    _x64 = importlib.import_module("jax.experimental").enable_x64

Array = np.ndarray[Any, Any]

# Blocks of any length are cut into chunks of these two, the last one filled up with rows of weight 0: a
# worker compiles two programs, and no others.
ROWS = 1 << 14
_FEWER = 1 << 10


class Fault(ValueError):
    """What is wrong with a block, and in which of its rows, if it is one row."""

    def __init__(self, what: str, row: int | None = None) -> None:
        super().__init__(what if row is None else f"row {row}: {what}")
        self.what = what
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.row)


@dataclasses.dataclass(frozen=True)
class Sums:
    """The arrays of a `Statistics`, in float64 on the host; `+` adds them."""

    arrays: tuple[Array, ...]

    def __add__(self, other: Sums) -> Sums:
        return Sums(tuple(a + b for a, b in zip(self.arrays, other.arrays, strict=True)))

    def moments(self, params: GMMParams) -> Statistics:
        """The record that they are the arrays of, in the dtype of its params."""
        like = jax.eval_shape(exact.zero, params)
        dtype = params.means.dtype
        arrays = [jax.numpy.asarray(a.astype(dtype)) for a in self.arrays]
        moments: Statistics = jax.tree.unflatten(jax.tree.structure(like), arrays)
        return moments


def _unmasked(value: Any, what: str) -> Array:
    try:
        return np.asarray(unmasked(value, what))
    except ValueError as error:
        raise Fault(str(error)) from None


def _matrix(X: Any, n_features: int, dtype: Any) -> Array:
    x = _unmasked(X, "it")
    if x.ndim != 2 or x.shape[1] != n_features:
        got = f"{x.shape[1]} columns" if x.ndim == 2 else f"shape {x.shape}"
        raise Fault(f"it has {got}; params have {n_features} features")
    if x.dtype.kind not in "biuf":
        raise Fault(f"it holds {x.dtype}, not real numbers")
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)


def _vector(weights: Any, n_rows: int, dtype: Any) -> Array:
    if weights is None:
        return np.ones(n_rows, dtype)
    w = _unmasked(weights, "its weights")
    if w.shape != (n_rows,):
        raise Fault(f"its weights have shape {w.shape}; one for each of its {n_rows} rows is needed")
    if w.dtype.kind not in "biuf":
        raise Fault(f"its weights hold {w.dtype}, not real numbers")
    with np.errstate(over="ignore"):
        return w.astype(dtype, copy=False)


def summary_block(X: Any, weights: Any, n_features: int, dtype: str) -> DataSummary:
    """The `DataSummary` of a block (n, D) with weights (n,) or None, and the one look at whether it is sound.

    Raises:
      Fault: another number of columns, what is not a number or beyond `dtype`, or a weight below 0.
    """
    x = _matrix(X, n_features, dtype)
    w = _vector(weights, len(x), dtype)
    bad = ~np.isfinite(x)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise Fault(f"column {column} is {x[row, column]}; drop or impute such rows before the fit", row)
    wrong = ~(np.isfinite(w) & (w >= 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise Fault(f"its weight is {w[row]}; weights must be finite and not negative", row)
    return DataSummary.of(x, w)


@functools.partial(jit, static_argnames=("block_size",))
def _moments(
    params: GMMParams, x: jax.Array, w: jax.Array, shift: jax.Array, *, block_size: int
) -> Statistics:
    return exact.sums(params, Data(x, w), shift, block_size=block_size)


def _cut(n_rows: int) -> Iterator[tuple[int, int]]:
    """Where each chunk begins, and how long it is."""
    first = 0
    while first < n_rows:
        length = ROWS if n_rows - first >= ROWS else _FEWER
        yield first, length
        first += length


def moments_block(X: Any, weights: Any, params: GMMParams, shift: Array) -> Sums:
    """The moments of a block (n, D) about params, whose means are relative to shift.

    Args:
      X: (n, D), at least one row.
      weights: (n,) or None.
      params: of NumPy arrays; the sums within a chunk are taken in their dtype.
      shift: (D,).
    """
    dtype, (k, d) = params.means.dtype, params.means.shape
    x = _matrix(X, d, dtype)
    w = _vector(weights, len(x), dtype)
    total: tuple[Array, ...] | None = None
    with _x64(dtype == np.float64):
        for first, length in _cut(len(x)):
            rows, weight = x[first : first + length], w[first : first + length]
            if len(rows) < length:
                filled, none = np.zeros((length, d), dtype), np.zeros(length, dtype)
                filled[: len(rows)], none[: len(rows)] = rows, weight
                rows, weight = filled, none
            sums = _moments(params, rows, weight, shift, block_size=rows_for(params.component, length, k, d))
            arrays = tuple(np.asarray(a).astype(np.float64) for a in jax.tree.leaves(sums))
            total = arrays if total is None else tuple(a + b for a, b in zip(total, arrays, strict=True))
    assert total is not None
    return Sums(total)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The sum over a part of the data, or what is wrong with it; None and None of no rows at all.

    A fault of the data is returned rather than raised: an engine would try it again, and again.
    """

    total: Any = None
    problem: str | None = None
    place: tuple[int, int | None] | None = None  # of the problem: the part, and its row

    def __add__(self, other: Outcome) -> Outcome:
        if self.problem is not None or other.problem is not None:
            return self if self.problem is not None else other
        if self.total is None or other.total is None:
            return other if self.total is None else self
        return Outcome(self.total + other.total)


def over(
    function: Any, blocks: Iterable[tuple[Any, Any]], broadcast: tuple[Any, ...], part: int, name: str
) -> Outcome:
    """A function of blocks summed over a part of the data, blocks of which come in the order of its rows."""
    total, seen = None, 0
    for x, w in blocks:
        if not len(x):
            continue
        try:
            value = function(x, w, *broadcast)
        except Fault as fault:
            row = None if fault.row is None else seen + fault.row
            place = name if row is None else f"{name}, row {row}"
            return Outcome(problem=f"{place}: {fault.what}", place=(part, row))
        total = value if total is None else total + value
        seen += len(x)
    return Outcome(total)


def use_one_thread() -> None:
    """In a process that an engine keeps for work: JAX on one thread of the CPU, unless it runs already.

    The engine has as many such processes as it wants cores used, and none of them is to take an accelerator.
    """
    os.environ.setdefault("NPROC", "1")  # how many threads XLA makes
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
