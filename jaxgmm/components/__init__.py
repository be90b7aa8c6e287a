"""What one component of a mixture may be: covariance structures, by record or by name."""

from jaxgmm.components.covariance.base import Family
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.eigen import EEV, EVE, EVV, VEE, VEV, VVE
from jaxgmm.components.covariance.eigen_diagonal import EEI, EII, EVI, VEI
from jaxgmm.components.covariance.eigen_ratio import eigen_ratio
from jaxgmm.components.covariance.factor import factor
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.registry import ALIASES, FAMILIES, equal_weights, get_family
from jaxgmm.components.covariance.tied import tied

__all__ = [
    "ALIASES",
    "EEI",
    "EEV",
    "EII",
    "EVE",
    "EVI",
    "EVV",
    "FAMILIES",
    "VEE",
    "VEI",
    "VEV",
    "VVE",
    "Family",
    "diag",
    "eigen_ratio",
    "equal_weights",
    "factor",
    "full",
    "get_family",
    "spherical",
    "tied",
]
