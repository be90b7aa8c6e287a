"""Mixtures as distributions: marginals, conditionals, regression, divergences, distances."""

from jaxgmm.distributions._directions import Directions, directions, project
from jaxgmm.distributions._operations import (
    MonteCarlo,
    Regression,
    condition,
    entropy_bounds,
    kl_divergence,
    l2_distance,
    marginal,
    regress,
)
from jaxgmm.distributions._wasserstein import wasserstein

__all__ = [
    "Directions",
    "MonteCarlo",
    "Regression",
    "condition",
    "directions",
    "entropy_bounds",
    "kl_divergence",
    "l2_distance",
    "marginal",
    "project",
    "regress",
    "wasserstein",
]
