"""Starts of a distributed fit: clusters of each process's sample, clustered again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.components.weights import Model
from jaxgmm.em import reference_params
from jaxgmm.init import _starts as starts
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.outofcore._source import Source
from jaxgmm.outofcore._streaming_statistics import chunk_rows, summarise
from jaxgmm.parallel.processes._collectives import ProcessError, agreed, gather_floats
from jaxgmm.parallel.processes._fit import total_summary

_ROWS = 10_000  # of each process
_MORE = 4  # clusters of a process, for each component
_TRIES = 8


def draw(source: Source, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) drawn evenly from all of a source in one pass, and their weights (n,); float64."""
    rng = np.random.default_rng(seed)
    kept, weights = np.empty((rows, source.n_features)), np.empty(rows)
    seen = 0
    for piece in source.chunks(1 << 14):
        x = np.asarray(piece.rows, np.float64)
        w = np.ones(len(x)) if piece.weight is None else np.asarray(piece.weight, np.float64)
        order = seen + np.arange(len(x))
        # Algorithm R of Vitter (1985): row i takes the place of an earlier one with probability rows / (i +
        # 1).
        place = np.where(order < rows, order, rng.integers(0, order + 1))
        for i in np.flatnonzero(place < rows):
            kept[place[i]], weights[place[i]] = x[i], w[i]
        seen += len(x)
    n = min(seen, rows)
    return kept[:n], weights[:n]


def cluster(source: Source, n_components: int, model: Model, dtype: np.dtype, seed: int) -> GMMParams:
    """Starting parameters, the same in every process; only sums over clusters are sent, and no rows.

    Each process draws a sample of its rows and finds 4 K clusters in it by k-means; K clusters of all those
    centres, weighted by how much they stand for, are the means, the best of a few. Every
    component is as wide as the samples are about the nearest of these, on average.
    """
    d, k = source.n_features, n_components

    def own() -> tuple[DataSummary, np.ndarray, np.ndarray]:
        return summarise(source, chunk_rows(source.n_samples, d, dtype), dtype), *draw(source, _ROWS, seed)

    local, x, w = agreed(own)
    total = total_summary(local)
    unit = np.sqrt(np.where(total.variance > 0, total.variance, 1.0))
    table = np.zeros((_MORE * k, d + 1))
    standard = (x - total.mean) / unit
    if w.sum() > 0:
        n = min(len(table), int((w > 0).sum()))
        centres = _kmeans(standard, w, n, seed)
        sizes = np.bincount(_nearest(standard, centres), w, minlength=n) * local.total_weight / w.sum()
        table[:n] = np.column_stack([centres, sizes])
    every = np.concatenate(gather_floats(table))
    every = every[every[:, -1] > 0]
    if len(every) < k:
        raise ProcessError(f"--components {k} is more than there are rows to start from")
    means = _kmeans(every[:, :-1], every[:, -1], k, seed) * unit + total.mean
    gap, share = x - means[_nearest(x / unit, means / unit)], w * local.total_weight / max(w.sum(), 1e-300)
    within = sum(gather_floats(share @ np.square(gap))) / total.total_weight
    variance = jnp.asarray(np.maximum(within, 1e-3 * np.square(unit)), dtype)
    return reference_params(model, jnp.asarray(means, dtype), variance)


def _nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) which of the centres (K, D) each row (n, D) is nearest to."""
    return np.stack([np.square(x - centre).sum(1) for centre in centres], 1).argmin(1)


def _kmeans(x: np.ndarray, w: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(K, D) centres of the tightest clusters of a few tries."""
    narrow, weight = x.astype(np.float32), (w / w.max()).astype(np.float32)
    tries: list[tuple[float, int, np.ndarray]] = []
    for key in jax.random.split(jax.random.key(seed), _TRIES):
        centres = np.asarray(starts.kmeans(key, narrow, k, weight), np.float64)
        gap = x - centres[_nearest(x, centres)]
        tries.append((float(w @ np.square(gap).sum(1)), len(tries), centres))
    return min(tries)[2]
