"""Checks of hyperparameters, in scikit-learn's words."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from jaxgmm._host_arrays import is_frame, library, unmasked
from jaxgmm.components.weights import Model
from jaxgmm.sklearn._conversion import DIAG, SPHERICAL
from jaxgmm.sklearn._data import Host

Check = tuple[Callable[[Any], bool], str]


def _real(v: Any) -> bool:
    return isinstance(v, Real) and not isinstance(v, bool | np.bool_)


def integer(minimum: int) -> Check:
    """An int ≥ minimum."""
    words = f"an int in the range [{minimum}, inf)"
    return lambda v: isinstance(v, Integral) and _real(v) and int(v) >= minimum, words


def number(*, positive: bool = False, none: bool = False) -> Check:
    """A finite real number ≥ 0, or > 0; None too, if that is said."""
    words = f"a float in the range {'(' if positive else '['}0.0, inf)" + (" or None" if none else "")

    def holds(v: Any) -> bool:
        return none if v is None else _real(v) and bool(0 <= v < np.inf) and not (positive and v == 0)

    return holds, words


def option(*words: str) -> Check:
    """One of a few words."""
    return (lambda v: isinstance(v, str) and v in words, f"a str among {set(words)}")


def either(one: Check, other: Check) -> Check:
    """What one or the other check allows."""
    return (lambda v: one[0](v) or other[0](v), f"{one[1]} or {other[1]}")


FLAG: Check = (
    lambda v: isinstance(v, bool | np.bool_),
    "an instance of 'bool' or an instance of 'numpy.bool'",
)
VERBOSE: Check = either(integer(0), FLAG)


def set_parameters(self: Any, **parameters: Any) -> None:
    """Make the arguments of an estimator's `__init__`, its `locals()`, its parameters."""
    vars(self).update(parameters)


def check_parameters(estimator: Any, constraints: dict[str, Check]) -> None:
    """Raise for the first parameter that its constraint does not allow.

    Raises:
      ValueError: naming the parameter, what it must be and what it is.
    """
    for name, (holds, words) in constraints.items():
        value = getattr(estimator, name)
        if not holds(value):
            owner = type(estimator).__name__
            raise ValueError(f"The {name!r} parameter of {owner} must be {words}. Got {value!r} instead.")


def array(value: Any, shape: tuple[int, ...], name: str) -> Host:
    """An array of a shape, in float64."""
    a: Host = check_array(value, dtype=np.float64, ensure_2d=False, allow_nd=True)
    if a.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {a.shape}")
    return a


def weights_init(value: Any, n_components: int) -> Host:
    """(K,) weights, normalised."""
    weights = array(value, (n_components,), "weights")
    if (weights < 0).any() or (weights > 1).any():
        found = f"max value {weights.min():.5f}, min value {weights.max():.5f}"
        raise ValueError(f"The parameter 'weights' should be in the range [0, 1], but got {found}")
    if not abs(1 - weights.sum()) <= (1e-6 if getattr(value, "dtype", None) == np.float32 else 1e-8):
        found = f"sum(weights) = {weights.sum():.5f}"
        raise ValueError(f"The parameter 'weights' should be normalized, but got {found}")
    return weights


def precisions(value: Any, shape: tuple[int, ...], model: Model, what: str) -> Host:
    """Precisions, or what else must be positive definite, of a shape; float64."""
    a = array(value, shape, what)
    if model in (DIAG, SPHERICAL):
        if (a <= 0).any():
            raise ValueError(f"'{what}' should be positive")
        return a
    symmetric = np.allclose(a, np.swapaxes(a, -1, -2), rtol=1e-5, atol=1e-6 * np.abs(a).max())
    if not symmetric or (np.linalg.eigvalsh(a) <= 0).any():
        raise ValueError(f"'{what}' should be symmetric, positive-definite")
    return a


def data(estimator: Any, X: Any, *y: Any, missing: bool = False, **options: Any) -> Any:
    """X, and y where it is given, in float64 or float32 as scikit-learn's `validate_data` checks them.

    With `missing`, NaN and masked entries are allowed, and come back as NaN.
    """
    y = tuple(unmasked(a, "y") for a in y)
    if missing:
        options["ensure_all_finite"] = "allow-nan"
    return validate_data(estimator, table(X, missing), *y, dtype=[np.float64, np.float32], **options)


def table(X: Any, missing: bool = False) -> Any:
    """X as it is, once it is known not to be masked, and every column of a data frame to be numbers.

    With `missing`, masked entries become NaN, and columns may have missing values.

    Raises:
      ValueError: naming the masked entry or the column.
    """
    if missing and isinstance(X, np.ma.MaskedArray):
        X = np.where(np.ma.getmaskarray(X), np.asarray(np.nan, np.result_type(X.dtype, np.float32)), X.data)
    X = unmasked(X, "X")
    if library(X) != "pandas" or not is_frame(X):
        return X
    for column, values in X.items():
        if isinstance(values.dtype, np.dtype) and values.dtype.kind != "O":
            continue
        try:
            gaps = np.isnan(values.to_numpy(np.float64, na_value=np.nan))
        except (TypeError, ValueError) as error:
            raise ValueError(f"column {column!r} does not hold numbers: {error}") from None
        if gaps.any() and not missing:
            row = int(gaps.argmax())
            raise ValueError(f"Input X contains NaN: column {column!r} has a missing value in row {row}")
    return X
