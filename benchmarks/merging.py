"""Clusters out of components: mixtures chosen by BIC on clusters that are not Gaussian, and merged.

    python benchmarks/merging.py              # three seeds of each of six data sets
    python benchmarks/merging.py --seeds 1
    python benchmarks/merging.py --json FILE

For each data set the number of clusters, the mean number of components that BIC chose, and for each way to
merge the mean adjusted Rand index of the rows' labels with the truth, and how often the number of clusters
was right. "entropy, true number" is told that number: it looks at the order of the mergers alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tables
from sklearn.metrics import adjusted_rand_score

import jaxgmm
from jaxgmm.selection import merge_components

Rows = tuple[np.ndarray, np.ndarray]


def joined(*clusters: np.ndarray) -> Rows:
    """Rows of all clusters, and the number of the cluster of each."""
    labels = np.repeat(np.arange(len(clusters)), [len(c) for c in clusters])
    return np.concatenate(clusters).astype(np.float32), labels


def arc(rng: np.random.Generator, n: int, start: float, stop: float, width: float) -> np.ndarray:
    """Rows around a part of the unit circle."""
    angle = rng.uniform(start, stop, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + width * rng.normal(size=(n, 2))


def moons(rng: np.random.Generator, n: int) -> Rows:
    """Two half circles that reach into one another."""
    return joined(arc(rng, n, 0, np.pi, 0.08), arc(rng, n, np.pi, 2 * np.pi, 0.08) + np.array([1.0, 0.35]))


def ring(rng: np.random.Generator, n: int) -> Rows:
    """A ring around a blob."""
    return joined(3 * arc(rng, n, 0, 2 * np.pi, 0.08), 0.5 * rng.normal(size=(n // 3, 2)))


def bananas(rng: np.random.Generator, n: int) -> Rows:
    """Three bent clusters beside one another."""
    x = [rng.uniform(-2.5, 2.5, n) for _ in range(3)]
    return joined(*(np.stack([u, 0.5 * u**2 + 3 * i + 0.3 * rng.normal(size=n)], 1) for i, u in enumerate(x)))


def letters(rng: np.random.Generator, n: int) -> Rows:
    """Two bent bars, an L and the same turned round."""
    along = rng.uniform(0, 1, (2, n))
    bar = np.where(along < 0.5, 0, 1)
    place = 6 * (2 * along - bar)
    ell = [np.stack([np.where(b, p, 0), np.where(b, 0, p)], 1) for b, p in zip(bar, place, strict=True)]
    noise = 0.35 * rng.normal(size=(2, n, 2))
    return joined(ell[0] + noise[0], [8.0, 8.0] - ell[1] + noise[1])


def crosses(rng: np.random.Generator, n: int) -> Rows:
    """Two crosses of two long Gaussians each, and two round clusters, after Baudry et al. (2010)."""

    def cross(x: float, y: float) -> np.ndarray:
        long = rng.normal(size=(n, 2)) * [1.2, 0.15]
        turned = np.where((np.arange(n) % 2 == 0)[:, None], long, long[:, ::-1])
        return turned @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + [x, y]

    round_ones = [0.4 * rng.normal(size=(n // 2, 2)) + at for at in ([0.0, 7.0], [7.0, 0.0])]
    return joined(cross(0, 0), cross(7, 7), *round_ones)


def blobs(rng: np.random.Generator, n: int) -> Rows:
    """Four Gaussian clusters well apart: nothing to merge."""
    return joined(*(rng.normal(size=(n, 2)) + at for at in ([0, 0], [9, 0], [0, 9], [9, 9])))


DATA: dict[str, Callable[[np.random.Generator, int], Rows]] = {
    "moons": moons,
    "ring and blob": ring,
    "bananas": bananas,
    "bars": letters,
    "crosses and blobs": crosses,
    "blobs": blobs,
}
WAYS: dict[str, dict[str, str]] = {
    "entropy": {},
    "entropy, elbow='lines'": {"elbow": "lines"},
    "entropy, true number": {},
    "overlap": {"by": "overlap"},
    "modes": {"by": "modes"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400, help="of a cluster")
    parser.add_argument("--largest", type=int, default=10, help="number of components")
    parser.add_argument("--json", help="a file for the table")
    given = parser.parse_args()
    print(f"{'':18s}{'true':>6s}{'K':>6s} " + "".join(f"{way:>24s}" for way in WAYS))
    table: list[list[Any]] = []
    for name, make in DATA.items():
        found: dict[str, list[tuple[int, float]]] = {way: [] for way in WAYS}
        sizes = []
        for seed in range(given.seeds):
            X, truth = make(np.random.default_rng(seed), given.rows)
            sizes_tried = range(1, given.largest + 1)
            params = jaxgmm.select(
                jax.random.key(seed), X, sizes_tried, covariance_types=["VVV"], progress=False
            ).params
            sizes.append(params.n_components)
            for way, options in WAYS.items():
                merging = merge_components(params, X, **options)
                number = int(truth.max()) + 1 if way.endswith("true number") else int(merging.n_clusters)
                index = adjusted_rand_score(truth, merging.predict(params, X, min(number, sizes[-1])))
                found[way].append((number, index))
        right, n_components = int(truth.max()) + 1, float(np.mean(sizes))
        cells = []
        for way, rows in found.items():
            times = f" ({sum(n == right for n, _ in rows)}/{len(rows)})"
            index = np.mean([index for _, index in rows])
            cells.append(f"{index:.3f}" + ("" if way.endswith("true number") else times))
        table.append([name, right, tables.significant(n_components, 2), *cells])
        line = "".join(f"{cell:>24s}" for cell in cells)
        print(f"{name:18s}{right:6d}{n_components:6.1f} {line}", flush=True)
    if given.json:
        tables.add(
            given.json, "Components merged into clusters",
            about="Mean adjusted Rand index of the labels, and how often the number of clusters was right.",
            columns=["data", "clusters", "mean K", *WAYS], rows=table,
            packages=("jax", "numpy", "scikit-learn"),
            notes=[
                f"{given.seeds} draws of each data set, {given.rows} rows in a cluster of most; K and full "
                f"covariances by select with BIC, among 1 to {given.largest} components.",
                "With the true number given, the index is that of the order of the mergers alone.",
            ],
        )  # fmt: skip


if __name__ == "__main__":
    main()
