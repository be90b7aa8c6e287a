"""Commands ``fit``, ``predict``, ``impute`` and ``sample``: their options, checks and outputs."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from jaxgmm._defaults import FOLDS, MAX_ITER, REG_COVAR, SEARCH_BUDGET
from jaxgmm._version import __version__
from jaxgmm.cli import filling
from jaxgmm.cli import options as texts
from jaxgmm.cli.columns import choose, match
from jaxgmm.cli.options import LEFT_OUT, finite, integers, name_list, spell
from jaxgmm.cli.reading import Format, read
from jaxgmm.cli.tables import WRITABLE, Table, UserError, check_target, write, write_frame

if TYPE_CHECKING:
    from jaxgmm.mixture import GMMParams

Array = np.ndarray[Any, Any]

_ROWS_AT_ONCE = 1 << 17
_FLATTERED = "the criteria flatter this: try fewer components or a larger --reg-covar"
Decorator = Callable[[Callable[..., int]], Callable[..., int]]


def option(*names: str, **settings: Any) -> Decorator:
    """A `click.option` whose help shows its default."""
    return click.option(*names, show_default=True, **settings)


def file(*names: str, **settings: Any) -> Decorator:
    """An option that names a file to write."""
    return click.option(*names, type=click.Path(), **{"metavar": "FILE", **settings})


def whole(name: str, minimum: int, **settings: Any) -> Decorator:
    """An option that is a whole number ≥ minimum."""
    return option(name, type=click.IntRange(min=minimum), metavar="INTEGER", **settings)


def real(name: str, **settings: Any) -> Decorator:
    """An option that is a finite number ≥ 0."""
    return option(name, type=click.FloatRange(min=0), metavar="NUMBER", callback=finite, **settings)


def named(name: str, **settings: Any) -> Decorator:
    """An option that is a list of names."""
    return option(name, metavar="NAMES", callback=name_list, **settings)


def tabular(command: Callable[..., int]) -> Callable[..., int]:
    """The options that say how a text is a table; the command takes them together, as `form`."""

    @click.option("--delimiter", metavar="CHAR", help=texts.OPTIONS["delimiter"])
    @click.option("--decimal-comma", is_flag=True, help="1,5 is one and a half.")
    @click.option("--no-header", is_flag=True, help=texts.OPTIONS["no_header"])
    @click.option("--encoding", metavar="NAME", help=texts.OPTIONS["encoding"])
    @functools.wraps(command)
    def known(
        *arguments: Any, delimiter: str | None, decimal_comma: bool, no_header: bool, encoding: str | None,
        **rest: Any,
    ) -> int:  # fmt: skip
        delimiter = "\t" if delimiter == "\\t" else delimiter
        return command(*arguments, form=Format(delimiter, decimal_comma, not no_header, encoding), **rest)

    return known


_OUT = file("--out", help="Where to write: .csv, .parquet or .npy.  [default: CSV to stdout]")
_INPUT = click.Path(readable=False)  # click 8.1.0 says of what is not readable that it is not executable
_COLUMNS = named("--columns", help=texts.OPTIONS["columns of the model"])
_MODEL, _DATA = click.argument("model", type=_INPUT), click.argument("data", type=_INPUT)
_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(invoke_without_command=True, context_settings=_HELP)
@click.version_option(__version__, prog_name="jaxgmm", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Gaussian mixtures: fit them to a table, label rows, fill in values, draw new rows.

    \b
    Example:
      jaxgmm fit faithful.csv --components 1:6 --plot faithful.png --out old.npz
      jaxgmm predict old.npz faithful.csv --out labels.csv
      jaxgmm impute old.npz gaps.csv --out filled.csv
      jaxgmm sample old.npz 1000 --out new.csv
    """  # noqa: D301 - click reads \b, which keeps the lines below it as they are
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@_DATA
@option("--components", "-k", metavar="K", callback=integers, default="1:9", help=texts.OPTIONS["components"])
@named("--covariance", default="full,tied,diag,spherical", help=texts.OPTIONS["covariance"])
@option("--criterion", type=texts.CRITERION, default="bic", help=texts.OPTIONS["criterion"])
@whole("--folds", 2, default=FOLDS, help="Into how many parts cv and heldout divide the rows.")
@option("--prior", type=click.Choice(["none", "default"]), default="none", help=texts.OPTIONS["prior"])
@named("--columns", help=texts.OPTIONS["columns"])
@option("--weights", metavar="COLUMN", help="A column of sample weights: how often each row counts.")
@option(
    "--missing", type=click.Choice(["error", "fit", "drop"]), default="error", help=texts.OPTIONS["missing"]
)
@whole("--budget", 1, default=SEARCH_BUDGET, help=texts.OPTIONS["budget"])
@whole("--n-init", 1, help="So many plain restarts for each fit, in place of the tournament.")
@option("--seed", type=texts.SEED, default=0, help="Seed of the starts; same seed, same result.")
@real("--tol", help=texts.OPTIONS["tol"])
@whole("--max-iter", 1, default=MAX_ITER, help="EM steps after which a fit gives up.")
@real("--reg-covar", default=REG_COVAR, help=texts.OPTIONS["reg_covar"])
@option("--float64/--float32", default=True, help="Precision of the fit; float32 data are centred first.")
@file("--plot", help="Draw the criterion and the best mixture: .png, .pdf or .svg.")
@file("--out", metavar="MODEL.npz", help="Save the best mixture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables.")
@tabular
def fit(
    data: str,
    components: tuple[int, ...],
    covariance: tuple[str, ...],
    columns: tuple[str, ...] | None,
    weights: str | None,
    missing: str,
    plot: str | None,
    out: str | None,
    as_json: bool,
    form: Format,
    **options: Any,
) -> int:
    """Fit mixtures to DATA (.csv, .tsv, either with .gz, .parquet, .feather, .xlsx, .npy) and keep the best.

    DATA may be - for CSV from stdin.

    Every covariance structure is fitted with every number of components K. The first table has one row per
    fit, the best marked with *:

    \b
      covariance   how the components' covariances are restricted: full (not),
                   tied (all the same), diag (diagonal), spherical (the same
                   variance in every direction); or one of mclust's
                   fourteen, such as VVE or EEI
      K            number of components
      parameters   free parameters of the mixture
      log-lik.     mean log-likelihood per row, in nats; larger is better
      AIC BIC ICL  -2 log L plus a penalty for parameters, and in ICL for
                   overlap; smaller is better; - where the fit failed. With
                   --criterion cv or heldout a column for it, in nats per row
      fit          converged, or why not; and what makes an optimum spurious
                   (few samples, too narrow, twins): it wins only where no other
                   is sound

    The second table has the best mixture: each component's weight, and the mean and standard deviation of
    each column within it. Components are numbered from 0, the largest first, in the picture and in `jaxgmm
    predict` too.

    Without --columns, columns that are not numeric are left out, and so is a first column that only numbers
    the rows. The columns of an .npy array are called x1, x2, and so on.

    A value is missing where a cell is empty or says NA, N/A, NaN, null, none, ?, - or a full stop. That is an
    error unless --missing says what to do. With --missing fit the log-likelihood is that of the values that
    are there, and a row counts as one row however many it has.

    \b
    Exit status: 0; 1 if the best fit did not converge; 2 for a mistake in the
    command or the data, before anything is written.

    \b
    Example:
      jaxgmm fit faithful.csv --components 1:6 --covariance full,tied
      jaxgmm fit gaps.csv --missing fit --out model.npz
    """  # noqa: D301 - click reads \b, which keeps the lines below it as they are
    from jaxgmm.selection._grid import UNIVARIATE

    criterion, folds = options["criterion"], options["folds"]
    if criterion in LEFT_OUT and options["n_init"] is not None:
        raise UserError(f"--criterion {criterion} needs the tournament: leave --n-init out")
    structures = _structures(covariance)
    check_target(plot, "--plot", (".png", ".pdf", ".svg"), {"the data": data})
    check_target(out, "--out", (".npz",), {"the data": data})
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(name="matplotlib")
    table = read(data, form)
    names, notes = choose(table, columns, weights)
    X = table.matrix(names, gaps=missing != "error", hint="use --missing fit")
    if len(names) == 1:
        structures, same = (UNIVARIATE, []) if covariance == ("all",) else _distinct_in_one(structures)
        notes.extend(same)
    sample_weight = None if weights is None else table.weights(weights)
    X, sample_weight, left_out = _without_gaps(table, names, X, sample_weight, missing)
    notes.extend(left_out)
    counted = np.ones(len(X), bool) if sample_weight is None else sample_weight > 0
    gaps = np.isnan(X)
    for name, empty in zip(names, np.all(gaps[counted], axis=0), strict=True):
        if empty:
            where = "" if counted.all() else " in a row with weight"
            raise UserError(f"{data}: column {name!r} has no value{where}; leave it out with --columns")
    n_rows = int((counted & ~gaps.all(1)).sum())
    if criterion in LEFT_OUT and n_rows < folds:
        raise UserError(f"{data}: {n_rows} rows are too few for {folds} folds")
    if n_rows < components[-1]:
        raise UserError(f"{data}: {n_rows} rows are too few for {components[-1]} components")
    if n_rows < 2:
        raise UserError(f"{data}: one row is too few for a mixture")
    least, most = np.nanmin(X, 0), np.nanmax(X, 0)
    constant = [name for name, low, high in zip(names, least, most, strict=True) if low == high]
    if constant:
        notes.append(f"constant, and so no help in telling components apart: {', '.join(constant)}")
    for note in notes:
        _say(f"{data}: {note}")

    import jax

    from jaxgmm.cli import fitting, report

    jax.config.update("jax_enable_x64", True)
    steps = [
        (
            f"fitting {name}, K = {spell(components)}",
            lambda name=name: fitting.fit_structure(X, sample_weight, name, components, options),
        )
        for name in structures
    ]
    try:
        cells = [cell for part in fitting.run_steps(steps) for cell in part]
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    best = fitting.best_cell(cells, criterion)

    if as_json:
        report.print_json(cells, best, criterion, names, len(X))
    else:
        screen = report.console()
        unit = "row" if weights is None else "unit of weight"
        report.print_criteria(screen, cells, best, criterion, unit)
        if best is not None:
            incomplete = f"{_count_gaps(gaps)}; fitted to the others." if gaps.any() else ""
            report.print_best(screen, best, criterion, names, len(X), incomplete)
    if best is None:
        remedies = "try fewer components, --covariance diag, or a larger --reg-covar"
        _say(f"every fit failed ({cells[0].status}): {remedies}")
        return 1
    if out is not None:
        from jaxgmm.io import save

        save(out, best.params, columns=names)
        _say(f"saved {out}")
    if plot is not None:
        rows = [vars(cell) | cell.criteria for cell in cells]
        _draw(plot, best.params, X, rows, sample_weight, criterion=criterion, columns=names)
        _say(f"drew {plot}")
    thin = fitting.collapsed(best.params, X, options["reg_covar"])
    if thin:
        which = f"component{'s' * (len(thin) > 1)} {', '.join(map(str, thin))}"
        _say(f"collapsed onto a point, a line or a plane: {which}; {_FLATTERED}")
    if best.status != "CONVERGED":
        _say("the best fit did not converge: raise --max-iter, or loosen --tol")
        return 1
    return 0


