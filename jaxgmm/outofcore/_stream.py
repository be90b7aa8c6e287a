"""`fit_stream`: exact EM on data that need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.data import MISSING, Context
from jaxgmm.density import check_mixture
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions, check_options
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.kept_share import weight_of
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from jaxgmm.outofcore import _checkpoint as checkpoints
from jaxgmm.outofcore import _host_driver as host_driver
from jaxgmm.outofcore._checkpoint import Checkpoint
from jaxgmm.outofcore._incremental import sweep
from jaxgmm.outofcore._open_source import open_source
from jaxgmm.outofcore._progress import Reporter
from jaxgmm.outofcore._streaming_statistics import Passes, check_known, dtype_of, rows_of, summarise
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.squarem import State


def fit_stream(
    params: GMMParams,
    source: Any,
    *,
    columns: Any = None,
    weight_column: Any = None,
    missing: str = "error",
    tol: ArrayLike | None = None,
    max_iter: int = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool = True,
    trim: float | None = None,
    incremental: bool = False,
    chunk_size: int | None = None,
    dtype: Any = None,
    options: EMOptions = DEFAULT_OPTIONS,
    checkpoint: Checkpoint | str | None = None,
    progress: bool | Callable[..., Any] | None = None,
) -> FitResult:
    """`fit` out of core: the same EM on data that are read from disk again in every step.

    A first pass checks every row and finds where the data are; from then on each step is one pass. A thread
    reads ahead while the device works. Memory does not grow with the data.

    Args:
      params: where to start, as in `fit`.
      source: the data: an array, paths, a data set, a function that returns arrays or `Data`, or anything
        else that `open_source` takes.
      columns: which columns are features, as in `open_source`.
      weight_column: which column holds sample weights, as in `open_source`.
      missing: "error" refuses NaN; "nan" takes NaN, a table's missing values, and the gaps of `Data`, for
        missing entries, as `observe` does.
      tol: as in `fit`.
      max_iter: as in `fit`; a step is a pass.
      reg_covar: as in `fit`.
      prior: as in `fit`.
      accelerate: as in `fit`.
      trim: as in `fit`, of all rows. The densities of a step have no place in memory: the threshold takes two
        more passes over the data in each step, four in float64.
      incremental: begin with sweeps of incremental EM, which take an M-step after each of up to 64 parts of
        the data: fewer passes far from the answer. Passes over all rows then decide, as without it.
      chunk_size: rows that are worked on at once; None chooses. Sums over rows are made in float64 from chunk
        to chunk, and compensated within one.
      dtype: float32 or float64; None follows the data as `fit` does.
      options: the kernel and the size of the history, as in `fit`.
      checkpoint: a `Checkpoint` or the path of one, from which the fit is taken up if it is there.
      progress: True for a line on stderr, with an estimate of the time left; or a function that is called
        with a `jaxgmm.outofcore.Progress` after each step.

    Returns:
      FitResult, as `fit` gives it for all rows as one array, to rounding. It has no derivatives.

    Raises:
      ValueError: for data that are not finite, an empty part, a part with other columns or that has changed:
        the message names part and row, and the last checkpoint is as it was. For a checkpoint of other data
        or settings, and as in `fit`.
      OSError: for a part that cannot be read, or a checkpoint that cannot be written.
      TypeError: for arguments of other kinds.

    Example:
      >>> import jaxgmm, numpy as np
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(rng.choice([-4.0, 4.0], (500, 1))).astype(np.float32)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> result = jaxgmm.fit_stream(start, X)
      >>> jaxgmm.Status(int(result.status)).name
      'CONVERGED'

    References:
      Neal & Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.
    """
    report = Reporter(progress)
    kept = checkpoints.check(checkpoint)
    check_mixture(params)
    data = open_source(source, columns, weight_column)
    kind = dtype_of(dtype, data.wide)
    component, shape = params.component, params.means.shape
    rows = rows_of(data, shape[1], kind, chunk_size)
    start = jax.tree.map(lambda a: jnp.asarray(a, kind), params)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, kind, 1)
    checked = None if prior is None else priors.check(prior, params.model, shape, kind)
    check_options(options).only("fit_stream", "history_size", "kernel")
    if not isinstance(incremental, bool | np.bool_):
        raise TypeError(f"incremental must be True or False; got {incremental!r}")
    gaps = validate.choice(missing, "missing", MISSING) == "nan"
    known = check_known(data, component, params.n_components, gaps)
    whitened = known or trim is not None
    kernel = quadratic.not_quadratic(options.kernel).name if whitened else options.kernel
    if trim is not None:
        validate.below_one(trim, "trim", kind)
        if incremental:
            raise ValueError("trim is not for incremental=True, which takes a step after a part of the rows")
    if incremental:
        change_of_reference.check(component, "incremental=True")
    # Of a source of unknown length it cannot be known beforehand whether the quadratic kernel will pay.
    most = 1 << 62 if data.n_samples is None else data.n_samples
    covariance = quadratic.choose(kernel, component, most, *shape) != (WHITENED,)

    try:
        summary = summarise(
            data, rows, kind, covariance=covariance, watch=report.watch, missing=gaps,
            n_components=params.n_components,
        )  # fmt: skip
        numbers = validate.tolerance(tol, summary.n_samples, kind), *numbers[1:]
        counts = summary.n_samples if summary.counted else None
        amount = None if trim is None else float(weight_of(trim, counts, summary.total_weight))
        passes = Passes(data, summary, rows, kind, report.watch, amount)
        kernels = quadratic.choose(kernel, component, summary.n_samples, *shape)
        names = "+".join(k.name for k in kernels)

        def sweeping(state: State, f: Context) -> State:
            return sweep(state, f, passes, int(numbers[1]), lambda s: report.step(s, float(numbers[0])))

        return host_driver.fit(
            start, summary, passes.moments, numbers, checked, history_size=options.history_size,
            source={
                **data.describe(), "kernel": names, "chunk_size": rows, "incremental": incremental,
                **({"missing": missing} if gaps else {}), **({} if trim is None else {"trim": float(trim)}),
            },
            kept=kept, report=report, kernels=kernels, sweeping=sweeping if incremental else None,
            trim=amount or 0.0,
        )  # fmt: skip
    finally:
        report.end()
