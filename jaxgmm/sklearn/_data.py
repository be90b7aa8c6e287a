"""Input data of the estimators: centred in float64, cast to what JAX computes in, padded to few shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm import _validate as validate
from jaxgmm._host_arrays import unmasked

Host = np.ndarray[Any, Any]

_RANGE = 2.0**30  # residuals from its inverse to it have fourth powers in float32
_FINEST = 6  # rows are padded to multiples of 2**6, and of an eighth of the power of two below


class Rows(NamedTuple):
    """Data as the compiled programs take them, and as the host keeps them."""

    x: Array  # (B, D)  B ≥ N: X − offset, then rows of zeros
    weight: Array  # (B,)  sample weights, then zeros: padding counts for nothing
    host: Host  # (N, D)  X − offset in the same dtype
    offset: Host  # (D,)  float64
    sample_weight: Host | None  # (N,) as given, or None for ones


def compute_dtype(dtype: Any) -> Any:
    """What JAX computes in for data of that dtype: float64 only for float64, and only where JAX has it."""
    return np.dtype(np.promote_types(np.float32, jax.dtypes.canonicalize_dtype(dtype)))


def padded_length(n: int) -> int:
    """A number of rows ≥ n, at most an eighth larger (or 64): data sets of about one size share programs."""
    step = 1 << max(_FINEST, (n - 1).bit_length() - 4)
    return -(-n // step) * step


def _offset(X: Host, sample_weight: Host | None, dtype: Any) -> Host:
    """(D,) what to subtract: the mean, where it is far enough from 0 for that to keep digits."""
    location = np.average(X, axis=0, weights=sample_weight).astype(np.float64)
    spread = np.sqrt(np.average(np.square(X[:: max(1, len(X) // 4096)] - location), axis=0))
    # Data that lose digits in the cast are always centred; others only where the subtraction costs none.
    far = np.abs(location) > spread if X.dtype == dtype else np.ones(len(location), bool)
    return np.where(far & np.isfinite(location), location, 0)


def shifted(X: Host, offset: Host, dtype: Any, length: int | None = None) -> Host:
    """X − offset (length, D), subtracted in float64 and then cast, with zeros below."""
    buffer = np.zeros((len(X) if length is None else length, X.shape[1]), dtype)
    for first in range(0, len(X), 65536):
        block = X[first : first + 65536]
        part = buffer[first : first + len(block)]
        with np.errstate(over="ignore"):
            np.subtract(block, offset, out=part, casting="same_kind")
    return buffer


def fits_float32(X: Host, sample_weight: Host | None = None) -> bool:
    """Whether products of residuals of X, and squares of these, stay within the range of float32."""
    X = X if sample_weight is None or (sample_weight > 0).all() else X[sample_weight > 0]
    top, bottom = X.max(0).astype(np.float64), X.min(0).astype(np.float64)
    extent = top / 2 - bottom / 2
    return bool(((extent <= _RANGE) & ((extent >= 1 / _RANGE) | (extent == 0))).all())


def load(X: Host, sample_weight: Host | None = None) -> Rows:
    """Rows of validated data (N, D), float32 or float64."""
    dtype = compute_dtype(X.dtype)
    offset = _offset(X, sample_weight, dtype)
    length = padded_length(len(X))
    buffer = shifted(X, offset, dtype, length)
    weight = np.zeros(length, dtype)
    weight[: len(X)] = 1 if sample_weight is None else sample_weight
    return Rows(jnp.asarray(buffer), jnp.asarray(weight), buffer[: len(X)], offset, sample_weight)


def check_weight(sample_weight: Any, X: Host) -> Host | None:
    """sample_weight (N,) as float64: finite, not negative, not all zero; None, and all ones, is None.

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
    weight = np.asarray(weight, np.float64)
    validate.weight(weight, jnp.zeros(X.shape[:1], jnp.float32))
    return weight