@cli.command()
@_MODEL
@_DATA
@_COLUMNS
@option(
    "--missing", type=click.Choice(["error", "fit"]), default="error", help=texts.OPTIONS["missing in rows"]
)
@click.option("--keep", is_flag=True, help="Write the columns of DATA too, before the others.")
@_OUT
@tabular
def predict(
    model: str,
    data: str,
    columns: tuple[str, ...] | None,
    missing: str,
    keep: bool,
    out: str | None,
    form: Format,
) -> int:
    """Label the rows of DATA with the components of MODEL.

    Writes one row per row of data:

    \b
      label           the likeliest component, numbered from 0
      responsibility  the probability that the row came from it
      log_density     log p(row) under the mixture, in nats; low where the row
                      is unlike the data that were fitted

    With --missing fit all three are those of the values that a row has. A row without any has the
    log-density 0, and the component of the largest weight.

    \b
    Example:
      jaxgmm predict model.npz faithful.csv --out labels.csv
      jaxgmm predict model.npz gaps.csv --missing fit --keep --out labelled.csv
    """  # noqa: D301 - click reads \b, which keeps the lines below it as they are
    check_target(out, "--out", WRITABLE, {"the model": model, "the data": data})
    params, known = _load(model)
    table = read(data, form, keep_text=keep)
    names = match(table, model, known, params.n_features, columns)
    added = ("label", "responsibility", "log_density")
    if keep and (taken := [name for name in added if name in table.names]):
        raise UserError(f"{data}: it has a column called {taken[0]!r} itself; leave --keep out")
    if keep:
        filling.check_format(table, names, out)
    X = table.matrix(names, gaps=missing != "error", hint="use --missing fit")

    import jaxgmm

    parts = []
    for first in range(0, len(X), _ROWS_AT_ONCE):
        rows = jaxgmm.observe(X[first : first + _ROWS_AT_ONCE], missing="nan")
        try:
            resp, log_density = (np.asarray(a) for a in jaxgmm.e_step(params, rows))
        except ValueError as error:
            raise UserError(f"{model}: {error}") from None
        parts.append((resp.argmax(1), resp.max(1), log_density))
    label, responsibility, log_density = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = {"label": label, "responsibility": responsibility, "log_density": log_density}
    if keep:
        write_frame(out, filling.beside(table, found, out), table)
    else:
        write(out, found)
    return 0


