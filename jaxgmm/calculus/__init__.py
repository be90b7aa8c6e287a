"""What can be computed from a mixture: derivatives of fits, fits by gradient, mixtures as distributions."""

from jaxgmm.calculus.algebra import MonteCarlo as MonteCarlo
from jaxgmm.calculus.algebra import Regression as Regression
from jaxgmm.calculus.algebra import condition as condition
from jaxgmm.calculus.algebra import entropy_bounds as entropy_bounds
from jaxgmm.calculus.algebra import kl_divergence as kl_divergence
from jaxgmm.calculus.algebra import l2_distance as l2_distance
from jaxgmm.calculus.algebra import marginal as marginal
from jaxgmm.calculus.algebra import regress as regress
from jaxgmm.calculus.diagnostics import FitDiagnostics as FitDiagnostics
from jaxgmm.calculus.diagnostics import convergence_rate as convergence_rate
from jaxgmm.calculus.diagnostics import fit_diagnostics as fit_diagnostics
from jaxgmm.calculus.gradient import constrained as constrained
from jaxgmm.calculus.gradient import fit_gradient as fit_gradient
from jaxgmm.calculus.gradient import negative_log_likelihood as negative_log_likelihood
from jaxgmm.calculus.gradient import unconstrained as unconstrained
from jaxgmm.calculus.transport import wasserstein as wasserstein
from jaxgmm.calculus.unrolled import fit_unrolled as fit_unrolled
