"""Spurious optima: a likelihood that is high because a component describes next to nothing.

A mixture's likelihood is unbounded where a component can shrink onto a few samples while the others describe
the rest, and near such a singularity there are maxima that mean nothing. Whether there are any depends on
what the components share. With Σ_k = λ_k D_k A_k D_kᵀ, |A_k| = 1 (volume, orientation, shape), n_k samples
in component k and N in all, in general position:

  VVV, VVE  |Σ_k| → 0 on n_k ≤ D samples, which lie in a hyperplane: across it Σ_k may have no width. A common
            orientation does not help, for it may have an axis across that hyperplane.
  VVI       the same, where axes are the features: only on n_k ≤ 1, unless samples are equal in a feature.
  VII, VEI, λ_k → 0 on n_k ≤ 1, a point. The shape is common, and the scatter of two samples is not 0 in its
  VEE, VEV  metric. Shapes say nothing of one component: only the volumes are compared.
  EVV, EVE, |Σ_k| is common, and the likelihood is bounded: with n_k ≤ D (EVI: 1) it is highest at a singular
  EVI       shape, without width in one direction and without bound in another. That is an artefact as well.
  EEV       λ and A are common, and vanish only where all components are flat: max_k n_k ≤ D.
  EEE       Σ is common. It is singular where Σ_k (n_k − 1) = N − K < D.
  EEI, EII  the same where N − K < 1. Likewise structures whose eigenvalues are bound to a ratio.
  factors   Λ_k Λ_kᵀ + Ψ_k with q factors is singular on n_k ≤ min(q + 1, D) samples.

VEE and VEV have common shapes too, which vanish as those of EEE and EEV. `Covariance.collapse` says all this
of a structure in four numbers; without it a structure counts as VVV.

One component alone cannot shrink while others describe the rest: it is spurious only where all the data are
too few. A prior on covariances (`Prior.dof` and `Prior.scale`) bounds the objective, and a component of few
samples then rests on it: FEW is not looked for. How high the bound lies depends on the scale, so that NARROW
is, in the same way.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Collapse, Covariance
from jaxgmm.components.covariance.full import full
from jaxgmm.data import Data, covariance_of
from jaxgmm.kernels.linalg import cholesky, eigvalsh, einsum, lower_inverse

MAX_RATIO = 1e5  # of eigenvalues, relative to the covariance of all the data
_TWIN = 0.1  # two components closer than this in Fisher length are one


class Spurious(IntFlag):
    """What is wrong with an optimum. Inside jit it is an int32; 0 is nothing."""

    #: a component rests on so few samples that its covariance may be singular: on fewer than D + 2 effective
    #: ones for "full", 3 for "diag" and "spherical"; with one covariance for all, only all of them together
    FEW = 1
    #: in what the structure lets differ (directions, axes, or only volumes), a component is narrower than
    #: another one, or than itself elsewhere, by more than the ratio that is allowed
    NARROW = 2
    TWINS = 4  #: two components are one and the same


_WORDS = {Spurious.FEW: "few samples", Spurious.NARROW: "too narrow", Spurious.TWINS: "twins"}


def describe(flags: int) -> str:
    """The flags in words, joined by commas; empty for 0.

    Example:
      >>> from jaxgmm.selection._spurious import Spurious, describe
      >>> describe(Spurious.FEW | Spurious.TWINS)
      'few samples, twins'
    """
    return ", ".join(words for flag, words in _WORDS.items() if flags & flag)


def total_factor(data: Data, block_size: int) -> Array:
    """Lower Cholesky factor (D, D) of the covariance of all the data, a little wider where it is singular."""
    _, variance, covariance = covariance_of(data, block_size)
    width = jnp.sqrt(jnp.where(variance > 0, variance, 1))
    correlation = covariance / width[:, None] / width[None, :]
    eps = float(jnp.finfo(width.dtype).eps)
    identity = jnp.eye(width.shape[0], dtype=width.dtype)
    return width[:, None] * cholesky(correlation + 16 * eps * identity)


def total_for(covariance: Covariance, total: Array) -> Array:
    """Of the `total_factor` what a structure can say: without correlations, the standard deviations."""
    if not covariance.prior.endswith("I"):
        return total
    xp: Any = np if validate.is_concrete(total) else jnp
    widths: Array = xp.sqrt(xp.square(xp.asarray(total)).sum(1))
    return widths[:, None] * np.eye(len(widths), dtype=widths.dtype)


def spurious(
    log_weights: Array,
    means: Array,
    covariances: Array | None,
    n_effective: Array,
    total: Array,
    max_ratio: Array,
    collapse: Collapse | None = None,
    bounded: Any = False,
    log_det: Array | None = None,
) -> Array:
    """() int32, the `Spurious` flags of one mixture.

    Args:
      log_weights: (K,); components that are switched off do not count.
      means: (K, D).
      covariances: (K, D, D), dense: one compiled program serves every covariance structure. None for
        mixtures of so many features that this would be large: then only FEW is looked for.
      n_effective: () the sum of the sample weights.
      total: (D, D) lower Cholesky factor of the covariance of all the data, as `total_factor` gives it and
        `total_for` keeps it. Eigenvalues are measured relative to that covariance: they do not depend on
        units, and a direction in which all the data are narrow is not held against a component.
      max_ratio: () the largest ratio of two eigenvalues, of the same component or of two, that is allowed;
        of two components' |Σ|^(1/D) where these differ only in volume.
      collapse: what of the structure can collapse; None for that of "full".
      bounded: () whether a prior keeps covariances from being singular: FEW is then not looked for.
      log_det: (K,) log |Σ_k|, where known more exactly than from the covariances.

    A count must exceed its limit by one where there are several components: responsibilities share samples
    out, so that a component of D + 1 effective samples may rest on D and parts of others.
    """
    n_components, n_features = means.shape
    limit = full.collapse(n_features) if collapse is None else collapse
    on = log_weights > -jnp.inf
    n_on = on.astype(means.dtype).sum()
    several = n_on > 1
    counts = jnp.where(on, jnp.exp(log_weights) * n_effective, 0)
    pooled = n_effective - jnp.maximum(n_on - 1, 0)

    rounding = 16 * float(jnp.finfo(means.dtype).eps)  # exp(log π) · n of whole counts is not whole

    def too_few(count: Array, limit: Any) -> Array:
        least = jnp.asarray(limit, count.dtype) + several.astype(count.dtype)
        return (limit > 0) & (count < least - rounding * least)

    few = (on & too_few(counts, limit.each)).any()
    few = (few | too_few(counts.max(), limit.largest) | too_few(pooled, limit.pooled)) & ~jnp.asarray(bounded)
    flags = int(Spurious.FEW) * few.astype(jnp.int32)
    if covariances is None:
        return flags
    inverse = lower_inverse(total)
    relative = einsum("de,kef,gf->kdg", inverse, covariances, inverse)
    eigenvalues = eigvalsh(relative)
    if log_det is None:
        log_det = 2 * jnp.log(jnp.diagonal(cholesky(covariances), axis1=-2, axis2=-1)).sum(-1)
    # Relative to one of them, whose units are theirs: their own powers may overflow.
    volumes = jnp.exp((log_det - jnp.where(on, log_det, -jnp.inf).max()) / n_features)
    top, bottom = (jnp.where(limit.by_volume, volumes, eigenvalues[:, i]) for i in (-1, 0))
    largest = jnp.where(on, top, 0).max()
    smallest = jnp.where(on, bottom, jnp.inf).min()
    narrow = (jnp.asarray(limit.each) > 0) & several & ~(largest <= max_ratio * smallest)

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
    flags = flags + int(Spurious.NARROW) * narrow.astype(jnp.int32)
    return flags + int(Spurious.TWINS) * (closest < _TWIN**2).astype(jnp.int32)
