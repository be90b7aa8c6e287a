"""Model selection: restarts, numbers of components, criteria, and the choice among structures."""

from jaxgmm.selection._criteria import aic, best, bic, check, icl, n_parameters
from jaxgmm.selection._grid import STRUCTURES, Selection, select
from jaxgmm.selection._restarts import fit_components, fit_restarts
from jaxgmm.selection._search import BestFit, fit_best
from jaxgmm.selection._spurious import Spurious
from jaxgmm.selection._trim_curve import TrimCurve, trim_curve

__all__ = [
    "STRUCTURES",
    "BestFit",
    "Selection",
    "Spurious",
    "TrimCurve",
    "aic",
    "best",
    "bic",
    "check",
    "fit_best",
    "fit_components",
    "fit_restarts",
    "icl",
    "n_parameters",
    "select",
    "trim_curve",
]
