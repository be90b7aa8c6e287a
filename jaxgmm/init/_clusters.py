"""Clusters: k-means++ seeds, Lloyd's iterations, Ward's partitions; weighted, and functions of the key."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm.data import location_and_variance
from jaxgmm.kernels.blocked_sum import block_rows, in_range, map_rows, sum_rows
from jaxgmm.kernels.kept_share import kept_shares
from jaxgmm.kernels.linalg import einsum, epsilon, svd
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import jit

# Rows that are agglomerated: time grows with the cube of their number, memory with its square.
MAX_ROWS = 500


def rows_at(share: Array, mass: Array) -> Array:
    """The rows at shares (n,) of the cumulated mass (N,), from 0 to 1; a row without mass is never one."""
    total = jnp.cumsum(mass)
    at = jnp.minimum(share * total[-1], jnp.nextafter(total[-1], jnp.zeros((), mass.dtype)))
    # To compare with all is the smallest program, and as fast for a few.
    method = "compare_all" if share.size <= 8 else "scan"
    return jnp.minimum(jnp.searchsorted(total, at, side="right", method=method), mass.shape[0] - 1)


def squared_distances(x: Array, centre: Array, observed: Array | None = None) -> Array:
    """(N,) from the rows of x (N, D) to a centre (D,).

    Of the observed entries, scaled up to all of them.
    """
    gap = x - centre[None, :]
    if observed is None:
        return einsum("bd,bd->b", gap, gap)
    seen = observed.astype(x.dtype)
    scale = x.shape[1] / jnp.maximum(seen.sum(1), 1)
    return einsum("bd,bd->b", gap * seen, gap) * scale


def plusplus(
    key: Array,
    x: Array,
    w: Array,
    n_components: int,
    observed: Array | None = None,
    trim: Array | None = None,
) -> Array:
    """Greedy k-means++ seeds (K, D).

    A row is drawn in proportion to its share of observed entries, too. Where a weight () is trimmed, the rows
    farthest from the seeds so far are not drawn.
    """
    if observed is not None:
        share = observed.astype(x.dtype).mean(1)
        w = w * jnp.where((w * share).sum() > 0, share, 1)
    n_trials = 2 + int(math.log(n_components))
    draws = jax.random.uniform(key, (n_components, n_trials), w.dtype)

    def add(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, closest = carry
        own = w if trim is None else w * kept_shares(-closest, w, trim)
        mass = jnp.where(own > 0, own * closest, 0)
        total = mass.sum()
        # Before the first seed, and when all remaining rows lie on one, any row will do.
        trials = x[rows_at(draws[k], jnp.where((total > 0) & (total < jnp.inf), mass, w))]

        def potential(c: Array) -> Array:
            return jnp.where(own > 0, own * jnp.minimum(closest, squared_distances(x, c, observed)), 0).sum()

        # The first seed is one draw: the best of several would be much the same for every key.
        chosen = trials[jnp.where(k > 0, jnp.argmin(jax.vmap(potential)(trials)), 0)]
        return centres.at[k].set(chosen), jnp.minimum(closest, squared_distances(x, chosen, observed))

    centres = jnp.zeros((n_components, x.shape[1]), x.dtype)
    begin = varying_like((centres, jnp.full_like(w, jnp.inf)), x, w)
    centres, _ = lax.fori_loop(0, n_components, add, begin)
    return centres


def least(values: Array) -> Array:
    """One for the first of the least of values (K, B) in each column, zero for the others.

    By two plain reductions: XLA's `argmin` on a CPU takes as long as the distances and a half.
    """
    n = values.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)[:, None]
    first = jnp.where(values == values.min(0)[None, :], index, n).min(0)
    return (index == first[None, :]).astype(values.dtype)


def lloyd(centres: Array, x: Array, w: Array, max_iter: int, observed: Array | None = None) -> Array:
    """Lloyd's iterations until no centre moves by more than rounding; an empty cluster keeps its centre.

    With missing entries a centre's feature is the mean of those that are observed (k-POD's limit: Chi, Chi &
    Baraniuk 2016).
    """
    rows = block_rows(x.shape[0], *centres.shape)
    eps = epsilon(x.dtype)
    # Sums are taken about a point among them, or those of data with an offset would be rounded by the offset.
    middle = centres.mean(0)

    def step(centres: Array) -> Array:
        def block(wb: Array, b: Array, seen: Array | None) -> tuple[Array, Array]:
            gaps = gaps_of(b, centres, seen)
            share = least(einsum("kdb,kdb->kb", gaps, gaps)) * wb[None, :]
            about = b - middle[None, :]
            about = about if seen is None else jnp.where(seen, about, 0)
            return mass_of(share, seen), einsum("kb,bd->kd", share, about)

        mass, total = sum_rows(block, w, x, observed, block_size=rows)
        mean = middle[None, :] + total / jnp.where(mass > 0, mass, 1)
        # What is less than the rounding of the sums is no move: two centres may lie on one point.
        rounding = 16 * eps * (jnp.abs(centres) + jnp.abs(centres - middle[None, :]))
        moved = (mass > 0) & (jnp.abs(mean - centres) > rounding)
        return jnp.where(moved, mean, centres)

    def go_on(state: tuple[Array, Array, Array]) -> Array:
        centres, previous, count = state
        return (count < max_iter) & (centres != previous).any()

    def iterate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return step(state[0]), state[0], state[2] + 1

    end = lax.while_loop(go_on, iterate, varying_like((step(centres), centres, jnp.ones((), jnp.int32))))[0]

    def rest(wb: Array, b: Array, seen: Array | None) -> tuple[Array, Array]:
        gaps = gaps_of(b, end, seen)
        share = least(einsum("kdb,kdb->kb", gaps, gaps)) * wb[None, :]
        return mass_of(share, seen), einsum("kdb,kb->kd", gaps, share)

    # Once about the centres themselves: what the sums of many rows were rounded by.
    mass, moved = sum_rows(rest, w, x, observed, block_size=rows)
    return end + moved / jnp.where(mass > 0, mass, 1)


def gaps_of(x: Array, centres: Array, observed: Array | None) -> Array:
    """(K, D, B) rows less centres; 0 for missing entries."""
    gaps = x.T[None, :, :] - centres[:, :, None]
    return gaps if observed is None else jnp.where(observed.T[None], gaps, 0)


def mass_of(share: Array, observed: Array | None) -> Array:
    """(K, 1 or D) the weight of the entries of clusters with shares (K, B) of the rows."""
    if observed is None:
        return share.sum(1)[:, None]
    return einsum("kb,bd->kd", share, observed.astype(share.dtype))


def clusters(
    key: Array, x: Array, w: Array, n_components: int, max_iter: int, observed: Array | None = None,
    trim: Array | None = None,
) -> Array:  # fmt: skip
    """The centres (K, D) of k-means; with max_iter = 0 its seeds.

    Distances are of the observed entries; a seed has what x holds in place of missing ones.
    """
    seeds = plusplus(key, x, w, n_components, observed, trim)
    return lloyd(seeds, x, w, max_iter, observed) if max_iter else seeds


def distinct_rows(key: Array, x: Array, w: Array, n: int) -> Array:
    """n different rows (n, D), without replacement in proportion to the weights (the Gumbel trick)."""
    rows = lax.top_k(jnp.log(w) + jax.random.gumbel(key, w.shape, w.dtype), n)[1]
    # Where fewer than n rows have weight, one of those again rather than one that does not count.
    return x[jnp.where(w[rows] > 0, rows, rows[0])]


def random_simplex(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Rows (N, K), each uniform on the simplex."""
    return jax.nn.softmax(jnp.log(jax.random.exponential(key, shape, dtype)), axis=1)


