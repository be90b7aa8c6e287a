"""`fit_engine`: EM over data that an engine holds, one map and one sum for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.data import MISSING, Context
from jaxgmm.density import check_component, check_mixture
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions, check_options
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _checkpoint as checkpoints
from jaxgmm.outofcore import _host_driver as host_driver
from jaxgmm.outofcore._checkpoint import Checkpoint
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.outofcore._progress import Reporter
from jaxgmm.parallel._flat_sums import unflat
from jaxgmm.parallel.engines._blocks import moments_block, summary_block
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult


class Engine(Protocol):
    """Whatever can apply a function to every block of the rows that it holds, and add up what comes of it."""

    def map_reduce(self, function: Callable[..., Any], *broadcast: Any) -> Any:
        """Σ function(X, weights, *broadcast) over blocks X (n, D), n ≥ 1, with weights (n,) or None.

        `+` adds the results. Blocks may be of any length, as long as each row is in one of them. What is
        passed can be pickled: `broadcast` goes to every worker, and its arrays are NumPy's. To have the same
        bits twice, cut the blocks and add the results in the same order.
        """
        ...


def fit_engine(
    params: GMMParams,
    engine: Engine,
    *,
    missing: str = "error",
    tol: ArrayLike | None = None,
    max_iter: int = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool = True,
    options: EMOptions = DEFAULT_OPTIONS,
    checkpoint: Checkpoint | str | None = None,
    progress: bool | Callable[..., Any] | None = None,
) -> FitResult:
    """`fit` of data that an engine holds: each EM step is one map over blocks and one sum of `Statistics`.

    The iterations are those of `fit`; only parameters go to the workers, and only sums come back, in
    float64. A first pass surveys the data and checks them. What an engine does about workers that are lost,
    it does: a block that is computed again gives the same bits.

    Args:
      params: where to start, as in `fit`; the workers compute in the dtype of its means.
      engine: a `SparkEngine`, `DaskEngine`, `LocalEngine`, or what has their one method (`Engine`).
      missing: "error" refuses NaN; "nan" takes NaN for missing entries, as `observe` does.
      tol: as in `fit`, as is the rest.
      max_iter: as in `fit`.
      reg_covar: as in `fit`.
      prior: as in `fit`.
      accelerate: as in `fit`.
      options: the size of the history, as in `fit`.
      checkpoint: None, a `Checkpoint` or the path of one: where the fit is kept, and taken up from.
      progress: as in `fit_stream`.

    Returns:
      FitResult, that of `fit` of all rows to rounding.

    Raises:
      ValueError: for arguments that do not fit, or data that are not sound: other columns, NaN, infinite
        numbers, negative weights, no rows; the message says in which part and row.
      TypeError: for an engine without map_reduce.

    Example:
      >>> import jax, jaxgmm, numpy as np
      >>> from jaxgmm.parallel.engines import LocalEngine, fit_engine
      >>> X = np.random.default_rng(0).normal(size=(500, 2)).astype("float32")
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], "spherical")
      >>> result = fit_engine(start, LocalEngine([X[:200], X[200:]]), max_iter=5)
      >>> result.params.means.shape
      (2, 2)

    References:
      Chu et al. (2006), Map-reduce for machine learning on multicore, NIPS 19.
    """
    report = Reporter(progress)
    check_mixture(params)
    if not callable(getattr(engine, "map_reduce", None)) or isinstance(engine, type):
        raise TypeError(f"engine must have a method map_reduce, as LocalEngine has; got {engine!r}")
    kept = checkpoints.check(checkpoint)
    dtype = jnp.result_type(params.means.dtype)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, dtype, 1)
    checked = None if prior is None else priors.check(prior, params.model, params.means.shape, dtype)
    check_options(options).only("fit_engine", "history_size")
    gaps = validate.choice(missing, "missing", MISSING) == "nan"
    if gaps:
        check_component(params.component, "missing")
    summary = engine.map_reduce(summary_block, params.n_features, str(dtype), gaps)
    if not isinstance(summary, DataSummary) or not summary.total_weight > 0:
        raise ValueError("the engine holds no rows, or none with a weight above 0: there is nothing to fit")
    numbers = validate.tolerance(tol, summary.n_samples, dtype), *numbers[1:]

    def moments_about(point: GMMParams, f: Context) -> Statistics:
        sums = engine.map_reduce(moments_block, jax.device_get(point), np.asarray(f.shift), gaps)
        return unflat(jax.eval_shape(exact.zero, point), sums)

    return host_driver.fit(
        params, summary, moments_about, numbers, checked, history_size=options.history_size,
        source={"missing": missing} if gaps else {}, kept=kept, report=report,
    )  # fmt: skip
