"""What follows from a fitted mixture by differentiation and resampling."""

from jaxgmm.calculus.bootstrap import Bootstrap as Bootstrap
from jaxgmm.calculus.bootstrap import bootstrap as bootstrap
from jaxgmm.calculus.curvature import Entries as Entries
from jaxgmm.calculus.influence import LeaveOneOut as LeaveOneOut
from jaxgmm.calculus.influence import influence as influence
from jaxgmm.calculus.influence import leave_one_out as leave_one_out
from jaxgmm.calculus.information import ConfidenceIntervals as ConfidenceIntervals
from jaxgmm.calculus.information import Information as Information
from jaxgmm.calculus.information import StandardErrors as StandardErrors
from jaxgmm.calculus.information import confidence_intervals as confidence_intervals
from jaxgmm.calculus.information import information as information
from jaxgmm.calculus.information import standard_errors as standard_errors
from jaxgmm.calculus.information import takeuchi as takeuchi
from jaxgmm.calculus.likelihood_ratio import LikelihoodRatio as LikelihoodRatio
from jaxgmm.calculus.likelihood_ratio import bootstrap_likelihood_ratio as bootstrap_likelihood_ratio
