"""From what size on is `jaxgmm.sklearn.GaussianMixture` quicker than scikit-learn's?

    python benchmarks/estimator.py

Both estimators fit the same float32 data with the same random_state, k-means start, tol and covariance type.
tgmm, where it is installed, has its own k-means start and stopping rule, a relative change of 1e-4.
"first" is one fit in a new process, without the imports, what JAX compiles included and nothing taken from a
cache; "then" the median of more fits of that shape, other data each time. Seconds of wall time, ours and
scikit-learn's in turn, medians of the repeats; a ratio says how many times as long the other takes. The last
columns are the mean likelihoods that were reached.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
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
    elif which == "sklearn":
        from sklearn.mixture import GaussianMixture
    else:
        import torch
        from tgmm import GaussianMixture
    import warnings

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    means = 3 * rng.normal(size=(k, d))

    def once() -> tuple[float, float]:
        x = (means[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
        if which == "tgmm":
            x, options = torch.from_numpy(x), {"device": "cpu"}
        else:
            options = {}
        model = GaussianMixture(k, covariance_type=kind, random_state=0, **options)
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
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of them, from the smallest")
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        which, n, d, k, kind = given.measure
        measure(which, int(n), int(d), int(k), kind)
        return
    others = ["sklearn", *(["tgmm"] if importlib.util.find_spec("tgmm") else [])]
    print(f"ratios of {', '.join(others)}; log-likelihoods")
    rows: list[list[Any]] = []
    for kind in given.kinds.split(","):
        for n, d, k in SIZES[: given.sizes]:
            runs: dict[str, list[list[float]]] = {which: [] for which in ("jaxgmm", *others)}
            for _ in range(given.repeats):
                for which, found in runs.items():
                    command = [sys.executable, __file__, "--measure", which, str(n), str(d), str(k), kind]
                    environment = os.environ | {"JAXGMM_CACHE": "off"}
                    done = subprocess.run(command, capture_output=True, check=True, env=environment)
                    found.append(json.loads(done.stdout))
            # The median of each column over the repeats.
            medians = {
                which: [sorted(c)[len(c) // 2] for c in zip(*r, strict=True)] for which, r in runs.items()
            }
            first, later, value = medians["jaxgmm"]
            row: list[Any] = [kind, n, d, k, n * k * d, tables.significant(first)]
            row += [tables.significant(medians[which][0] / first) for which in others]
            row += [tables.significant(later), *(tables.significant(medians[w][1] / later) for w in others)]
            # 1e-4 of a nat per sample and less is rounding, or where each one stops.
            row += [tables.significant(medians[which][2] - value, 2) for which in others]
            rows.append(row)
            print("  ".join(map(tables.shown, row)), flush=True)
    if given.json:
        names = {"sklearn": "scikit-learn", "tgmm": "tgmm"}
        ratios = [f"{names[which]} / jaxgmm" for which in others]
        tables.add(
            given.json, "The scikit-learn estimator beside scikit-learn and tgmm",
            "Wall time of `jaxgmm.sklearn.GaussianMixture` and of the others with their defaults, on "
            "clusters three widths apart: the first fit in a process, with compilation, and later fits.",
            ["covariance", "N", "D", "K", "N·K·D", "first fit, jaxgmm, s",
             *(f"first fit, {r}" for r in ratios), "later fits, jaxgmm, s",
             *(f"later fits, {r}" for r in ratios),
             *(f"mean log-likelihood of {names[which]} − jaxgmm" for which in others)],
            rows, ("jax", "scikit-learn", "tgmm", "torch"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
