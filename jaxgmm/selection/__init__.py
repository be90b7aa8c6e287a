"""Model selection: restarts, numbers of components, criteria, and the choice among structures."""

from jaxgmm.selection._classes import ClassError, class_error
from jaxgmm.selection._criteria import aic, best, bic, check, icl, n_parameters
from jaxgmm.selection._grid import STRUCTURES, Selection, select
from jaxgmm.selection._mml import DescriptionFit, fit_mml
from jaxgmm.selection._restarts import fit_components, fit_restarts
from jaxgmm.selection._search import BestFit, fit_best
from jaxgmm.selection._spurious import Spurious

__all__ = [
    "STRUCTURES",
    "BestFit",
    "ClassError",
    "DescriptionFit",
    "Selection",
    "Spurious",
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
    "n_parameters",
    "select",
]
