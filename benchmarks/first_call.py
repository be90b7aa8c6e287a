"""What the first call in a process costs: with an empty program store, with a full one, and for others.

    python benchmarks/first_call.py                       # all cases
    python benchmarks/first_call.py --cases fit,select --repeats 5

Each figure is of a process of its own, without its imports. "cold" compiles into an empty folder; "stored" is
the next process with that folder, and other data of the same shape. scikit-learn's process and tgmm's run
between them.
For transformations in a user's own `jit` there is no store: "cold" is tracing, lowering and compiling with
JAX's default options, without running. Medians of the repeats, in seconds of wall time and of CPU time; the
cases that take long are run once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import tables

ESTIMATORS = [(100, 2, 5), (500, 4, 5), (2000, 8, 8), (12_500, 8, 10), (62_500, 16, 10), (625_000, 16, 10)]
LONG = ("command", "jit(fit)", "jit(grad(fit))", "grid", "select")
HERE = os.path.dirname(os.path.abspath(__file__))
FAITHFUL = os.path.join(HERE, "..", "notebooks", "data", "faithful.csv")
COMMAND = ["fit", FAITHFUL, "--components", "1:6", "--covariance", "full,tied,diag,spherical"]


def blobs(seed: int, n: int, d: int, k: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(seed)
    means = 2.0 * np.random.default_rng(0).normal(size=(k, d))
    return (means[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def iris(seed: int) -> Any:
    import numpy as np
    from sklearn.datasets import load_iris

    return np.random.default_rng(seed).permutation(load_iris().data).astype(np.float32)


def ours(case: str, seed: int) -> Callable[[], Any]:
    """One case: what is timed, after the imports."""
    import jax
    import numpy as np

    import jaxgmm

    key = jax.random.wrap_key_data(np.array([0, seed], np.uint32))
    if case == "fit":
        x = blobs(seed, 300, 2, 3)

        def fit() -> Any:
            start = jaxgmm.make_params(np.full(3, 1 / 3), x[:3], np.ones((3, 2)), "diag")
            return jaxgmm.predict(jaxgmm.fit(start, x).params, x)

        return fit
    if case in ("restarts", "components", "best"):
        x = blobs(seed, 500, 3, 4)
        return {
            "restarts": lambda: jaxgmm.fit_restarts(key, x, 4, n_init=20),
            "components": lambda: jaxgmm.fit_components(key, x, range(1, 7)),
            "best": lambda: jaxgmm.fit_best(key, x, 4),
        }[case]
    if case == "select":
        x, names = iris(seed), sorted(jaxgmm.components.STRUCTURES)
        return lambda: jaxgmm.select(key, x, range(1, 10), covariance_types=names)
    if case == "jit(fit)":
        x, k = blobs(seed, 2000, 16, 8), 8
        start = jaxgmm.make_params(np.full(k, 1 / k), x[:k], np.tile(np.eye(16), (k, 1, 1)), "full")
        return lambda: jax.jit(lambda p, a: jaxgmm.fit(p, a)).lower(start, x).compile()
    if case == "jit(grad(fit))":
        x, k = blobs(seed, 500, 2, 3), 3
        start = jaxgmm.make_params(np.full(k, 1 / k), x[:k], np.tile(np.eye(2), (k, 1, 1)), "full")
        loss = jax.grad(lambda a: jaxgmm.fit(start, a).params.means.sum())
        return lambda: jax.jit(loss).lower(x).compile()
    if case == "command":
        from jaxgmm.cli import _run

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return lambda: _run([*COMMAND, "--seed", str(seed)])
    import jaxgmm.sklearn

    return estimator(case, seed, jaxgmm.sklearn.GaussianMixture)


def sklearns(case: str, seed: int) -> Callable[[], Any] | None:
    from sklearn.mixture import GaussianMixture

    if case == "select":
        x = iris(seed)
        return lambda: min(
            GaussianMixture(k, covariance_type=kind, n_init=10, random_state=0).fit(x).bic(x)
            for k in range(1, 10)
            for kind in ("full", "tied", "diag", "spherical")
        )
    if case in ("restarts", "best"):
        x = blobs(seed, 500, 3, 4)
        return lambda: GaussianMixture(4, n_init=20, random_state=0).fit(x)
    if case == "fit":
        x = blobs(seed, 300, 2, 3)
        return lambda: GaussianMixture(3, covariance_type="diag", random_state=0).fit(x).predict(x)
    return (
        estimator(case, seed, GaussianMixture) if case[0].isdigit() or case in ("grid", "one row") else None
    )


def tgmms(case: str, seed: int) -> Callable[[], Any] | None:
    """tgmm from its own starts, which are k-means too; its select_model tries every structure once."""
    try:
        import torch
        from tgmm import GaussianMixture, select_model
    except ImportError:
        return None
    if case == "select":
        x = torch.from_numpy(iris(seed))
        return lambda: select_model(x, range(1, 10), random_state=0, device="cpu")
    if case in ("restarts", "best"):
        x = torch.from_numpy(blobs(seed, 500, 3, 4))
        return lambda: GaussianMixture(4, n_init=20, random_state=0, device="cpu").fit(x)
    if case == "fit":
        x = torch.from_numpy(blobs(seed, 300, 2, 3))
        return lambda: (
            GaussianMixture(3, covariance_type="diag", random_state=0, device="cpu").fit(x).predict(x)
        )
    if case == "one row":
        x = torch.from_numpy(blobs(seed, 2000, 8, 8))
        model = GaussianMixture(8, random_state=0, device="cpu").fit(x)
        model.score_samples(x[:1])
        return lambda: [model.score_samples(x[:1]) for _ in range(1000)]
    if not case[0].isdigit():
        return None
    n, d, k = (int(part) for part in case.split("x"))
    x = torch.from_numpy(blobs(seed, n, d, k))
    return lambda: GaussianMixture(k, random_state=0, device="cpu").fit(x)


def estimator(case: str, seed: int, mixture: Any) -> Callable[[], Any]:
    if case == "grid":
        from sklearn.model_selection import GridSearchCV

        x = blobs(seed, 500, 4, 5)
        cells = {"n_components": [1, 2, 3, 4, 5], "covariance_type": ["full", "tied", "diag", "spherical"]}
        return lambda: GridSearchCV(mixture(random_state=0), cells, cv=5).fit(x)
    if case == "one row":
        x = blobs(seed, 2000, 8, 8)
        model = mixture(8, random_state=0).fit(x)
        model.score_samples(x[:1])
        return lambda: [model.score_samples(x[:1]) for _ in range(1000)]  # so that seconds are milliseconds
    n, d, k = (int(part) for part in case.split("x"))
    x = blobs(seed, n, d, k)
    return lambda: mixture(k, random_state=0).fit(x)


def measure(which: str, case: str, seed: int) -> None:
    warnings.simplefilter("ignore")
    act = {"jaxgmm": ours, "sklearn": sklearns, "tgmm": tgmms}[which](case, seed)
    if act is None:
        print(json.dumps(None))
        return
    out = os.dup(1)
    wall, cpu = time.perf_counter(), time.process_time()
    found = act()
    if which == "jaxgmm" and not case.startswith("jit("):
        import jax

        jax.block_until_ready(found)
    took = time.perf_counter() - wall, time.process_time() - cpu
    os.write(out if case != "command" else 2, json.dumps(took).encode())


def in_a_process(which: str, case: str, seed: int, folder: str) -> list[float] | None:
    command = [sys.executable, __file__, "--measure", which, case, str(seed)]
    environment = os.environ | {"JAXGMM_CACHE": folder}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    found: list[float] | None = json.loads((done.stdout or done.stderr.splitlines()[-1]).splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [
        "fit",
        "restarts",
        "components",
        "best",
        "select",
        "command",
        "jit(fit)",
        "jit(grad(fit))",
        "grid",
    ]
    names += ["one row", *("x".join(map(str, size)) for size in ESTIMATORS)]
    parser.add_argument("--cases", default=",".join(names))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], given.measure[1], int(given.measure[2]))
        return
    columns = ["case", "cold, s", "cold, CPU-s", "stored, s", "stored, CPU-s", "scikit-learn, s", "its CPU-s"]
    columns += ["tgmm, s", "tgmm, CPU-s"]
    print("  ".join(columns))
    rows: list[list[Any]] = []
    for case in given.cases.split(","):
        cold, stored, sklearn, tgmm = runs = [[], [], [], []]  # type: list[list[list[float] | None]]
        for repeat in range(1 if case in LONG else given.repeats):
            with tempfile.TemporaryDirectory() as folder:
                cold.append(in_a_process("jaxgmm", case, 2 * repeat, folder))
                sklearn.append(in_a_process("sklearn", case, 2 * repeat, folder))
                tgmm.append(in_a_process("tgmm", case, 2 * repeat, folder))
                in_users_jit = case.startswith("jit(")
                stored.append(None if in_users_jit else in_a_process("jaxgmm", case, 2 * repeat + 1, folder))
        row: list[Any] = [case]
        for of in runs:
            found = [r for r in of if r is not None]
            for i in (0, 1):
                row.append(tables.significant(statistics.median(r[i] for r in found)) if found else None)
        rows.append(row)
        print("  ".join("–" if cell is None else str(cell) for cell in row), flush=True)
    if given.json:
        tables.add(
            given.json, "First call, beside scikit-learn and tgmm",
            "The first call in a process, beyond its imports; the store empty, then full with other data.",
            columns, rows, ("jax", "scikit-learn", "tgmm", "torch"),
            [f"Medians of {given.repeats} processes; of one for {', '.join(LONG)}. NxDxK is an estimator's "
             'fit, and "one row" milliseconds of score_samples. "restarts" and "best" have 20 starts.',
             '"grid" is a GridSearchCV of 20 cells and 5 folds; "command" the first of the README, without '
             'installing; "select" 14 structures and 9 sizes on iris, beside 4 and 9 of scikit-learn with '
             "n_init=10, and 14 and 9 of tgmm with one start."],
        )  # fmt: skip


if __name__ == "__main__":
    main()
