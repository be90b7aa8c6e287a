"""Driver of a fit on the host, for statistics that come from a file, other processes or an engine.

It takes the iterations that `fit`'s compiled loop takes (`jaxgmm.solvers.squarem`), one call from the host at
a time. Between iterations everything that is known lies in one `State`, so that a fit can be kept and taken
up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgmm import _coordinates as coordinates
from jaxgmm import priors
from jaxgmm.data import Context
from jaxgmm.em import assessed
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.outofcore import _checkpoint as checkpoint
from jaxgmm.outofcore._data_summary import DataSummary, Numbers
from jaxgmm.outofcore._progress import Reporter
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import RUNNING, State


class Interruption(BaseException):
    """Raised where moments are asked for, to have the fit keep its state and stop."""


_hand_over = jit(squarem.hand_over)
_log_prior = jit(priors.log_density)


@functools.partial(jit, static_argnames="kernel")
def _update(
    s: State, statistics: Statistics, f: Context, numbers: Numbers, prepared: Any, *, kernel: Kernel
) -> State:
    tol, max_iter, _, accelerate = numbers
    e = assessed(s.point, statistics, f, kernel.rounding(s.point, prepared))
    return squarem.update(e, s, coordinates.extrapolation(s.point.model), tol, max_iter, accelerate)


def fit(
    params: GMMParams,
    summary: DataSummary,
    moments_about: Callable[..., Statistics],
    numbers: Numbers,
    prior: Prior | None,
    *,
    history_size: int,
    source: Mapping[str, Any],
    kept: Any,
    report: Reporter,
    kernels: tuple[Kernel, ...] = (WHITENED,),
    sweeping: Callable[[State, Context], State] | None = None,
    trim: float = 0.0,
) -> FitResult:
    """A fit from checked arguments.

    Args:
      params: where it starts, in the coordinates of the data.
      summary: of all rows.
      moments_about: from parameters whose means are relative to the shift of a context, and that context, the
        `Statistics` of all rows. Given a kernel and what it knows of the data, too, where it is another one
        than the whitened.
      numbers: as `validate.iteration` makes them.
      prior: a checked one, or None.
      history_size: of the result.
      source: what a checkpoint says of the data, as in `checkpoint.settings`.
      kept: a `Checkpoint`, or an object with its load, save, due and phase; or None.
      report: told of each step, and of the end.
      kernels: one after the other, as `em.run` has it.
      sweeping: what a fit that is not taken up begins with, or None.
      trim: the weight of the rows that the moments leave out.
    """
    f: Context = summary.context(numbers[2], prior, params)
    settings = checkpoint.settings(params, summary, f, numbers, prior, history_size, source)
    loaded = None if kept is None else kept.load(settings)
    phase = 0 if kept is None else kept.phase
    state = settings.like if loaded is None else loaded
    tol, max_iter = float(numbers[0]), int(numbers[1])

    def keep() -> None:
        if kept is not None:
            kept.phase = phase
            kept.save(state, settings)

    report.begin(summary.n_samples, max_iter, state)
    if loaded is None and sweeping is not None:
        state = sweeping(state, f)
    try:
        while True:
            kernel = kernels[phase]
            own = () if kernel is WHITENED else (kernel, summary.coordinates(f, params.component))
            prepared = own[1] if own else None
            while int(state.status) == RUNNING:
                moments = moments_about(state.point, f, *own)
                state = _update(state, moments, f, numbers, prepared, kernel=kernel)
                if kept is not None and kept.due(state):
                    keep()
                report.step(state, tol)
            if phase + 1 == len(kernels):
                return _result(state, f, summary.total_weight - trim, moments_about)
            state, phase = _hand_over(state, settings.like), phase + 1
    except (Interruption, KeyboardInterrupt):
        keep()
        raise
    finally:
        report.end()


def _result(
    state: State, f: Context, total_weight: float, moments_about: Callable[..., Statistics]
) -> FitResult:
    """What `jaxgmm.fit` would return: parameters in the coordinates of the data, with their own likelihood.

    Where the shift is not zero the last digits of the means may be lost when it is added back, which costs
    one more pass over the data: what is reported is the likelihood of what is returned.
    """
    fitted = translate(state.base, f.shift)
    log_likelihood = state.report
    if np.asarray(f.shift).any() and np.isfinite(log_likelihood):
        moments = moments_about(translate(fitted, -f.shift), f)
        log_likelihood = jnp.asarray(np.divide(moments.log_likelihood, moments.total_weight))
    objective = log_likelihood
    if f.prior is not None:
        log_prior = np.asarray(_log_prior(state.base, f.prior)[0])
        objective = jnp.asarray(np.asarray(log_likelihood) + log_prior / log_prior.dtype.type(total_weight))
    return FitResult(fitted, log_likelihood, objective, state.n_iter, state.status, state.history)
