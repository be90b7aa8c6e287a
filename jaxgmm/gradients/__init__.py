"""Gradient fits with optax, unrolled EM steps, and unconstrained coordinates."""

from jaxgmm.gradients._fits import (
    constrained,
    fit_gradient,
    fit_unrolled,
    negative_log_likelihood,
    unconstrained,
)

__all__ = [
    "constrained",
    "fit_gradient",
    "fit_unrolled",
    "negative_log_likelihood",
    "unconstrained",
]
