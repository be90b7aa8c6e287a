"""Commands ``fit``, ``predict`` and ``sample``: their options, checks and outputs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from jaxgmm._version import __version__
from jaxgmm.cli.columns import choose, match
from jaxgmm.cli.options import (
    FIT_HELP,
    GROUP_HELP,
    PREDICT_HELP,
    SAMPLE_HELP,
    SEED,
    Components,
    Group,
    Names,
    NotNegative,
    spell,
)
from jaxgmm.cli.tables import WRITABLE, UserError, check_target, read, write
from jaxgmm.em import MAX_ITER, REG_COVAR, TOL
from jaxgmm.selection._grid import BUDGET, FOLDS

if TYPE_CHECKING:
    from jaxgmm.mixture import GMMParams

_PICTURES = (".png", ".pdf", ".svg")
_ROWS_AT_ONCE = 1 << 17


@click.group(
    invoke_without_command=True,
    cls=Group,
    help=GROUP_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="jaxgmm", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """The command `jaxgmm`."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(help=FIT_HELP)
@click.argument("data", type=click.Path())
@click.option(
    "--components",
    "-k",
    type=Components(),
    default="1:9",
    show_default=True,
    help="Numbers of components: 3, 1:9 (both included), 1,2,5.",
)
@click.option(
    "--covariance",
    type=Names(),
    default="full,tied,diag,spherical",
    show_default=True,
    help="Covariance structures, joined by commas: full, VVE, factor(2), ...; all for mclust's fourteen.",
)
@click.option(
    "--criterion",
    type=click.Choice(["bic", "aic", "icl", "cv", "heldout"]),
    default="bic",
    show_default=True,
    help="What decides which fit is best; smaller is better. cv: minus the mean log-likelihood of rows left "
    "out, each fold in its turn; heldout: of one fold.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="INTEGER",
    default=FOLDS,
    show_default=True,
    help="Into how many parts cv and heldout divide the rows.",
)
@click.option(
    "--prior",
    type=click.Choice(["none", "default"]),
    default="none",
    show_default=True,
    help="default: Fraley and Raftery's weak one, under which components on few rows do not collapse.",
)
@click.option(
    "--columns", type=Names(), help="The columns to fit, joined by commas.  [default: all numeric ones]"
)
@click.option("--weights", metavar="COLUMN", help="A column of sample weights: how often each row counts.")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    default=BUDGET,
    show_default=True,
    help="EM steps spent on each fit's tournament of starts, before the finalists converge.",
)
@click.option(
    "--n-init",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    help="So many plain restarts for each fit, in place of the tournament.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of the starts; same seed, same result."
)
@click.option(
    "--tol",
    type=NotNegative(),
    metavar="NUMBER",
    default=TOL,
    show_default=True,
    help="How near its optimum a fit must be; about tol²/2 nats per row are left.",
)
@click.option(
    "--max-iter",
    type=click.IntRange(min=1),
    metavar="INTEGER",
    default=MAX_ITER,
    show_default=True,
    help="EM steps after which a fit gives up.",
)
@click.option(
    "--reg-covar",
    type=NotNegative(),
    metavar="NUMBER",
    default=REG_COVAR,
    show_default=True,
    help="Added to the diagonals of the covariances; times the variance of a column where that is below 1.",
)
@click.option(
    "--float64/--float32",
    default=True,
    show_default=True,
    help="Precision of the fit; float32 data are centred first.",
)
@click.option(
    "--plot",
    "plot",
    type=click.Path(),
    metavar="FILE",
    help="Draw the criterion and the best mixture: .png, .pdf or .svg.",
)
@click.option("--out", "out", type=click.Path(), metavar="MODEL.npz", help="Save the best mixture.")
def fit(
    data: str,
    components: tuple[int, ...],
    covariance: tuple[str, ...],
    criterion: str,
    folds: int,
    prior: str,
    columns: tuple[str, ...] | None,
    weights: str | None,
    budget: int,
    n_init: int | None,
    seed: int,
    tol: float,
    max_iter: int,
    reg_covar: float,
    float64: bool,
    plot: str | None,
    out: str | None,
) -> int:
    """Check, read, fit, print, and write."""
    if criterion in ("cv", "heldout") and n_init is not None:
        raise UserError(f"--criterion {criterion} needs the tournament: leave --n-init out")
    covariance = _structures(covariance)
    taken = {"the data": data}
    check_target(plot, "--plot", _PICTURES, taken)
    check_target(out, "--out", (".npz",), taken)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(name="matplotlib")
    table = read(data)
    names, notes = choose(table, columns, weights)
    X = table.matrix(names)
    covariance = _for_features(covariance, X.shape[1])
    sample_weight = None if weights is None else table.weights(weights)
    n_rows = len(X) if sample_weight is None else int((sample_weight > 0).sum())
    if criterion in ("cv", "heldout") and n_rows < folds:
        raise UserError(f"{data}: {n_rows} rows are too few for {folds} folds")
    if n_rows < max(2, components[-1]):
        raise UserError(
            f"{data}: {n_rows} rows are too few for {components[-1]} components"
            if components[-1] > 1
            else f"{data}: one row is too few for a mixture"
        )

    constant = [name for name, column in zip(names, X.T, strict=True) if column.min() == column.max()]
    if constant:
        notes.append(f"constant, and so no help in telling components apart: {', '.join(constant)}")
    for note in notes:
        _say(f"{data}: {note}")

    from jaxgmm.cli import fitting, report

    fitting.set_up_jax()
    options = {
        "criterion": criterion,
        "n_folds": folds,
        "prior": None if prior == "none" else prior,
        "budget": budget,
        "n_init": n_init,
        "tol": tol,
        "max_iter": max_iter,
        "reg_covar": reg_covar,
        "dtype": "float64" if float64 else "float32",
    }
    steps = [
        (
            f"fitting {name}, K = {spell(components)}",
            _step(X, sample_weight, name, components, seed, options),
        )
        for name in covariance
    ]
    try:
        cells = [cell for part in fitting.run_steps(steps) for cell in part]
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    best = fitting.best_cell(cells, criterion)

    screen = report.console()
    report.print_criteria(screen, cells, best, criterion, "row" if weights is None else "unit of weight")
    if best is None:
        _say(
            f"every fit failed ({cells[0].status}): "
            "try fewer components, --covariance diag, or a larger --reg-covar"
        )
        return 1
    size = f"{len(X)} rows, {len(names)} column{'s' if len(names) > 1 else ''}"
    screen.print(
        f"\nBest by {criterion.upper()}: {best.covariance_type}, K = {best.n_components}  ({size})\n"
    )
    report.print_mixture(screen, best, names)
    if out is not None:
        from jaxgmm.io import save

        save(out, best.params, columns=names)
        _say(f"saved {out}")
    if plot is not None:
        _draw(plot, best.params, X, [cell.row() for cell in cells], criterion, names, sample_weight)
        _say(f"drew {plot}")
    thin = fitting.collapsed(best.params, X, reg_covar)
    if thin:
        _say(
            f"collapsed onto a point, a line or a plane: component{'s' * (len(thin) > 1)} "
            f"{', '.join(map(str, thin))}; "
            "the criteria flatter this: try fewer components or a larger --reg-covar"
        )
    if best.status != "CONVERGED":
        _say("the best fit did not converge: raise --max-iter, or loosen --tol")
        return 1
    return 0


