"""scikit-learn's checks of estimators: one test for each estimator, which names the checks that failed."""

import unittest
import warnings

import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from jaxgmm.sklearn import (
    BayesianGaussianMixture,
    GaussianMixture,
    GaussianMixtureClassifier,
    GaussianMixtureRegressor,
)

# Each of these has data of its own shape, for which a program is compiled, and looks at what all estimators
# have from one class or one function: GaussianMixture and the classifier stand for the others.
SHARED = {
    "check_dtype_object",
    "check_estimators_dtypes",
    "check_estimators_overwrite_params",
    "check_fit2d_1feature",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_n_features_in_after_fitting",
    "check_positive_only_tag_during_fit",
    "check_sample_weight_equivalence_on_dense_data",
}
N_ITER = {"check_non_transformer_estimators_n_iter"}  # asks for more than no iteration


def failures(estimator, left_out=()):
    """The checks that an estimator fails, with what they say."""
    failed = {}
    for instance, check in estimator_checks_generator(estimator):
        name = check.func.__name__
        if name in left_out:
            continue
        with warnings.catch_warnings():
            # What the checks fit does not always converge in the default number of steps.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "Can't check dok sparse matrix", UserWarning)
            try:
                check(instance)
            except unittest.SkipTest:
                pass
            except Exception as error:
                failed[name] = repr(error)
    return failed


# The checks are of the interface, and one component is fitted by the start: EM, which would be compiled for
# each shape, is tested elsewhere.
@pytest.mark.parametrize(
    ("estimator", "left_out"),
    [
        (GaussianMixture(covariance_type="spherical", max_iter=0), ()),
        (GaussianMixtureClassifier(n_components=1, covariance_type="spherical", max_iter=0), N_ITER),
        (BayesianGaussianMixture(covariance_type="spherical", max_iter=0), SHARED),
        (GaussianMixtureRegressor(max_iter=0), SHARED | N_ITER),
    ],
    ids=[
        "GaussianMixture",
        "GaussianMixtureClassifier",
        "BayesianGaussianMixture",
        "GaussianMixtureRegressor",
    ],
)
def test_an_estimator_passes_scikit_learns_checks(estimator, left_out):
    assert failures(estimator, left_out) == {}
