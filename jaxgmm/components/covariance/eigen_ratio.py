"""Eigenvalue-ratio constraint: bounds the likelihood and keeps components from collapsing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.covariance.base import Covariance, Partial, Scale, compiled
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.eigen_parts import widths
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.letters import collapse
from jaxgmm.components.covariance.rotations import principal_axes
from jaxgmm.components.covariance.tied import tied
from jaxgmm.kernels.linalg import cholesky, einsum, eye, tril


def truncation_level(values: Array, weight: Array, ratio: float) -> Array:
    """() the m for which clipping the values (K, D) to [m, ratio · m] costs least.

    Minimises Σ_k n_k Σ_j (log v̂_kj + v_kj / v̂_kj) with v̂ = clip(v, m, ratio · m). Between two of the
    points v_kj and v_kj / ratio the same values are clipped, and the best m is a mean of them: every
    interval's best is tried. Values of weight 0 have no say.

    References:
      Fritz, García-Escudero & Mayo-Iscar (2013), A fast algorithm for robust constrained clustering,
      Computational Statistics & Data Analysis 61, proposition 3.2.
    """
    v = values.reshape(-1)
    n = jnp.broadcast_to((weight / jnp.maximum(weight.sum(), 1e-30))[:, None], values.shape).reshape(-1)
    # In units of the largest that counts, so that nothing overflows.
    top = jnp.where(n > 0, v, 0).max()
    top = lax.stop_gradient(jnp.where(top > 0, top, 1))
    v = jnp.where(n > 0, v / top, 1)
    edges = jnp.sort(lax.stop_gradient(jnp.concatenate([v, v / ratio])))
    inside = jnp.concatenate([edges[:1] / 2, 0.5 * (edges[1:] + edges[:-1]), 2 * edges[-1:]])[:, None]
    low = jnp.where(v[None] < inside, n[None], 0)
    high = jnp.where(v[None] > ratio * inside, n[None], 0)
    count = (low + high).sum(1)
    best = ((low + high / ratio) * v[None]).sum(1) / jnp.where(count > 0, count, 1)
    # An interval in which nothing is clipped costs least of all, whatever m in it.
    levels = jnp.where(count > 0, best, inside[:, 0])
    tiny = float(jnp.finfo(v.dtype).tiny)
    clipped = jnp.clip(v[None], levels[:, None], ratio * levels[:, None])
    cost = (n[None] * (jnp.log(jnp.maximum(clipped, tiny)) + v[None] / jnp.maximum(clipped, tiny))).sum(1)
    return levels[jnp.argmin(cost)] * top


def _clip(variances: Array, weight: Array, ratio: float) -> Array:
    level = truncation_level(variances, weight, ratio)
    return jnp.where((weight > 0)[:, None], jnp.clip(variances, level, ratio * level), variances)


def _limit(name: str, scale: Array, weight: Array, ratio: float) -> Array:
    """The scale of a structure with its eigenvalues within the ratio; weights (K,), of one matrix (1,)."""
    if name in ("diag", "spherical"):
        return jnp.sqrt(_clip(jnp.square(widths(scale)), weight, ratio)).reshape(scale.shape)
    if name == "tied":
        return _limit("full", scale[None], weight.sum(keepdims=True), ratio)[0]
    axes, deviations = principal_axes(tril(scale))
    variances = jnp.square(deviations)
    within = _clip(variances, weight, ratio)
    new = cholesky(einsum("kdi,ki,kei->kde", axes, within, axes))
    return jnp.where((within == variances).all(-1)[:, None, None], scale, new)


def _update(
    limited: tuple[Covariance, float], scale: Scale, weight: Array, mean: Array, second: Any, ridge: Array
) -> tuple[Scale, Array]:
    base, ratio = limited
    free, _ = base.update(scale, weight, mean, second, ridge)
    new = _limit(base.name, free, weight, ratio)
    k, d = mean.shape
    identity = jnp.broadcast_to(eye(d, mean.dtype, 3), (k, d, d))
    relative = base.whitener(scale)(base.colour(new, identity))
    product = einsum("kde,kfe->kdf", relative, relative)
    return new, jnp.square(product - identity).sum((1, 2))


def _make(limited: tuple[Callable[[Array], Scale], str, float], given: Array) -> Scale:
    """The scale that a function gives, within the ratio, for components of equal weight."""
    make, name, ratio = limited
    scale = make(given)
    return _limit(name, scale, jnp.ones(scale.shape[0], scale.dtype), ratio)


@functools.lru_cache
def eigen_ratio(covariance: Covariance, ratio: float) -> Covariance:
    """A structure whose eigenvalues, those of all components together, are within a ratio of each other.

    After every M-step max_kj λ_kj ≤ ratio · min_kj λ_kj over the eigenvalues of the components that are on;
    of all covariances that satisfy it, the M-step's have the highest expected log-likelihood, so that it
    never falls. The likelihood is then bounded, and no component can shrink onto a few points. A ratio of 1
    gives spheres of one size. Fits take plain EM steps, and there are no free coordinates: an extrapolation
    would leave the constraint.

    Args:
      covariance: full, tied, diag or spherical. For tied the ratio is that within the one matrix.
      ratio: at least 1.

    Returns:
      The structure, named for example "full-ratio(100)", by which `get_covariance` knows it. Equal arguments
      give the same record. It counts the parameters of `covariance`.

    Raises:
      ValueError: for another structure, or a ratio below 1 or not finite.

    Example:
      >>> from jaxgmm.components import eigen_ratio, full, get_covariance
      >>> get_covariance("full-ratio(100)") is eigen_ratio(full, 100.0)
      True

    References:
      García-Escudero, Gordaliza, Matrán & Mayo-Iscar (2008), A general trimming approach to robust cluster
      analysis, Annals of Statistics 36; Ingrassia (2004); Fritz, García-Escudero & Mayo-Iscar (2013).
    """
    if covariance not in (full, tied, diag, spherical):
        raise ValueError(f"eigen_ratio supports full, tied, diag and spherical; got {covariance.name!r}")
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"ratio must be a finite number of at least 1; got {ratio}")
    ratio = float(ratio)
    return covariance._replace(
        name=f"{covariance.name}-ratio({ratio:.12g})",
        update=Partial(_update, (covariance, ratio)),
        from_covariance=Partial(
            compiled, Partial(_make, (covariance.from_covariance, covariance.name, ratio))
        ),
        from_variances=Partial(_make, (covariance.from_variances, covariance.name, ratio)),
        to_natural=None,
        from_natural=None,
        to_unconstrained=None,
        from_unconstrained=None,
        free_volumes=False,
        by_feature=False,  # eigenvalues of features in other units have another ratio
        collapse=Partial(collapse, "EII"),
    )
