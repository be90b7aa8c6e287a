"""`select`: a grid of covariance structures and numbers of components, and its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm._defaults import FOLDS, MAX_ITER, REG_COVAR, SEARCH_BUDGET
from jaxgmm._display import Table, as_html
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.registry import ALIASES
from jaxgmm.components.covariance.registry import STRUCTURES as RECORDS
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data
from jaxgmm.density import check_accepts, check_sizes, check_ungrouped, get_data
from jaxgmm.init._starts import Init
from jaxgmm.mixture import GMMParams, active
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import REMEDIES
from jaxgmm.selection._dense import alike, can_be_one_of
from jaxgmm.selection._programs import DENSE, certainty, refit, settings_of
from jaxgmm.selection._progress import progress_line
from jaxgmm.selection._search import BestFit, Tournament
from jaxgmm.selection._spurious import MAX_RATIO, describe
from jaxgmm.solvers.squarem import Status

_SMALL = 1 << 20  # N · D · K up to which most of the time goes into compiling
STRUCTURES = (
    *("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE"),
    *("VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"),
)
UNIVARIATE = ("E", "V")  # what is left of them for one feature
CRITERIA = ("bic", "aic", "icl", "cv", "heldout")

Row = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Selection:
    """A grid of fitted mixtures and the best of them. Print it for the table.

    Attributes:
      criterion: what decided; smaller is better in every case.
      table: a mapping per cell, in the order of the grid: "covariance_type", "n_components", "n_parameters",
        "log_likelihood" (mean per unit of weight, nats), "aic", "bic", "icl", where asked for "cv" or
        "heldout" (minus the mean held-out log-likelihood, nats), "status" (a `Status`' name), "spurious"
        (empty, or what is wrong in words), "n_agreed" (finalists at this optimum). Criteria of failed cells
        are NaN.
      results: for each covariance type the `BestFit`, leading axis over n_components.
      n_components: the numbers of components.
      best: the FitResult of the best cell that neither failed nor is spurious; of the best spurious one where
        there is no other; None where every cell failed. Only components that are on.
      best_row: its row in the table, or None.
    """

    criterion: str
    table: tuple[Row, ...]
    results: dict[str, BestFit]
    n_components: tuple[int, ...]
    best: FitResult | None
    best_row: Row | None

    @property
    def params(self) -> GMMParams:
        """The best mixture.

        Raises:
          ValueError: if every cell failed.
        """
        if self.best is None:
            raise ValueError("select: every cell failed; see failures for the reasons")
        return self.best.params

    @property
    def failures(self) -> tuple[tuple[str, int, str], ...]:
        """(covariance type, number of components, reason) of every cell that failed or is spurious."""
        found = []
        for row in self.table:
            reason = f"spurious: {row['spurious']}" if row["spurious"] else ""
            if row["status"] != "CONVERGED":
                reason = f"{row['status']}: {REMEDIES[Status[row['status']]]}"
            if reason:
                found.append((row["covariance_type"], row["n_components"], reason))
        return tuple(found)

    def result(self, covariance_type: str, n_components: int) -> FitResult:
        """The fit of one cell, with only the components that are on; the structure by any of its names.

        Raises:
          KeyError: if the cell is not in the grid.
        """
        found = self.results.get(covariance_type)
        structure = (RECORDS | ALIASES).get(covariance_type)
        if found is None and structure is not None:
            model = get_model(structure)
            found = next((f for f in self.results.values() if f.params.model == model), None)
        if found is None or n_components not in self.n_components:
            raise KeyError(
                f"no cell {covariance_type!r}, {n_components}: the grid has {', '.join(self.results)} with "
                f"n_components {self.n_components}"
            )
        return _cell(found, self.n_components.index(n_components))

    def __str__(self) -> str:
        """The criterion by structure and number of components, with marks that a legend explains."""
        cells = self._cells()
        # Marks stand to the right of the column, so that the digits are below one another.
        room = max(1, *(len(marks) for row in cells for _, marks in row))
        width = max(9, *(len(text) + 1 for row in cells for text, _ in row))
        first = max(map(len, self.results))
        head = "".join(f"{f'K = {k}':>{width}}{'':<{room}}" for k in self.n_components)
        lines = [f"{self.criterion.upper()} (smaller is better)", " " * first + head]
        for name, row in zip(self.results, cells, strict=True):
            text = "".join(f"{text:>{width}}{marks:<{room}}" for text, marks in row)
            lines.append(f"{name:<{first}}{text}".rstrip())
        return "\n".join(lines + self._notes())

    def __repr__(self) -> str:
        """The table: what one wants to see at a prompt."""
        return str(self)

    def _repr_html_(self) -> str:
        rows, best = [], None
        for i, (name, row) in enumerate(zip(self.results, self._cells(), strict=True)):
            rows.append((name, *((text + marks).rstrip("*") for text, marks in row)))
            best = next(((i, j) for j, (_, marks) in enumerate(row, 1) if "*" in marks), best)
        table = Table(("", *(f"K = {k}" for k in self.n_components)), tuple(rows), ". ".join(self._notes()))
        return as_html(table, f"{self.criterion.upper()} (smaller is better)", best)

    def _cells(self) -> list[list[tuple[str, str]]]:
        """By row and column the text of a cell, and the marks beside it."""
        digits = 4 if self.criterion in ("cv", "heldout") else 1
        failed = {"DEGENERATE": "degen.", "NONFINITE": "not fin.", "DECREASED": "decr."}
        best = self.best_row and (self.best_row["covariance_type"], self.best_row["n_components"])
        cells = {}
        for row in self.table:
            text, marks = failed.get(row["status"], "-"), ""
            if np.isfinite(row[self.criterion]):
                text = f"{row[self.criterion]:.{digits}f}"
                marks = ("?" if row["spurious"] else "") + ("~" if row["status"] == "MAX_ITER" else "")
            at = row["covariance_type"], row["n_components"]
            cells[at] = text, marks + "*" * (at == best)
        return [[cells[name, k] for k in self.n_components] for name in self.results]

    def _notes(self) -> list[str]:
        """What the marks in the table say, a line for each that is there, and which cell is the best."""
        shown = [row for row in self.table if np.isfinite(row[self.criterion])]
        kinds = dict.fromkeys(part for row in shown for part in row["spurious"].split(", ") if part)
        lines = [f"? spurious: {'; '.join(kinds)}. Cannot win while another cell is sound"] if kinds else []
        if any(row["status"] == "MAX_ITER" for row in shown):
            lines.append("~ ended at max_iter before it had converged")
        if self.best_row is None:
            return [*lines, "every cell failed"]
        name, k, flaws = (self.best_row[field] for field in ("covariance_type", "n_components", "spurious"))
        return [*lines, f"* best: {name}, K = {k}" + (f" ({flaws}: spurious)" if flaws else "")]


def _cell(results: BestFit, i: int) -> BestFit:
    cell: BestFit = jax.device_put(jax.tree.map(lambda a: np.asarray(a)[i], results))
    return dataclasses.replace(cell, params=active(cell.params))


def _rows(name: str, tournament: Tournament, found: BestFit, n: float, log_unit: float) -> list[Row]:
    """The table's rows for one structure; densities are those of data multiplied by units of this log."""
    p = found.params
    # In a form for which one program serves all structures.
    mixtures = alike(p, jax.tree.map(lambda a: a[:, 0], tournament.factors))
    s = tournament.settings
    sure = certainty(mixtures, s.data, s.context.trim, block_size=tournament.block_size)
    on = (np.asarray(p.log_weights) > -np.inf).sum(1)
    rows = []
    for i, size in enumerate(tournament.sizes.tolist()):
        status = Status(int(found.status[i]))
        free = int(tournament.model.n_parameters(int(on[i]), p.n_features))
        mean = float(found.log_likelihood[i]) - log_unit
        usable = status in (Status.CONVERGED, Status.MAX_ITER) and np.isfinite(mean)
        deviance = -2 * n * mean if usable else np.nan
        bic = deviance + free * np.log(n)
        rows.append(
            {
                "covariance_type": name,
                "n_components": size,
                "n_parameters": free,
                "log_likelihood": mean,
                "aic": deviance + 2 * free,
                "bic": bic,
                "icl": bic - 2 * float(sure[i]),
                "status": status.name,
                "spurious": describe(int(found.flags[i])),
                "n_agreed": int(found.n_agreed[i]),
            }
        )
    return rows


def _best_row(table: Sequence[Row], criterion: str) -> Row | None:
    usable = [row for row in table if np.isfinite(row[criterion])]
    sound = [row for row in usable if not row["spurious"]]
    return min(sound or usable, key=lambda row: float(row[criterion]), default=None)


def assign(key: Array, n_samples: int, n_folds: int) -> Array:
    """(N,) int32, each sample's fold: as equal in size as can be, at random."""
    return jax.random.permutation(key, np.arange(n_samples, dtype=np.int32) % n_folds)


def held_out(key: Array, tournament: Tournament, params: GMMParams, n_folds: int, n_used: int) -> Any:
    """(L,) mean log-likelihood of the samples that are left out, for the mixtures of a tournament.

    For each of the first `n_used` of `n_folds` folds the mixture is fitted again, from where it is, to the
    other folds: by sample weights of zero, so that nothing is copied and one program serves all folds.
    """
    s, static = tournament.settings, {"block_size": tournament.block_size}
    n_samples, w = s.data.x.shape[0], s.data.weight
    fold = np.asarray(assign(key, n_samples, n_folds))
    whole = np.ones(n_samples, s.tol.dtype) if w is None else np.asarray(w)
    total: Any = 0.0
    mass: Any = 0.0
    for i in range(n_used):
        out = np.where(fold == i, whole, 0).astype(whole.dtype)
        total = total + np.asarray(refit(params, tournament.sizes, whole - out, out, s, **static))
        mass = mass + out.sum()
    return np.asarray(total / mass, float)


def _settings() -> dict[str, Any]:
    """JAX's settings as this thread sees them: a context manager may change them for one thread alone."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


def side_by_side(
    function: Callable[[str, Any], T],
    arguments: Mapping[str, Any],
    progress: Callable[[str], object] | None = None,
    *,
    at_once: int,
) -> Iterator[tuple[str, T]]:
    """(name, function(name, argument)) in their order, up to `at_once` under way at a time.

    What a thread has begun it finishes, also after Ctrl-C: let that be short. One by one where the settings
    of JAX are other in a new thread than they are in this one.
    """
    with ThreadPoolExecutor(at_once) as pool:
        try:
            together = at_once > 1 and len(arguments) > 1 and pool.submit(_settings).result() == _settings()
            futures = {name: pool.submit(function, name, a) for name, a in arguments.items() if together}
            for name, argument in arguments.items():
                if progress is not None:
                    progress(name)
                yield name, futures[name].result() if together else function(name, argument)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def select(
    key: Array,
    X: ArrayLike | Data,
    n_components: Sequence[int] | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    covariance_types: Sequence[ModelLike] | None = None,
    criterion: str = "bic",
    budget: int = SEARCH_BUDGET,
    init: Init = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    trim: float | None = None,
    max_ratio: float | None = MAX_RATIO,
    n_folds: int = FOLDS,
    progress: bool | Callable[[str], object] | None = None,
) -> Selection:
    """Fit every covariance structure with every number of components, and choose.

    Each structure is one `fit_best` over all numbers of components at once. Small data sets take longer to
    compile for than to fit: up to N · D · K = 2^20, mclust's structures are compiled as one program. Mixtures
    of neighbouring sizes are starts for one another: the smaller with a component split, the larger with two
    merged. Eager: for concrete data, outside `jit`.

    Args:
      key: a JAX PRNG key; same key, same answer.
      X: (N, D).
      n_components: the numbers of components; None for 1 to 9, as far as there are samples.
      sample_weight: (N,) counts of the samples, or None for ones.
      covariance_types: names, structures, components or models; None for mclust's fourteen, or its "E" and
        "V" for one feature.
      criterion: "bic", "aic", "icl"; "cv", minus the mean log-likelihood of left-out folds, each fit going on
        from the fit to all the data; or "heldout", the same with one fold.
      budget: EM steps for each cell before the finalists converge, as in `fit_best`; as many again for cells
        whose finalists are all spurious.
      init: as in `fit_restarts`.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`.
      prior: as in `fit_restarts`; a `Prior` must fit every structure of the grid.
      trim: as in `fit`, a share that is the same for all cells. Log-likelihoods, "bic", "aic" and "icl" are
        then those of the kept rows, whose number or weight is n. They compare structures and numbers of
        components at one share; for the share itself see `trim_curve`. Not with "cv" or "heldout".
      max_ratio: as in `fit_best`. Spurious cells are marked, and do not win while there is another.
      n_folds: number of folds of "cv"; for "heldout" the fold is one part in n_folds.
      progress: None or True for a line on a terminal (on stderr) or in a notebook, False for none, or a
        function that is called with the name of each structure before it is waited for. For a small data set,
        two are computed at a time.

    Returns:
      A `Selection`.

    Raises:
      ValueError, TypeError: as `fit_restarts`; an unknown criterion; traced data.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> choice = jaxgmm.select(jax.random.key(1), X, (1, 2), covariance_types=("spherical",), budget=100)
      >>> choice.best_row["covariance_type"], choice.best_row["n_components"]
      ('spherical', 1)

    References:
      Fraley & Raftery (2002), Model-based clustering, discriminant analysis, and density estimation, JASA 97.
    """
    if not validate.is_concrete(X, sample_weight):
        raise TypeError("select needs concrete data; inside jit use fit_best or fit_components")
    validate.choice(criterion, "criterion", CRITERIA)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress must be True, False, None or a function; got {progress!r}")
    data = get_data(X, sample_weight)
    n_samples, n_features = data.x.shape[0], data.n_features
    if criterion in ("cv", "heldout"):
        check_ungrouped(data, f"criterion={criterion!r}, whose folds would part them")
        if trim is not None:
            raise ValueError(f"trim is not for criterion={criterion!r}, whose left-out folds have outliers")
    if covariance_types is None:
        covariance_types = STRUCTURES if n_features > 1 else UNIVARIATE
    models = _models(covariance_types)
    if n_components is None:
        n_components = range(1, min(9, n_samples) + 1)
    sizes = validate.sizes(n_components, n_samples)
    check_sizes(data, sizes)
    for model in models.values():
        check_accepts(data, model.component)
    budget = validate.count(budget, "budget", 1)
    folds = validate.count(n_folds, "n_folds", 2)
    key = validate.key(key)
    settings, unit = settings_of(
        data, None, tol, max_iter, reg_covar, True, max_ratio, tuple(models.values()),
        in_units_of_x=isinstance(prior, Prior) or callable(init), trim=trim,
    )  # fmt: skip
    log_unit = 0.0 if unit is None else float(np.log(unit).sum())
    w = settings.data.weight
    # On the host, in float64: float32 holds a total of 1e6 nats to 0.06.
    n = float(n_samples if w is None else np.asarray(w, float).sum())
    if settings.context.trim is not None:
        n -= float(settings.context.trim)

    small = n_samples * n_features * max(sizes) <= _SMALL
    plain = small and prior is None and init in ("kmeans++", "kmeans") and data.is_plain
    structures = _together(models, n_features) if plain else ()
    seeds: dict[Any, Any] = {}

    def one(name: str, model: Model) -> tuple[BestFit, list[Row]]:
        # The same key for every structure: they compete from the same seeds.
        together = structures if _is_plain(model) and model.covariance in structures else ()
        tournament = Tournament(settings, model, sizes, init, 0, prior, together, seeds)
        found = tournament.best(key, budget)
        rows = _rows(name, tournament, found, n, log_unit)
        if criterion in ("cv", "heldout"):
            left_out = held_out(key, tournament, found.params, folds, folds if criterion == "cv" else 1)
            for row, value in zip(rows, left_out, strict=True):
                row[criterion] = log_unit - value if np.isfinite(row["bic"]) else np.nan
        found = tournament.own(found)
        return found if unit is None else units.multiply_back(found, unit), rows

    line = progress_line("select", len(models)) if progress is None or progress is True else None
    told = progress if callable(progress) else line
    table: list[Row] = []
    results: dict[str, BestFit] = {}
    try:
        for name, (found, rows) in side_by_side(one, models, told, at_once=2 if small else 1):
            results[name] = jax.device_put(found)
            table += rows
    finally:
        if line is not None:
            line.end()
    top = _best_row(table, criterion)
    best = None if top is None else _cell(results[top["covariance_type"]], sizes.index(top["n_components"]))
    return Selection(criterion, tuple(table), results, sizes, best, top)


def _is_plain(model: Model) -> bool:
    """Whether it is a Gaussian model with weights that are free."""
    return model == Model(gaussian(model.covariance))


def _together(models: Mapping[str, Model], n_features: int) -> tuple[Covariance, ...]:
    """The structures that share one program: of Gaussians of few features with weights that are free."""
    found = (m.covariance for m in models.values() if _is_plain(m))
    several = tuple(dict.fromkeys(c for c in found if can_be_one_of(c)))
    return several if len(several) > 1 and n_features <= DENSE else ()


def _models(covariance_types: Sequence[ModelLike]) -> dict[str, Model]:
    if isinstance(covariance_types, ModelLike):
        raise TypeError(f"covariance_types must be a sequence of structures; got {covariance_types!r} alone")
    models: dict[str, Model] = {}
    for given in covariance_types:
        model = get_model(given)
        name = given if isinstance(given, str) else model.name
        if name in models or model in models.values():
            raise ValueError(f"covariance_types names the structure {name!r} twice")
        models[name] = model
    if not models:
        raise ValueError("covariance_types must name at least one structure; got none")
    return models
