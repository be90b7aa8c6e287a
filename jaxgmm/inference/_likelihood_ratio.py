"""Likelihood-ratio test of K against K + 1 components, by parametric bootstrap."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _validate as validate
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.data import Data
from jaxgmm.density import check_drawable, check_sizes, get_data, sample_as
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions
from jaxgmm.inference._bootstrap import batched_map, lanes_at_once
from jaxgmm.init._starts import Init, check_init
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.programs import jit, work_of_fits
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import failed
from jaxgmm.selection._restarts import fit_components


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class LikelihoodRatio(display.Shown):
    """A bootstrapped likelihood ratio test, as `bootstrap_likelihood_ratio` gives it.

    Attributes:
      statistic: () 2 (log L of K + 1 components − log L of K), totals, on X.
      p_value: () (1 + how many of `null` reach the statistic) / (1 + how many there are).
      null: (n_replicates,) the statistic on data drawn from the fit with K components; NaN where a fit
        failed.
      results: a FitResult of the fits to X, index 0 with K components on, index 1 with K + 1.
    """

    statistic: Array  # ()
    p_value: Array  # ()
    null: Array  # (n_replicates,)
    results: FitResult

    def __repr__(self) -> str:
        """One line: the hypotheses, the statistic and its p-value."""
        log_weights, null = display.look(self.results.params.log_weights), display.look(self.null)
        statistic, p_value = display.look(self.statistic), display.look(self.p_value)
        if log_weights is None or null is None or statistic is None or p_value is None or statistic.ndim:
            return "LikelihoodRatio()"
        n, n_failed = (log_weights[0] > -np.inf).sum(), int(np.isnan(null).sum())
        drawn = f"{len(null)} replicates" + (f", of which {n_failed} failed" if n_failed else "")
        against = f"K = {n} against {n + 1}"
        return f"LikelihoodRatio({against}: statistic {statistic:.4g}, p = {p_value:.3g}, by {drawn})"

    def _table(self) -> display.Table | None:
        """The statistic beside quantiles of its distribution with K components."""
        statistic, p_value = display.look(self.statistic), display.look(self.p_value)
        null = display.look(self.null)
        if statistic is None or p_value is None or null is None or statistic.ndim or np.isnan(null).all():
            return None
        rows = [("data", f"{statistic:.2f}", f"{p_value:.3g}")]
        for tail in (0.5, 0.1, 0.05):
            rows.append(("replicates", f"{np.nanquantile(null, 1 - tail):.2f}", f"{tail:g}"))
        return display.Table(("", "2 log L₁/L₀", "p"), tuple(rows))


def _statistic(results: FitResult, n_samples: int) -> Array:
    """2 (log L₁ − log L₀), no less than 0, for the true optima are nested; NaN after a failure."""
    gain = 2 * n_samples * (results.log_likelihood[1] - results.log_likelihood[0])
    return jnp.where(failed(results).any(), jnp.nan, jnp.maximum(gain, 0))


def _work(
    key: Array, data: Data, *_: Any, sizes: tuple[int, ...], n_init: int, n_replicates: int, **__: Any
) -> float:
    return work_of_fits(len(data.x), max(sizes), data.n_features, 2 * n_init * n_replicates)


@functools.partial(
    jit, static_argnames=("sizes", "model", "n_init", "init", "n_replicates", "batch_size"), work=_work
)
def _test(
    key: Array, data: Data, numbers: dict[str, Any], *, n_replicates: int, batch_size: int, **static: Any
) -> LikelihoodRatio:
    x, n_samples, key_fit, key_null = data.x, data.x.shape[0], *jax.random.split(key)
    results = _fits(key_fit, data, numbers, DEFAULT_OPTIONS, **static)
    null_params = jax.tree.map(lambda a: a[0], results.params)
    n_lanes = 2 * static["n_init"] * batch_size
    rows = rows_of(data, null_params.component, null_params.n_components, n_lanes)
    options = EMOptions(block_size=rows, history_size=1)

    def replicate(key: Array) -> Array:
        key_data, key_fit = jax.random.split(key)
        drawn = sample_as(key_data, null_params, data)
        return _statistic(_fits(key_fit, drawn, numbers, options, **static), n_samples)

    null = batched_map(replicate, jax.random.split(key_null, n_replicates), batch_size)
    statistic = _statistic(results, n_samples)
    # A sum of ones and a comparison with NaN, which is false: a failed replicate counts nowhere.
    above = (null >= statistic).astype(x.dtype).sum()
    p_value = (1 + above) / (1 + jnp.isfinite(null).astype(x.dtype).sum())
    return LikelihoodRatio(statistic, jnp.where(jnp.isnan(statistic), jnp.nan, p_value), null, results)


def _fits(
    key: Array,
    data: Data,
    numbers: dict[str, Any],
    options: EMOptions,
    *,
    sizes: Any,
    model: Any,
    **starts: Any,
) -> FitResult:
    return fit_components(key, data, sizes, covariance_type=model, options=options, **numbers, **starts)


def bootstrap_likelihood_ratio(
    key: Array,
    X: ArrayLike | Data,
    n_components: int,
    *,
    covariance_type: ModelLike = "full",
    n_replicates: int = 99,
    n_init: int = 5,
    init: Init = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    batch_size: int | None = None,
) -> LikelihoodRatio:
    """Test K components against K + 1, by a parametric bootstrap of the likelihood ratio.

    A mixture with K components lies on the edge of those with K + 1, where 2 (log L₁ − log L₀) is not χ²
    distributed. So its distribution is drawn: from data sets sampled from the fit with K components, each
    fitted with K and with K + 1 in the same way as X was, restarts included. The p-value is right only as far
    as those restarts find the best optimum; and where K + 1 components admit spurious ones (a component on a
    few close points), a larger reg_covar or a covariance_type with fewer parameters gives the test power.

    Args:
      key: a JAX PRNG key.
      X: (N, D), or `Data`: what is drawn then has the same missing entries, the same noise, and the labels of
        the same rows. Without sample_weight, log_prior, groups or projections.
      n_components: K of the null hypothesis; static.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      n_replicates: data sets drawn; static. The smallest possible p-value is 1 / (n_replicates + 1).
      n_init: starts for each fit, of X and of every replicate; static.
      init: as in `fit_restarts`.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`.
      batch_size: replicates fitted at once under `vmap`, as in `bootstrap`; each is 2 · n_init fits.

    Returns:
      LikelihoodRatio. Replicates in which a fit failed are NaN in `null` and do not count.

    Raises:
      ValueError, TypeError: as `fit_components`.

    Example:
      >>> import jax, jaxgmm, numpy as np
      >>> X = np.random.default_rng(0).normal([-3.0, 3.0], size=(50, 2)).reshape(-1, 1)
      >>> test = jaxgmm.inference.bootstrap_likelihood_ratio(
      ...     jax.random.key(1), X, 1, covariance_type="spherical", n_replicates=19, n_init=1,
      ...     init="random_points",
      ... )
      >>> round(float(test.p_value), 2)  # one component will not do
      0.05

    References:
      McLachlan (1987), On bootstrapping the likelihood ratio test statistic for the number of components in a
      normal mixture, Applied Statistics 36.
    """
    data = get_data(X)
    check_drawable(data, "bootstrap_likelihood_ratio")
    x = data.x
    n = validate.n_components(n_components, x.shape[0] - 1)
    check_sizes(data, (n,))
    n_replicates = validate.count(n_replicates, "n_replicates", 1)
    numbers = {
        "tol": validate.tolerance(tol, x.shape[0], x.dtype),
        "max_iter": validate.step_limit(max_iter),
        "reg_covar": validate.not_negative(reg_covar, "reg_covar", x.dtype),
    }
    return _test(
        validate.key(key), data.by_row(), numbers, sizes=(n, n + 1), model=get_model(covariance_type),
        init=check_init(init), n_init=validate.count(n_init, "n_init", 1), n_replicates=n_replicates,
        batch_size=lanes_at_once(batch_size, n_replicates),
    )  # fmt: skip
