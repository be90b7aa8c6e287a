"""Outliers: what robust fits make of the clusters, which rows they call outliers, and what a step costs.

    python benchmarks/robust.py clusters           # 10 % uniform outliers, beside scikit-learn and tgmm
    python benchmarks/robust.py outliers           # F1 of 5 % outliers, contaminated components
    python benchmarks/robust.py steps              # beside the Gaussian step and tgmm
    python benchmarks/robust.py steps --json FILE

Twenty simulations each, float64. Steps: float32, one thread; the peers run alternately in one process, and a
figure is the least of the repeats.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import observed  # which asks for one thread
import tables
from peers import never_stop
from sklearn.metrics import adjusted_rand_score, f1_score
from sklearn.mixture import GaussianMixture

import jaxgmm

SEEDS = range(20)
N, K = 1000, 3
N_INIT, MAX_ITER = 10, 500
METHODS = ("full", "student_t(full)", "contaminated(full)", "background(full)", "trim=0.1", "trim=0.15")


def clusters(rng: Any, n: int, d: int) -> tuple[Any, Any, Any, Any]:
    """Rows of three Gaussian clusters whose centres are eight apart, their labels, means and covariances.

    Standard deviations along the axes of a cluster are from 0.6 to 1.4, in random directions.
    """
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    corners = 8 * np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2]])
    means = corners @ rotation[:2]
    axes = np.linalg.qr(rng.normal(size=(K, d, d)))[0] * rng.uniform(0.6, 1.4, (K, 1, d))
    labels = rng.choice(K, n, p=[0.3, 0.3, 0.4])
    X = means[labels] + np.einsum("nij,nj->ni", axes[labels], rng.normal(size=(n, d)))
    return X, labels, means, axes @ axes.swapaxes(1, 2)


def box(rng: Any, good: Any, n: int, times: float) -> Any:
    """Uniform rows over a box about the good ones, so many times as wide as their range."""
    low, high = good.min(0), good.max(0)
    return rng.uniform(-1, 1, (n, good.shape[1])) * times * (high - low) / 2 + (low + high) / 2


def fitted(key: Any, X: Any, method: str) -> jaxgmm.GMMParams:
    """The best of `N_INIT` starts; a background begins at the best t fit, as in GaussianMixtureOutliers."""
    trim = float(method[5:]) if method.startswith("trim") else None
    name = {"background(full)": "student_t(full)"}.get(method, "full" if trim else method)
    results = jaxgmm.fit_restarts(
        key, X, K, covariance_type=name, n_init=N_INIT, trim=trim, max_iter=MAX_ITER
    )
    params = jaxgmm.best(results).params
    if method == "background(full)":
        gaussian = jaxgmm.make_params(params.weights, params.means, np.stack([np.eye(X.shape[1])] * K))
        start = jaxgmm.mixture.with_background(gaussian.with_scatter(params.scatter), X)
        params = jaxgmm.fit(start, X, max_iter=MAX_ITER).params
    return params


def cluster_of(params: jaxgmm.GMMParams, X: Any) -> Any:
    """The most probable of the three clusters, for rows that a background would claim too."""
    return np.asarray(jaxgmm.responsibilities(params, X))[:, :K].argmax(1)


def of_sklearn(seed: int, X: Any, good: Any) -> Any:
    return GaussianMixture(K, n_init=N_INIT, max_iter=MAX_ITER, random_state=seed).fit(X).predict(good)


def of_tgmm(seed: int, X: Any, good: Any) -> Any:
    import torch
    from tgmm import StudentTMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = StudentTMixture(
            K, X.shape[1], n_init=N_INIT, max_iter=MAX_ITER, random_state=seed, device="cpu"
        )
        return mixture.fit(torch.tensor(X)).predict(torch.tensor(good)).numpy()


def indices(repeats: int) -> list[list[Any]]:
    """The adjusted Rand index of the good rows' labels, among outliers uniform over a box."""
    jax.config.update("jax_enable_x64", True)
    peers: dict[str, Callable[[int, Any, Any], Any]] = {"scikit-learn GaussianMixture": of_sklearn}
    if importlib.util.find_spec("tgmm"):
        peers["tgmm StudentTMixture"] = of_tgmm
    found: dict[str, dict[int, list[float]]] = {}
    for d in (2, 5):
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            good, labels, means, covariances = clusters(rng, N - N // 10, d)
            X = np.concatenate([good, box(rng, good, N // 10, 3)])
            truth = jaxgmm.make_params([0.3, 0.3, 0.4], means, covariances)
            guesses = {"true parameters": cluster_of(truth, good)}
            for method in METHODS:
                guesses[method] = cluster_of(fitted(jax.random.key(seed), X, method), good)
            guesses |= {name: guess(seed, X, good) for name, guess in peers.items()}
            for name, guess in guesses.items():
                found.setdefault(name, {}).setdefault(d, []).append(adjusted_rand_score(labels, guess))
        for name, index in found.items():
            print(f"D={d}  {name:30}{np.mean(index[d]):.3f} {min(index[d]):.3f}", flush=True)
    each = [(name, [f(index[d]) for d in (2, 5) for f in (np.mean, min)]) for name, index in found.items()]
    return [[name, *(float(x) for x in numbers)] for name, numbers in each]


def truly_contaminated(rng: Any, d: int, low: float, high: float) -> tuple[Any, Any, jaxgmm.GMMParams]:
    """Rows of contaminated clusters, 5 % of each bad, which ones are, and the mixture they come from."""
    X, labels, means, covariances = clusters(rng, N, d)
    bad, inflation = rng.random(N) < 0.05, rng.uniform(low, high, K)
    widened = means[labels] + inflation[labels, None] ** 0.5 * (X - means[labels])
    truth = jaxgmm.make_params([0.3, 0.3, 0.4], means, covariances, "contaminated(full)")
    scale = truth.scale | {"good": np.full(K, 0.95), "inflation": inflation}
    return np.where(bad[:, None], widened, X), bad, dataclasses.replace(truth, scale=scale)


def scores(repeats: int) -> list[list[Any]]:
    """F1 of rows that are more probably outliers than not, against the rows that are."""
    jax.config.update("jax_enable_x64", True)
    rows = []
    for d in (2, 5, 8):
        for name, case in (
            ("contaminated, inflation 30 to 100", (30, 100)),
            ("contaminated, inflation 100", (100, 100)),
            ("uniform, 10 times as wide", None),
        ):
            found: dict[str, list[float]] = {"contaminated": [], "background": [], "truth": []}
            for seed in SEEDS:
                rng = np.random.default_rng(seed)
                if case:
                    X, bad, truth = truly_contaminated(rng, d, *case)
                    found["truth"].append(f1_score(bad, np.asarray(jaxgmm.outliers(truth, X)) > 0.5))
                else:
                    good = clusters(rng, N - N // 20, d)[0]
                    X = np.concatenate([good, box(rng, good, N // 20, 10)])
                    bad = np.arange(N) >= len(good)
                for method in ("contaminated", "background"):
                    params = fitted(jax.random.key(seed), X, f"{method}(full)")
                    found[method].append(f1_score(bad, np.asarray(jaxgmm.outliers(params, X)) > 0.5))
            cells = [f"{np.mean(f):.3f}, {min(f):.3f}" if f else None for f in found.values()]
            rows.append([name, d, *cells])
            print(rows[-1], flush=True)
    return rows


def tgmm_run(X: Any, means: Any, kind: str) -> Callable[[int], Any] | None:
    try:
        import torch
        from tgmm import StudentTMixture
    except ImportError:
        return None
    torch.set_num_threads(1)
    k, d = means.shape

    def run(n: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture = StudentTMixture(
                k, d, covariance_type=kind, max_iter=n, device="cpu",
                init_means=torch.tensor(means, dtype=torch.float32), init_covariances="eye",
            )  # fmt: skip
            never_stop(mixture)
            return mixture.fit(torch.tensor(X))

    return run


def steps(repeats: int) -> list[list[Any]]:
    rng = np.random.default_rng(0)
    n, d, k = 20_000, 8, 5
    means = 3 * rng.normal(size=(k, d))
    noise = rng.normal(size=(n, d)) / np.sqrt(rng.chisquare(5, (n, 1)) / 5)  # t with 5 degrees of freedom
    X = (means[rng.integers(0, k, n)] + noise).astype(np.float32)
    make = functools.partial(jaxgmm.make_params, np.ones(k) / k, means)
    rows = []
    for structure, kind in (("full", "full"), ("tied", "tied_full"), ("diag", "diag")):
        shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d)}[structure]
        start = np.ones(shape) if structure == "diag" else np.broadcast_to(np.eye(d), shape)
        gaussian = make(start, structure)
        runs: dict[str, Any] = {
            "gaussian": (observed.ours(gaussian, X, None), 100),
            "student_t": (observed.ours(make(start, f"student_t({structure})"), X, None), 100),
            "contaminated": (observed.ours(make(start, f"contaminated({structure})"), X, None), 100),
            "background": (observed.ours(jaxgmm.mixture.with_background(gaussian, X), X, None), 100),
            "trim=0.1": (observed.ours(gaussian, X, 0.1), 30),
        }
        peer = tgmm_run(X, means, kind)
        if peer is not None:
            runs["tgmm"] = (peer, 5)
        found = observed.alternately(runs, repeats)
        base = found["gaussian"]
        for name in ("student_t", "contaminated", "background", "trim=0.1"):
            tgmm = found.get("tgmm") if name == "student_t" else None
            label = f"{structure}, {name}" if "=" in name else f"{name}({structure})"
            rows.append([label, base, found[name], found[name] / base, tgmm, tgmm and tgmm / found[name]])
            print("  ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in rows[-1]), flush=True)
    return rows


PARTS: dict[str, tuple[Callable[[int], list[list[Any]]], str, str, list[str], list[str]]] = {
    "clusters": (
        indices,
        "Clusters among 10 % uniform outliers",
        "Adjusted Rand index of the labels of the good rows, mean and least of 20 simulations.",
        ["fit", "D=2, mean", "D=2, least", "D=5, mean", "D=5, least"],
        [
            "N=1,000. 900 rows come from K=3 Gaussian clusters, whose centres are 8 apart and whose standard "
            "deviations are 0.6 to 1.4; 100 are uniform over a box 3 times as wide as the range of those.",
            "The labels of all fits are the most probable of the three clusters. Every fit is the best of 10 "
            "starts by its own likelihood, of at most 500 steps; the background begins at the best t fit.",
        ],
    ),
    "outliers": (
        scores,
        "Which rows are outliers",
        "F1 of the rows likelier outliers than not, for 5 % outliers; mean, least of 20 simulations.",
        ["outliers", "D", "contaminated(full)", "background(full)", "true parameters"],
        [
            "N=1,000, and clusters as for the adjusted Rand index. Contaminated: a bad row has the "
            "covariance of its cluster times the inflation, drawn for each cluster. Uniform: over a box 10 "
            "times as wide as the range of the good rows.",
            "True parameters: a fit cannot be expected to do much better. Some bad rows lie among the good.",
        ],
    ),
    "steps": (
        steps,
        "A step of a robust fit",
        "N=20,000 D=8 K=5, float32, one thread, whitened kernel; tgmm's StudentTMixture.",
        ["fit", "Gaussian, ms", "jaxgmm, ms", "jaxgmm / Gaussian", "tgmm, ms", "tgmm / jaxgmm"],
        [],
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="of the steps")
    parser.add_argument("--json", help="a file for the table")
    given = parser.parse_args()
    run, title, about, columns, notes = PARTS[given.part]
    rows = [[tables.significant(c) if isinstance(c, float) else c for c in row] for row in run(given.repeats)]
    if given.part == "steps":  # vector instructions decide these ratios
        title += f", one core with {(tables.processor()[1] or ['unknown vector instructions'])[-1]}"
    if given.json:
        packages = ("jax", "numpy", "scikit-learn", "tgmm", "torch")
        tables.add(given.json, title, about=about, columns=columns, rows=rows, packages=packages, notes=notes)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