def _merge_cost(mass: Array, other: Array) -> Array:
    """By how much the sum of squares within grows, per squared distance of the centres."""
    total = mass + other
    return mass * other / jnp.where(total > 0, total, 1)


def ward(z: Array, mass: Array, max_components: int) -> Array:
    """Labels (max_components, n) of Ward's partitions of z (n, D): row k − 1 has the labels 0 … k − 1.

    The two clusters whose merging adds least to Σ mass ‖z − centre‖² are merged, n − 1 times. Rows of
    mass 0 are merged first, at no cost.
    """
    n = z.shape[0]
    rows = jnp.arange(n, dtype=jnp.int32)
    distances = lax.map(lambda c: squared_distances(z, c), z)
    cost = _merge_cost(mass[:, None], mass[None, :]) * distances
    cost = jnp.where(rows[:, None] < rows[None, :], cost, jnp.inf)

    def merge(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        cost, centres, mass, cluster, table = carry
        # Of each pair the smaller index names the cluster, so the upper triangle is enough.
        flat = jnp.argmin(cost).astype(jnp.int32)
        i, j = flat // n, flat % n
        total = mass[i] + mass[j]
        share = jnp.where(total > 0, mass[j] / jnp.where(total > 0, total, 1), 0.5)
        centre = centres[i] + share * (centres[j] - centres[i])
        centres, mass = centres.at[i].set(centre), mass.at[i].set(total).at[j].set(0)
        cluster = jnp.where(cluster == j, i, cluster)
        alive = cluster == rows

        new = jnp.where(alive, _merge_cost(total, mass) * squared_distances(centres, centre), jnp.inf)
        cost = cost.at[i, :].set(jnp.where(rows > i, new, jnp.inf))
        cost = cost.at[:, i].set(jnp.where(rows < i, new, jnp.inf))
        cost = cost.at[j, :].set(jnp.inf).at[:, j].set(jnp.inf)

        labels = (jnp.cumsum(alive.astype(jnp.int32)) - 1)[cluster]
        return cost, centres, mass, cluster, table.at[n - 2 - step].set(labels, mode="drop")

    table = jnp.broadcast_to(rows[None, :], (max_components, n))
    start = varying_like((cost, z, mass, rows, table))
    return lax.fori_loop(jnp.int32(0), jnp.int32(n - 1), merge, start)[-1]


def _scaled(z: Array, mass: Array) -> Array:
    """z about its mean on its principal axes, each divided by the square root of its spread.

    Half-way to whitening: directions that are wide because the clusters lie along them still count for more.
    """
    root = jnp.sqrt(mass / mass.sum())[:, None]
    centred = z - (root * root * z).sum(0, keepdims=True)
    _, spread, axes = svd(root * centred)
    present = spread > epsilon(z.dtype) * max(z.shape) * spread.max()
    weight = jnp.where(present, lax.rsqrt(jnp.where(present, spread, 1)), 0)
    return weight[:, None] * axes


def partitions(z: Array, w: Array, max_components: int, max_rows: int = MAX_ROWS) -> Array:
    """Labels (max_components, N) of the rows of z (N, D) with weights w (N,), for code inside `jit`.

    Of more than `max_rows` rows, as many are drawn evenly over the cumulated weight and agglomerated,
    and every row goes to the nearest of their clusters.
    """
    n = max(max_rows, max_components)
    few = z.shape[0] <= n
    chosen: Any = slice(None)
    mass = w if few else jnp.ones(n, z.dtype)
    if not few:
        # One row in each nth of the weight. Where it lies in it follows the golden ratio: with even steps it
        # could be in step with the order of the rows.
        steps = np.arange(n) + np.arange(1, n + 1) * (5**0.5 - 1) / 2 % 1
        chosen = rows_at(jnp.asarray(steps / n, w.dtype), w)
    every = einsum("nd,ed->ne", z, _scaled(z[chosen], mass))
    table = ward(every[chosen], mass, max_components)
    if few:
        return table

    def nearest(labels: Array) -> Array:
        member = jax.nn.one_hot(labels, max_components, dtype=z.dtype, axis=0)
        size = member.sum(1)
        centres = einsum("kn,nd->kd", member, every[chosen]) / jnp.maximum(size, 1)[:, None]

        def assign(block: Array) -> Array:
            distances = jax.vmap(lambda c: squared_distances(block, c))(centres)
            return jnp.argmin(jnp.where(size[:, None] > 0, distances, jnp.inf), axis=0).astype(jnp.int32)

        return map_rows(assign, every, block_size=2048)

    return lax.map(nearest, table)


@functools.partial(jit, static_argnames=("max_components", "max_rows"))
def _partitions(x: Array, w: Array, max_components: int, max_rows: int) -> Array:
    mean, variance = location_and_variance(x, w)
    scaled = (x - mean[None, :]) * lax.rsqrt(jnp.where(variance > 0, variance, 1))[None, :]
    return partitions(jnp.where(in_range(w, x), scaled, 0), w, max_components, max_rows)


def hierarchical_labels(
    X: ArrayLike,
    max_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    max_rows: int = MAX_ROWS,
) -> Array:
    """Partitions into 1, 2, … K clusters (K, N), each from the next by merging two: Ward's, on scaled data.

    Features are divided by their standard deviations, and the principal axes of what results by the square
    roots of their spread; then the two clusters whose merging adds least to the sum of squares within are
    merged, again and again. Nothing is random.

    Args:
      X: (N, D).
      max_components: K, the largest number of clusters; static.
      sample_weight: (N,) or None for ones; a row of weight 0 has no say.
      max_rows: of more rows than that, as many are agglomerated, drawn evenly over the cumulated
        weight, and every row goes to the nearest of their clusters; static. Time grows with its cube.

    Returns:
      labels (K, N) int32; row k − 1 is the partition into k clusters, labelled 0 … k − 1.

    Raises:
      ValueError, TypeError: for NaN data, weights that do not fit, K < 1 or K > N.

    Example:
      >>> import jaxgmm
      >>> jaxgmm.init.hierarchical_labels([[0.0], [1.0], [9.0], [11.0]], 3).tolist()
      [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 2]]

    References:
      Ward (1963), Hierarchical grouping to optimize an objective function, JASA 58; Scrucca & Raftery (2015),
      Improved initialisation of model-based clustering using Gaussian hierarchical partitions, section 3.
    """
    x = validate.data(X)
    w: Any = validate.weight(sample_weight, x)
    unit = units.units_of(x, w)
    k, rows = validate.n_components(max_components, x.shape[0]), validate.count(max_rows, "max_rows", 1)
    w = np.ones(x.shape[0], x.dtype) if w is None else w
    return _partitions(x if unit is None else units.divide(x, unit), w, k, rows)
