"""Candidates of a search, and the best of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm import _validate as validate
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import has_failed


class Field(NamedTuple):
    """Candidates, all with leading axes (L, n): L numbers of components, n of each."""

    results: FitResult
    flags: Any  # int32, `Spurious`
    factors: Any  # `Factors`, or None for many features


def arrays(tree: Any) -> Any:
    """The module that moves mixtures between two programs: NumPy compiles nothing, but cannot be traced."""
    return np if validate.is_concrete(tree) else jnp


def _take(tree: Any, rows: Any) -> Any:
    """Lanes `rows` (L, n) of a tree with leading axes (L, m)."""
    at = np.arange(rows.shape[0])[:, None]
    return jax.tree.map(lambda a: a[at, rows], tree)


def _rank(field: Field, n: int) -> Any:
    """The best n (L, n): sound ones first, by objective; failed ones last."""
    xp = arrays(field)
    value = field.results.objective
    lost = has_failed(field.results.status) | ~xp.isfinite(value)
    # By objective within classes: two sorts, the second of which keeps the first one's order.
    order = _argsort(xp, -xp.where(lost, -xp.inf, value))
    rank = xp.take_along_axis(xp.where(lost, 2, xp.where(field.flags != 0, 1, 0)), order, 1)
    return xp.take_along_axis(order, _argsort(xp, rank), 1)[:, :n]


def _argsort(xp: Any, a: Any) -> Any:
    return np.argsort(a, axis=1, kind="stable") if xp is np else jnp.argsort(a, axis=1)


def best_of(field: Field, n: int) -> Field:
    """The best n (L, n), best first."""
    kept: Field = _take(field, _rank(field, n))
    return kept
