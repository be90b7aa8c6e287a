"""Gradient fits with optax, unrolled EM steps, and unconstrained coordinates."""

from jaxgmm.gradients._optax import constrained, fit_gradient, negative_log_likelihood, unconstrained
from jaxgmm.gradients._unrolled import fit_unrolled

__all__ = [
    "constrained",
    "fit_gradient",
    "fit_unrolled",
    "negative_log_likelihood",
    "unconstrained",
]
