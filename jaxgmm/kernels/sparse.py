"""Sparse sums over the pairs of a row and a component whose responsibility is not negligible.

Responsibilities tend to 0 and 1 as features become more: of 64 components of 32 features a sample has one or
two that are not negligible, and the product that sums second moments over all pairs spends nearly all of its
time on zeros. Which pairs count is known only as the program runs, so that the loops here end when they do;
they have no reverse derivative, and are for steps that nobody differentiates.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.linalg import einsum, epsilon

# Blocks whose pairs are sought at once: among 2048 rows one takes half the time that it does among 512.
BLOCKS = 4
_CHUNK = 64  # samples of one component that are multiplied at once; 32 and 64 take the same time
_FEATURES = 32  # from so many on the products outweigh the search: at 16 it takes twice as long as they do
_COMPONENTS = 8
_LARGE = 1 << 30  # N · K · D² from which a fit of some fifty steps gains the second that it takes to compile
_SHARE = 3  # one pair in so many costs as much as all of them at once, with what is computed of it again


def applies(n_samples: int, block_size: int, n_components: int, n_features: int) -> bool:
    """Whether the sums are worth their program."""
    large = n_samples * n_components * n_features**2 >= _LARGE and n_samples >= BLOCKS * block_size
    return large and n_features >= _FEATURES and n_components >= _COMPONENTS


def counting(r: Array, log_weights: Array, w: Array) -> Array:
    """(K, B) which weighted responsibilities r (K, B) count beside their component's others.

    All that are left out, below ε³ π_k w_n each, add up to ε³ of the component's weight: they, and the
    squares of their residuals with them, vanish in its rounding, ε.
    """
    return r > epsilon(r.dtype) ** 3 * (jnp.exp(log_weights)[:, None] * w[None, :])


def _chunks(counts: Array) -> Array:
    """() into how many chunks as many pairs (K, B) fall."""
    return (-(-counts.sum(1, dtype=jnp.int32) // _CHUNK)).sum()


def few(counts: Array) -> Array:
    """() whether the pairs (K, B) that count are few enough."""
    return _SHARE * _CHUNK * _chunks(counts) <= counts.size


def likely(counts: Array) -> Array:
    """() whether they will be few, from some samples' pairs (K, B)."""
    return (_SHARE + 1) * counts.sum(dtype=jnp.int32) <= counts.size


def squared_lengths(inverse: Array, means: Array, x: Array) -> Array:
    """|C_k⁻¹ (x_n − μ_k)|² (K, B) of rows x (B, D), one component after the other."""

    def one(own: tuple[Array, Array]) -> Array:
        return jnp.square(einsum("bd,ed->be", x - own[1][None, :], own[0])).sum(1)

    return lax.map(one, (inverse, means))


def sums(inverse: Array, means: Array, x: Array, r: Array, counts: Array) -> tuple[Array, Array]:
    """Σ r y (K, D) and Σ r y yᵀ (K, D, D) over the pairs that count; y = C_k⁻¹ (x_n − μ_k).

    Args:
      inverse: (K, D, D) the matrices C_k⁻¹.
      means: (K, D).
      x: (B, D).
      r: (K, B) weighted responsibilities.
      counts: (K, B) bool.
    """
    n_samples, n_features = x.shape
    within = jnp.arange(1, _CHUNK + 1, dtype=jnp.int32)

    def one(own: tuple[Array, ...]) -> tuple[Array, Array]:
        inverse, mean, r, rank = own

        def chunk(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            done, first, second = carry
            # The sample at which the running count reaches the next number; none, beyond the last.
            at = jnp.searchsorted(rank, done + within).astype(jnp.int32)
            share = jnp.take(r, at, mode="fill", fill_value=0)
            row = jnp.take(x, at, axis=0, mode="clip") - mean[None, :]
            y = einsum("bd,ed->be", row, inverse)
            weighted = y * share[:, None]
            return done + _CHUNK, first + weighted.sum(0), second + einsum("bd,be->de", weighted, y)

        zero = jnp.zeros((n_features, n_features), x.dtype)
        begin = (jnp.zeros((), jnp.int32), zero[0], zero)
        _, first, second = lax.while_loop(lambda carry: carry[0] < rank[n_samples - 1], chunk, begin)
        return first, second

    rank = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    return lax.map(one, (inverse, means, r, rank))
