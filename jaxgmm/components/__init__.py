"""Component families and covariance structures, by record or by name."""

from jaxgmm.components.background import background
from jaxgmm.components.base import Component, Seen, Sums, Target
from jaxgmm.components.contaminated import contaminated
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import EEI, EII, EVI, VEI, diag, spherical
from jaxgmm.components.covariance.eigen import EEV, EVE, EVV, VEE, VEV, VVE
from jaxgmm.components.covariance.eigen_ratio import eigen_ratio
from jaxgmm.components.covariance.factor import factor
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.registry import ALIASES, STRUCTURES, get_covariance
from jaxgmm.components.covariance.tied import tied
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import equal_weights, fixed_weights, get_component, get_model
from jaxgmm.components.student_t import student_t
from jaxgmm.components.weights import Model, Weights

__all__ = [
    "ALIASES",
    "EEI",
    "EEV",
    "EII",
    "EVE",
    "EVI",
    "EVV",
    "STRUCTURES",
    "VEE",
    "VEI",
    "VEV",
    "VVE",
    "Component",
    "Covariance",
    "Model",
    "Seen",
    "Sums",
    "Target",
    "Weights",
    "background",
    "contaminated",
    "diag",
    "eigen_ratio",
    "equal_weights",
    "factor",
    "fixed_weights",
    "full",
    "gaussian",
    "get_component",
    "get_covariance",
    "get_model",
    "spherical",
    "student_t",
    "tied",
]
