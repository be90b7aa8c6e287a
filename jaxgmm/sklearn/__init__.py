"""scikit-learn's mixture estimators over jaxgmm; needs the extra `sklearn`."""

from jaxgmm.sklearn.cache import cache_compiled as cache_compiled
from jaxgmm.sklearn.gaussian import GaussianMixture as GaussianMixture