@cli.command()
@_MODEL
@_DATA
@_COLUMNS
@whole("--draws", 1, help="Fill in so many random draws, in place of the means.")
@option("--seed", type=texts.SEED, default=0, help="Seed of the draws; same seed, same values.")
@_OUT
@tabular
def impute(
    model: str,
    data: str,
    columns: tuple[str, ...] | None,
    draws: int | None,
    seed: int,
    out: str | None,
    form: Format,
) -> int:
    """Fill in the missing values of DATA by MODEL.

    Writes the table with a number for each missing value in the columns of the model: its mean given the
    values that the row has. All else is kept as it is: the values that are there, the other columns, and
    the order of rows and columns. From CSV to CSV cells keep their text.

    With --draws N it writes N copies of the table, one below the other, with a column `draw`, 1 to N, at the
    end. Each copy is filled in by draws from the distribution of what is missing given what is there, so that
    the copies differ as much as the model leaves open: multiple imputation, for a given model.

    \b
    Example:
      jaxgmm impute model.npz gaps.csv --out filled.csv
      jaxgmm impute model.npz gaps.csv --draws 20 --seed 1 --out draws.parquet
    """  # noqa: D301 - click reads \b, which keeps the lines below it as they are
    check_target(out, "--out", WRITABLE, {"the model": model, "the data": data})
    params, known = _load(model)
    table = read(data, form, keep_text=True)
    names = match(table, model, known, params.n_features, columns)
    X = table.matrix(names, gaps=True)
    if draws is not None and "draw" in table.names:
        raise UserError(f"{data}: it has a column called 'draw' itself; leave --draws out")

    import jax

    import jaxgmm

    filling.check_format(table, names, out)
    key = jax.random.key(seed)
    keys = [None] if draws is None else [jax.random.fold_in(key, i) for i in range(draws)]
    try:
        copies = [np.asarray(jaxgmm.impute(params, X, k)) for k in keys]
    except ValueError as error:
        raise UserError(f"{model}: {error}") from None
    write_frame(out, filling.fill(table, names, copies, out, draw=draws is not None), table)
    gaps = np.isnan(X)
    _say(f"{data}: {_count_gaps(gaps)}; filled in" if gaps.any() else f"{data}: no value is missing")
    return 0


