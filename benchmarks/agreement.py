"""Whether jaxgmm gives what other packages give, from the same data and the same start.

    python benchmarks/agreement.py                            # all tables; under ten minutes on two cores
    python benchmarks/agreement.py --parts packages,mclust
    python benchmarks/agreement.py --json FILE                # and the tables of it for tables.py

packages: scikit-learn, tgmm, pomegranate, gmmx, and extreme deconvolution in NumPy (`observed.py`). Both
sides take the same number of EM steps from the same start; then the other one takes 1000, and jaxgmm's own
fit goes on to its end. mclust: the fourteen structures against the results of R's mclust 6.0.0 in tests/data.
published: the vignettes of mclust 6.1.3. Log-likelihoods are of all samples, in nats; SciPy computes those of
both sides' parameters. Everything is in float64 but gmmx, which takes float32 only. A package that is not
installed has a row that says so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import observed  # which asks for one thread
import peers
import tables
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t

import jaxgmm
import jaxgmm.interchange

TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests" / "data"
STEPS, MOST = 20, 1000  # EM steps of the two comparisons
EQUAL = 1e-6  # nats: what a smaller difference says of neither
STRUCTURES = (
    "EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"
)  # fmt: skip
Parameters = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights (K,), means (K, D), covariances (K, D, D)


class Problem(NamedTuple):
    """Data, and responsibilities to start from for each number of components."""

    name: str
    x: np.ndarray  # (N, D)
    resp: dict[int, np.ndarray]  # K -> (N, 3); a third component of no weight is switched off
    labels: dict[int, np.ndarray]  # the same of labels that are certain
    stored: dict[str, Any]  # of mclust


@functools.cache
def problems() -> list[Problem]:
    """Iris and Old Faithful; the starts are mclust's hierarchical clusters, each label with 0.8 + 0.2/K."""
    found = []
    for name in ("iris", "faithful"):
        stored = json.loads((TESTS / f"mclust_{name}.json").read_text())
        labels = {k: np.eye(3)[np.array(stored["hc_labels"][str(k)])] for k in (2, 3)}
        resp = {k: 0.8 * of + np.where(np.arange(3) < k, 0.2 / k, 0.0) for k, of in labels.items()}
        found.append(Problem(name, np.array(stored["X"]), resp, labels, stored))
    return found


def m_step(resp: np.ndarray, x: Any, model: str) -> jaxgmm.GMMParams:
    return jaxgmm.m_step(resp, x, covariance_type=model, reg_covar=0.0)


def steps(start: jaxgmm.GMMParams, x: Any) -> jaxgmm.FitResult:
    """Plain EM."""
    return jaxgmm.fit(start, x, tol=0.0, max_iter=STEPS, reg_covar=0.0, accelerate=False)


def end(start: jaxgmm.GMMParams, x: Any) -> jaxgmm.FitResult:
    """jaxgmm's fit, to 1e-8 standard deviations."""
    return jaxgmm.check(jaxgmm.fit(start, x, tol=1e-8, max_iter=20_000, reg_covar=0.0))


def plain(params: jaxgmm.GMMParams, k: int) -> Parameters:
    weights, means, covariances = params.weights, params.means, params.covariances
    return np.asarray(weights)[:k], np.asarray(means)[:k], np.asarray(covariances)[:k]


def distance(one: Parameters, other: Parameters) -> float:
    """The largest difference of weights, means and covariances, in standard deviations of the components."""
    sd = np.sqrt(np.diagonal(other[2], axis1=1, axis2=2))
    gaps = (one[0] - other[0], (one[1] - other[1]) / sd, (one[2] - other[2]) / (sd[:, :, None] * sd[:, None]))
    return max(float(np.abs(gap).max()) for gap in gaps)


# Log-likelihoods by SciPy.
def gaussian(x: np.ndarray, found: Parameters) -> float:
    weights, means, covariances = found
    each = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
    # The sum of float32 weights is 1 to 1e-7, which times N would count as a likelihood.
    return float(logsumexp(np.log(weights / weights.sum()) + np.stack(each, 1), axis=1).sum())


