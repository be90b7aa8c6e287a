"""Directions in which the components of a mixture differ, and the mixture as it looks along them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.full import full
from jaxgmm.distributions._operations import check_part, factors, part
from jaxgmm.kernels.linalg import eigh, einsum, lower_inverse, triangular_factor
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams


class Directions(NamedTuple):
    """Directions that separate the components of a mixture, the best first.

    Attributes:
      directions: (D, d), a column each: X @ directions are d uncorrelated features of variance 1.
      eigenvalues: (d,), how much the components differ along each, falling; 0 for a direction along which
        they are all alike.
      by_means: (d,), the part of each eigenvalue that comes from the means; the rest is from covariances.
    """

    directions: Array
    eigenvalues: Array
    by_means: Array


def _check(params: GMMParams, what: str) -> None:
    check_part(params, what)
    if params.component.has_background:
        raise ValueError(f"{what} cannot take a uniform background; give the other components alone")


def directions(params: GMMParams, n_directions: int | None = None) -> Directions:
    """The directions in which the components' means and covariances differ most.

    With μ and Σ the mean and covariance of the whole mixture and Σ̄ = Σ_k π_k Σ_k, they solve M v = λ Σ v,
    vᵀ Σ v = 1, for

    M = M₁ Σ⁻¹ M₁ + M₂,  M₁ = Σ_k π_k (μ_k − μ)(μ_k − μ)ᵀ,  M₂ = Σ_k π_k (Σ_k − Σ̄) Σ⁻¹ (Σ_k − Σ̄).

    All moments are the mixture's own, so that no data are needed. Where all covariances are one, the first
    K − 1 directions are Fisher's discriminant coordinates, and the other eigenvalues are 0. A linear map of
    the data changes no eigenvalue, and leaves the new features X @ directions as they are.

    Args:
      params: one mixture. Of t and contaminated components the scatter matrices stand for the covariances.
      n_directions: how many, d; None for all D. Static.

    Returns:
      Directions. The largest entry of each is positive.

    Raises:
      ValueError, TypeError: for a number that is not between 1 and D, a background, or components of a family
        that does not know its marginals.

    Example:
      >>> import jaxgmm
      >>> means = [[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
      >>> params = jaxgmm.make_params([0.5, 0.5], means, [1.0, 1.0], "spherical")
      >>> found = jaxgmm.distributions.directions(params, 1)
      >>> found.directions.round(3)[:, 0].tolist()
      [0.0, 0.555, 0.0]

    References:
      Scrucca (2010), Dimension reduction for model-based clustering, Statistics and Computing 20, §3.
    """
    _check(params, "directions")
    d = params.n_features
    n = d if n_directions is None else validate.count(n_directions, "n_directions", 1)
    if n > d:
        raise ValueError(f"n_directions must not exceed the number of features, {d}; got {n}")
    return _directions(params, n=n)


@functools.partial(jit, static_argnames="n")
def _directions(params: GMMParams, *, n: int) -> Directions:
    pi = params.weights
    gaps = params.means - einsum("k,kd->d", pi, params.means)[None, :]
    lower = factors(params)
    # A factor of Σ from those of the components, and all else in coordinates in which Σ is the identity.
    roots = jnp.concatenate([lower, gaps[:, :, None]], axis=2) * jnp.sqrt(pi)[:, None, None]
    whole = triangular_factor(jnp.moveaxis(roots, 0, 1).reshape(params.n_features, -1))
    inverse = lower_inverse(whole)
    gaps, lower = einsum("de,ke->kd", inverse, gaps), einsum("de,kef->kdf", inverse, lower)
    between = einsum("kd,ke->de", gaps * pi[:, None], gaps)
    within = einsum("kdf,kef->kde", lower, lower)
    away = within - einsum("k,kde->de", pi, within)[None]
    of_means = einsum("de,ef->df", between, between)
    kernel = of_means + einsum("kde,kef->df", away * pi[:, None, None], away)
    values, vectors = eigh(0.5 * (kernel + kernel.T))
    values, vectors = values[::-1][:n], vectors[:, ::-1][:, :n]
    found = einsum("ed,ef->df", inverse, vectors)
    largest = jnp.take_along_axis(found, jnp.abs(found).argmax(0)[None, :], axis=0)
    found = jnp.where(largest < 0, -found, found)
    return Directions(found, jnp.maximum(values, 0), einsum("dn,de,en->n", vectors, of_means, vectors))


def project(params: GMMParams, directions: ArrayLike | Directions) -> GMMParams:
    """The mixture of the features X @ directions, exactly: means Vᵀ μ_k, covariances Vᵀ Σ_k V.

    Args:
      params: one mixture. Of t components the projections are t, of contaminated ones contaminated.
      directions: (D, d) with independent columns, or what `directions` gives.

    Returns:
      GMMParams of d features, of full covariances.

    Raises:
      ValueError, TypeError: for directions of another shape, more than D, or a mixture as in `directions`.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0, 2.0]], [[[4.0, 1.0], [1.0, 9.0]]])
      >>> total = jaxgmm.distributions.project(params, [[1.0], [1.0]])
      >>> total.means.tolist(), total.covariances.round(3).tolist()
      ([[3.0]], [[[15.0...]]])
    """
    _check(params, "project")
    given = directions.directions if isinstance(directions, Directions) else directions
    v = validate.floating(given, "directions", params.means.dtype)
    if v.ndim != 2 or v.shape[0] != params.n_features or not 1 <= v.shape[1] <= v.shape[0]:
        wanted = f"({params.n_features}, d) with d from 1 to {params.n_features}"
        raise ValueError(f"directions must have shape {wanted}; got shape {v.shape}")
    return _project(params, v)


@jit
def _project(params: GMMParams, v: Array) -> GMMParams:
    scatter = triangular_factor(einsum("dn,kde->kne", v, factors(params)))
    component, scale = part(params, tuple(range(v.shape[1])), full, scatter, None)
    return GMMParams(params.log_weights, einsum("kd,dn->kn", params.means, v), scale, component)
