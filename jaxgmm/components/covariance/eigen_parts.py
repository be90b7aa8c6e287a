"""Volumes and shapes of Σ_k = λ_k D_k A_k D_kᵀ, |A_k| = 1, shared or not.

A scale keeps standard deviations, "width" = √λ and "shape" = √A of product 1, or both in one "width" where a
structure ties them the same way. What is shared has a leading axis of 1, what is not one of K, so that
everything broadcasts. Letters are mclust's: E equal, V varying, I identity.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.linalg import epsilon

SHAPE_PASSES = 10  # of `_common_shape`
Scale = dict[str, Array]


def widths(scale: Any) -> Array:
    """(..., 1 or K, 1 or D) standard deviations along the axes.

    A scale is a dict of widths and shapes, or the standard deviations themselves: (K,) or (K, D).
    """
    if isinstance(scale, dict):
        return scale["width"] * scale["shape"] if "shape" in scale else scale["width"]
    return scale[:, None] if scale.ndim == 1 else scale


def positive(target: Array, spread: Array) -> Array:
    """`target`, or the rounding of the subtraction that made it from `spread` where it is not positive."""
    eps = epsilon(target.dtype)
    return jnp.where(target > 0, target, 4 * eps * spread + eps * eps)


def nan_sqrt(variances: Array) -> Array:
    """Standard deviations of variances; NaN where one is not positive."""
    return jnp.where(variances > 0, jnp.sqrt(jnp.where(variances > 0, variances, 1)), jnp.nan)


def shares(weight: Array) -> tuple[Array, Array]:
    """Which components count (K,), and their shares of the weight (K,); equal shares where none counts."""
    on = weight > 0
    own = jnp.where(on, weight, 0)
    total = own.sum()
    return on, jnp.where(total > 0, own / jnp.where(total > 0, total, 1), 1 / weight.shape[0])


def geometric_mean(values: Array) -> Array:
    """Over the last axis, which stays."""
    return jnp.exp(jnp.log(values).mean(-1, keepdims=True))


def _pooled(values: Array, share: Array) -> Array:
    """(1, D) the mean of (K, D) over the components."""
    return (share[:, None] * values).sum(0, keepdims=True)


def _common_shape(variances: Array, share: Array) -> tuple[Array, Array]:
    """Volumes (K, 1) and one shape (1, D).

    Alternates b ∝ Σ_k n_k t_k / u_k, of product 1, with u_k = mean_j t_kj / b_j; each lowers the sum, which
    is convex in the logarithms, so there is one minimum.
    """

    def best(u: Array) -> tuple[Array, Array]:
        b = _pooled(variances / u, share)
        b = b / geometric_mean(b)
        return (variances / b).mean(-1, keepdims=True), b

    start = geometric_mean(variances)
    u, _ = lax.scan(lambda u, _: (best(u)[0], None), start, None, length=SHAPE_PASSES)
    return best(u)


def nearest(letters: str, variances: Array, share: Array) -> tuple[Array, Array]:
    """Volumes u (1 or K, 1) and shapes b (1 or K, D) that minimise Σ n_k (log u_k b_kj + t_kj / u_k b_kj).

    Of `letters` volume and shape are read. Where they are tied the same way, all is in what is called the
    volume, (1 or K, 1 or D), and the shape is 1.

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28.
    """
    if letters[:2] == "VE":
        return _common_shape(variances, share)
    if letters[:2] == "EV":
        own = geometric_mean(variances)
        return _pooled(own, share), variances / own
    together = variances if letters[0] == "V" else _pooled(variances, share)
    together = together.mean(-1, keepdims=True) if letters[1] == "I" else together
    return together, jnp.ones((1, 1), variances.dtype)


def grown(scale: Scale, volume: Array, shape: Array) -> Scale:
    """The scale whose variances are those of `scale` times volume times shape, its shape of product 1."""
    new = {**scale, "width": scale["width"] * jnp.sqrt(volume)}
    if "shape" in scale:
        moved = scale["shape"] * jnp.sqrt(shape)
        new["shape"] = moved / geometric_mean(moved)
    return new


def from_variances(letters: str, variances: Array) -> Scale:
    """Width, and shape where they are tied differently, nearest to variances (K, D); NaN if not positive."""
    if letters[:2] in ("VE", "EV"):
        good = (variances > 0).all(-1, keepdims=True)
        equal = jnp.full(variances.shape[0], 1 / variances.shape[0], variances.dtype)
        volume, shape = map(jnp.sqrt, nearest(letters, jnp.where(good, variances, 1), equal))
        if letters[0] == "E":
            return {"width": volume, "shape": jnp.where(good, shape, jnp.nan)}
        return {"width": jnp.where(good, volume, jnp.nan), "shape": shape}
    if letters[0] == "E":
        variances = variances.mean(None if letters[1] == "I" else 0, keepdims=True)
    return {"width": nan_sqrt(variances)}


def _lengths(values: Array, weights: Array, n_features: int) -> Array:
    """What one unit of a logarithm of a standard deviation is in Fisher length, for each of `values`."""
    own = jnp.sqrt(2 * (weights if values.shape[0] == weights.shape[0] else weights.sum(keepdims=True)))
    return own[:, None] * (n_features**0.5 if values.shape[1] == 1 else 1.0)


def logs_to(reference: Any, weights: Array, scale: Any, n_features: int) -> Scale:
    """Logarithms of width and shape about a reference, in coordinates whose length is the Fisher length."""
    keys = [k for k in ("width", "shape") if k in scale]
    return {k: _lengths(scale[k], weights, n_features) * jnp.log(scale[k] / reference[k]) for k in keys}


def logs_from(reference: Any, weights: Array, natural: Any, n_features: int) -> Scale:
    """The way back."""
    keys = [k for k in ("width", "shape") if k in natural]
    new = {k: reference[k] * jnp.exp(natural[k] / _lengths(natural[k], weights, n_features)) for k in keys}
    # Extrapolation multiplies rounding too, and a shape whose product is not 1 would be a volume of its own:
    # outside of the structure, where the likelihood is higher.
    return {**new, "shape": new["shape"] / geometric_mean(new["shape"])} if "shape" in new else new


def logs_free(scale: Scale) -> Scale:
    """Logarithms of width and shape, of the latter all but the last: their sum is 0."""
    free = {"width": jnp.log(scale["width"])}
    return {**free, "shape": jnp.log(scale["shape"][..., :-1])} if "shape" in scale else free


def logs_bound(free: Scale, *_: Any) -> Scale:
    """The way back."""
    scale = {"width": jnp.exp(free["width"])}
    if "shape" not in free:
        return scale
    last = -free["shape"].sum(-1, keepdims=True)
    return {**scale, "shape": jnp.exp(jnp.concatenate([free["shape"], last], axis=-1))}