@cli.command()
@_MODEL
@click.argument("n", type=click.IntRange(1, 10**9), metavar="N")
@option("--seed", type=texts.SEED, default=0, help="Same seed, same rows.")
@click.option("--labels", is_flag=True, help="Add a column `label`: which component drew the row.")
@_OUT
def sample(model: str, n: int, seed: int, labels: bool, out: str | None) -> int:
    """Draw N rows from MODEL.

    \b
    Example:
      jaxgmm sample model.npz 1000 --seed 1 --out new.csv
    """  # noqa: D301 - click reads \b, which keeps the lines below it as they are
    check_target(out, "--out", WRITABLE, {"the model": model})
    params, known = _load(model)

    import jax

    import jaxgmm

    X, drawn = (np.asarray(a) for a in jaxgmm.sample(jax.random.key(seed), params, n))
    names = known or [f"x{j + 1}" for j in range(params.n_features)]
    columns = dict(zip(names, X.T, strict=True))
    if labels:
        if "label" in columns:
            raise UserError(f"{model}: it has a column called 'label' itself; leave --labels out")
        columns["label"] = drawn
    write(out, columns)
    return 0


def _without_gaps(
    table: Table, names: Sequence[str], X: Array, sample_weight: Array | None, missing: str
) -> tuple[Array, Array | None, list[str]]:
    """The rows and weights to fit, without those with gaps where these are dropped; and what to tell."""
    incomplete = np.isnan(X).any(1)
    if not incomplete.any():
        return X, sample_weight, []
    if missing == "drop":
        if incomplete.all():
            raise UserError(f"{table.path}: every row has a missing value; use --missing fit")
        kept = None if sample_weight is None else sample_weight[~incomplete]
        if kept is not None and not kept.any():
            raise UserError(f"{table.path}: every row with weight has a missing value; use --missing fit")
        return X[~incomplete], kept, [f"left out, with a missing value: {incomplete.sum()} of {len(X)} rows"]
    empty = int(np.isnan(X).all(1).sum())
    notes = [f"without any value in {','.join(names)}: {empty} of {len(X)} rows"] if empty else []
    return X, sample_weight, notes


