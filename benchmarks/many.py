"""Many fits: 50 restarts, and K = 1..15, beside loops over other libraries' fits, on one core.

    python benchmarks/many.py restarts
    python benchmarks/many.py components

Restarts: N = 2000, D = 8, K = 8, the same 50 starts. Once with 50 plain EM steps each, which is the same work
for both; and once to convergence by each one's own rule, scikit-learn's with tol 1e-6 and its default, 1e-3.
Components: N = 5000, D = 4, one k-means start for each K; after 50 steps, and at convergence. Seconds of CPU,
without compilation; the mean of the likelihoods reached, and the best.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tables  # noqa: E402
from peers import Gmmx, Tgmm, covariances, data, log_likelihood  # noqa: E402
from sklearn.mixture import GaussianMixture  # noqa: E402

import jaxgmm  # noqa: E402

Run = Callable[[], tuple[float, float]]


def compare(what: str, runs: dict[str, Run], repeats: int) -> list[list[Any]]:
    """Print what each of the runs took; the rows of the table."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    values = {}
    first = {}
    for name, run in runs.items():
        clock = time.perf_counter()
        run()
        first[name] = time.perf_counter() - clock
    for _ in range(repeats):
        for name, run in runs.items():
            clock = time.process_time()
            values[name] = run()
            times[name].append(time.process_time() - clock)
    print(what)
    own, rows = float(np.median(next(iter(times.values())))), []
    for name in runs:
        t = float(np.median(times[name]))
        print(
            f"  {name:<34}{t:>8.3f} s{t / own:>8.2f} ×{first[name]:>8.1f} s first"
            f"   log-likelihood, mean {values[name][0]:.5f}, best {values[name][1]:.5f}",
            flush=True,
        )
        measured = [tables.significant(t), tables.significant(t / own)]
        rows.append([what, name, *measured, *(tables.significant(v, 5) for v in values[name])])
    return rows


def restarts(repeats: int) -> list[list[Any]]:
    n, d, k, lanes = 2000, 8, 8, 50
    x, weights, _, variances = data({"n": n, "d": d, "k": k, "seed": 1})
    rng = np.random.default_rng(0)
    means = np.stack([x[rng.choice(n, k, replace=False)] for _ in range(lanes)])
    cov = covariances("full", k, variances)
    X = jnp.asarray(x)
    one = [jaxgmm.make_params(weights, m, cov, "full") for m in means]
    starts = jax.tree.map(lambda *a: jnp.stack(a), *one)

    def ours(**options: Any) -> Run:
        def run() -> tuple[float, float]:
            found = jaxgmm.fit_restarts(jax.random.key(0), X, k, init=starts, **options)
            values = np.asarray(jax.block_until_ready(found).log_likelihood)
            return float(values.mean()), float(values.max())

        return run

    def theirs(**options: Any) -> Run:
        def run() -> tuple[float, float]:
            values = []
            for m in means:
                start = {"weights_init": weights, "means_init": m, "precisions_init": np.linalg.inv(cov)}
                model = GaussianMixture(k, init_params="random", **start, **options).fit(x)
                values.append(model.score(x))
            return float(np.mean(values)), float(np.max(values))

        return run

    def loop(library: Any, n_iter: int = 50, tol: float | None = None) -> Run:
        def run() -> tuple[float, float]:
            values = []
            for m in means:
                peer = library(x, weights, m, cov, "full")
                peer.tol = tol
                peer.run(n_iter)
                mixing, centres, found = peer.answer()
                found = found.reshape(k, d, d)
                values.append(log_likelihood(x, mixing.ravel(), centres.reshape(k, d), found))
            return float(np.mean(values)), float(np.max(values))

        return run

    runs = {
        "jaxgmm": ours(tol=0.0, max_iter=50, accelerate=False),
        "scikit-learn": theirs(tol=0.0, max_iter=50),
    }
    runs |= {name: loop(library) for name, library in (("tgmm", Tgmm), ("gmmx", Gmmx)) if installed(name)}
    rows = compare("50 restarts, 50 plain EM steps each", runs, repeats)
    runs = {
        "jaxgmm": ours(),
        "scikit-learn, tol=1e-6": theirs(tol=1e-6, max_iter=1000),
        "scikit-learn, its default, tol=1e-3": theirs(),
    }
    if installed("tgmm"):
        runs["tgmm, its default, a relative change of 1e-4"] = loop(Tgmm, 1000, 1e-4)
    return rows + compare("50 restarts to convergence", runs, repeats)


def installed(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed")
        return False
    return True


def components(repeats: int) -> list[list[Any]]:
    x, *_ = data({"n": 5000, "d": 4, "k": 8, "seed": 2})
    X = jnp.asarray(x)
    sizes = range(1, 16)

    def ours(**options: Any) -> Run:
        def run() -> tuple[float, float]:
            found = jaxgmm.fit_components(jax.random.key(0), X, sizes, n_init=1, init="kmeans", **options)
            values = np.asarray(jax.block_until_ready(found).log_likelihood)
            return float(values.mean()), float(values.max())

        return run

    def theirs(**options: Any) -> Run:
        def run() -> tuple[float, float]:
            values = [GaussianMixture(k, random_state=0, **options).fit(x).score(x) for k in sizes]
            return float(np.mean(values)), float(np.max(values))

        return run

    rows = compare(
        "K = 1..15, a k-means start and 50 plain EM steps each",
        {
            "jaxgmm": ours(tol=0.0, max_iter=50, accelerate=False),
            "scikit-learn": theirs(tol=0.0, max_iter=50),
        },
        repeats,
    )
    return rows + compare(
        "K = 1..15, a k-means start each, to convergence",
        {
            "jaxgmm": ours(),
            "scikit-learn, tol=1e-6": theirs(tol=1e-6, max_iter=1000),
            "scikit-learn, its default, tol=1e-3": theirs(),
        },
        repeats,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["restarts", "components"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {"restarts": restarts, "components": components}[arguments.what](arguments.repeats)
    if arguments.json:
        vectors = tables.processor()[1] or ["unknown vector instructions"]
        sizes = {"restarts": "N=2000 D=8 K=8", "components": "N=5000 D=4"}[arguments.what]
        tables.add(
            arguments.json, f"Many fits: {arguments.what}, one core with {vectors[-1]}",
            f"CPU time of many fits ({sizes}) beside loops over the other libraries' fits, on one core, "
            "without compilation.",
            ["fits", "library", "CPU s", "library / jaxgmm", "mean log-likelihood", "best log-likelihood"],
            rows, ("jax", "scikit-learn", "tgmm", "torch", "gmmx"),
        )  # fmt: skip
