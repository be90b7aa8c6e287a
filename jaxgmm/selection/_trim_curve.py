"""Trimming curves: what more components and more trimming gain, from one batch of fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.registry import ModelLike
from jaxgmm.data import Data
from jaxgmm.density import get_data
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions
from jaxgmm.init._starts import Init
from jaxgmm.kernels.kept_share import weight_of
from jaxgmm.mixture import active
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import has_failed
from jaxgmm.selection._restarts import fit_many


@dataclasses.dataclass(frozen=True)
class TrimCurve:
    """Trimmed fits for L numbers of components and A trimmed shares.

    Attributes:
      n_components: the numbers of components.
      trims: the trimmed shares α.
      total: (L, A) the trimmed log-likelihood, Σ w log p(x) over the kept rows, in nats; NaN of a fit that
        has failed.
      kept: (A,) the weight of the kept rows.
      results: the fits, leading axes (L, A), with the arrays of the largest mixture.
    """

    n_components: tuple[int, ...]
    trims: tuple[float, ...]
    total: np.ndarray[Any, Any]  # (L, A)
    kept: np.ndarray[Any, Any]  # (A,)
    results: FitResult

    def result(self, n_components: int, trim: float) -> FitResult:
        """The fit of one number of components and one share, with only the components that are on.

        Raises:
          KeyError: if it is not among them.
        """
        if n_components not in self.n_components or trim not in self.trims:
            raise KeyError(
                f"no fit with n_components {n_components}, trim {trim}: there are {self.n_components} and "
                f"{self.trims}"
            )
        at = self.n_components.index(n_components), self.trims.index(trim)
        one: FitResult = jax.device_put(jax.tree.map(lambda a: np.asarray(a)[at], self.results))
        return dataclasses.replace(one, params=active(one.params))

    def __repr__(self) -> str:
        """The table of totals: a row for each number of components, a column for each share."""
        head = "".join(f"{f'α = {a:g}':>11}" for a in self.trims)
        rows = [
            f"K = {k:<3}" + "".join(f"{v:>11.1f}" for v in row)
            for k, row in zip(self.n_components, self.total, strict=True)
        ]
        return "\n".join(["trimmed log-likelihood (nats)", f"{'':7}{head}", *rows])


def trim_curve(
    key: Array,
    X: ArrayLike | Data,
    n_components: Sequence[int] = (1, 2, 3, 4),
    sample_weight: ArrayLike | None = None,
    *,
    trims: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.2),
    covariance_type: ModelLike = "full-ratio(50)",
    n_init: int = 10,
    init: Init = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    options: EMOptions = DEFAULT_OPTIONS,
) -> TrimCurve:
    """Trimmed fits for every number of components and every trimmed share, as one batch of one program.

    The curves of tclust's `ctlcurves`, with the likelihood of a mixture. Where one more component raises the
    whole curve, it describes a cluster; where it raises the curve only at small shares, it describes
    outliers. So take the least K, and then the least α, from which on the next curve is no higher.

    Args:
      key: a JAX PRNG key.
      X: (N, D).
      n_components: the L numbers of components.
      sample_weight: (N,) or None for ones.
      trims: the A shares α, each from 0 to below 1, as in `fit`.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`, that bounds the likelihood.
      n_init: starts for each fit; the best is kept.
      init: as in `fit_restarts`.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`.
      options: as in `fit_restarts`.

    Returns:
      A `TrimCurve`; `jaxgmm.plot.plot_trim_curve` draws it.

    Raises:
      ValueError, TypeError: as `fit_components`, and for traced data.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> curve = jaxgmm.selection.trim_curve(jax.random.key(1), X, (1, 2), trims=(0.0, 0.1), n_init=2)
      >>> curve.total.shape, curve.kept.tolist()
      ((2, 2), [200.0, 180.0])

    References:
      García-Escudero, Gordaliza, Matrán & Mayo-Iscar (2011), Exploring the number of groups in robust
      model-based clustering, Statistics and Computing 21.
    """
    if not validate.is_concrete(X, sample_weight):
        raise TypeError("trim_curve needs concrete data; inside jit use fit_components(..., trim=)")
    data = get_data(X, sample_weight)
    sizes = validate.sizes(n_components, data.x.shape[0])
    if isinstance(trims, str) or np.ndim(trims) != 1 or not len(trims):
        raise TypeError(f"trims must be a sequence of shares, such as (0.0, 0.05, 0.1); got {trims!r}")
    shares = np.asarray(trims, np.float64)
    pairs = tuple(k for k in sizes for _ in shares)
    results = fit_many(
        key, data, pairs, True, covariance_type, n_init, init, tol, max_iter, reg_covar, None, True, options,
        np.tile(shares, len(sizes)), (len(pairs),),
    )  # fmt: skip
    shape = len(sizes), len(shares)
    grid: FitResult = jax.tree.map(lambda a: np.asarray(a).reshape(shape + a.shape[1:]), results)
    n = float(data.x.shape[0]) if data.weight is None else float(np.asarray(data.weight, float).sum())
    kept = n - weight_of(shares, None if data.weight is not None else data.x.shape[0], n)
    mean = np.where(has_failed(grid.status), np.nan, grid.log_likelihood).astype(float)
    return TrimCurve(sizes, tuple(shares.tolist()), mean * kept[None, :], kept, grid)
