"""Model selection: restarts, numbers of components, criteria, the choice among structures, and clusters."""

from jaxgmm.selection._classes import ClassError, class_error
from jaxgmm.selection._criteria import aic, best, bic, check, icl, n_parameters
from jaxgmm.selection._grid import STRUCTURES, Selection, select
from jaxgmm.selection._merging import Merging, merge_components
from jaxgmm.selection._mml import DescriptionFit, fit_mml
from jaxgmm.selection._restarts import fit_components, fit_restarts
from jaxgmm.selection._search import BestFit, fit_best
from jaxgmm.selection._spurious import Spurious
from jaxgmm.selection._trim_curve import TrimCurve, trim_curve

__all__ = [
    "STRUCTURES",
    "BestFit",
    "ClassError",
    "DescriptionFit",
    "Merging",
    "Selection",
    "Spurious",
    "TrimCurve",
    "aic",
    "best",
    "bic",
    "check",
    "class_error",
    "fit_best",
    "fit_components",
    "fit_mml",
    "fit_restarts",
    "icl",
    "merge_components",
    "n_parameters",
    "select",
    "trim_curve",
]
