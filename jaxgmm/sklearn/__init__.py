"""scikit-learn's mixture estimators over jaxgmm; needs the extra `sklearn`."""

from jaxgmm.sklearn._bayesian import BayesianGaussianMixture as BayesianGaussianMixture
from jaxgmm.sklearn._classifier import GaussianMixtureClassifier as GaussianMixtureClassifier
from jaxgmm.sklearn._classifier_summary import ClassifierSummary as ClassifierSummary
from jaxgmm.sklearn._gaussian import GaussianMixture as GaussianMixture
from jaxgmm.sklearn._imputer import GaussianMixtureImputer as GaussianMixtureImputer
from jaxgmm.sklearn._outliers import GaussianMixtureOutliers as GaussianMixtureOutliers
from jaxgmm.sklearn._regressor import GaussianMixtureRegressor as GaussianMixtureRegressor
