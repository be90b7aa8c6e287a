"""Units of the data: powers of two that bring features of extreme scale into the range of squares.

In float32 a square overflows from 1.8e19 on and is lost below 1e-19. Features whose standard deviation is
far from 1 are therefore divided by a power of two before a fit, which rounds nothing, and the result is
multiplied back. Ordinary data are left alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.weights import Model
from jaxgmm.data import Data
from jaxgmm.kernels.programs import is_concrete
from jaxgmm.mixture import GMMParams
from jaxgmm.result import FitResult

Host = np.ndarray[Any, Any]
Result = TypeVar("Result", bound=FitResult)


def _limit(dtype: Any) -> float:
    """Fourth powers of numbers up to this one, and of its inverse, do not leave the range of the dtype."""
    return 2.0 ** (int(jnp.finfo(dtype).maxexp) // 4 - 2)


def _ordinary(size: Host, limit: float) -> Host:
    return (size == 0) | ((size >= 1 / limit) & (size <= limit))


def units_of(x: Array, w: Array | None, model: Model | None = None) -> Host | None:
    """(D,) the units to divide features by, or None where the data need none or cannot be looked at.

    A unit is the least power of two that is not below the feature's standard deviation, so that variances in
    these units are at most 1; of a constant feature, not below its value. Features of ordinary scale have
    unit 1. Where the structure cannot have different units, the largest standard deviation decides for all.
    Without a model there is one unit for all, as for distances.
    """
    if not is_concrete(x, w) or not x.is_fully_addressable or (model is not None and not rescales(model)):
        return None
    rows, limit = np.asarray(x), _limit(x.dtype)
    weight = np.ones(len(rows)) if w is None else np.asarray(w, np.float64)
    if not (weight > 0).all():
        rows, weight = rows[weight > 0], weight[weight > 0]
    top, bottom = rows.max(0, initial=-np.inf).astype(float), rows.min(0, initial=np.inf).astype(float)
    if not (np.isfinite(top) & np.isfinite(bottom)).all():
        return None
    # A standard deviation is at most half the range.
    size, half_range = np.maximum(np.abs(top), np.abs(bottom)), top / 2 - bottom / 2
    if (_ordinary(size, limit) & _ordinary(half_range, limit)).all():
        return None
    scaled = rows / np.where(size > 0, size, 1)[None, :]
    share = weight / weight.sum()
    deviation = np.sqrt(share @ np.square(scaled - share @ scaled))
    varies = deviation > 8 * float(jnp.finfo(x.dtype).eps)
    spread = np.where(varies, deviation, 1) * size
    if model is None or not model.covariance.by_feature:
        spread = np.full_like(spread, spread.max(where=varies | ~varies.any(), initial=0))
    unit: Host = np.exp2(np.ceil(np.log2(np.where(_ordinary(spread, limit), 1, spread))))
    return None if (unit == 1).all() else unit


def of_data(data: Data, model: Model) -> Host | None:
    """`units_of` for `Data`: incomplete rows stay in the units that they have."""
    return units_of(data.x, data.weight, model) if data.is_plain else None


def rescales(model: Model) -> bool:
    """Whether mixtures of a model can be had in other units."""
    return model.covariance.rescale is not None and model.component.is_gaussian


def divide(x: Array, unit: Host) -> Array:
    """The data (N, D) in these units; rounded only where a number leaves the range of the dtype."""
    return jnp.asarray(np.asarray(x) / unit.astype(x.dtype)[None, :])


def multiply(x: Array, unit: Host) -> Array:
    """Rows (n, D) in these units as rows of the data."""
    return x * jnp.asarray(unit, x.dtype)[None, :]


def rescale(params: GMMParams, unit: Host) -> GMMParams:
    """The mixture of data whose features are multiplied by the units (D,)."""
    by = jnp.asarray(unit, params.means.dtype)
    if params.covariance.rescale is None:
        raise TypeError(f"{params.covariance.name!r} has no rescale")
    scatter = params.covariance.rescale(params.scatter, by)
    return dataclasses.replace(params, means=params.means * by[None, :]).with_scatter(scatter)


def ridge_in_units(reg_covar: Array, unit: Host) -> Array:
    """(D,) the `reg_covar` of each feature that gives the same ridge as `reg_covar` does in the data's units.

    The ridge is reg_covar · min(1, variance): relative for small features, and absolute for large ones, whose
    variance in their unit is at most 1 as well.
    """
    return jnp.asarray(reg_covar * np.minimum(1, 1 / np.square(unit)), reg_covar.dtype)


def multiply_back(result: Result, unit: Host) -> Result:
    """A fit in these units, or several with a leading axis, as a fit to the data themselves."""
    log_unit = jnp.asarray(np.log(unit).sum(), result.log_likelihood.dtype)

    def one(r: Result) -> Result:
        return dataclasses.replace(
            r,
            params=rescale(r.params, unit),
            log_likelihood=r.log_likelihood - log_unit,
            objective=r.objective - log_unit,
            history=r.history - log_unit,
        )

    for _ in range(result.status.ndim):
        one = jax.vmap(one)
    return one(result)
