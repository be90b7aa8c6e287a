"""Change of reference: statistics about one mixture as statistics about another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.base import Component
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.linalg import einsum
from jaxgmm.mixture import GMMParams


def check(component: Component, what: str) -> None:
    """Raise where second moments of a component cannot be carried to other parameters.

    Those of a structure that keeps projections of them, such as a factor analyser, cannot; and of one that
    keeps others by a function of its own (`Covariance.second_moment`) it is not known.
    """
    if not component.is_gaussian or callable(component.covariance.second_moment):
        raise ValueError(
            f"{what} needs second moments that can be carried between mixtures; {component.name!r} "
            "keeps others. Use fit_stream without it"
        )


def rebase(moments: Statistics, old: GMMParams, new: GMMParams) -> Statistics:
    """Statistics about `old` as those about `new`, of the same model and responsibilities.

    With x = μ + C y the residuals about the new parameters are y' = A y + b, A = C'⁻¹ C, b = C'⁻¹ (μ − μ').
    Both are of order 1 while the mixtures are alike, so that nothing cancels.
    """
    structure, (k, d) = old.covariance, old.means.shape
    whiten = structure.whitener(new.scatter)
    b = whiten((old.means - new.means)[:, :, None])[:, :, 0]
    identity = jnp.broadcast_to(jnp.eye(d, dtype=b.dtype)[None], (k, d, d))
    a = whiten(structure.colour(old.scatter, identity))
    moved = einsum("kde,ke->kd", a, moments.first)
    first = moved + moments.weight[:, None] * b
    return dataclasses.replace(moments, first=first, second=_second(structure, moments, a, b, moved))


def _second(structure: Covariance, moments: Statistics, a: Array, b: Array, moved: Array) -> Any:
    second, n = moments.second, moments.weight
    if structure.second_moment in ("matrix", "pooled"):
        crossed = moved[:, :, None] * b[:, None, :]
        added = crossed + crossed.swapaxes(1, 2) + n[:, None, None] * b[:, :, None] * b[:, None, :]
        if structure.second_moment == "pooled":
            # All covariances are one, and so are the factors.
            return einsum("de,ef,gf->dg", a[0], second, a[0]) + added.sum(0)
        return einsum("kde,kef,kgf->kdg", a, second, a) + added
    wider = jnp.square(jnp.diagonal(a, axis1=1, axis2=2))
    added = 2 * moved * b + n[:, None] * jnp.square(b)
    if structure.second_moment == "diagonal":
        return wider * second + added
    return wider[:, 0] * second + added.sum(1)


def expected(params: GMMParams, weight: Array) -> Statistics:
    """The moments that `params` themselves expect of weights (K,) in the components; of log-likelihood 0."""
    k, d = params.means.shape
    dtype = params.means.dtype
    identity = jnp.broadcast_to(jnp.eye(d, dtype=dtype)[None], (k, d, d))
    second = params.covariance.moments(params.scatter, identity, jnp.broadcast_to(weight[:, None], (k, d)))
    return Statistics(weight, jnp.zeros((k, d), dtype), second, jnp.zeros((), dtype), weight.sum())
