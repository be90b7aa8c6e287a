"""mclust's structures without correlations and with shared parts: EII, EEI, VEI and EVI.

The letters say volume, shape and orientation: E equal, V varying, I identity. VVI is `diag`, VII `spherical`.
The scale is described in `eigen_parts`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import (
    Collapse,
    Covariance,
    Partial,
    all_as_points,
    any_axis,
    any_volume,
)
from jaxgmm.components.covariance.diagonal import diag, relative_variances
from jaxgmm.components.covariance.eigen_parts import (
    Scale,
    from_variances,
    grown,
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    nan_sqrt,
    nearest,
    shares,
    widths,
)
from jaxgmm.components.covariance.letters import properties


def _update(
    letters: str, scale: Scale, weight: Array, mean: Array, second: Array, ridge: Array
) -> tuple[Scale, Array]:
    on, share = shares(weight)
    variances = relative_variances(scale, weight, mean * mean, second, ridge)
    volume, shape = nearest(letters, variances, share)
    if letters[0] == "V":
        volume = jnp.where(on[:, None], volume, 1)
    change = jnp.broadcast_to(jnp.square(volume * shape - 1), mean.shape).sum(-1)
    return grown(scale, volume, shape), change


def _from_shared(variances: Array) -> Scale:
    """The scale of one variance (), or of one for each feature (D,)."""
    return {"width": nan_sqrt(variances).reshape(1, -1)}


def _to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> Scale:
    logs = logs_to(reference, weights, scale, shift.shape[-1])
    precision = jnp.square(widths(reference) / widths(scale))
    return {**logs, "shift": jnp.sqrt(weights)[:, None] * precision * shift}


def _from_natural(reference: Scale, weights: Array, natural: Scale) -> tuple[Scale, Array]:
    shift = natural["shift"] / jnp.sqrt(weights)[:, None]
    scale = logs_from(reference, weights, natural, shift.shape[-1])
    return scale, shift * jnp.square(widths(scale) / widths(reference))


def rescale_width(scale: Scale, unit: Array) -> Scale:
    """The same shapes and orientations with widths (1 or K, 1 or D) multiplied by the one unit."""
    return {**scale, "width": scale["width"] * unit[None, :1]}


def _rescale_features(scale: Scale, unit: Array) -> Scale:
    return {"width": scale["width"] * unit[None, :]}


def _evi_collapse(n_features: int) -> Collapse:
    # With one feature there is no shape, and the volume is common.
    return any_axis(n_features) if n_features > 1 else all_as_points(n_features)


def _record(letters: str, **fields: Any) -> Covariance:
    return diag._replace(
        name=letters,
        **properties(letters),
        update=Partial(_update, letters),
        from_variances=Partial(from_variances, letters),
        to_natural=_to_natural,
        from_natural=_from_natural,
        to_unconstrained=logs_free,
        from_unconstrained=logs_bound,
        **fields,
    )


_OWN: dict[str, Any] = {"rescale": rescale_width, "by_feature": False}

EII = _record("EII", from_covariance=_from_shared, prior="EII", collapse=all_as_points, **_OWN)
EEI = _record(
    "EEI", from_covariance=_from_shared, prior="EEI", collapse=all_as_points, rescale=_rescale_features
)
VEI = _record("VEI", from_covariance=Partial(from_variances, "VEI"), collapse=any_volume, **_OWN)
EVI = _record("EVI", from_covariance=Partial(from_variances, "EVI"), collapse=_evi_collapse, **_OWN)
