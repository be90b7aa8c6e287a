"""`BayesianGaussianMixture`: scikit-learn's attributes, a bound that compares models, and sample weights."""

import dataclasses
import pickle

import numpy as np
import pytest
import sklearn.mixture
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning

import jaxgmm
from jaxgmm.sklearn import BayesianGaussianMixture
from tests.conftest import CORE, costly, x64
from tests.test_variational import predictive

IRIS = datasets.load_iris().data
TYPES = [costly(n, quick=["full"]) for n in CORE]
TYPE_OF_PRIOR = [
    "dirichlet_process",
    pytest.param("dirichlet_distribution", marks=pytest.mark.slow),
]
ATTRIBUTES = [
    "weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "mean_precision_",
    "degrees_of_freedom_", "weight_concentration_", "mean_prior_", "mean_precision_prior_",
    "degrees_of_freedom_prior_", "covariance_prior_", "weight_concentration_prior_",
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPE_OF_PRIOR)
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("bits", [64, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_attributes_are_scikit_learns(name, kind, bits):
    """For the two structures whose expectations differ, of the start only."""
    settings = {
        "n_components": 3, "covariance_type": name, "random_state": 0,
        "weight_concentration_prior_type": kind, "max_iter": 300 if name in ("full", "tied") else 0,
        "reg_covar": 0,
    }  # fmt: skip
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings).fit(IRIS)
    with x64(bits == 64):
        ours = BayesianGaussianMixture(**settings).fit(IRIS)
        proba = ours.predict_proba(IRIS)
    tol = 2e-3 if bits == 32 else 1e-8
    for attribute in ATTRIBUTES:
        expected, value = np.asarray(getattr(theirs, attribute)), getattr(ours, attribute)
        assert isinstance(value, tuple) == isinstance(getattr(theirs, attribute), tuple)
        assert np.shape(value) == expected.shape, attribute
        assert_allclose(value, expected, atol=tol * np.abs(expected).max(), rtol=0, err_msg=attribute)
    if settings["max_iter"] == 0:
        return
    assert abs(ours.n_iter_ - theirs.n_iter_) <= (3 if bits == 32 else 0)
    assert_allclose(proba, theirs.predict_proba(IRIS), atol=10 * tol)
    # scikit-learn leaves constants out of its bound, and they are the same in every step.
    if bits == 64 and hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
        rises = np.diff(np.ravel(theirs.lower_bounds_))
        assert_allclose(np.diff(ours.lower_bounds_), rises, atol=1e-8)


@pytest.mark.slow
def test_the_bound_chooses_a_model(dtype):
    """One clump is better explained by one component, and the bound says so, being complete."""
    X = np.random.default_rng(0).normal(size=(150, 4))
    bounds = {}
    for k in (1, 3):
        mixture = BayesianGaussianMixture(
            n_components=k, weight_concentration_prior_type="dirichlet_distribution", random_state=0,
            weight_concentration_prior=1.0, max_iter=500,
        )  # fmt: skip
        bounds[k] = mixture.fit(X).lower_bound_
    assert bounds[1] > bounds[3]


@pytest.mark.slow
def test_weights_are_as_good_as_repetition():
    counts = np.random.default_rng(0).integers(0, 3, size=150)
    repeated = np.repeat(IRIS, counts, axis=0)
    by_weight = BayesianGaussianMixture(n_components=1).fit(IRIS, sample_weight=counts)
    again = BayesianGaussianMixture(n_components=1).fit(repeated)
    assert_allclose(by_weight.covariance_prior_, again.covariance_prior_)
    assert_allclose(by_weight.lower_bound_, again.lower_bound_, rtol=1e-5)
    assert_allclose(by_weight.covariances_, again.covariances_, rtol=1e-4)


def test_the_evidence_bound_of_one_component_is_the_evidence(double):
    """scikit-learn's last stick has a free length, and part of the weight is in no component."""
    mixture = BayesianGaussianMixture(reg_covar=0, random_state=0).fit(IRIS)
    exact = predictive(IRIS, "full", jaxgmm.variational.variational_prior(IRIS, 1))
    assert_allclose(mixture.evidence_bound_, exact, rtol=1e-10)
    # ∫ v^150 dv over v ~ Beta(1, 1) is what the other bound has beside it.
    assert_allclose(mixture.lower_bound_, exact - np.log(151), rtol=1e-10)


@pytest.mark.slow
def test_the_evidence_bound_is_near_that_of_a_fit_to_it(double):
    settings = {"n_components": 2, "random_state": 0, "reg_covar": 0, "tol": 1e-8, "max_iter": 1000}
    mixture = BayesianGaussianMixture(**settings).fit(IRIS)
    best = jaxgmm.fit_variational(mixture.predict_proba(IRIS), IRIS, tol=1e-8)
    # Near its optimum a bound moves by the square of the distance.
    assert mixture.evidence_bound_ <= float(best.bound) + 1e-9
    assert_allclose(mixture.evidence_bound_, float(best.bound), atol=0.01)
    settings["weight_concentration_prior_type"] = "dirichlet_distribution"
    mixture = BayesianGaussianMixture(**settings).fit(IRIS)
    assert mixture.evidence_bound_ == mixture.lower_bound_


@pytest.mark.slow
def test_it_is_the_functional_fit(double):
    settings = {"n_components": 3, "random_state": 0, "max_iter": 300, "reg_covar": 0}
    mixture = BayesianGaussianMixture(**settings).fit(IRIS)
    labels = sklearn.cluster.KMeans(3, n_init=1, random_state=0).fit(IRIS).labels_
    prior = dataclasses.replace(jaxgmm.variational.variational_prior(IRIS, 3), last_stick_free=True)
    result = jaxgmm.fit_variational(np.eye(3)[labels], IRIS, prior=prior)
    assert_allclose(mixture.lower_bound_, float(result.bound), rtol=1e-9)
    assert_allclose(mixture.means_, result.posterior.means, rtol=1e-7)
    params = mixture.to_params()
    assert_allclose(params.covariances, mixture.covariances_, rtol=1e-9)
    assert_allclose(params.weights, mixture.weights_, rtol=1e-9)


@pytest.mark.slow
def test_it_goes_on_from_where_it_was_and_pickles():
    mixture = BayesianGaussianMixture(n_components=3, random_state=0, max_iter=2, warm_start=True)
    with pytest.warns(ConvergenceWarning):
        first = mixture.fit(IRIS).lower_bound_
    mixture.set_params(max_iter=300).fit(IRIS)
    assert mixture.converged_
    assert mixture.lower_bound_ > first
    again = pickle.loads(pickle.dumps(mixture))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
    assert again.sample(7)[0].shape == (7, 4)


@pytest.mark.slow
def test_collinear_features_are_no_harm(dtype):
    X = np.column_stack([IRIS, IRIS[:, 0] + IRIS[:, 1], np.ones(150)])
    mixture = BayesianGaussianMixture(n_components=3, random_state=0, max_iter=500, tol=1e-1).fit(X)
    assert np.isfinite(mixture.lower_bounds_).all()
    assert np.isfinite(mixture.covariances_).all()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"covariance_type": "EEV"}, "'covariance_type' parameter of BayesianGaussianMixture"),
        ({"weight_concentration_prior_type": "stick"}, "'weight_concentration_prior_type'"),
        ({"weight_concentration_prior": 0}, "'weight_concentration_prior'"),
        ({"mean_precision_prior": -1.0}, "'mean_precision_prior'"),
        ({"mean_prior": np.zeros(3)}, "'means' should have the shape"),
        ({"degrees_of_freedom_prior": 2.5}, "should be greater than 3"),
        ({"covariance_prior": np.ones((4, 4))}, "full covariance_prior"),
        ({"covariance_type": "spherical", "covariance_prior": -1.0}, "spherical covariance_prior"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        BayesianGaussianMixture(n_components=3, **parameters).fit(IRIS)
