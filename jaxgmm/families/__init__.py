"""Covariance structures: each is a `Family` record; `get_family` looks one up by name."""

from jaxgmm.families.diagonal import diag as diag
from jaxgmm.families.diagonal import spherical as spherical
from jaxgmm.families.eigen import EEV as EEV
from jaxgmm.families.eigen import EVE as EVE
from jaxgmm.families.eigen import EVV as EVV
from jaxgmm.families.eigen import VEE as VEE
from jaxgmm.families.eigen import VEV as VEV
from jaxgmm.families.eigen import VVE as VVE
from jaxgmm.families.eigen_diagonal import EEI as EEI
from jaxgmm.families.eigen_diagonal import EII as EII
from jaxgmm.families.eigen_diagonal import EVI as EVI
from jaxgmm.families.eigen_diagonal import VEI as VEI
from jaxgmm.families.factor import factor as factor
from jaxgmm.families.family import Family as Family
from jaxgmm.families.full import full as full
from jaxgmm.families.ratio import eigen_ratio as eigen_ratio
from jaxgmm.families.table import ALIASES as ALIASES
from jaxgmm.families.table import FAMILIES as FAMILIES
from jaxgmm.families.table import equal_weights as equal_weights
from jaxgmm.families.table import get_family as get_family
from jaxgmm.families.tied import tied as tied
