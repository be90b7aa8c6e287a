"""`fit_distributed`: EM over the data of many processes, each of which reads its own."""

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
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _checkpoint as checkpoints
from jaxgmm.outofcore import _host_driver as host_driver
from jaxgmm.outofcore._checkpoint import Checkpoint, Settings
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.outofcore._host_driver import Interruption
from jaxgmm.outofcore._open_source import open_source
from jaxgmm.outofcore._progress import Reporter
from jaxgmm.outofcore._source import Source
from jaxgmm.outofcore._streaming_statistics import Passes, check_known, dtype_of, rows_of, summarise
from jaxgmm.parallel._flat_sums import flat, unflat
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes._collectives import agreed, digest, gather, gather_floats, sum_floats
from jaxgmm.parallel.processes._shutdown import Stopped
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.squarem import State


class _Kept:
    """A checkpoint that process 0 reads and writes, for all of them.

    Where it cannot be written, the next exchange tells everyone.
    """

    phase = 0  # there is one kernel

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._own = checkpoint if jax.process_index() == 0 else None
        self._problem: OSError | None = None
        self.path = None if checkpoint is None else checkpoint.path

    def check(self) -> None:
        """Raise where the checkpoint could not be written."""
        if self._problem is not None:
            raise self._problem

    def load(self, settings: Settings) -> State | None:
        if self.path is None:
            return None
        state = agreed(lambda: None if self._own is None else self._own.load(settings))
        own = flat((np.asarray(state is not None), settings.like if state is None else state))
        found = gather_floats(own)[0]
        return unflat(settings.like, found[1:]) if found[0] else None

    def due(self, state: State) -> bool:
        return self._own is not None and self._own.due(state)

    def save(self, state: State, settings: Settings) -> None:
        if self._own is not None:
            try:
                self._own.save(state, settings)
            except OSError as error:
                self._problem = error


def total_summary(local: DataSummary) -> DataSummary:
    """The summary of all processes from that of each."""
    gaps, none = local.seen_weight is not None, np.zeros_like(local.mean)
    arrays = [a for a in (local.mean, local.variance, local.seen_weight) if a is not None]
    total = DataSummary(0, 0.0, none, none, seen_weight=none if gaps else None)
    for a in gather_floats(flat((local.n_samples, local.total_weight, *arrays))):
        mean, variance, *seen = np.split(a[2:], len(arrays))
        one = DataSummary(int(a[0]), float(a[1]), mean, variance, seen_weight=seen[0] if gaps else None)
        total = total + one
    return total


def _kind(source: Source, dtype: Any) -> np.dtype:
    """The fit's dtype: that of the widest data of all processes."""
    return dtype_of(dtype, any(b == b"\1" for b in gather(bytes([bool(source.wide)]))))


