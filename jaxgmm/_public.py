"""The public names of the package but its interfaces; `jaxgmm` imports this when one is first asked for."""

from jaxgmm import (
    cache,
    components,
    distributions,
    em,
    gradients,
    inference,
    init,
    mixture,
    outofcore,
    parallel,
    selection,
    variational,
)
from jaxgmm._summary import Summary, summary
from jaxgmm._version import __version__
from jaxgmm.data import Data, observe
from jaxgmm.density import (
    component_log_prob,
    impute,
    log_prob,
    outliers,
    predict,
    responsibilities,
    sample,
    score,
)
from jaxgmm.em import EMOptions, e_step, elbo, em_step, fit, m_step
from jaxgmm.gradients import fit_gradient
from jaxgmm.io import load, save
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams, make_params
from jaxgmm.outofcore import fit_stream
from jaxgmm.parallel._sharded import fit_sharded
from jaxgmm.priors import Prior, default_prior, log_prior
from jaxgmm.result import FitResult
from jaxgmm.selection import (
    Selection,
    aic,
    best,
    bic,
    check,
    fit_best,
    fit_components,
    fit_restarts,
    icl,
    n_parameters,
    select,
)
from jaxgmm.solvers.squarem import Status
from jaxgmm.variational import fit_variational

__all__ = [
    "Data",
    "EMOptions",
    "FitResult",
    "GMMParams",
    "Prior",
    "Selection",
    "Statistics",
    "Status",
    "Summary",
    "__version__",
    "aic",
    "best",
    "bic",
    "cache",
    "check",
    "component_log_prob",
    "components",
    "default_prior",
    "distributions",
    "e_step",
    "elbo",
    "em",
    "em_step",
    "fit",
    "fit_best",
    "fit_components",
    "fit_gradient",
    "fit_restarts",
    "fit_sharded",
    "fit_stream",
    "fit_variational",
    "gradients",
    "icl",
    "impute",
    "inference",
    "init",
    "load",
    "log_prior",
    "log_prob",
    "m_step",
    "make_params",
    "mixture",
    "n_parameters",
    "observe",
    "outliers",
    "outofcore",
    "parallel",
    "predict",
    "responsibilities",
    "sample",
    "save",
    "score",
    "select",
    "selection",
    "summary",
    "variational",
]
