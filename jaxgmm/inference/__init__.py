"""Uncertainty of a fit: standard errors, intervals, influence, bootstrap, tests, diagnostics."""

from jaxgmm.inference._bootstrap import Bootstrap, bootstrap
from jaxgmm.inference._diagnostics import FitDiagnostics, convergence_rate, fit_diagnostics
from jaxgmm.inference._influence import LeaveOneOut, influence, leave_one_out
from jaxgmm.inference._information import (
    ConfidenceIntervals,
    Information,
    StandardErrors,
    confidence_intervals,
    information,
    standard_errors,
    takeuchi,
)
from jaxgmm.inference._likelihood_ratio import LikelihoodRatio, bootstrap_likelihood_ratio
from jaxgmm.inference._local_coordinates import Entries

__all__ = [
    "Bootstrap",
    "ConfidenceIntervals",
    "Entries",
    "FitDiagnostics",
    "Information",
    "LeaveOneOut",
    "LikelihoodRatio",
    "StandardErrors",
    "bootstrap",
    "bootstrap_likelihood_ratio",
    "confidence_intervals",
    "convergence_rate",
    "fit_diagnostics",
    "influence",
    "information",
    "leave_one_out",
    "standard_errors",
    "takeuchi",
]