def fit_distributed(
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
    chunk_size: int | None = None,
    dtype: Any = None,
    options: EMOptions = DEFAULT_OPTIONS,
    checkpoint: Checkpoint | str | None = None,
    progress: bool | Callable[..., Any] | None = None,
) -> FitResult:
    """`fit` of the data of all processes of a run, each of which reads its own part, of any length.

    Called by every process, with its own source and otherwise the same arguments. Each EM step is one pass of
    each process over its part; only `Statistics` are sent, and added in float64 in the processes' order, so
    that all of them hold the same numbers, and a run that is repeated gives the same bits. With one process
    it is `fit_stream` by the whitened kernel.

    What is wrong with the data of one process is told to all of them before anyone waits. For what else can
    happen to a process, call this within `together()`.

    Args:
      params: where to start, as in `fit`, the same in every process.
      source: this process's part, whatever `open_source` takes.
      columns: as in `open_source`.
      weight_column: as in `open_source`.
      missing: as in `fit_stream`, the same in every process.
      tol: as in `fit`.
      max_iter: as in `fit`; a step is a pass.
      reg_covar: as in `fit`.
      prior: as in `fit`.
      accelerate: as in `fit`.
      chunk_size: as in `fit_stream`.
      dtype: float32 or float64; None for float64 if the data of any process need it, and JAX allows it.
      options: the size of the history, as in `fit`.
      checkpoint: None, a `Checkpoint` or the path of one, which process 0 reads and writes. The same bits
        come of as many processes with the same parts; of others the same to rounding.
      progress: as in `fit_stream`, on process 0.

    Returns:
      FitResult, the same in every process.

    Raises:
      ProcessError: in every process, where something is wrong in one of them: data that are not sound, a file
        that cannot be read, arguments that do not fit, or a checkpoint of another fit; the message names the
        process, and the part and row.
      LostProcessError: where another process has ended, or cannot be reached.
      Stopped: within `together()`, on SIGTERM to any of them, once the state is kept. A `SystemExit`.

    Example:
      >>> import jaxgmm, numpy as np
      >>> from jaxgmm.parallel.processes import fit_distributed
      >>> X = np.random.default_rng(0).normal(size=(500, 2)).astype("float32")
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], "spherical")
      >>> fit_distributed(start, X, max_iter=5).params.means.shape
      (2, 2)
    """
    states = _Kept(None)
    collectives.signal.listening = True
    try:
        report, kept, data = agreed(
            lambda: _opened(params, source, columns, weight_column, dtype, checkpoint, progress)
        )
        gaps = agreed(lambda: validate.choice(missing, "missing", MISSING)) == "nan"
        states = _Kept(kept)
        kind = _kind(data, dtype)

        def watch(rows: int) -> None:
            report.watch(rows)
            if collectives.signal.asked:
                raise Interruption

        def prepared() -> tuple[Any, ...]:
            begin = jax.tree.map(lambda a: jnp.asarray(a, kind), params)
            numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, kind, 1)
            checked = None if prior is None else priors.check(prior, params.model, params.means.shape, kind)
            check_options(options).only("fit_distributed", "history_size")
            rows = rows_of(data, params.n_features, kind, chunk_size)
            k = params.n_components
            check_known(data, params.component, k, gaps)
            summary = summarise(data, rows, kind, watch=watch, missing=gaps, n_components=k)
            return begin, numbers, checked, Passes(data, summary, rows, kind, watch)

        begin, numbers, checked, passes = agreed(prepared)
        size = options.history_size
        collectives.same(
            digest(
                begin, params.model.name.encode(), numbers, checked, np.asarray([tol is None, size, gaps])
            ),
            "the processes of a fit must be given the same params and settings, and these were not",
        )
        summary = total_summary(passes.summary)
        numbers = validate.tolerance(tol, summary.n_samples, kind), *numbers[1:]
        result = host_driver.fit(
            begin, summary, lambda point, f: _moments(point, f, passes, states),
            numbers, checked, history_size=size, kept=states, report=report,
            source={"kind": "distributed", **({"missing": missing} if gaps else {})},
        )  # fmt: skip
        agreed(states.check)
        return result
    except Interruption:
        collectives.signal.answered = True
        agreed(states.check)
        kept_where = "" if states.path is None else f"; the state is kept in the checkpoint {states.path}"
        raise Stopped(f"stopped by SIGTERM{kept_where}", agreed=True) from None
    finally:
        collectives.signal.listening = False


def _opened(
    params: GMMParams,
    source: Any,
    columns: Any,
    weight_column: Any,
    dtype: Any,
    checkpoint: Any,
    progress: Any,
) -> tuple[Reporter, Checkpoint | None, Source]:
    """What can be checked without reading."""
    report = Reporter(progress if jax.process_index() == 0 else None)
    kept = checkpoints.check(checkpoint)
    check_mixture(params)
    data = open_source(source, columns, weight_column)
    dtype_of(dtype, data.wide)
    return report, kept, data


def _moments(point: GMMParams, f: Context, passes: Passes, states: _Kept) -> Statistics:
    """Of the rows of all processes, by a pass of each over its own."""

    def own() -> np.ndarray:
        states.check()
        sums: Any = 0.0
        for moments in passes.each(lambda: point, f):
            sums = sums + flat(jax.tree.leaves(moments))
        return sums

    # The processes' bits are the same unless their processors or versions of JAX are not; and then one of
    # them might take another iteration than the others, and wait for them.
    total = sum_floats(
        agreed(own),
        digest(point)[:6] + b"\0\0",  # a float64 that is no NaN
        "the processes have come to different parameters by rounding: run them on processors of one kind, "
        "with one version of JAX",
    )
    return unflat(jax.eval_shape(exact.zero, point), total)
