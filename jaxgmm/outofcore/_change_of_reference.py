"""Moments about other parameters: what was summed about one mixture, as if it had been about another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Family
from jaxgmm.kernels.exact import Moments
from jaxgmm.kernels.linalg import einsum
from jaxgmm.mixture import GMMParams


def check(family: Family, what: str) -> None:
    """Raise where second moments of the family cannot be carried to other parameters.

    Those of a structure that keeps projections of them, such as a factor analyser, cannot; and of one that
    does not say what it keeps (`Family.quadratic`) it is not known.
    """
    if family.quadratic is None:
        raise ValueError(
            f"{what} needs second moments that can be carried from one mixture to the next; {family.name!r} "
            "keeps others. Use fit_stream without it"
        )


def rebase(moments: Moments, old: GMMParams, new: GMMParams) -> Moments:
    """Moments about `old` as moments about `new`, of the same family and responsibilities.

    With x = μ + C y the residuals about the new parameters are y' = A y + b, A = C'⁻¹ C, b = C'⁻¹ (μ − μ').
    Both are of order 1 while the mixtures are alike, so that nothing cancels.
    """
    family, (k, d) = old.family, old.means.shape
    whiten = family.whitener(new.scale)
    b = whiten((old.means - new.means)[:, :, None])[:, :, 0]
    identity = jnp.broadcast_to(jnp.eye(d, dtype=b.dtype)[None], (k, d, d))
    a = whiten(family.colour(old.scale, identity))
    moved = einsum("kde,ke->kd", a, moments.first)
    first = moved + moments.weight[:, None] * b
    return dataclasses.replace(moments, first=first, second=_second(family, moments, a, b, moved))


def _second(family: Family, moments: Moments, a: Array, b: Array, moved: Array) -> Any:
    second, n = moments.second, moments.weight
    if family.quadratic in ("dense", "shared"):
        crossed = moved[:, :, None] * b[:, None, :]
        added = crossed + crossed.swapaxes(1, 2) + n[:, None, None] * b[:, :, None] * b[:, None, :]
        if family.quadratic == "shared":
            # All covariances are one, and so are the factors.
            return einsum("de,ef,gf->dg", a[0], second, a[0]) + added.sum(0)
        return einsum("kde,kef,kgf->kdg", a, second, a) + added
    wider = jnp.square(jnp.diagonal(a, axis1=1, axis2=2))
    added = 2 * moved * b + n[:, None] * jnp.square(b)
    if family.quadratic == "diagonal":
        return wider * second + added
    return wider[:, 0] * second + added.sum(1)


def expected(params: GMMParams, weight: Array) -> Moments:
    """The moments that `params` themselves expect of weights (K,) in the components; of log-likelihood 0."""
    k, d = params.means.shape
    dtype = params.means.dtype
    identity = jnp.broadcast_to(jnp.eye(d, dtype=dtype)[None], (k, d, d))
    second = params.family.second_moment(params.scale, identity, jnp.broadcast_to(weight[:, None], (k, d)))
    return Moments(weight, jnp.zeros((k, d), dtype), second, jnp.zeros((), dtype), weight.sum())