def incomplete(x: np.ndarray, found: Parameters) -> float:
    """Of the entries that are not NaN, row by row."""
    weights, means, covariances = found
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        if seen.any():
            each = [
                multivariate_normal(m[seen], c[np.ix_(seen, seen)]).logpdf(row[seen])
                for m, c in zip(means, covariances, strict=True)
            ]
            total += float(logsumexp(np.log(weights) + each))
    return total


def noisy(x: np.ndarray, variances: np.ndarray, found: Parameters) -> float:
    """Of rows whose entries have errors of these variances."""
    weights, means, covariances = found
    total = 0.0
    for row, noise in zip(x, variances, strict=True):
        each = [
            multivariate_normal(m, c + np.diag(noise)).logpdf(row)
            for m, c in zip(means, covariances, strict=True)
        ]
        total += float(logsumexp(np.log(weights) + each))
    return total


def student_t(x: np.ndarray, found: Parameters, dof: np.ndarray) -> float:
    weights, means, scatter = found
    each = [multivariate_t(m, s, v).logpdf(x) for m, s, v in zip(means, scatter, dof, strict=True)]
    return float(logsumexp(np.log(weights) + np.stack(each, 1), axis=1).sum())


def with_noise(x: np.ndarray, found: Parameters, volume: float) -> float:
    """With a uniform background of what weight the components leave."""
    weights, means, covariances = found
    each = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
    joint = [np.log(w) + e for w, e in zip(weights, each, strict=True)]
    return float(
        logsumexp(
            np.stack([*joint, np.full(len(x), np.log(1 - weights.sum()) - np.log(volume))], 1), axis=1
        ).sum()
    )


class Pair(NamedTuple):
    """A fit by both sides: SciPy's log-likelihoods, jaxgmm's own, and the distance of the parameters."""

    ours: float
    theirs: float
    own: float
    distance: float


COLUMNS = [
    "with", "model", "data", "EM", "fits", "log-likelihood, jaxgmm − other: least, nats", "most, nats",
    "parameters, largest difference, σ", "higher likelihood: jaxgmm, neither, other",
]  # fmt: skip
own_report: list[float] = []  # jaxgmm's own log-likelihoods less SciPy's


def line(package: str, model: str, data: str, em: str, pairs: list[Pair]) -> list[Any]:
    gaps = [pair.ours - pair.theirs for pair in pairs]
    own_report.extend(abs(pair.own - pair.ours) for pair in pairs)
    higher = [sum(g > EQUAL for g in gaps), sum(abs(g) <= EQUAL for g in gaps), sum(g < -EQUAL for g in gaps)]
    numbers = [min(gaps), max(gaps), max(pair.distance for pair in pairs)]
    cells = [package, model, data, em, len(pairs), *(tables.significant(v, 2) for v in numbers)]
    found = [*cells, ", ".join(map(str, higher))]
    print("  ".join(map(tables.shown, found)), flush=True)
    return found


def both(package: str, model: str, data: str, cases: list[Callable[[bool], Pair]]) -> list[list[Any]]:
    """The row after some steps, and the row at the end."""
    ends = {f"{STEPS} steps": False, "to the end": True}
    return [line(package, model, data, em, [case(last) for case in cases]) for em, last in ends.items()]


def pair(start: jaxgmm.GMMParams, data: Any, last: bool, k: int, theirs: Parameters, value: Any) -> Pair:
    """A Gaussian mixture of jaxgmm's beside another's parameters."""
    result = (end if last else steps)(start, data)
    mine = plain(result.params, k)
    n = len(data.x) if isinstance(data, jaxgmm.Data) else len(data)
    return Pair(value(mine), value(theirs), float(result.log_likelihood) * n, distance(mine, theirs))


# tgmm's shapes for mclust's names, and for the names of scikit-learn.
VARIANCES = {
    "EII": (0, 0),
    "VII": (slice(None), 0),
    "EEI": (0, slice(None)),
    "VVI": (slice(None), slice(None)),
}
VARIANCES |= {"spherical": VARIANCES["VII"], "diag": VARIANCES["VVI"]}
SHARED = ("EEE", "tied")


