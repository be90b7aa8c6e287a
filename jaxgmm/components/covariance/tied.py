"""Tied covariance, one for all components: its lower Cholesky factor (D, D)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance import full as each
from jaxgmm.components.covariance.base import Partial, compiled
from jaxgmm.components.covariance.letters import properties
from jaxgmm.kernels.linalg import einsum, embed_diagonal, eye, lower_inverse, safe_cholesky, tril


def _as_one(function: Callable[..., Any], scale: Array, *arguments: Any) -> Any:
    """A function of factors of components (1, D, D), for the one factor."""
    return function(scale[..., None, :, :], *arguments)


def _update(scale: Array, weight: Array, mean: Array, second: Array, ridge: Array) -> tuple[Array, Array]:
    total = weight.sum()
    safe = jnp.where(total > 0, total, 1)
    identity = eye(mean.shape[-1], mean.dtype)
    between = einsum("k,kd,ke->de", weight / safe, mean, mean)
    target, jitter = each.covariance_step(second / safe, between, lower_inverse(scale), ridge[None, :])
    target = jnp.where(total > 0, target, identity)
    factor = einsum("de,ef->df", tril(scale), safe_cholesky(target, jitter))
    return factor, jnp.broadcast_to(jnp.square(target - identity).sum(), weight.shape)


def _from_variances(variances: Array) -> Array:
    return embed_diagonal(jnp.sqrt(variances.mean(0)))


def _to_natural(reference: Array, weights: Array, scale: Array, shift: Array) -> dict[str, Array]:
    return each.to_natural(reference[None], weights, scale[None], shift)


def _from_natural(reference: Array, weights: Array, natural: dict[str, Array]) -> tuple[Array, Array]:
    scale, shift = each.from_natural(reference[None], weights, natural)
    return scale[0], shift


tied = each.full._replace(
    name="tied",
    **properties("EEE"),
    whitener=Partial(_as_one, each.whitener),
    colour=Partial(_as_one, each.colour),
    log_det=Partial(_as_one, each.log_det),
    diagonal=Partial(_as_one, each.diagonal),
    inverse_diagonal=Partial(_as_one, each.inverse_diagonal),
    second_moment="pooled",
    update=_update,
    to_covariance=Partial(compiled, Partial(_as_one, each.to_covariance)),
    from_variances=_from_variances,
    to_natural=_to_natural,
    from_natural=_from_natural,
)