@cli.command(help=PREDICT_HELP)
@click.argument("model", type=click.Path())
@click.argument("data", type=click.Path())
@click.option(
    "--columns", type=Names(), help="The columns that play the model's, in its order.  [default: by name]"
)
@click.option(
    "--out",
    "out",
    type=click.Path(),
    metavar="FILE",
    help="Where to write: .csv, .parquet or .npy.  [default: CSV to stdout]",
)
def predict(model: str, data: str, columns: tuple[str, ...] | None, out: str | None) -> int:
    """Label rows."""
    check_target(out, "--out", WRITABLE, {"the model": model, "the data": data})
    params, known = _load(model)
    table = read(data)
    names = match(table, model, known, params.n_features, columns)
    X = table.matrix(names)

    import numpy as np

    import jaxgmm

    parts = []
    for first in range(0, len(X), _ROWS_AT_ONCE):
        resp, log_density = (np.asarray(a) for a in jaxgmm.e_step(params, X[first : first + _ROWS_AT_ONCE]))
        parts.append((resp.argmax(1), resp.max(1), log_density))
    label, responsibility, log_density = (np.concatenate(part) for part in zip(*parts, strict=True))
    write(out, {"label": label, "responsibility": responsibility, "log_density": log_density})
    return 0


@cli.command(help=SAMPLE_HELP)
@click.argument("model", type=click.Path())
@click.argument("n", type=click.IntRange(1, 10**9), metavar="N")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Same seed, same rows.")
@click.option("--labels", is_flag=True, help="Add a column `label`: which component drew the row.")
@click.option(
    "--out",
    "out",
    type=click.Path(),
    metavar="FILE",
    help="Where to write: .csv, .parquet or .npy.  [default: CSV to stdout]",
)
def sample(model: str, n: int, seed: int, labels: bool, out: str | None) -> int:
    """Draw rows."""
    check_target(out, "--out", WRITABLE, {"the model": model})
    params, known = _load(model)

    import jax
    import numpy as np

    import jaxgmm

    X, drawn = (np.asarray(a) for a in jaxgmm.sample(jax.random.key(seed), params, n))
    names = known or [f"x{j + 1}" for j in range(params.n_features)]
    columns = {name: X[:, j] for j, name in enumerate(names)}
    if labels:
        if "label" in columns:
            raise UserError(f"{model}: it has a column called 'label' itself; leave --labels out")
        columns["label"] = drawn
    write(out, columns)
    return 0


