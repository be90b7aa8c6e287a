"""Input data of the estimators: centred in float64, cast to what JAX computes in, padded to few shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxgmm._host_arrays import padded_length, unmasked
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, View, find_patterns
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.observed import in_tiles

Host = np.ndarray[Any, Any]

_RANGE = 2.0**30  # residuals from its inverse to it have fourth powers in float32


class Rows(NamedTuple):
    """Data as the compiled programs take them, and as the host keeps them."""

    x: Array  # (B, D)  B ≥ N: X − offset, then rows of zeros
    weight: Array  # (B,)  sample weights, then zeros: padding counts for nothing
    host: Host  # (N, D)  X − offset in the same dtype
    offset: Host  # (D,)  float64
    sample_weight: Host | None  # (N,) as given, or None for ones
    known: Data | None = None  # x and weight with missing entries or labels, or None where there are none

    @property
    def data(self) -> Data:
        """The rows, their weights, and what else is known of them."""
        return Data(self.x, self.weight) if self.known is None else self.known

    def for_sums(self, model: Model, n_components: int) -> tuple[Data, int]:
        """The rows for sums over them, in another order where entries are missing; rows per block."""
        if self.known is None:
            return self.data, self.block_size(n_components)
        data = in_tiles(self.known, model.covariance)
        return data, min(rows_of(data, model.component, n_components), data.x.shape[0])

    def block_size(self, n_components: int) -> int:
        """How many rows a program takes at a time."""
        return block_rows(self.x.shape[0], n_components, self.x.shape[1])


def compute_dtype(dtype: Any) -> Any:
    """What JAX computes in for data of that dtype: float64 only for float64, and only where JAX has it."""
    return np.dtype(np.promote_types(np.float32, jax.dtypes.canonicalize_dtype(dtype)))


def padded(rows: Host, dtype: Any) -> Array:
    """Rows (N, ...) on the device, in a dtype, with zeros below up to the padded length."""
    below = padded_length(len(rows)) - len(rows)
    return jax.device_put(np.pad(rows.astype(dtype), [(0, below)] + [(0, 0)] * (rows.ndim - 1)))


def _shifted(X: Host, offset: Host, dtype: Any) -> Host:
    """X − offset, subtracted in float64 and then cast, with zeros below up to the padded length."""
    buffer = np.zeros((padded_length(len(X)), X.shape[1]), dtype)
    with np.errstate(over="ignore"):
        np.subtract(X, offset, out=buffer[: len(X)], casting="same_kind")
    return buffer


def in_blocks(
    function: Callable[[Any], Sequence[Array]], X: Host, offset: Host, dtype: Any, n_rows: int
) -> list[Host]:
    """What a function of rows gives of X − offset, computed for at most `n_rows` at a time; in X's dtype."""
    whole: list[Host] = []
    for first in range(0, len(X), n_rows):
        block = X[first : first + n_rows]
        found = function(_shifted(block, offset, dtype))
        whole = whole or [np.empty((len(X), *a.shape[1:]), X.dtype) for a in found]
        for a, part in zip(whole, found, strict=True):
            a[first : first + n_rows] = np.asarray(part)[: len(block)]
    return whole


def fits_float32(X: Host, sample_weight: Host | None = None) -> bool:
    """Whether products of residuals of X, and squares of these, stay within the range of float32."""
    X = X if sample_weight is None or (sample_weight > 0).all() else X[sample_weight > 0]
    # Missing entries do not count.
    top, bottom = np.fmax.reduce(X).astype(np.float64), np.fmin.reduce(X).astype(np.float64)
    extent = top / 2 - bottom / 2
    return bool(((extent <= _RANGE) & ((extent >= 1 / _RANGE) | (extent == 0))).all())


def load(X: Host, sample_weight: Host | None = None) -> Rows:
    """Rows of validated data (N, D), float32 or float64, less their mean where that keeps digits."""
    dtype = compute_dtype(X.dtype)
    seen = ~np.isnan(X)
    complete = bool(seen.all())
    some = slice(None, None, max(1, len(X) // 4096))
    if complete:
        location = np.average(X, axis=0, weights=sample_weight).astype(np.float64)
        spread = np.sqrt(np.average(np.square(X[some] - location), axis=0))
    else:
        weights = seen if sample_weight is None else seen * sample_weight[:, None]
        location = np.average(np.where(seen, X, 0), axis=0, weights=weights).astype(np.float64)
        spread = np.sqrt(np.nansum(np.square(X[some] - location), axis=0) / np.maximum(seen[some].sum(0), 1))
    # Data that lose digits in the cast are always centred; others only where the subtraction costs none.
    far = (np.abs(location) > spread) | (X.dtype != dtype)
    offset = np.where(far & np.isfinite(location), location, 0)
    buffer = _shifted(X, offset, dtype)
    weight = padded(np.ones(len(X)) if sample_weight is None else sample_weight, dtype)
    if complete:
        return Rows(jax.device_put(buffer), weight, buffer[: len(X)], offset, sample_weight)
    observed = np.ones(buffer.shape, bool)
    observed[: len(X)] = seen
    x, view = jax.device_put(np.where(observed, buffer, 0)), View(jax.device_put(observed))
    pattern, patterns = find_patterns(view)
    known = Data(x, weight, view.observed, pattern=pattern, patterns=patterns)
    return Rows(x, weight, buffer[: len(X)], offset, sample_weight, known)


def check_observed(X: Host, sample_weight: Host | None = None) -> None:
    """Raise where a feature has no observed entry in a row of positive weight."""
    seen = ~np.isnan(X if sample_weight is None else X[sample_weight > 0])
    if not seen.any(0).all():
        raise ValueError(f"feature {int(seen.any(0).argmin())} has no observed entry; leave it out of X")


def rows_with_gaps(x: Host) -> Data:
    """Rows (N, D), NaN where an entry is missing, for functions of single rows."""
    seen = ~np.isnan(x)
    return Data(*jax.device_put((np.where(seen, x, 0), None, seen)))


def check_weight(sample_weight: Any, X: Host) -> Host | None:
    """sample_weight (N,) as float64: finite, not negative, not all zero; None is None.

    Raises:
      ValueError: saying which of these it is not.
    """
    if sample_weight is None:
        return None
    weight = np.asarray(unmasked(sample_weight, "sample_weight"))
    if weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar; got shape {weight.shape}")
    if weight.shape != X.shape[:1]:
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {X.shape[:1]}!")
    weight = weight.astype(np.float64)
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"sample_weight must be finite and not negative; got {weight[at]} at index {at}")
    if not weight.any():
        raise ValueError("sample_weight must not be zero everywhere: no sample would be left")
    return weight
