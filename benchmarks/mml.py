"""The number of components inside one fit, by description length and by BIC, beside `select` with BIC.

    python benchmarks/mml.py [--seeds 10]

Data in two dimensions with a known number of components, float32, drawn anew for each seed: "apart", four
unit circles of weights 0.1 to 0.4 (N = 500); "strips", three flat ellipses above one another (N = 900);
"overlapping", four components, two of which have the same mean (N = 1000); "one", a single one (N = 500).
"many" are twelve in five dimensions (N = 3000). `fit_mml` begins with 30 components, `select` tries 1 to 15
with one structure. Seconds of CPU without compilation, and how often each number was chosen.
"""

from __future__ import annotations

import argparse
import collections
import time
from typing import Any

import jax
import numpy as np

import jaxgmm
from jaxgmm.selection import fit_mml

Problem = tuple[
    list[float], np.ndarray[Any, Any], np.ndarray[Any, Any], int
]  # weights, means, covariances, N


def problems() -> dict[str, Problem]:
    """The mixtures to draw from."""
    rng = np.random.default_rng(0)
    one, thirds = np.eye(2), [1 / 3] * 3
    crossed = np.array([[-4, -4], [-4, -4], [2, 2], [-1, -6.0]])
    around = np.array([[-6, 0], [6, 0], [0, 6.0], [0, -6]])
    turned = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[6.0, -2.0], [-2.0, 6.0]])
    overlapping = np.stack([*turned, np.array([[2.0, -1.0], [-1.0, 2.0]]), 0.125 * one])
    root = rng.normal(size=(12, 5, 5)) / 2 + 0.5 * np.eye(5)
    return {
        "apart": ([0.4, 0.3, 0.2, 0.1], around, np.stack([one] * 4), 500),
        "strips": (thirds, np.array([[0, -2], [0, 0], [0, 2.0]]), np.stack([np.diag([2, 0.2])] * 3), 900),
        "overlapping": ([0.3, 0.3, 0.3, 0.1], crossed, overlapping, 1000),
        "one": ([1.0], np.zeros((1, 2)), one[None], 500),
        "many": ([1 / 12] * 12, 4 * rng.normal(size=(12, 5)), root @ root.transpose(0, 2, 1), 3000),
    }  # fmt: skip


def draw(problem: Problem, seed: int) -> np.ndarray[Any, Any]:
    """X (N, D)."""
    weights, means, covariances, n = problem
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(weights), n, p=weights)
    noise = rng.normal(size=(n, means.shape[1]))
    x = means[labels] + np.einsum("nde,ne->nd", np.linalg.cholesky(covariances)[labels], noise)
    return x.astype(np.float32)


def by_length(key: jax.Array, x: np.ndarray[Any, Any]) -> int:
    """The number of components of one fit."""
    return int(fit_mml(key, x, 30).n_components)


def on_the_way(key: jax.Array, x: np.ndarray[Any, Any]) -> int:
    """The same, of the mixtures on the way that with the smallest BIC."""
    return int(fit_mml(key, x, 30, criterion="bic").n_components)


def by_select(key: jax.Array, x: np.ndarray[Any, Any]) -> int:
    """The number that `select` chooses."""
    found = jaxgmm.select(key, x, range(1, 16), covariance_types=("full",)).best_row
    return found["n_components"] if found else 0


WAYS = {"fit_mml": by_length, "fit_mml, BIC": on_the_way, "select, BIC": by_select}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    n_seeds = parser.parse_args().seeds
    print(f"{'data':12} {'K':>3}  {'by':12} {'s':>8}  chosen: times")
    for name, problem in problems().items():
        for label, choose in (
            ("fit_mml", by_length),
            ("fit_mml, BIC", on_the_way),
            ("select, BIC", by_select),
        ):
            choose(jax.random.key(0), draw(problem, 0))  # compiles
            counts, seconds = collections.Counter(), []
            for seed in range(n_seeds):
                x, began = draw(problem, 1 + seed), time.process_time()
                counts[choose(jax.random.key(seed), x)] += 1
                seconds.append(time.process_time() - began)
            chosen = ", ".join(f"{k}: {n}" for k, n in sorted(counts.items()))
            print(
                f"{name:12} {len(problem[0]):3}  {label:12} {np.median(seconds):8.3f}  {chosen}", flush=True
            )


if __name__ == "__main__":
    main()