def packed(covariances: np.ndarray, kind: str) -> np.ndarray:
    """The covariances in the shape that the other package takes."""
    if kind in VARIANCES:
        return np.array(np.diagonal(covariances, axis1=1, axis2=2)[VARIANCES[kind]])
    return covariances[0] if kind in SHARED else covariances


def unpacked(found: tuple[Any, ...], kind: str, k: int, d: int) -> Parameters:
    weights, means, covariances = (np.asarray(a, float) for a in found)
    if kind in VARIANCES:
        rows = {"EII": (1, 1), "VII": (k, 1), "EEI": (1, d)}.get({"spherical": "VII"}.get(kind, kind), (k, d))
        covariances = np.broadcast_to(covariances.reshape(rows), (k, d))[:, :, None] * np.eye(d)
    shape = (k, d, d)
    return weights.reshape(k), means.reshape(k, d), np.broadcast_to(covariances.reshape(-1, d, d), shape)


# The structures whose M-step tgmm iterates itself, by default at most 20 times.
ITERATED = ("VEI", "VEE", "EVE", "VVE", "VEV")
EXACT = {"gpcm_tol": 1e-13, "gpcm_max_iter": 300}


def mixtures(
    package: str, kind: str, sizes: tuple[int, ...] = (2, 3), single: bool = False
) -> list[list[Any]]:
    """Gaussian mixtures by a class of `peers.py`."""
    exact: dict[str, Any] = {}

    def case(problem: Problem, k: int) -> Callable[[bool], Pair]:
        def run(last: bool) -> Pair:
            x, d = problem.x, problem.x.shape[1]
            start = m_step(problem.resp[k], x, kind)
            weights, means, covariances = plain(start, k)
            given = (x, weights, means, packed(covariances, kind))
            if package == "pomegranate":
                import torch

                torch.set_default_dtype(torch.float64)  # of its sums of responsibilities
            with jax.enable_x64(not single):
                if single:
                    given = tuple(a.astype(np.float32) for a in given)
                peer = peers.PEERS[package](*given, kind)
                peer.options = exact
                peer.run(MOST if last else STEPS)
                theirs = unpacked(peer.answer(), kind, k, d)
            return pair(start, x, last, k, theirs, functools.partial(gaussian, x))

        return run

    of = problems()
    data = f"{', '.join(p.name for p in of)}; K = {', '.join(map(str, sizes))}"
    name = f"{package}, float32" if single else package
    cases = [case(p, k) for p in of for k in sizes]
    rows = both(name, kind, data, cases)
    if package == "tgmm" and kind in ITERATED:
        exact |= EXACT
        em = f"{STEPS} steps, M-steps to 1e-13"
        rows.insert(1, line(name, kind, data, em, [case(False) for case in cases]))
    return rows


def float32() -> list[list[Any]]:
    """jaxgmm in float32 beside itself in float64, for what float32 costs."""
    rows = []
    for kind in ("full", "diag"):

        def case(problem: Problem, k: int, kind: str = kind) -> Callable[[bool], Pair]:
            def run(last: bool) -> Pair:
                x = problem.x
                start = m_step(problem.resp[k], x, kind)
                with jax.enable_x64(False):
                    single = jax.tree.map(lambda a: np.asarray(a, np.float32), start)
                    few: dict[str, Any] = {"tol": 0.0, "accelerate": False, "max_iter": STEPS}
                    options = {"tol": 1e-8, "max_iter": 1000} if last else few
                    found = jaxgmm.fit(single, x.astype(np.float32), reg_covar=0.0, **options)
                    theirs = tuple(a.astype(float) for a in plain(found.params, k))
                return pair(start, x, last, k, theirs, functools.partial(gaussian, x))

            return run

        cases = [case(p, k) for p in problems() for k in (2, 3)]
        rows += both("jaxgmm, float32", kind, "iris, faithful; K = 2, 3", cases)
    return rows