def _step(X: Any, weight: Any, name: str, sizes: Sequence[int], seed: int, options: dict[str, Any]) -> Any:
    from jaxgmm.cli.fitting import fit_structure

    return lambda: fit_structure(X, weight, name, sizes, seed, options)


def _structures(names: Sequence[str]) -> tuple[str, ...]:
    """The names, checked; `all` spelt out."""
    from jaxgmm.components import get_model
    from jaxgmm.selection._grid import STRUCTURES

    if tuple(names) == ("all",):
        return STRUCTURES
    for name in names:
        try:
            get_model(name)
        except ValueError as error:
            raise UserError(f"--covariance: {error}") from None
    return tuple(names)


def _for_features(names: tuple[str, ...], n_features: int) -> tuple[str, ...]:
    """The names; for one feature `all` is two of them."""
    from jaxgmm.selection._grid import STRUCTURES, UNIVARIATE

    return UNIVARIATE if n_features == 1 and names == STRUCTURES else names


def _load(model: str) -> tuple[GMMParams, list[str] | None]:
    """The model, computing in double precision, and its columns."""
    if not os.path.exists(model):
        raise UserError(f"{model}: no such file")
    from jaxgmm.cli.fitting import set_up_jax
    from jaxgmm.io import load, load_columns
    from jaxgmm.mixture import active

    set_up_jax()
    try:
        columns = load_columns(model)
        return active(load(model)), None if columns is None else list(columns)
    except IsADirectoryError:
        raise UserError(f"{model}: is a directory") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _draw(
    path: str, params: GMMParams, X: Any, rows: Any, criterion: str, names: Sequence[str], sample_weight: Any
) -> None:
    from matplotlib.figure import Figure

    from jaxgmm.io import atomic_write
    from jaxgmm.plot import plot_fit

    # A figure of its own, and no pyplot: this needs no window system, and leaves no state behind.
    figure = Figure(layout="constrained")
    plot_fit(params, X, rows, criterion=criterion, figure=figure, columns=names, sample_weight=sample_weight)
    with atomic_write(path) as stream:
        figure.savefig(stream, format=os.path.splitext(path)[1][1:].lower(), dpi=200)


def _say(note: str) -> None:
    click.echo(f"jaxgmm: {note}", file=sys.stderr)
