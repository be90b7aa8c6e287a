"""Mixtures as distributions: marginals, conditionals, divergences, distances, reduction, modes, quantiles."""

from jaxgmm.distributions._directions import Directions, directions, project
from jaxgmm.distributions._modes import Modes, Ridgeline, modes, ridgeline
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
from jaxgmm.distributions._reduction import Reduction, reduce
from jaxgmm.distributions._univariate import cdf, quantile
from jaxgmm.distributions._wasserstein import wasserstein

__all__ = [
    "Directions",
    "Modes",
    "MonteCarlo",
    "Reduction",
    "Regression",
    "Ridgeline",
    "cdf",
    "condition",
    "directions",
    "entropy_bounds",
    "kl_divergence",
    "l2_distance",
    "marginal",
    "modes",
    "project",
    "quantile",
    "reduce",
    "regress",
    "ridgeline",
    "wasserstein",
]
