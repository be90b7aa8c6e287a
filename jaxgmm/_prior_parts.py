"""What a prior may hold: its parts checked, each with the words of its error."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array

from jaxgmm import _validate as validate
from jaxgmm.kernels.linalg import epsilon


def prior_parts(
    mean: Any,
    strength: Any,
    dof: Any,
    scale: Any,
    concentration: Any,
    *,
    shape: tuple[int, ...],
    scale_shapes: tuple[tuple[int, ...], ...],
    family_name: str,
    dtype: Any,
) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None]:
    """The parts of a prior for K components in D dimensions, shape (K, D), in one dtype; None stays None."""
    for one, other, names in (
        (mean, strength, ("mean", "strength")),
        (dof, scale, ("dof", "scale")),
    ):
        if (one is None) != (other is None):
            given, missing = names if other is None else names[::-1]
            raise ValueError(f"prior.{given} needs prior.{missing} beside it; got None")

    def part(value: Any, name: str, shapes: tuple[tuple[int, ...], ...]) -> Array | None:
        if value is None:
            return None
        a = validate.floating(value, f"prior.{name}", dtype)
        if a.shape not in shapes:
            wanted = " or ".join(str(s) for s in shapes)
            raise ValueError(
                f"prior.{name} must have shape {wanted} for {shape[0]} components of {shape[1]} features and "
                f"covariance_type={family_name!r}; got shape {a.shape}"
            )
        validate.finite(a, f"prior.{name}", "A part of the prior that is not wanted is None.")
        return a

    m = part(mean, "mean", ((shape[1],),))
    lam = part(scale, "scale", scale_shapes)
    alpha = part(concentration, "weight_concentration", ((), (shape[0],)))
    if alpha is not None and validate.is_concrete(alpha) and not (np.asarray(alpha) > 0).all():
        raise ValueError(f"prior.weight_concentration must be positive; got {np.asarray(alpha).min()}")
    if lam is not None and validate.is_concrete(lam):
        _semidefinite(np.asarray(lam, np.float64), epsilon(dtype))
    return (
        m,
        None if strength is None else validate.not_negative(strength, "prior.strength", dtype),
        None if dof is None else validate.not_negative(dof, "prior.dof", dtype),
        lam,
        alpha,
    )


def _semidefinite(scale: np.ndarray, eps: float) -> None:
    """Raise unless the prior's scale, a matrix or the diagonal of one, is positive semi-definite."""
    diagonal = np.diagonal(scale) if scale.ndim == 2 else scale
    if (diagonal < 0).any():
        raise ValueError(f"prior.scale must not be negative; got {diagonal.min()}")
    if scale.ndim < 2:
        return
    widths = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    correlation = scale / widths[:, None] / widths[None, :]
    if (np.abs(correlation - correlation.T) > 1e-4).any():
        raise ValueError("prior.scale must be a symmetric matrix; got one that is not")
    lowest = float(np.linalg.eigvalsh(correlation).min())
    if lowest < -16 * len(widths) * eps:
        raise ValueError(
            f"prior.scale must be positive semi-definite; got a correlation of eigenvalue {lowest}"
        )
