"""scikit-learn's mixture estimators over jaxgmm; needs the extra `sklearn`."""

from jaxgmm.sklearn.bayesian import BayesianGaussianMixture as BayesianGaussianMixture
from jaxgmm.sklearn.cache import cache_compiled as cache_compiled
from jaxgmm.sklearn.classifier import GaussianMixtureClassifier as GaussianMixtureClassifier
from jaxgmm.sklearn.gaussian import GaussianMixture as GaussianMixture
from jaxgmm.sklearn.regressor import GaussianMixtureRegressor as GaussianMixtureRegressor
