"""mclust's structures with correlations and shared parts: VEE, EVV, EEV, VEV, EVE and VVE.

The letters say volume, shape and orientation: E equal, V varying. EEE is `tied`, VVV `full`. Where both shape
and orientation are shared, or neither, scale holds a lower "factor" of determinant 1, (1, D, D) or
(K, D, D), and a "width"; otherwise an "orientation", orthogonal with the axes in its columns, and the
standard deviations along them, as `eigen_parts` describes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.covariance.base import Collapse, Covariance, Partial, all_as_points, any_direction
from jaxgmm.components.covariance.eigen_diagonal import rescale_width
from jaxgmm.components.covariance.eigen_parts import (
    Scale,
    from_variances,
    logs_bound,
    logs_free,
    logs_from,
    logs_to,
    widths,
)
from jaxgmm.components.covariance.eigen_steps import factor_update, turned_update
from jaxgmm.components.covariance.full import (
    factor_from_unconstrained,
    factor_to_unconstrained,
    full,
    inverses_of,
)
from jaxgmm.components.covariance.letters import properties
from jaxgmm.components.covariance.rotations import rotation_from_free, rotation_to_free
from jaxgmm.kernels.linalg import cholesky, einsum, embed_diagonal, times_each

_SHORTEST, _LONGEST = 1e-2, 1e6  # bounds on the Fisher length of an angle


def _from_variances(letters: str, variances: Array) -> Scale:
    scale = from_variances(letters, variances)
    if letters[1] == letters[2]:
        return {"width": scale["width"], "factor": embed_diagonal(scale["shape"])}
    k, d = variances.shape
    identity = jnp.eye(d, dtype=variances.dtype)
    return {**scale, "orientation": jnp.broadcast_to(identity, (k if letters[2] == "V" else 1, d, d))}


def _update(letters: str, *arguments: Any) -> tuple[Scale, Array]:
    return (factor_update if letters[1] == letters[2] else turned_update)(letters, *arguments)


# Compiled, because `make_params` calls it outside of `jit`, where every operation would be a program.
@functools.partial(jax.jit, static_argnums=0)
def _nearest(letters: str, covariances: Array) -> Scale:
    k, d, _ = covariances.shape
    dtype = covariances.dtype
    good = jnp.isfinite(cholesky(covariances)).all((-2, -1))
    safe = jnp.where(good[:, None, None], covariances, jnp.eye(d, dtype=dtype)[None])
    scale = _from_variances(letters, jnp.diagonal(safe, axis1=-2, axis2=-1))
    zeros = jnp.zeros((k, d), dtype)
    # Twice, as every M-step from afar: the second measures in units of the first.
    for _ in range(2):
        inverse = jnp.broadcast_to(inverses_of(scale), safe.shape)
        whitened = einsum("kde,kef,kgf->kdg", inverse, safe, inverse)
        scale, _ = _update(letters, scale, jnp.ones(k, dtype), zeros, whitened, zeros[0])
    row = {"EVV": "factor", "EEV": "orientation", "EVE": "shape"}.get(letters, "width")
    mask = good.reshape((k,) + (1,) * (scale[row].ndim - 1))
    return {**scale, row: jnp.where(mask, scale[row], jnp.nan)}


def _from_covariance(letters: str, covariances: Array) -> Scale:
    """What the M-step makes of covariances (K, D, D) of equal weight; NaN in rows of those that fail."""
    return _nearest(letters, covariances)


def _factor_free(scale: Scale) -> dict[str, Array]:
    free = factor_to_unconstrained(scale["factor"])
    return {**logs_free({"width": scale["width"]}), **free, "log_diagonal": free["log_diagonal"][..., :-1]}


def _factor_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    logs = free["log_diagonal"]
    logs = jnp.concatenate([logs, -logs.sum(-1, keepdims=True)], axis=-1)
    factor = factor_from_unconstrained({"log_diagonal": logs, "lower": free["lower"]}, shape)
    return {**logs_bound({"width": free["width"]}), "factor": factor}


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    # The division comes after the sum: a small width must not be rounded with the directions of large ones.
    turn, inverse = scale["orientation"].swapaxes(-1, -2), 1 / widths(scale)
    return lambda residuals: times_each(turn, residuals) * inverse[:, :, None]


def _log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    return 2 * jnp.broadcast_to(jnp.log(widths(scale)), shape).sum(-1)


def _turn_lengths(reference: Scale, weights: Array) -> Array:
    """(1 or K, D(D − 1)/2) what a small angle between two axes is in Fisher length."""
    w = widths(reference)
    rows, columns = np.tril_indices(w.shape[-1], -1)
    # Between equal widths an angle has no length, and no information.
    ratio = w[:, rows] / w[:, columns]
    squares = weights[:, None] * jnp.square(jnp.clip(ratio - 1 / ratio, -_LONGEST, _LONGEST))
    if reference["orientation"].shape[0] == 1:
        squares = squares.sum(0, keepdims=True)
    return jnp.sqrt(squares + _SHORTEST**2)


def _turn_to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    turn = einsum("ked,kef->kdf", reference["orientation"], scale["orientation"])
    return {
        **logs_to(reference, weights, scale, shift.shape[-1]),
        "turn": _turn_lengths(reference, weights) * rotation_to_free(turn),
        "shift": jnp.sqrt(weights)[:, None] * shift,
    }


def _turn_from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    d = natural["shift"].shape[-1]
    turn = rotation_from_free(natural["turn"] / _turn_lengths(reference, weights), d)
    orientation = einsum("kde,kef->kdf", reference["orientation"], turn)
    scale = {**logs_from(reference, weights, natural, d), "orientation": orientation}
    return scale, natural["shift"] / jnp.sqrt(weights)[:, None]


def _turn_free(scale: Scale) -> dict[str, Array]:
    return {**logs_free(scale), "turn": rotation_to_free(scale["orientation"])}


def _turn_bound(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    return {**logs_bound(free), "orientation": rotation_from_free(free["turn"], shape[1])}


def _collapse(letters: str, n_features: int) -> Collapse:
    if letters == "EEV":
        return Collapse(largest=n_features + 1)
    if letters[:2] == "VE":
        shared = "pooled" if letters[2] == "E" else "largest"
        return Collapse(each=2, by_volume=True, **{shared: n_features + 1})
    # With one feature there is no shape, and the volume is common. A common orientation does not help: it may
    # have an axis across the few samples of any one component.
    return all_as_points(n_features) if letters[0] == "E" and n_features == 1 else any_direction(n_features)


_FACTORS = full._replace(to_unconstrained=_factor_free, from_unconstrained=_factor_bound)
_AXES = full._replace(
    whitener=_whitener,
    log_det=_log_det,
    to_natural=_turn_to_natural,
    from_natural=_turn_from_natural,
    to_unconstrained=_turn_free,
    from_unconstrained=_turn_bound,
)


def _record(letters: str) -> Covariance:
    return (_FACTORS if letters[1] == letters[2] else _AXES)._replace(
        name=letters,
        **properties(letters),
        update=Partial(_update, letters),
        from_covariance=Partial(_from_covariance, letters),
        from_variances=Partial(_from_variances, letters),
        rescale=rescale_width,
        by_feature=False,
        collapse=Partial(_collapse, letters),
    )


VEE, EVV, EEV, VEV, EVE, VVE = map(_record, ("VEE", "EVV", "EEV", "VEV", "EVE", "VVE"))