def _count_gaps(gaps: Array) -> str:
    """How many entries and rows are incomplete, in words."""
    n, rows = int(gaps.sum()), int(gaps.any(1).sum())
    values = f"{n} of {gaps.size} values {'are' if n > 1 else 'is'} missing"
    return f"{values}, in {rows} of {len(gaps)} rows"


def _distinct_in_one(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The structures that differ where there is one feature, and what to tell about the others.

    There a covariance is a variance: that of each component, or one for all.
    """
    from jaxgmm.components import get_model
    from jaxgmm.components.covariance.registry import STRUCTURES

    first: dict[Any, str] = {}
    for name in names:
        model = get_model(name)
        plain = model.component.is_gaussian and model.covariance in STRUCTURES.values()
        first.setdefault((model.weights, model.covariance.n_parameters(2, 1)) if plain else name, name)
    kept = tuple(first.values())
    rest = [name for name in names if name not in kept]
    same = f"the same with one column as one of {', '.join(kept)}, and not fitted again: {', '.join(rest)}"
    return kept, [same] if rest else []


def _structures(names: Sequence[str]) -> tuple[str, ...]:
    """The names of structures, or an error for one that is none; `all` alone stands for mclust's."""
    from jaxgmm.components import get_model
    from jaxgmm.selection import STRUCTURES

    names = STRUCTURES if tuple(names) == ("all",) else tuple(names)
    for name in names:
        try:
            get_model(name)
        except ValueError as error:
            raise UserError(f"--covariance: {error}") from None
    return names


def _load(model: str) -> tuple[GMMParams, list[str] | None]:
    """The model, computing in double precision, and its columns."""
    if not os.path.exists(model):
        raise UserError(f"{model}: no such file")
    import jax

    from jaxgmm.io import load, load_columns
    from jaxgmm.mixture import active

    jax.config.update("jax_enable_x64", True)
    try:
        columns = load_columns(model)
        return active(load(model)), None if columns is None else list(columns)
    except IsADirectoryError:
        raise UserError(f"{model}: is a directory") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _draw(
    path: str, params: GMMParams, X: Array, rows: Any, sample_weight: Array | None, **options: Any
) -> None:
    from matplotlib.figure import Figure

    from jaxgmm import observe
    from jaxgmm.io import atomic_write
    from jaxgmm.plot import plot_fit

    # A figure of its own, and no pyplot: this needs no window system, and leaves no state behind.
    figure = Figure(layout="constrained")
    data = observe(X, sample_weight=sample_weight, missing="nan")
    plot_fit(params, data, rows, figure=figure, **options)
    with atomic_write(path) as stream:
        figure.savefig(stream, format=os.path.splitext(path)[1][1:].lower(), dpi=200)


def _say(note: str) -> None:
    click.echo(f"jaxgmm: {note}", file=sys.stderr)
