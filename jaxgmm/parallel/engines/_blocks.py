"""Block functions of the workers: checks, the data summary and `Statistics`; NumPy in and out.

Sums leave a worker in float64, so that adding those of many blocks loses nothing, whatever the fit's dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxgmm._host_arrays import unmasked
from jaxgmm.data import Data
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.parallel._flat_sums import flat

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
        super().__init__(what, row)  # so that it can be pickled
        self.what, self.row = what, row

    def __str__(self) -> str:
        return self.what if self.row is None else f"row {self.row}: {self.what}"


def _checked(X: Any, weights: Any, n_features: int, dtype: Any) -> tuple[Array, Array]:
    """A block's rows and weights in a dtype; their shapes fit, and they are real numbers."""
    try:
        x, w = np.asarray(unmasked(X, "it")), unmasked(weights, "its weights")
    except ValueError as error:
        raise Fault(str(error)) from None
    w = np.ones(x.shape[:1]) if weights is None else np.asarray(w)
    if x.ndim != 2 or x.shape[1] != n_features:
        got = f"{x.shape[1]} columns" if x.ndim == 2 else f"shape {x.shape}"
        raise Fault(f"it has {got}; params have {n_features} features")
    if w.shape != x.shape[:1]:
        raise Fault(f"its weights have shape {w.shape}; one for each of its {len(x)} rows is needed")
    for what, a in (("it holds", x), ("its weights hold", w)):
        if a.dtype.kind not in "biuf":
            raise Fault(f"{what} {a.dtype}, not real numbers")
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False), w.astype(dtype, copy=False)


def summary_block(X: Any, weights: Any, n_features: int, dtype: str, missing: bool = False) -> DataSummary:
    """The `DataSummary` of a block (n, D) with weights (n,) or None, and the one look at whether it is sound.

    With `missing`, NaN are missing entries.

    Raises:
      Fault: another number of columns, what is not a number or beyond `dtype`, or a weight below 0.
    """
    x, w = _checked(X, weights, n_features, dtype)
    bad = np.isinf(x) if missing else ~np.isfinite(x)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise Fault(f"column {column} is {x[row, column]}; drop or impute such rows before the fit", row)
    wrong = ~(np.isfinite(w) & (w >= 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise Fault(f"its weight is {w[row]}; weights must be finite and not negative", row)
    return DataSummary.of(x, w, missing=missing)


@functools.partial(jit, static_argnames=("block_size",))
def _moments(params: GMMParams, data: Data, shift: jax.Array, *, block_size: int) -> Statistics:
    return exact.sums(params, data, shift, block_size=block_size)


def moments_block(X: Any, weights: Any, params: GMMParams, shift: Array, missing: bool = False) -> Array:
    """The moments of a block (n, D) about params, whose means are relative to shift, as `flat` has them.

    Args:
      X: (n, D), at least one row.
      weights: (n,) or None.
      params: of NumPy arrays; the sums within a chunk are taken in their dtype.
      shift: (D,).
      missing: whether NaN are missing entries.
    """
    dtype, (k, d) = params.means.dtype, params.means.shape
    x, w = _checked(X, weights, d, dtype)
    total, first = np.zeros(()), 0
    with _x64(dtype == np.float64):
        while first < len(x):
            length = ROWS if len(x) - first >= ROWS else _FEWER
            rows, weight = x[first : first + length], w[first : first + length]
            below = length - len(rows)
            rows, weight = np.pad(rows, ((0, below), (0, 0))), np.pad(weight, (0, below))
            seen = ~np.isnan(rows) if missing else None
            leaves: Any = rows if seen is None else np.where(seen, rows, 0), weight, seen
            data = Data(*leaves)
            sums = _moments(params, data, shift, block_size=rows_of(data, params.component, k))
            total, first = total + flat(sums), first + length
    return total


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


def value_of(outcomes: Iterable[Outcome]) -> Any:
    """The sum of all parts; an error where something is wrong with one of them."""
    outcome = functools.reduce(operator.add, outcomes, Outcome())
    if outcome.problem is not None:
        raise ValueError(outcome.problem)
    return outcome.total


def named(known: Sequence[str], columns: Sequence[str] | None, weights: Sequence[str]) -> list[str]:
    """The columns of a data frame that are features: all but the weights where none are named."""
    wanted = [c for c in known if c not in weights] if columns is None else list(columns)
    missing = [c for c in [*wanted, *weights] if c not in known]
    if missing:
        raise ValueError(f"the data frame has no column {missing[0]!r}; it has {list(known)}")
    return wanted


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
