"""Rows with gaps and with noise: what a step costs, beside complete rows, tgmm and NumPy; and coverage.

    python benchmarks/observed.py steps              # 20 % missing at random; tgmm where it is installed
    python benchmarks/observed.py noise              # extreme deconvolution beside vectorised NumPy
    python benchmarks/observed.py coverage           # of 95 % intervals, 30 % missing at random
    python benchmarks/observed.py steps --json FILE

One thread each; the peers run alternately in one process, and a figure is the least of the repeats.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tables
from peers import never_stop

import jaxgmm


def step_time(run: Callable[[int], Any], n_steps: int) -> float:
    """Milliseconds of a step: the difference of two fits of different length."""
    seconds = []
    for n in (1, 1 + n_steps):
        start = time.perf_counter()
        run(n)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / n_steps * 1e3


def alternately(runs: dict[str, tuple[Callable[[int], Any], int]], repeats: int) -> dict[str, float]:
    """The least of several measurements of each, taken in turn."""
    for run, _ in runs.values():
        run(2)
    least = dict.fromkeys(runs, np.inf)
    for _ in range(repeats):
        for name, (run, n_steps) in runs.items():
            least[name] = min(least[name], step_time(run, n_steps))
    return least


def ours(start: Any, data: Any, trim: float | None = None) -> Callable[[int], Any]:
    options = jaxgmm.EMOptions(kernel="whitened")

    def run(n: int) -> Any:
        result = jaxgmm.fit(start, data, tol=0.0, max_iter=n, accelerate=False, trim=trim, options=options)
        return jax.block_until_ready(result)

    return run


def tgmm_run(X: Any, means: Any, kind: str) -> Callable[[int], Any] | None:
    try:
        import torch
        from tgmm import GaussianMixture
    except ImportError:
        return None
    torch.set_num_threads(1)
    k, d = means.shape

    def run(n: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            mixture = GaussianMixture(
                n_components=k, n_features=d, covariance_type=kind, max_iter=n, missing="em",
                init_means=torch.tensor(means, dtype=torch.float32), reg_covar=1e-6,
            )  # fmt: skip
            never_stop(mixture)
            return mixture.fit(torch.tensor(X))

    return run


def steps(repeats: int) -> list[list[Any]]:
    rng = np.random.default_rng(0)
    n, d, k = 20_000, 8, 5
    means = 1.5 * rng.normal(size=(k, d))
    X = (means[rng.integers(0, k, n)] + rng.normal(size=(n, d))).astype(np.float32)
    gaps = np.where(rng.random(X.shape) < 0.2, np.nan, X).astype(np.float32)
    data = jaxgmm.observe(gaps, missing="nan")
    print(f"N={n} D={d} K={k}, {len(data.patterns.observed)} patterns")
    rows = []
    for name in ("full", "tied", "VVE", "diag", "spherical"):
        shape = {"full": (k, d, d), "VVE": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[name]
        covariances = (
            np.broadcast_to(np.eye(d), shape) if len(shape) > 1 and shape[-2:] == (d, d) else np.ones(shape)
        )
        start = jaxgmm.make_params(np.ones(k) / k, means, covariances, name)
        runs = {"complete": (ours(start, X), 100), "gaps": (ours(start, data), 50)}
        peer = tgmm_run(gaps, means, name) if name != "VVE" else None
        if peer is not None:
            runs["tgmm"] = (peer, 5)
        found = alternately(runs, repeats)
        ratio, times = found["gaps"] / found["complete"], found.get("tgmm")
        rows.append([name, found["complete"], found["gaps"], ratio, times, times and times / found["gaps"]])
        print("  ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in rows[-1]), flush=True)
    return rows


def deconvolve(weights: Any, means: Any, covariances: Any, x: Any, noise: Any, n_steps: int) -> Any:
    """Extreme deconvolution in vectorised NumPy, (N, K, D, D) at once."""
    eye = np.eye(x.shape[1], dtype=x.dtype)
    for _ in range(n_steps):
        inverse = np.linalg.inv(covariances[None] + noise[:, None, :, None] * eye)
        gap = x[:, None] - means[None]
        white = np.einsum("nkde,nke->nkd", inverse, gap)
        joint = np.log(weights) - 0.5 * np.einsum("nkd,nkd->nk", gap, white)
        joint += 0.5 * np.linalg.slogdet(inverse)[1]
        joint -= joint.max(1, keepdims=True)
        resp = np.exp(joint)
        resp /= resp.sum(1, keepdims=True)
        inner = means + np.einsum("kde,nke->nkd", covariances, white)
        spread = covariances - np.einsum(
            "kde,nkef,kfg->nkdg", covariances, inverse, covariances, optimize=True
        )
        counts = resp.sum(0)
        weights, means = counts / counts.sum(), np.einsum("nk,nkd->kd", resp, inner) / counts[:, None]
        off = inner - means
        total = np.einsum("nk,nkd,nke->kde", resp, off, off, optimize=True)
        covariances = (total + np.einsum("nk,nkde->kde", resp, spread)) / counts[:, None, None]
    return weights, means, covariances


def noise(repeats: int) -> list[list[Any]]:
    rng = np.random.default_rng(0)
    n, d, k = 100_000, 3, 10
    means = (1.5 * rng.normal(size=(k, d))).astype(np.float32)
    variances = rng.uniform(0.1, 1.0, (n, d)).astype(np.float32)
    X = means[rng.integers(0, k, n)] + rng.normal(size=(n, d)) * (1 + variances) ** 0.5
    X = X.astype(np.float32)
    data, start = jaxgmm.observe(X, noise=variances), np.stack([np.eye(d, dtype=np.float32)] * k)
    params = jaxgmm.make_params(np.ones(k) / k, means, start)
    weights = np.full(k, 1 / k, np.float32)
    runs: dict[str, Any] = {
        "jaxgmm": (ours(params, data), 10),
        "complete": (ours(params, X), 20),
        "numpy": (lambda m: deconvolve(weights, means, start, X, variances, m), 1),
    }
    found = alternately(runs, repeats)
    rows = [["full", found["complete"], found["jaxgmm"], found["numpy"], found["numpy"] / found["jaxgmm"]]]
    print("  ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in rows[-1]), flush=True)
    return rows


def coverage(repeats: int, n_simulations: int = 200) -> list[list[Any]]:
    """In how many of the simulations a 95 % interval covers the truth, for each kind of parameter."""
    jax.config.update("jax_enable_x64", True)
    n, d, k = 5000, 5, 3
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(k, d, d)) / 2
    covariances = np.einsum("kde,kfe->kdf", mixing, mixing) + 0.5 * np.eye(d)
    truth = jaxgmm.make_params([0.3, 0.3, 0.4], 2.5 * rng.normal(size=(k, d)), covariances)
    rows_, columns = np.tril_indices(d)
    inside: dict[str, list[Any]] = {"weights": [], "means": [], "covariances": []}
    for seed in range(n_simulations):
        X = np.asarray(jaxgmm.sample(jax.random.key(seed), truth, n)[0])
        gaps = np.where(np.random.default_rng(seed).random(X.shape) < 0.3, np.nan, X)
        data = jaxgmm.observe(gaps, missing="nan")
        params = jaxgmm.check(jaxgmm.fit(truth, data, reg_covar=0.0)).params
        ends = jaxgmm.inference.confidence_intervals(params, data)
        for field, found in inside.items():
            low, true, high = (np.asarray(getattr(e, field)) for e in (ends.lower, truth, ends.upper))
            covered = (low <= true) & (true <= high)
            found.append((covered[:, rows_, columns] if field == "covariances" else covered).ravel())
        if seed % 20 == 19:
            print(seed + 1, {f: round(float(np.mean(found)), 4) for f, found in inside.items()}, flush=True)
    shares = {field: 100 * np.stack(found).mean(0) for field, found in inside.items()}
    return [[field, share.size, share.mean(), share.min(), share.max()] for field, share in shares.items()]


PARTS: dict[str, tuple[Callable[[int], list[list[Any]]], str, str, list[str]]] = {
    "steps": (
        steps,
        "A step with 20 % of the entries missing",
        "N=20,000 D=8 K=5, float32, one thread, whitened kernel; tgmm with missing='em'.",
        ["structure", "complete, ms", "gaps, ms", "gaps / complete", "tgmm, ms", "tgmm / jaxgmm"],
    ),
    "noise": (
        noise,
        "A step of extreme deconvolution",
        "N=100,000 D=3 K=10, float32, one thread; a variance of each entry's noise. NumPy is vectorised.",
        ["structure", "without noise, ms", "jaxgmm, ms", "NumPy, ms", "NumPy / jaxgmm"],
    ),
    "coverage": (
        coverage,
        "Coverage of 95 % intervals with 30 % of the entries missing",
        "200 simulations of N=5,000 D=5 K=3, float64; the share of intervals that hold the true value, in %.",
        ["parameters", "number", "mean, %", "lowest, %", "highest, %"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="a file for the table")
    given = parser.parse_args()
    run, title, about, columns = PARTS[given.part]
    rows = [[tables.significant(c) if isinstance(c, float) else c for c in row] for row in run(given.repeats)]
    if given.json:
        packages = ("jax", "numpy", "tgmm", "torch")
        tables.add(given.json, title, about=about, columns=columns, rows=rows, packages=packages)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