def gaps_with_tgmm() -> list[list[Any]]:
    """Missing entries: one in five, at random."""
    import torch
    from tgmm import GaussianMixture

    rows, k = [], 3
    for kind, theirs_name in (
        ("full", "full"),
        ("tied", "tied_full"),
        ("diag", "diag"),
        ("spherical", "spherical"),
    ):

        def case(problem: Problem, kind: str = kind, name: str = theirs_name) -> Callable[[bool], Pair]:
            def run(last: bool) -> Pair:
                start = m_step(problem.resp[k], problem.x, kind)
                missing = np.random.default_rng(0).random(problem.x.shape) < 0.2
                x = np.where(missing & ~missing.all(1, keepdims=True), np.nan, problem.x)
                weights, means, covariances = plain(start, k)
                mixture = GaussianMixture(
                    k, x.shape[1], covariance_type=name, max_iter=MOST if last else STEPS, reg_covar=0.0,
                    init_weights=torch.tensor(weights), init_means=torch.tensor(means),
                    init_covariances=torch.tensor(packed(covariances, kind)), missing="em", device="cpu",
                )  # fmt: skip
                mixture._check_convergence = lambda *_: False
                mixture.fit(torch.tensor(x))
                found = (mixture.weights_, mixture.means_, mixture.covariances_)
                theirs = unpacked(tuple(a.numpy() for a in found), kind, k, x.shape[1])
                data = jaxgmm.observe(x, missing="nan")
                return pair(start, data, last, k, theirs, functools.partial(incomplete, x))

            return run

        cases = [case(problem) for problem in problems()]
        rows += both("tgmm", f"{kind}, 20 % missing", "iris, faithful; K = 3", cases)
    return rows


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1000 rows of three overlapping t clusters (4 degrees of freedom) in three dimensions; their labels."""
    rng = np.random.default_rng(seed)
    roots = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0] * rng.uniform(0.6, 1.4, (3, 1, 3))
    labels = rng.choice(3, 1000, p=[0.3, 0.3, 0.4])
    normal = np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(1000, 3)))
    return 2 * np.eye(3)[labels] * 2 + normal / np.sqrt(rng.chisquare(4, (1000, 1)) / 4), labels


def t_with_tgmm() -> list[list[Any]]:
    import torch
    from tgmm import StudentTMixture

    rows, k = [], 3
    for kind, name in (("full", "full"), ("diag", "diag")):

        def case(seed: int, kind: str = kind, name: str = name) -> Callable[[bool], Pair]:
            def run(last: bool) -> Pair:
                x, labels = clusters(seed)
                weights, means, covariances = plain(m_step(0.8 * np.eye(3)[labels] + 0.2 / 3, x, kind), k)
                shaped = packed(covariances, kind)
                start = jaxgmm.make_params(weights, means, shaped, f"student_t({kind})")
                start = start.with_scatter(jaxgmm.make_params(weights, means, shaped, kind).scatter)
                mixture = StudentTMixture(
                    k, 3, covariance_type=name, max_iter=MOST if last else STEPS, reg_covar=0.0,
                    dof_init=float(start.scale["dof"][0]), init_weights=torch.tensor(weights),
                    init_means=torch.tensor(means), init_covariances=torch.tensor(shaped), device="cpu",
                )  # fmt: skip
                mixture._check_convergence = lambda *_: False
                mixture.fit(torch.tensor(x))
                found = [
                    a.numpy() for a in (mixture.weights_, mixture.means_, mixture.covariances_, mixture.dof_)
                ]
                theirs = unpacked(tuple(found[:3]), kind, k, 3)
                result = (end if last else steps)(start, x)
                scatter = jaxgmm.make_params(weights, means, shaped, kind).with_scatter(result.params.scatter)
                mine = plain(result.params, k)[:2] + plain(scatter, k)[2:]
                dof = np.asarray(result.params.scale["dof"])
                own = float(result.log_likelihood) * len(x)
                apart = max(distance(mine, theirs), float(np.abs(np.log(dof) - np.log(found[3])).max()))
                return Pair(student_t(x, mine, dof), student_t(x, theirs, found[3]), own, apart)

            return run

        rows += both("tgmm", f"student_t({kind})", "three simulations; K = 3", [case(s) for s in range(3)])
    return rows


def noise_with_tgmm() -> list[list[Any]]:
    """A uniform background."""
    import torch
    from tgmm import GaussianMixture

    k = 3

    def case(seed: int) -> Callable[[bool], Pair]:
        def run(last: bool) -> Pair:
            x, labels = clusters(seed)
            weights, means, covariances = plain(m_step(0.8 * np.eye(3)[labels] + 0.2 / 3, x, "full"), k)
            start = jaxgmm.mixture.with_background(jaxgmm.make_params(weights, means, covariances), x, 0.05)
            mixture = GaussianMixture(
                k, 3, max_iter=MOST if last else STEPS, reg_covar=0.0, init_weights=torch.tensor(weights),
                init_means=torch.tensor(means), init_covariances=torch.tensor(covariances), noise=True,
                noise_prior=0.05, device="cpu",
            )  # fmt: skip
            mixture._check_convergence = lambda *_: False
            mixture.fit(torch.tensor(x))
            found = (mixture.weights_, mixture.means_, mixture.covariances_)
            value = functools.partial(with_noise, x, volume=float(np.prod(np.ptp(x, axis=0))))
            return pair(start, x, last, k, unpacked(tuple(a.numpy() for a in found), "full", k, 3), value)

        return run

    return both("tgmm", "full, uniform background", "three simulations; K = 3", [case(s) for s in range(3)])


def deconvolution() -> list[list[Any]]:
    k = 3

    def case(seed: int) -> Callable[[bool], Pair]:
        def run(last: bool) -> Pair:
            clean, labels = clusters(seed)
            rng = np.random.default_rng(seed + 100)
            variances = rng.uniform(0.1, 1.0, clean.shape)
            x = clean + np.sqrt(variances) * rng.normal(size=clean.shape)
            start = m_step(0.8 * np.eye(3)[labels] + 0.2 / 3, x, "full")
            theirs = observed.deconvolve(*plain(start, k), x, variances, MOST if last else STEPS)
            value = functools.partial(noisy, x, variances)
            return pair(start, jaxgmm.observe(x, noise=variances), last, k, theirs, value)

        return run

    return both("NumPy", "full, errors of measurement", "two simulations; K = 3", [case(s) for s in range(2)])


def packages() -> list[dict[str, Any]]:
    def if_installed(package: str, name: str, *runs: Callable[[], list[list[Any]]]) -> list[list[Any]]:
        if importlib.util.find_spec(name) is None:
            print(f"{package} is not installed", flush=True)
            return [[package, "not installed", *[None] * (len(COLUMNS) - 2)]]
        return [row for run in runs for row in run()]

    each = functools.partial
    rows = [
        *if_installed("scikit-learn", "sklearn", *(
            each(mixtures, "scikit-learn", kind) for kind in ("full", "tied", "diag", "spherical"))),
        *if_installed("tgmm", "tgmm", *(each(mixtures, "tgmm", name, (3,)) for name in STRUCTURES),
                      gaps_with_tgmm, t_with_tgmm, noise_with_tgmm),
        *if_installed("pomegranate", "pomegranate", *(
            each(mixtures, "pomegranate", kind) for kind in ("full", "diag"))),
        *if_installed("gmmx, float32", "gmmx", *(
            each(mixtures, "gmmx", kind, single=True) for kind in ("full", "diag"))),
        *float32(),
        *deconvolution(),
    ]  # fmt: skip
    return [
        {
            "title": "Agreement with other packages",
            "about": "The same data and start; log-likelihoods of all samples by SciPy; float64, unless "
            "it says float32.",
            "columns": COLUMNS,
            "rows": rows,
            "notes": [
                f"{STEPS} steps: plain EM of both. To the end: {MOST} steps of the other package, and "
                "jaxgmm's own fit until it is within 1e-8 σ of its fixed point, or to float32's rounding.",
                "Parameters: the largest difference of a weight, of a mean in its component's σ, of a "
                "covariance in the product of two σ, and of the logarithm of the degrees of freedom.",
                f"Higher likelihood: in how many fits, where the difference is above {EQUAL:.0e} nats.",
                f"jaxgmm's own log-likelihoods are within {max(own_report):.0e} nats of SciPy's.",
            ],
        }
    ]


def mclust_fits(problem: Problem, structure: str) -> list[tuple[jaxgmm.FitResult, dict[str, Any], int]]:
    """jaxgmm's fits from the partition that mclust's fits began at, and what mclust stored of its own."""
    starts = {k: m_step(problem.labels[k], problem.x, structure) for k in (2, 3)}
    return [(end(starts[k], problem.x), problem.stored["fits"][f"{structure},{k}"], k) for k in (2, 3)]


def of_mclust(stored: dict[str, Any]) -> Parameters:
    found = stored["parameters"]
    return np.array(found["pro"]), np.array(found["mean"]), np.array(found["sigma"])


def minus_icl(x: np.ndarray, found: Parameters, bic: float) -> float:
    """mclust's ICL, BIC + 2 Σ log max r, with SciPy's densities."""
    weights, means, covariances = found
    each = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
    joint = np.log(weights) + np.stack(each, 1)
    return bic + 2 * float((joint.max(1) - logsumexp(joint, axis=1)).sum())


def mclust() -> list[dict[str, Any]]:
    rows = []
    for structure in STRUCTURES:
        apart, gaps, bics, icls, counts, searched = [], [], [], [], [], []
        for problem in problems():
            x, stored = problem.x, problem.stored
            column = stored["models"].index(structure)
            for k in (2, 3):
                step = stored["steps"][f"{structure},{k}"]
                apart.append(distance(plain(m_step(problem.resp[k], x, structure), k), of_mclust(step)))
            for result, fit, k in mclust_fits(problem, structure):
                mine, theirs = plain(result.params, k), of_mclust(fit)
                gaps.append(float(result.log_likelihood) * len(x) - fit["loglik"])
                own_report.append(abs(float(result.log_likelihood) * len(x) - gaussian(x, mine)))
                # The criteria at mclust's own parameters: what is left is the criteria's difference.
                there = jaxgmm.make_params(*theirs)
                bics.append(-float(jaxgmm.bic(result.params, x)) - fit["bic"] - 2 * gaps[-1])
                full_bic, full_icl = float(jaxgmm.bic(there, x)), float(jaxgmm.icl(there, x))
                icls.append(full_bic - full_icl - (minus_icl(x, theirs, fit["bic"]) - fit["bic"]))
                if problem.name == "iris" and k == 2:
                    searched.append(-float(jaxgmm.icl(result.params, x)) - stored["icl"][k - 1][column])
            for k, df in zip(stored["G"], stored["df"], strict=True):
                if df[column] is not None:
                    own = k - 1 + k * x.shape[1]
                    own += jaxgmm.components.get_covariance(structure).n_parameters(k, x.shape[1])
                    counts.append(int(own) == df[column])
        numbers = [max(apart), min(gaps), max(gaps), *(max(map(abs, of)) for of in (bics, icls, searched))]
        measured = [tables.significant(v, 2) for v in numbers]
        rows.append([structure, *measured[:3], f"{sum(counts)} of {len(counts)}", *measured[3:]])
        print("  ".join(map(tables.shown, rows[-1])), flush=True)
    return [
        {
            "title": "Agreement with mclust",
            "about": "Iris and Old Faithful, K = 2 and 3; float64; log-likelihoods of all samples.",
            "columns": [
                "structure", "one M-step: largest difference, σ",
                "EM to the end: log-likelihood, jaxgmm − mclust: least, nats", "most, nats",
                "equal degrees of freedom, K = 1 to 9", "BIC: largest difference", "ICL: largest difference",
                "ICL of its search, iris, K = 2: difference",
            ],
            "rows": rows,
            "notes": [
                "mclust 6.0.0 on R 4.2.2 wrote its numbers with 17 digits. BIC: of each one's own "
                "parameters, less twice the difference of the log-likelihoods. ICL: BIC + 2 Σ log max r at "
                "mclust's parameters, beside SciPy; the last column is of jaxgmm's own fit, beside the table "
                "of mclust's search.",
            ],
        }
    ]  # fmt: skip


# Fraley, Raftery, Scrucca et al., the vignettes of mclust 6.1.3.
PUBLISHED = {
    "faithful, EEE, K = 3": {"log-likelihood": -1126.326, "BIC": -2314.316, "ICL": -2357.824},
    "iris, VEV, K = 2": {"log-likelihood": -215.73, "BIC": -561.7},
    "iris, EDDA, VEV": {"log-likelihood": -187.7097, "degrees of freedom": 38, "training error": 0.02},
}


def published() -> list[dict[str, Any]]:
    rows: list[list[Any]] = []
    iris, faithful = problems()
    for problem, structure, k in ((faithful, "EEE", 3), (iris, "VEV", 2)):
        # From the parameters that mclust's search ended at.
        best, n = problem.stored["best"], len(problem.x)
        pro, mean, sigma = of_mclust(best)
        variance = {"modelName": structure, "sigma": np.moveaxis(sigma, 0, -1)}
        start = jaxgmm.interchange.from_mclust({"pro": pro, "mean": mean.T, "variance": variance})
        there, here = (
            {
                "log-likelihood": n * float(jaxgmm.score(params, problem.x)),
                "BIC": -float(jaxgmm.bic(params, problem.x)),
                "ICL": -float(jaxgmm.icl(params, problem.x)),
            }
            for params in (start, end(start, problem.x).params)
        )
        name = f"{problem.name}, {structure}, K = {k}"
        for what, value in PUBLISHED[name].items():
            column = problem.stored["models"].index(structure)
            stored = {"log-likelihood": "loglik", "BIC": "bic", "ICL": "icl"}[what]
            numbers = problem.stored[stored][k - 1][column], there[what], here[what]
            rows.append([name, what, value, *(tables.significant(v, 8) for v in numbers)])
    labels = np.eye(3)[np.unique(np.array(iris.stored["y"]), return_inverse=True)[1]]
    params = m_step(labels, iris.x, "VEV")
    wrong = np.asarray(jaxgmm.predict(params, iris.x)) != labels.argmax(1)
    found = {
        "log-likelihood": tables.significant(150 * float(jaxgmm.score(params, iris.x)), 8),
        "degrees of freedom": int(jaxgmm.n_parameters(params)),
        "training error": tables.significant(float(wrong.mean()), 2),
    }
    name = "iris, EDDA, VEV"
    rows += [[name, what, value, None, None, found[what]] for what, value in PUBLISHED[name].items()]
    for row in rows:
        print("  ".join(map(tables.shown, row)), flush=True)
    return [
        {
            "title": "Agreement with what mclust's vignettes print",
            "about": "BIC and ICL with mclust's sign: larger is better.",
            "columns": [
                "model", "what", "vignettes of mclust 6.1.3", "mclust 6.0.0", "jaxgmm at mclust's parameters",
                "jaxgmm's fit from there",
            ],
            "rows": rows,
            "notes": [
                "mclust stops EM at a relative change of 1e-5 of the log-likelihood; jaxgmm's fit goes on. "
                "The classifier (EDDA) is one M-step of the labels.",
            ],
        }
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "packages": packages, "mclust": mclust, "published": published,
    }  # fmt: skip
    parser.add_argument("--parts", default=",".join(known), help="names, with commas")
    parser.add_argument("--json", metavar="FILE", help="put the tables into a file for tables.py")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    for peer in peers.PEERS.values():
        peer.reg_covar = 0.0
    began = time.perf_counter()
    for part in given.parts.split(","):
        for table in known[part]():
            if given.json:
                used = ("jax", "numpy", "scipy", "scikit-learn", "tgmm", "torch", "pomegranate", "gmmx")
                tables.add(given.json, packages=used, **table)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
