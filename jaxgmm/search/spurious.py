"""Optima that are artefacts: a likelihood that is high because a component describes next to nothing."""

from __future__ import annotations

from enum import IntFlag

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.families.full import full
from jaxgmm.linalg import cholesky, eigvalsh, einsum, lower_inverse
from jaxgmm.moments import accumulate, location_and_variance
from jaxgmm.params import GMMParams

MAX_RATIO = 1e5  # of eigenvalues, relative to the covariance of all the data
_TWIN = 0.1  # two components closer than this in Fisher length are one


class Spurious(IntFlag):
    """What is wrong with an optimum. Inside jit it is an int32; 0 is nothing."""

    FEW = 1  #: a component rests on fewer than D + 2 effective samples
    NARROW = 2  #: a component is, in some direction, narrower than the eigenvalue ratio allows
    TWINS = 4  #: two components are one and the same


_WORDS = {
    Spurious.FEW: "few samples",
    Spurious.NARROW: "too narrow",
    Spurious.TWINS: "twins",
}


def describe(flags: int) -> str:
    """The flags in words, joined by commas; empty for 0.

    Example:
      >>> from jaxgmm.search.spurious import Spurious, describe
      >>> describe(Spurious.FEW | Spurious.TWINS)
      'few samples, twins'
    """
    return ", ".join(words for flag, words in _WORDS.items() if flags & flag)


def total_factor(x: Array, w: Array | None, block_size: int) -> Array:
    """Lower Cholesky factor (D, D) of the covariance of all the data, a little wider where it is singular."""
    mean, variance = location_and_variance(x, w)
    width = jnp.sqrt(jnp.where(variance > 0, variance, 1))
    one = GMMParams(jnp.zeros(1, x.dtype), mean[None, :], jnp.diag(width)[None], full)
    moments = accumulate(one, x, w, block_size=block_size)
    correlation = moments.second[0] / moments.total_weight
    eps = float(jnp.finfo(x.dtype).eps)
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    return width[:, None] * cholesky(correlation + 16 * eps * identity)


def spurious(
    log_weights: Array,
    means: Array,
    covariances: Array | None,
    n_effective: Array,
    total: Array,
    max_ratio: Array,
) -> Array:
    """() int32, the `Spurious` flags of one mixture.

    Args:
      log_weights: (K,); components that are switched off do not count.
      means: (K, D).
      covariances: (K, D, D), dense: one compiled program serves every covariance structure. None for
        mixtures of so many features that this would be large: then only FEW is looked for.
      n_effective: () the sum of the sample weights.
      total: (D, D) lower Cholesky factor of the covariance of all the data, as `total_factor` gives it.
        Eigenvalues are measured relative to that covariance: they do not depend on units, and a direction
        in which all the data are narrow is not held against a component.
      max_ratio: () the largest ratio of two eigenvalues, of the same component or of two, that is allowed.
    """
    n_components, n_features = means.shape
    on = log_weights > -jnp.inf
    few = (on & (jnp.exp(log_weights) * n_effective < n_features + 2)).any()

    if covariances is None:
        return jnp.where(few, int(Spurious.FEW), 0).astype(jnp.int32)
    inverse = lower_inverse(total)
    relative = einsum("de,kef,gf->kdg", inverse, covariances, inverse)
    eigenvalues = eigvalsh(relative)
    largest = jnp.where(on, eigenvalues[:, -1], 0).max()
    smallest = jnp.where(on, eigenvalues[:, 0], jnp.inf).min()
    narrow = ~(largest <= max_ratio * smallest)

    def nearest_twin(i: Array) -> Array:
        # The Fisher length from i to each other component, as `maximise` has it for a step of EM.
        factor = cholesky(covariances[i])
        back = lower_inverse(factor)
        gaps = einsum("de,ke->kd", back, means - means[i][None, :])
        widths = einsum("de,kef,gf->kdg", back, covariances, back)
        change = jnp.square(widths - jnp.eye(n_features, dtype=widths.dtype)[None]).sum((1, 2))
        lengths = jnp.square(gaps).sum(1) + 0.5 * change
        others = on & (jnp.arange(n_components, dtype=jnp.int32) != i)
        return jnp.where(others & on[i], lengths, jnp.inf).min()

    closest = lax.map(nearest_twin, jnp.arange(n_components, dtype=jnp.int32)).min()
    flags = [(few, Spurious.FEW), (narrow, Spurious.NARROW), (closest < _TWIN**2, Spurious.TWINS)]
    return sum(
        (jnp.where(found, int(flag), 0).astype(jnp.int32) for found, flag in flags),
        jnp.zeros((), jnp.int32),
    )
