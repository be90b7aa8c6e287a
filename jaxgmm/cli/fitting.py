"""Fits of the command line: the grid, its criteria, and interruption by Ctrl-C."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from jaxgmm._summary import evaluate
from jaxgmm.cli import signals
from jaxgmm.cli.options import LEFT_OUT

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

CRITERIA = ("aic", "bic", "icl")  # in every table; a criterion of rows left out only where it was asked for


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fit of the grid; the criteria are NaN where it failed."""

    covariance_type: str
    n_components: int
    n_parameters: int
    log_likelihood: float
    criteria: dict[str, float]
    status: str
    params: Any  # GMMParams in float64, only the components that are on
    spurious: str = ""  # what is wrong with the optimum, in words


def fit_structure(
    X: Array, sample_weight: Array | None, covariance_type: str, sizes: Sequence[int], options: dict[str, Any]
) -> list[Cell]:
    """Fit one covariance structure with every number of components.

    Args:
      X: (N, D), float64; NaN where an entry is missing.
      sample_weight: (N,) or None.
      covariance_type: the structure's name.
      sizes: the numbers of components.
      options: those of the command: "seed" of the starts; "float64", whether the fit computes in it;
        "n_init", None for a tournament of "budget" EM steps or the number of plain restarts; "criterion" and
        "folds", for the tournament; and what is passed on to `select` and `fit_components`.
    """
    import jax

    import jaxgmm
    from jaxgmm.mixture import active

    # What float32 would lose at a large offset is taken off in float64, and given back to the means below.
    dtype = np.float64 if options["float64"] else np.float32
    offset = np.zeros(X.shape[1]) if options["float64"] else np.nanmean(X, 0)
    weight = None if sample_weight is None else sample_weight.astype(dtype)
    seen = jaxgmm.observe((X - offset).astype(dtype), sample_weight=weight, missing="nan")
    data = (jax.random.key(options["seed"]), seen, tuple(sizes))
    settings = {name: options[name] for name in ("tol", "max_iter", "reg_covar")}
    settings["prior"] = None if options["prior"] == "none" else options["prior"]
    if options["n_init"] is None:
        choice = jaxgmm.select(
            *data, covariance_types=(covariance_type,), criterion=options["criterion"],
            n_folds=options["folds"], budget=options["budget"], progress=False, **settings,
        )  # fmt: skip
        results: Any = choice.results[covariance_type]
        rows: Any = choice.table
    else:
        settings |= {"covariance_type": covariance_type, "n_init": options["n_init"]}
        results = jaxgmm.fit_components(*data, **settings)
        rows = None
    cells = []
    for i, size in enumerate(sizes):
        one = jax.tree.map(lambda a, i=i: np.asarray(a)[i], results)
        status = jaxgmm.Status(int(one.status))
        failed = status not in (jaxgmm.Status.CONVERGED, jaxgmm.Status.MAX_ITER)
        row = evaluate(one.params, seen) if rows is None else rows[i]
        names = [name for name in (*CRITERIA, *LEFT_OUT) if name in row]
        params = _largest_first(active(one.params))
        cells.append(
            Cell(
                covariance_type=covariance_type,
                n_components=size,
                n_parameters=int(jaxgmm.n_parameters(params)),
                log_likelihood=float(one.log_likelihood),
                criteria={name: np.nan if failed else float(row[name]) for name in names},
                status=status.name,
                params=_widen(params, offset),
                spurious=row.get("spurious", ""),
            )
        )
    return cells


def _largest_first(params: Any) -> Any:
    """The mixture with its components by falling weight; a background stays the last."""
    from jaxgmm.mixture import take

    weights = np.array(params.log_weights)
    if params.component.has_background:
        weights[-1] = -np.inf
    return take(params, np.argsort(-weights, kind="stable"))


def best_cell(cells: Sequence[Cell], criterion: str) -> Cell | None:
    """The cell with the smallest criterion, a sound one where there is any; None where every fit failed."""
    usable = [cell for cell in cells if np.isfinite(cell.criteria[criterion])]
    sound = [cell for cell in usable if not cell.spurious]
    return min(sound or usable, key=lambda cell: cell.criteria[criterion], default=None)


def collapsed(params: Any, X: Array, reg_covar: float) -> list[int]:
    """The components that are, in some direction, no wider than the ridge that `reg_covar` adds."""
    variance = np.nanvar(X, 0)
    varying = variance > 0
    ridge = reg_covar * np.minimum(variance[varying], 1)
    if not (varying.any() and (ridge > 0).all()):
        return []
    covariances = np.asarray(params.covariances)[:, varying][:, :, varying]
    widths = np.linalg.eigvalsh(covariances / np.sqrt(ridge[:, None] * ridge)).min(1)
    return np.flatnonzero(widths < 2).tolist()


def run_steps(steps: Sequence[tuple[str, Callable[[], Result]]], patience: float = 2.0) -> list[Result]:
    """Run the steps in order, with a progress bar on a terminal once they have taken `patience` seconds.

    They run in a thread of their own: compiled code does not look for Ctrl-C, and so the main thread can.
    """
    results: list[Result] = []

    def work() -> None:
        results.extend(step() for _, step in steps)

    future = ThreadPoolExecutor(1).submit(work)
    _await(future, patience)
    if not future.done():
        _show(future, steps, results)
    future.result()
    return results


def _await(future: Future[None], seconds: float) -> None:
    """Wait for the end of the work, of that time, or of the process's own life."""
    end = time.monotonic() + seconds
    while not future.done() and (left := end - time.monotonic()) > 0:
        signals.check()
        wait([future], min(left, 0.1))
    signals.check()


def _show(future: Future[None], steps: Sequence[tuple[str, Any]], results: Sequence[Any]) -> None:
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        _await(future, math.inf)
        return
    text, count = bars.TextColumn("{task.description}"), bars.MofNCompleteColumn()
    columns = (bars.SpinnerColumn(), text, bars.BarColumn(20), count, bars.TimeElapsedColumn())
    with bars.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        while not future.done():
            done = min(len(results), len(steps) - 1)
            progress.update(task, description=steps[done][0], completed=len(results))
            _await(future, 0.1)


def _widen(params: Any, offset: Array) -> Any:
    """The mixture in float64 and in the data's place, its weights summing to 1 there too."""
    import jax

    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    log_weights = params.log_weights - np.log(np.exp(params.log_weights).sum())
    params = dataclasses.replace(params, log_weights=log_weights, means=params.means + offset)
    return jax.device_put(params)
