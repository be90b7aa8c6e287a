"""From what size on is `jaxgmm.sklearn.GaussianMixture` quicker than scikit-learn's?

    python benchmarks/estimator.py

Both estimators fit the same float32 data with the same random_state, k-means start, tol and covariance type.
"first" is one fit in a new process, without the imports, what JAX compiles included and nothing taken from a
cache; "then" the median of more fits of that shape, other data each time. Seconds of wall time, ours and
scikit-learn's in turn, medians of the repeats; a ratio says how many times as long scikit-learn takes.
The last two columns are the mean likelihoods that were reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import tables

SIZES = [(100, 2, 3), (500, 4, 5), (2000, 8, 8), (20_000, 8, 8), (50_000, 16, 10), (200_000, 16, 16)]


def measure(which: str, n: int, d: int, k: int, kind: str) -> None:
    import numpy as np

    if which == "jaxgmm":
        from jaxgmm.sklearn import GaussianMixture
    else:
        from sklearn.mixture import GaussianMixture
    import warnings

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    means = 3 * rng.normal(size=(k, d))

    def once() -> tuple[float, float]:
        x = (means[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
        model = GaussianMixture(k, covariance_type=kind, random_state=0)
        start = time.perf_counter()
        model.fit(x)
        return time.perf_counter() - start, float(model.score(x))

    first, _ = once()
    again = [once() for _ in range(5)]
    print(json.dumps([first, float(np.median([a[0] for a in again])), float(np.mean([a[1] for a in again]))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default="full,diag")
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        which, n, d, k, kind = given.measure
        measure(which, int(n), int(d), int(k), kind)
        return
    print(" kind       N   D   K     N·K·D          first  ratio              then  ratio          score")
    rows: list[list[Any]] = []
    for kind in given.kinds.split(","):
        for n, d, k in SIZES:
            found: dict[str, list[list[float]]] = {"jaxgmm": [], "sklearn": []}
            for _ in range(given.repeats):
                for which, runs in found.items():
                    command = [sys.executable, __file__, "--measure", which, str(n), str(d), str(k), kind]
                    runs.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            # The median of each column over the repeats.
            (f, t, s), (g, u, v) = (
                [sorted(c)[len(c) // 2] for c in zip(*runs, strict=True)] for runs in found.values()
            )
            measured = [tables.significant(v) for v in (f, g / f, t, u / t)]
            rows.append([kind, n, d, k, n * k * d, *measured])
            print(
                f"{kind:>5} {n:>7} {d:>3} {k:>3} {n * k * d:>9} {f:>6.2f} {g:>7.3f} {g / f:>6.2f}"
                f" {t:>8.4f} {u:>8.4f} {u / t:>6.2f}  {s:.4f} {v:.4f}",
                flush=True,
            )
    if given.json:
        tables.add(
            given.json, "The scikit-learn estimator",
            "Wall time of `jaxgmm.sklearn.GaussianMixture` and of scikit-learn's: the first fit in a "
            "process, with compilation, and later fits.",
            ["covariance", "N", "D", "K", "N·K·D", "first fit, jaxgmm, s", "first fit, scikit-learn / jaxgmm",
             "later fits, jaxgmm, s", "later fits, scikit-learn / jaxgmm"],
            rows, ("jax", "scikit-learn"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
