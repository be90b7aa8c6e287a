"""Volumes and shapes of Σ_k = λ_k D_k A_k D_kᵀ, |A_k| = 1, shared or not.

A scale keeps standard deviations, "width" = √λ and "shape" = √A of product 1, or both in one "width" where a
structure ties them the same way. What is shared has a leading axis of 1, what is not one of K, so that
everything broadcasts.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

SHAPE_PASSES = 10  # of `common_shape`


def widths(scale: dict[str, Array]) -> Array:
    """(..., 1 or K, 1 or D) standard deviations along the axes of the components."""
    return scale["width"] * scale["shape"] if "shape" in scale else scale["width"]


def shares(weight: Array) -> tuple[Array, Array]:
    """Which components count (K,), and their shares of the weight (K,); equal shares where none counts."""
    on = weight > 0
    total = jnp.where(on, weight, 0).sum()
    some = total > 0
    share = jnp.where(some, jnp.where(on, weight, 0) / jnp.where(some, total, 1), 1 / weight.shape[0])
    return on, share


def geometric_mean(values: Array) -> Array:
    """Over the last axis, which stays."""
    return jnp.exp(jnp.log(values).mean(-1, keepdims=True))


def pooled(values: Array, share: Array) -> Array:
    """(1, D) the mean of (K, D) over the components."""
    return (share[:, None] * values).sum(0, keepdims=True)


def common_shape(variances: Array, share: Array) -> tuple[Array, Array]:
    """The volumes u (K, 1) and the shape b (1, D) that minimise Σ_k n_k Σ_j (log u_k b_j + t_kj / u_k b_j).

    Alternates b ∝ Σ_k n_k t_k / u_k, of product 1, with u_k = mean_j t_kj / b_j; each lowers the sum, which
    is convex in the logarithms, so there is one minimum.

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28, model [λ_k B].
    """

    def one(u: Array, _: None) -> tuple[Array, None]:
        b = pooled(variances / u, share)
        return (variances / (b / geometric_mean(b))).mean(-1, keepdims=True), None

    start = geometric_mean(variances)
    u, _ = lax.scan(one, start, None, length=SHAPE_PASSES)
    b = pooled(variances / u, share)
    b = b / geometric_mean(b)
    return (variances / b).mean(-1, keepdims=True), b


def common_volume(variances: Array, share: Array) -> tuple[Array, Array]:
    """The volume u (1, 1) and the shapes b (K, D) that minimise Σ_k n_k Σ_j (log u b_kj + t_kj / u b_kj).

    References:
      Celeux & Govaert (1995), model [λ B_k].
    """
    own = geometric_mean(variances)
    return pooled(own, share), variances / own


def grown(scale: dict[str, Array], volume: Array, shape: Array) -> dict[str, Array]:
    """The scale whose variances are those of `scale` times volume times shape, its shape of product 1."""
    new = scale["shape"] * jnp.sqrt(shape)
    return {**scale, "width": scale["width"] * jnp.sqrt(volume), "shape": new / geometric_mean(new)}


def split(deviations: Array) -> dict[str, Array]:
    """Standard deviations (a, D) as width (a, 1) and shape (a, D) of product 1."""
    width = geometric_mean(deviations)
    return {"width": width, "shape": deviations / width}


def _lengths(values: Array, weights: Array, n_features: int) -> Array:
    """What one unit of a logarithm of a standard deviation is in Fisher length, for each of `values`."""
    own = jnp.sqrt(2 * (weights if values.shape[0] == weights.shape[0] else weights.sum(keepdims=True)))
    return own[:, None] * (n_features**0.5 if values.shape[1] == 1 else 1.0)


def logs_to(reference: Any, weights: Array, scale: Any, n_features: int) -> dict[str, Array]:
    """Logarithms of width and shape about a reference, in coordinates whose length is the Fisher length."""
    keys = [k for k in ("width", "shape") if k in scale]
    return {k: _lengths(scale[k], weights, n_features) * jnp.log(scale[k] / reference[k]) for k in keys}


def logs_from(reference: Any, weights: Array, natural: Any, n_features: int) -> dict[str, Array]:
    """The way back."""
    keys = [k for k in ("width", "shape") if k in natural]
    new = {k: reference[k] * jnp.exp(natural[k] / _lengths(natural[k], weights, n_features)) for k in keys}
    # Extrapolation multiplies rounding too, and a shape whose product is not 1 would be a volume of its own:
    # outside of the structure, where the likelihood is higher.
    return {**new, "shape": new["shape"] / geometric_mean(new["shape"])} if "shape" in new else new


def logs_free(scale: dict[str, Array]) -> dict[str, Array]:
    """Logarithms of width and shape, of the latter all but the last: their sum is 0."""
    free = {"width": jnp.log(scale["width"])}
    return {**free, "shape": jnp.log(scale["shape"][..., :-1])} if "shape" in scale else free


def logs_bound(free: dict[str, Array]) -> dict[str, Array]:
    """The way back."""
    scale = {"width": jnp.exp(free["width"])}
    if "shape" not in free:
        return scale
    last = -free["shape"].sum(-1, keepdims=True)
    return {**scale, "shape": jnp.exp(jnp.concatenate([free["shape"], last], axis=-1))}
