"""Covariance structures: each is a `Family` record; `get_family` looks one up by name."""

from jaxgmm.families.diagonal import diag as diag
from jaxgmm.families.diagonal import spherical as spherical
from jaxgmm.families.factor import factor as factor
from jaxgmm.families.family import Family as Family
from jaxgmm.families.full import full as full
from jaxgmm.families.table import FAMILIES as FAMILIES
from jaxgmm.families.table import equal_weights as equal_weights
from jaxgmm.families.table import get_family as get_family
from jaxgmm.families.tied import tied as tied
