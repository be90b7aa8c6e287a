"""Coordinates of a mixture about another one: for extrapolation, and for linear solves with EM's Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.components.weights import Model
from jaxgmm.mixture import GMMParams, kept
from jaxgmm.solvers.implicit import Chart


def extrapolation(model: Model) -> Chart | None:
    """Centred logits, and the structure's natural parameters in coordinates where the reference is white.

    None where the structure has no natural parameters.
    """
    structure = model.covariance
    if structure.to_natural is None or structure.from_natural is None:
        return None
    return _chart(structure.to_natural, structure.from_natural)


def isometric(model: Model) -> Chart:
    """Coordinates for linear solves with the map's Jacobian: as above, with the logits centred by weight.

    They are then an isometry of the Fisher metric of a complete observation, in which the Jacobian at a
    maximum of the likelihood is symmetric. A structure without natural parameters is described by its free
    coordinates instead, or by its arrays as they are.
    """
    structure = model.covariance
    if structure.to_natural is not None and structure.from_natural is not None:
        return _chart(structure.to_natural, structure.from_natural, by_weight=True)
    to_free, from_free = structure.to_unconstrained, structure.from_unconstrained

    def to(reference: Any, weights: Array, scatter: Any, shift: Array) -> Any:
        return (scatter if to_free is None else to_free(scatter)), jnp.sqrt(weights)[:, None] * shift

    def back(reference: Any, weights: Array, free: Any) -> tuple[Any, Array]:
        shift = free[1] / jnp.sqrt(weights)[:, None]
        return (free[0] if from_free is None else from_free(free[0], shift.shape)), shift

    return _chart(to, back, by_weight=True)


def _chart(
    to_natural: Callable[..., Any], from_natural: Callable[..., tuple[Any, Array]], *, by_weight: bool = False
) -> Chart:
    def floor(reference: GMMParams) -> Array:
        return jnp.maximum(reference.weights, 1e-6)

    def to(reference: GMMParams, params: GMMParams) -> Any:
        on = params.log_weights > -jnp.inf
        logits = jnp.where(on, params.log_weights, 0)
        centre = (reference.weights * logits).sum() if by_weight else logits.mean(where=on)
        logits = jnp.where(on, logits - centre, 0)
        gap = (params.means - reference.means)[:, :, None]
        shift = params.covariance.whitener(reference.scatter)(gap)[:, :, 0]
        natural = to_natural(reference.scatter, floor(reference), params.scatter, shift)
        c = params.component
        extra = () if c.to_free is None else c.to_free(c, params.scale)
        return jnp.sqrt(floor(reference)) * logits, natural, extra

    def back(reference: GMMParams, coordinates: Any) -> GMMParams:
        logits, natural, extra = coordinates
        on = reference.log_weights > -jnp.inf
        scatter, shift = from_natural(reference.scatter, floor(reference), natural)
        moved = reference.covariance.colour(reference.scatter, shift[:, :, None])[:, :, 0]
        # A switched-off component has no information, and extrapolating it none either: it stays.
        means = jnp.where(on[:, None], reference.means + moved, reference.means)
        if reference.weights_rule.rule == "free":
            logits = jnp.where(on, logits / jnp.sqrt(floor(reference)), -jnp.inf)
            log_weights = jax.nn.log_softmax(logits)
        else:
            log_weights = reference.weights_rule.start(reference.log_weights)
        c, scale = reference.component, reference.scale
        if c.from_free is not None:
            scale = c.from_free(c, scale, extra)
        return kept(reference, GMMParams(log_weights, means, scale, *reference.model).with_scatter(scatter))

    return Chart(to, back)
