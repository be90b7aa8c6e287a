"""Fits driven from the host: resumed from a checkpoint, iterated, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jaxgmm.data import Context
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _checkpoint as checkpoint
from jaxgmm.outofcore import _host_em as host_em
from jaxgmm.outofcore._checkpoint import Settings
from jaxgmm.outofcore._host_em import DataSummary, Numbers
from jaxgmm.outofcore._progress import Reporter
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.squarem import State


class Keeper(Protocol):
    """What keeps states: a `Checkpoint`, or one for many processes."""

    def load(self, settings: Settings) -> State | None:
        """The state that was kept, or None."""
        ...

    def save(self, state: State, settings: Settings) -> None:
        """Keep a state."""
        ...

    def due(self, state: State) -> bool:
        """Whether it is time to."""
        ...


class Interruption(BaseException):
    """Raised where moments are asked for, to have the fit keep its state and stop."""


def fit(
    params: GMMParams,
    summary: DataSummary,
    moments_about: Callable[[GMMParams, Context], Statistics],
    numbers: Numbers,
    prior: Prior | None,
    *,
    history_size: int,
    source: Mapping[str, Any],
    kept: Keeper | None,
    report: Reporter,
) -> FitResult:
    """A fit from checked arguments.

    Args:
      params: where it starts, in the coordinates of the data.
      summary: of all rows.
      moments_about: from parameters whose means are relative to the shift of a context, and that context, the
        `Statistics` of all rows.
      numbers: as `validate.iteration` makes them.
      prior: a checked one, or None.
      history_size: of the result.
      source: what a checkpoint says of the data, as in `checkpoint.settings`.
      kept: where the states are kept, or None.
      report: told of each step, and of the end.
    """
    f: Context = summary.context(numbers[2], prior, params)
    state = host_em.start(params, f, history_size)
    settings: Settings | None = None
    if kept is not None:
        settings = checkpoint.settings(params, summary, f, numbers, prior, history_size, source)
        earlier = kept.load(settings)
        state = state if earlier is None else earlier

    def moments_of(point: GMMParams) -> Statistics:
        return moments_about(point, f)

    def after(new: State) -> None:
        nonlocal state
        state = new
        if kept is not None and settings is not None and kept.due(new):
            kept.save(new, settings)
        report.step(new, float(numbers[0]))

    report.begin(summary.n_samples, int(numbers[1]), state)
    try:
        state = host_em.climb(state, f, numbers, moments_of, after)
        return host_em.result(state, f, summary.total_weight, moments_of)
    except (Interruption, KeyboardInterrupt):
        if kept is not None and settings is not None:
            kept.save(state, settings)
        raise
    finally:
        report.end()
