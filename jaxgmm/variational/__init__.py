"""The Bayesian mixture: a variational posterior of weights, means and covariances, and its evidence bound."""

from jaxgmm.variational.ascent import VariationalFit as VariationalFit
from jaxgmm.variational.ascent import fit_variational as fit_variational
from jaxgmm.variational.bound import expected as expected
from jaxgmm.variational.model import VariationalPosterior as VariationalPosterior
from jaxgmm.variational.model import VariationalPrior as VariationalPrior
from jaxgmm.variational.model import variational_prior as variational_prior
