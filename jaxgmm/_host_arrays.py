"""Host arrays: tables and arrays of other libraries as NumPy arrays, with errors by name."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.kernels.program_store import is_one_cpu
from jaxgmm.kernels.programs import is_concrete, is_tracing


def host_array(value: Any, name: str, *, missing: bool = False) -> np.ndarray[Any, Any]:
    """Anything that is no JAX array as a NumPy array of real numbers; missing entries as NaN, if allowed."""
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name} is a sparse {type(value).__name__}; use {name}.toarray()")
    if missing and isinstance(value, np.ma.MaskedArray):
        value = np.where(np.ma.getmaskarray(value), np.nan, value.data)
    value = unmasked(value, name)
    if is_frame(value):
        value = _frame(value, name, missing)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of numbers; got ragged data ({error})") from None
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must hold real numbers; got dtype {array.dtype}")
    return array


_FINEST = 6  # rows are padded to multiples of 2**6, and of an eighth of the power of two below
_FEW = 2**16  # beyond so many rows, running takes longer than compiling


def padded_length(n: int) -> int:
    """A number of rows ≥ n, at most an eighth larger (or 64): data sets of about one size share programs."""
    step = 1 << max(_FINEST, (n - 1).bit_length() - 4)
    return -(-n // step) * step


def padded(rows: Any) -> Any:
    """Rows (N, ...) with zeros below, up to the padded length.

    As they are where they are traced, or many, or not on one CPU device.
    """
    n = rows.shape[0]
    if n > _FEW or padded_length(n) == n or is_tracing() or not (is_concrete(rows) and is_one_cpu()):
        return rows
    below = [(0, padded_length(n) - n)] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(np.asarray(rows), below)


def library(value: Any) -> str:
    """The top-level module that a value's type comes from."""
    return type(value).__module__.partition(".")[0]


def is_frame(value: Any) -> bool:
    """Whether it is a data frame of pandas or Polars."""
    return library(value) in ("pandas", "polars") and hasattr(value, "columns")


def unmasked(value: Any, name: str) -> Any:
    """The value; of a masked array without masked entries, its data. Raise where an entry is masked."""
    if not isinstance(value, np.ma.MaskedArray):
        return value
    if np.ma.is_masked(value):
        at = tuple(int(i) for i in np.argwhere(np.ma.getmaskarray(value))[0])
        what = f"{name} is a masked array, and entry {at} is masked"
        raise ValueError(f"{what}. Leave such rows out, or fill them in (numpy.ma.filled), before the call.")
    return value.data


def _frame(frame: Any, name: str, allowed: bool = False) -> Any:
    """A data frame of pandas or Polars as an array, or an error that names the column."""
    polars = library(frame) == "polars"
    columns = list(zip(frame.columns, frame.get_columns(), strict=True) if polars else frame.items())
    for column, values in columns:
        dtype = values.dtype
        if not (dtype.is_numeric() or str(dtype) == "Boolean" if polars else dtype.kind in "biuf"):
            what = f"column {column!r} has dtype {dtype}"
            raise TypeError(f"{name} must hold real numbers; {what}. Leave it out, or turn it into numbers.")
    # NaN, which NumPy's own columns have for what is missing, is for the check of finite values.
    nullable = [(column, values) for column, values in columns if not isinstance(values.dtype, np.dtype)]
    for column, values in nullable:
        missing = values.is_null() if polars else values.isna()
        if missing.any() and not allowed:
            what = f"column {column!r} has a missing value in row {int(np.argmax(missing))}"
            raise ValueError(
                f"{name} must be finite; {what}. Use observe({name}, missing='nan'), or leave such rows out."
            )
    if polars:
        return np.column_stack([values.to_numpy() for _, values in columns])
    # NumPy makes objects of nullable columns, and of numbers and booleans side by side.
    array = frame.to_numpy(dtype=np.float64 if nullable else None)
    return array.astype(np.float64) if array.dtype.kind == "O" else array


_COARSE = 1e-3  # of a feature's standard deviation: how much of it a cast to float32 may round away
_LOOKED_AT = 1 << 16  # rows from which a standard deviation is estimated


def warn_of_rounding(source: np.ndarray[Any, Any], x: Array, name: str) -> None:
    """Warn where a cast to float32 rounds a feature by more than a thousandth of its standard deviation."""
    exact = source.dtype.kind not in "iuf" or source.dtype.itemsize < 4 or source.dtype == np.float32
    if exact or x.dtype != jnp.float32 or not source.size:
        return
    largest = np.abs([source.max(0).astype(np.float64), source.min(0).astype(np.float64)]).max(0)
    rounding = 0.5 * float(jnp.finfo(jnp.float32).eps) * largest
    rows = source[:: -(-len(source) // _LOOKED_AT)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = rows.std(0)
    bad = np.flatnonzero((rounding > _COARSE * deviation) & (deviation > 0) & np.isfinite(rounding))
    if not bad.size:
        return
    j = int(bad[0])
    others = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
    warnings.warn(
        f"{name} is rounded to float32: feature {j}{others} has a standard deviation of {deviation[j]:.3g} "
        f"about {rows[:, j].mean():.6g}, where float32 rounds by {rounding[j]:.2g}. Subtract the features' "
        "means first (X - X.mean(0)), or switch on float64: jax.config.update('jax_enable_x64', True).",
        UserWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """The stack level, as `warnings.warn` in the caller counts it, of the first frame outside the package."""
    package, level = __name__.partition(".")[0], 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (package, "jax"):
        frame, level = frame.f_back, level + 1
    return level
