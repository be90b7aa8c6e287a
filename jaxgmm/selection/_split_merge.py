"""Split–merge moves: two components are merged and a third is split, to leave a local optimum."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.data import Data
from jaxgmm.density import posterior
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.blocked_sum import in_range, sum_rows
from jaxgmm.mixture import GMMParams, translate


def overlap(params: GMMParams, x: Array, w: Array | None, block_size: int) -> Array:
    """(K, K) cosine of the angle between the components' responsibilities, as vectors over the samples."""

    def block(wb: Array, b: Array) -> Array:
        b = jnp.where(in_range(wb, b), b, params.means[:1])
        resp, _ = posterior(params, b)
        return (resp * wb[:, None]).T @ resp

    gram = sum_rows(block, w, x, block_size=block_size)
    length = jnp.sqrt(jnp.diagonal(gram))
    scale = jnp.where(length > 0, length, 1)
    return gram / (scale[:, None] * scale[None, :])


class Move(NamedTuple):
    """Merge the components `first` and `second`; split `third` by the hyperplane across `direction`."""

    first: Array  # ()  int32
    second: Array  # ()  int32
    third: Array  # ()  int32
    direction: Array  # (D,)  in the metric of `third`
    possible: Array  # ()  bool: there are three components


def draw_move(key: Array, log_weights: Array, closeness: Array, n_features: int) -> Move:
    """A pair in proportion to its `overlap` (K, K), a third by its weight (K,), a direction at random."""
    key_pair, key_split, key_side = jax.random.split(key, 3)
    n_components = log_weights.shape[0]
    on = log_weights > -jnp.inf
    index = jnp.arange(n_components, dtype=jnp.int32)
    allowed = on[:, None] & on[None, :] & (index[:, None] < index[None, :])
    # A little everywhere, so that a pair without overlap can be drawn where there is no other.
    chances = jnp.where(allowed, jnp.log(closeness + 1e-6), -jnp.inf)
    pair = jax.random.categorical(key_pair, chances.reshape(-1)).astype(jnp.int32)
    first, second = pair // n_components, pair % n_components
    others = on & (index != first) & (index != second)
    # With a share for the light ones.
    mass = jnp.where(others, jnp.log(jnp.exp(log_weights) + 1.0 / n_components), -jnp.inf)
    third = jax.random.categorical(key_split, mass).astype(jnp.int32)
    direction = jax.random.normal(key_side, (n_features,), closeness.dtype)
    return Move(first, second, third, direction, others.any())


def draw_exchange(key: Array, log_weights: Array, closeness: Array, change: Array, n_features: int) -> Move:
    """A move from a mixture of another size: `change` () is −1 to merge a pair, 1 to split, 0 to do both.

    As a `Move`, so that no other program is needed: merging a component that is off with another does
    nothing, and so does splitting across no direction.
    """
    move = draw_move(key, log_weights, closeness, n_features)
    on = log_weights > -jnp.inf
    n_components = log_weights.shape[0]
    mass = jnp.where(on, jnp.log(jnp.exp(log_weights) + 1.0 / n_components), -jnp.inf)
    third = jax.random.categorical(jax.random.fold_in(key, 1), mass).astype(jnp.int32)
    splits, merges = change > 0, change < 0
    return Move(
        first=jnp.where(splits, third, move.first),
        second=jnp.where(splits, jnp.argmin(on).astype(jnp.int32), move.second),
        third=jnp.where(splits, third, move.third),
        direction=jnp.where(merges, 0, move.direction),
        possible=jnp.where(splits, ~on.all(), move.possible),
    )


def split_merge(
    move: Move, params: GMMParams, x: Array, w: Array | None, shift: Array, block_size: int
) -> Statistics:
    """Statistics about the mixture with the responsibilities of a merged pair and a split component.

    The pair's responsibilities go to its first member, and the third component's are shared between it and
    the second by a hyperplane through its mean, in its own metric. So the move works for every covariance
    structure: an M-step takes these moments.

    References:
      Ueda, Nakano, Ghahramani & Hinton (2000), SMEM algorithm for mixture models, Neural Computation 12.
    """
    first, second, third = move.first, move.second, move.third

    def reassign(r: Array, exponent: Array, y: Array) -> Array:
        side = (move.direction[:, None] * y[third]).sum(0) > 0
        merged, split = r[first] + r[second], r[third]
        moved = r.at[first].set(merged).at[second].set(jnp.where(side, split, 0))
        return moved.at[third].set(jnp.where(side, 0, split))

    return exact.sums(translate(params, -shift), Data(x, w), shift, block_size=block_size, reassign=reassign)
