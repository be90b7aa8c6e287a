"""Which search ends nearer to the best known optimum at equal numbers of EM steps, and how long select takes.

    python benchmarks/search.py gaps            # 20 mixtures: fit_best, fit_restarts, scikit-learn
    python benchmarks/search.py gaps --jobs 16  # the same, in 16 processes of one thread each
    python benchmarks/search.py select          # the grid on iris, beside scikit-learn over 4 structures

Needs scikit-learn beside jaxgmm. The best known optimum of a data set is the best sound one of everything
that ran, a second search with another key among them; a gap is in 1e-3 nats per sample. An optimum that
`Spurious` flags (a component on too few samples, or a spike) has no gap and is counted apart: its
likelihood has no bound. Of the restarts the best sound one is taken, which favours them: `best` alone would
take a spike.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tables

import jaxgmm
from jaxgmm.selection._spurious import MAX_RATIO, spurious, total_factor


def mixture(seed: int) -> tuple[np.ndarray, int]:
    """An overlapping mixture: K from 5 to 15, D from 2 to 8, 1000 samples."""
    rng = np.random.default_rng(seed)
    k, d = int(rng.integers(5, 16)), int(rng.integers(2, 9))
    means = rng.normal(size=(k, d)) * 1.6
    roots = rng.normal(size=(k, d, d)) / np.sqrt(d) * 0.8 + 0.4 * np.eye(d)
    weights = rng.dirichlet(np.full(k, 5.0))
    labels = rng.choice(k, size=1000, p=weights)
    return means[labels] + np.einsum("nde,ne->nd", roots[labels], rng.normal(size=(1000, d))), k


def score(params: jaxgmm.GMMParams, x: np.ndarray) -> float:
    return float(jaxgmm.score(params, x))


def flags(params: jaxgmm.GMMParams, x: np.ndarray) -> int:
    data = jnp.asarray(x)
    return int(
        spurious(
            params.log_weights,
            params.means,
            params.covariances,
            jnp.asarray(float(len(x))),
            total_factor(data, None, len(x)),
            jnp.asarray(MAX_RATIO),
        )
    )


NAMES = ("fit_best", "fit_restarts", "sklearn n_init=1", "sklearn n_init=10")


def gap(seed: int, budget: int) -> tuple[np.ndarray, str]:
    """The gaps (4,) on one data set, NaN where only spurious optima were found, and its line of the table."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    x, k = mixture(seed)
    key = jax.random.key(seed)
    best, other = (jaxgmm.fit_best(q, x, k, budget=budget) for q in (key, jax.random.fold_in(key, 1)))
    steps, n_init = int(best.n_steps), 10
    lanes = jaxgmm.fit_restarts(key, x, k, n_init=n_init, max_iter=max(1, steps // n_init))
    found = [jax.tree.map(lambda a, i=i: a[i], lanes.params) for i in range(n_init)]
    candidates = [[best.params], found]
    for n in (1, 10):
        m = GaussianMixture(k, n_init=n, random_state=seed).fit(x)
        candidates.append([jaxgmm.make_params(m.weights_, m.means_, m.covariances_)])
    # A lane that has collapsed says so in its status, or is flagged.
    values = np.array([max((score(p, x) for p in c if not flags(p, x)), default=np.nan) for c in candidates])
    also = np.nan if flags(other.params, x) else score(other.params, x)
    gaps = 1e3 * (np.nanmax([*values, also]) - values)
    shown = "  ".join(f"{v:17.2f}" if np.isfinite(v) else f"{'spurious':>17}" for v in gaps)
    return gaps, f"{seed:>3} {k:>3} {x.shape[1]:>3}  {shown}   {steps}"


def start_worker(cores: Any) -> None:
    """A worker keeps to one core of its own, where the system can pin it, before XLA counts the cores."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    set_up()


def run(n_sets: int, budget: int, jobs: int) -> Iterator[tuple[np.ndarray, str]]:
    """`gap` of every data set, in their order."""
    one = functools.partial(gap, budget=budget)
    if jobs == 1:
        yield from map(one, range(n_sets))
        return
    # A fresh interpreter for each: threads of JAX do not survive a fork. It imports NumPy, which reads these.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    context = multiprocessing.get_context("spawn")
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    cores = context.Queue()
    for i in range(jobs):
        cores.put(mine[i % len(mine)])
    with context.Pool(jobs, start_worker, (cores,)) as pool:
        yield from pool.imap(one, range(n_sets))


def gaps(n_sets: int, budget: int, jobs: int, file: str | None = None) -> None:
    rows = []
    print(f"{'set':>3} {'K':>3} {'D':>3}  " + "  ".join(f"{n:>17}" for n in NAMES) + "   EM steps")
    for row, line in run(n_sets, budget, min(jobs, n_sets)):
        rows.append(row)
        print(line, flush=True)
    table = np.array(rows)
    n = np.isfinite(table).sum(0)
    mean, error = np.nanmean(table, 0), np.nanstd(table, 0, ddof=1) / np.sqrt(n)
    print("mean gap   " + "  ".join(f"{m:8.2f} ± {e:6.2f}" for m, e in zip(mean, error, strict=True)))
    print("median     " + "  ".join(f"{m:17.2f}" for m in np.nanmedian(table, 0)))
    print("at the top " + "  ".join(f"{m:16.0%} " for m in (table < 0.1).mean(0)))
    print("spurious   " + "  ".join(f"{m:17d}" for m in (~np.isfinite(table)).sum(0)))
    if file:
        columns = np.stack([mean, error, np.nanmedian(table, 0), 100 * (table < 0.1).mean(0)], 1)
        n_spurious = len(table) - n
        tables.add(
            file, "Finding the best optimum",
            f"Distance to the best optimum known for {n_sets} overlapping mixtures (K 5 to 15, D 2 to 8, "
            "N=1000); `fit_best` and `fit_restarts` at equal numbers of EM steps; float64.",
            ["search", "mean gap, 1e-3 nats per sample", "standard error", "median gap",
             "at the best known, %", f"ended in a spurious optimum, of {n_sets}"],
            [[name, *map(tables.significant, c), int(m)]
             for name, c, m in zip(NAMES, columns, n_spurious, strict=True)],
            ("jax", "scikit-learn"),
        )  # fmt: skip


def grid() -> None:
    from sklearn.datasets import load_iris
    from sklearn.mixture import GaussianMixture

    x = load_iris().data
    for name in ("compiling", "compiled"):
        start, cpu = time.perf_counter(), time.process_time()
        choice = jaxgmm.select(jax.random.key(0), x)
        print(
            f"select, 14 structures × 9, {name}: {time.perf_counter() - start:6.1f} s wall, "
            f"{time.process_time() - cpu:6.1f} s CPU"
        )
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for covariance_type in ("full", "tied", "diag", "spherical"):
            for k in range(1, 10):
                GaussianMixture(k, covariance_type=covariance_type, n_init=10, random_state=0).fit(x)
    print(
        f"scikit-learn, 4 structures × 9, n_init=10:  {time.perf_counter() - start:6.1f} s wall, "
        f"{time.process_time() - cpu:6.1f} s CPU"
    )
    print(choice)


def set_up() -> None:
    jax.config.update("jax_enable_x64", True)
    jnp.zeros(1).block_until_ready()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["gaps", "select"])
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--budget", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="processes for gaps, each on one core")
    parser.add_argument("--json", metavar="FILE", help="put the table of gaps into a file for tables.py")
    arguments = parser.parse_args()
    if arguments.what == "gaps":
        if arguments.jobs == 1:
            set_up()
        gaps(arguments.sets, arguments.budget, arguments.jobs, arguments.json)
    else:
        set_up()
        grid()
