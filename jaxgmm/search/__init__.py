"""Searching for a good mixture: many starts, several numbers of components, and choosing among them."""

from jaxgmm.search.criteria import aic as aic
from jaxgmm.search.criteria import best as best
from jaxgmm.search.criteria import bic as bic
from jaxgmm.search.criteria import check as check
from jaxgmm.search.criteria import failed as failed
from jaxgmm.search.criteria import icl as icl
from jaxgmm.search.criteria import n_parameters as n_parameters
from jaxgmm.search.restarts import fit_components as fit_components
from jaxgmm.search.restarts import fit_restarts as fit_restarts
from jaxgmm.search.select import Selection as Selection
from jaxgmm.search.select import select as select
from jaxgmm.search.spurious import Spurious as Spurious
from jaxgmm.search.tournament import BestFit as BestFit
from jaxgmm.search.tournament import fit_best as fit_best
