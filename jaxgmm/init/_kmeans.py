"""k-means: k-means++ seeds, Lloyd's iterations, distinct rows. Weighted, jittable; same key, same bits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.blocked_sum import block_rows, sum_rows
from jaxgmm.kernels.linalg import einsum, epsilon
from jaxgmm.kernels.manual_axes import varying_like


def rows_at(share: Array, mass: Array) -> Array:
    """The rows at shares (n,) of the cumulated mass (N,), from 0 to 1; a row without mass is never one."""
    total = jnp.cumsum(mass)
    at = jnp.minimum(share * total[-1], jnp.nextafter(total[-1], jnp.zeros((), mass.dtype)))
    return jnp.minimum(jnp.searchsorted(total, at, side="right"), mass.shape[0] - 1)


def squared_distances(x: Array, centre: Array) -> Array:
    """(N,) from the rows of x (N, D) to a centre (D,)."""
    gap = x - centre[None, :]
    return einsum("bd,bd->b", gap, gap)


def plusplus(key: Array, x: Array, w: Array, n_components: int) -> Array:
    """Greedy k-means++ seeds (K, D)."""
    n_trials = 2 + int(math.log(n_components))
    key_first, key_rest = jax.random.split(key)
    first = x[rows_at(jax.random.uniform(key_first, (1,), w.dtype), w)[0]]
    centres = jnp.broadcast_to(first[None, :], (n_components, x.shape[1]))

    def add(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, closest = carry
        mass = jnp.where(w > 0, w * closest, 0)
        # All remaining rows lie on a seed: there is nothing to choose between, so any row will do.
        mass = jnp.where(mass.sum() > 0, mass, w)
        draws = jax.random.uniform(jax.random.fold_in(key_rest, k), (n_trials,), w.dtype)
        trials = x[rows_at(draws, mass)]

        def potential(c: Array) -> Array:
            return jnp.where(w > 0, w * jnp.minimum(closest, squared_distances(x, c)), 0).sum()

        chosen = trials[jnp.argmin(jax.vmap(potential)(trials))]
        return centres.at[k].set(chosen), jnp.minimum(closest, squared_distances(x, chosen))

    centres, _ = lax.fori_loop(1, n_components, add, varying_like((centres, squared_distances(x, first)), w))
    return centres


def least(values: Array) -> Array:
    """One for the first of the least of values (K, B) in each column, zero for the others.

    By two plain reductions: XLA's `argmin` on a CPU takes as long as the distances and a half.
    """
    n = values.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)[:, None]
    first = jnp.where(values == values.min(0)[None, :], index, n).min(0)
    return (index == first[None, :]).astype(values.dtype)


def lloyd(centres: Array, x: Array, w: Array, max_iter: int) -> Array:
    """Lloyd's iterations until no centre moves by more than rounding; an empty cluster keeps its centre."""
    rows = block_rows(x.shape[0], *centres.shape)
    eps = epsilon(x.dtype)
    # Sums are taken about a point among them, or those of data with an offset would be rounded by the offset.
    middle = centres.mean(0)

    def step(centres: Array) -> Array:
        def block(wb: Array, b: Array) -> tuple[Array, Array]:
            gaps = b.T[None, :, :] - centres[:, :, None]
            share = least(einsum("kdb,kdb->kb", gaps, gaps)) * wb[None, :]
            return share.sum(1), einsum("kb,bd->kd", share, b - middle[None, :])

        mass, total = sum_rows(block, w, x, block_size=rows)
        mean = middle[None, :] + total / jnp.where(mass > 0, mass, 1)[:, None]
        # What is less than the rounding of the sums is no move: two centres may lie on one point.
        rounding = 16 * eps * (jnp.abs(centres) + jnp.abs(centres - middle[None, :]))
        moved = (mass > 0)[:, None] & (jnp.abs(mean - centres) > rounding)
        return jnp.where(moved, mean, centres)

    def go_on(state: tuple[Array, Array, Array]) -> Array:
        centres, previous, count = state
        return (count < max_iter) & (centres != previous).any()

    def iterate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return step(state[0]), state[0], state[2] + 1

    end = lax.while_loop(go_on, iterate, varying_like((step(centres), centres, jnp.ones((), jnp.int32))))[0]

    def rest(wb: Array, b: Array) -> tuple[Array, Array]:
        gaps = b.T[None, :, :] - end[:, :, None]
        share = least(einsum("kdb,kdb->kb", gaps, gaps)) * wb[None, :]
        return share.sum(1), einsum("kdb,kb->kd", gaps, share)

    # Once about the centres themselves: what the sums of many rows were rounded by.
    mass, moved = sum_rows(rest, w, x, block_size=rows)
    return end + moved / jnp.where(mass > 0, mass, 1)[:, None]


def clusters(key: Array, x: Array, w: Array, n_components: int, max_iter: int) -> Array:
    """The centres (K, D) of k-means; with max_iter = 0 its seeds."""
    seeds = plusplus(key, x, w, n_components)
    return lloyd(seeds, x, w, max_iter) if max_iter else seeds


def distinct_rows(key: Array, x: Array, w: Array, n: int) -> Array:
    """n different rows (n, D), without replacement in proportion to the weights (the Gumbel trick)."""
    rows = lax.top_k(jnp.log(w) + jax.random.gumbel(key, w.shape, w.dtype), n)[1]
    # Where fewer than n rows have weight, one of those again rather than one that does not count.
    return x[jnp.where(w[rows] > 0, rows, rows[0])]


def random_simplex(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Rows (N, K), each uniform on the simplex."""
    return jax.nn.softmax(jnp.log(jax.random.exponential(key, shape, dtype)), axis=1)
