"""Clusters out of components: a mixture chosen by BIC on clusters that are not Gaussian, merged in three ways.

    python benchmarks/merging.py              # five seeds of each of six data sets
    python benchmarks/merging.py --seeds 1

For each data set the number of components that BIC chooses, then for "entropy", "overlap" and "modes" the
number of clusters and the adjusted Rand index of the rows' labels with the truth; the mean over the seeds, and
how often the number of clusters is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import numpy as np
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
    return joined(arc(rng, n, 0, np.pi, 0.08), arc(rng, n, np.pi, 2 * np.pi, 0.08) + [1.0, 0.35])


def ring(rng: np.random.Generator, n: int) -> Rows:
    """A ring around a blob."""
    return joined(3 * arc(rng, n, 0, 2 * np.pi, 0.08), 0.5 * rng.normal(size=(n // 3, 2)))


def bananas(rng: np.random.Generator, n: int) -> Rows:
    """Three bent clusters beside one another."""
    x = [rng.uniform(-2.5, 2.5, n) for _ in range(3)]
    return joined(
        *(np.stack([u, 0.5 * u**2 + 3 * i + 0.3 * rng.normal(size=n)], 1) for i, u in enumerate(x))
    )


def letters(rng: np.random.Generator, n: int) -> Rows:
    """Two bent bars, an L and the same turned round."""
    along = rng.uniform(0, 1, (2, n))
    bar = np.where(along < 0.5, 0, 1)
    place = 6 * (2 * along - bar)
    ell = [np.stack([np.where(b, p, 0), np.where(b, 0, p)], 1) for b, p in zip(bar, place, strict=True)]
    noise = 0.35 * rng.normal(size=(2, n, 2))
    return joined(ell[0] + noise[0], [8.0, 8.0] - ell[1] + noise[1])


def crosses(rng: np.random.Generator, n: int) -> Rows:
    """Two crosses of two long Gaussians each, and two round clusters, after Baudry et al. (2010), section 4.1."""

    def cross(x: float, y: float) -> np.ndarray:
        long = rng.normal(size=(n, 2)) * [1.2, 0.15]
        turned = np.where((np.arange(n) % 2 == 0)[:, None], long, long[:, ::-1])
        return turned @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + [x, y]

    round_ones = [0.4 * rng.normal(size=(n // 2, 2)) + at for at in ([0.0, 7.0], [7.0, 0.0])]
    return joined(cross(0, 0), cross(7, 7), *round_ones)


def blobs(rng: np.random.Generator, n: int) -> Rows:
    """Four Gaussian clusters well apart: nothing to merge."""
    return joined(*(rng.normal(size=(n, 2)) + at for at in ([0, 0], [9, 0], [0, 9], [9, 9])))


DATA: tuple[Callable[[np.random.Generator, int], Rows], ...] = (
    moons, ring, bananas, letters, crosses, blobs,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=600, help="of a cluster")
    parser.add_argument("--largest", type=int, default=12, help="number of components")
    given = parser.parse_args()
    print(f"{'':10s}{'true':>6s}{'K':>6s}   " + "".join(f"{m:>24s}" for m in ("entropy", "overlap", "modes")))
    for make in DATA:
        found, sizes = {m: [] for m in ("entropy", "overlap", "modes")}, []
        for seed in range(given.seeds):
            X, truth = make(np.random.default_rng(seed), given.rows)
            chosen = jaxgmm.select(
                jax.random.key(seed), X, range(1, given.largest + 1), covariance_types=["VVV"]
            )
            sizes.append(chosen.params.n_components)
            for by, results in found.items():
                merging = merge_components(chosen.params, X, by=by)
                index = adjusted_rand_score(truth, merging.predict(chosen.params, X))
                results.append((int(merging.n_clusters), index))
        k = truth.max() + 1
        cells = [
            f"{np.mean([r[1] for r in rows]):.3f} ({sum(r[0] == k for r in rows)} of {len(rows)})"
            for rows in found.values()
        ]
        print(f"{make.__name__:10s}{k:6d}{np.mean(sizes):6.1f}   " + "".join(f"{c:>24s}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
