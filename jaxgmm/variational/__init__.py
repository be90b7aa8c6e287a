"""The Bayesian mixture: a variational posterior of weights, means and covariances, and its evidence bound."""

from jaxgmm.variational._ascent import VariationalFit, fit_variational
from jaxgmm.variational._model import VariationalPosterior, VariationalPrior, variational_prior

__all__ = [
    "VariationalFit",
    "VariationalPosterior",
    "VariationalPrior",
    "fit_variational",
    "variational_prior",
]
