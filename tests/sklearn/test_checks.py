"""scikit-learn's own checks of estimators, with and without 64-bit JAX."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxgmm.sklearn import (
    BayesianGaussianMixture,
    GaussianMixture,
    GaussianMixtureClassifier,
    GaussianMixtureRegressor,
)
from tests.conftest import x64

pytestmark = pytest.mark.slow


@pytest.fixture(params=["x32", "x64"], autouse=True)
def _precision(request):
    with x64(request.param == "x64"):
        yield


# What the checks fit does not always converge in the default number of steps; nor does scikit-learn's.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix:UserWarning")
@parametrize_with_checks([GaussianMixture()])
def test_the_mixture_is_scikit_learns(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix:UserWarning")
@parametrize_with_checks(
    [
        BayesianGaussianMixture(),
        GaussianMixtureClassifier(),
        GaussianMixtureClassifier("EDDA", covariance_type="EEE"),
        GaussianMixtureRegressor(),
    ]
)
def test_estimators_are_scikit_learns(estimator, check):
    check(estimator)
