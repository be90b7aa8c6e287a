"""`BayesianGaussianMixture`: scikit-learn's attributes, a bound that compares models, and sample weights."""

import pickle

import jax
import numpy as np
import pytest
import sklearn.mixture
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_t
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning

from jaxgmm.sklearn import BayesianGaussianMixture

IRIS = datasets.load_iris().data
ATTRIBUTES = [
    "weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_", "mean_precision_",
    "degrees_of_freedom_", "weight_concentration_", "mean_prior_", "mean_precision_prior_",
    "degrees_of_freedom_prior_", "covariance_prior_", "weight_concentration_prior_",
]  # fmt: skip


def assert_attributes(kind, name, tol):
    """Ours, once its attributes are found to be those of scikit-learn's fit."""
    settings = {
        "n_components": 3, "covariance_type": name, "random_state": 0,
        "weight_concentration_prior_type": kind, "max_iter": 300, "reg_covar": 0,
    }  # fmt: skip
    theirs = sklearn.mixture.BayesianGaussianMixture(**settings).fit(IRIS)
    ours = BayesianGaussianMixture(**settings).fit(IRIS)
    for attribute in ATTRIBUTES:
        expected, value = np.asarray(getattr(theirs, attribute)), getattr(ours, attribute)
        assert isinstance(value, tuple) == isinstance(getattr(theirs, attribute), tuple)
        assert np.shape(value) == expected.shape, attribute
        assert_allclose(value, expected, atol=tol * np.abs(expected).max(), rtol=0, err_msg=attribute)
    return ours, theirs


def test_the_attributes_are_scikit_learns(double):
    ours, theirs = assert_attributes("dirichlet_process", "full", 1e-8)
    assert ours.n_iter_ == theirs.n_iter_
    assert_allclose(ours.predict_proba(IRIS), theirs.predict_proba(IRIS), atol=1e-7)
    # scikit-learn leaves constants out of its bound, and they are the same in every step.
    if hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
        rises = np.diff(np.ravel(theirs.lower_bounds_))
        assert_allclose(np.diff(ours.lower_bounds_), rises, atol=1e-8)
    covariances, weights = jax.jit(lambda p: (p.covariances, p.weights))(ours.to_params())
    assert_allclose(covariances, ours.covariances_, rtol=1e-9)
    assert_allclose(weights, ours.weights_, rtol=1e-9)

    # It goes on from where it was, and pickles.
    mixture = BayesianGaussianMixture(n_components=3, random_state=0, max_iter=2, warm_start=True)
    with pytest.warns(ConvergenceWarning):
        first = mixture.fit(IRIS).lower_bound_
    mixture.set_params(max_iter=300).fit(IRIS)
    assert mixture.converged_
    assert mixture.lower_bound_ > first
    again = pickle.loads(pickle.dumps(mixture))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
    assert again.sample(7)[0].shape == (7, 4)


def test_the_attributes_of_a_tied_dirichlet_mixture_are_scikit_learns(dtype):
    ours, _ = assert_attributes("dirichlet_distribution", "tied", 1e-8 if dtype == np.float64 else 1e-5)
    assert ours.evidence_bound_ == ours.lower_bound_


def test_in_float32_collinear_features_are_fitted():
    X = np.column_stack([IRIS[:, :2], IRIS[:, 0] + IRIS[:, 1], np.ones(150)])
    mixture = BayesianGaussianMixture(n_components=3, random_state=0, max_iter=500, tol=1e-1).fit(X)
    assert np.isfinite(mixture.lower_bounds_).all()
    assert np.isfinite(mixture.covariances_).all()


def evidence(x):
    """log p(x) of one spherical Gaussian under the default prior: Student t densities, row after row."""
    d, mean, beta, dof, variance = (
        x.shape[1],
        x.mean(0),
        1.0,
        float(x.shape[1]),
        np.cov(x.T).trace() / x.shape[1],
    )
    total = 0.0
    for row in x:
        gap, widen = row - mean, (beta + 1) / beta
        total += multivariate_t(mean, np.eye(d) * variance * widen / dof, df=d * dof).logpdf(row)
        variance += gap @ gap / widen / d
        mean, beta, dof = (beta * mean + row) / (beta + 1), beta + 1, dof + 1
    return total


def test_of_one_component_the_evidence_bound_is_the_evidence_and_weights_are_repetition(double):
    settings = {"covariance_type": "spherical", "reg_covar": 0, "random_state": 0}
    mixture = BayesianGaussianMixture(**settings).fit(IRIS)
    exact = evidence(IRIS)
    assert_allclose(mixture.evidence_bound_, exact, rtol=1e-10)
    # scikit-learn's last stick has a free length, and part of the weight is in no component: beside the
    # evidence the other bound has ∫ v^150 dv over v ~ Beta(1, 1).
    assert_allclose(mixture.lower_bound_, exact - np.log(151), rtol=1e-10)

    counts = np.random.default_rng(0).integers(0, 3, size=150)
    by_weight = BayesianGaussianMixture(**settings).fit(IRIS, sample_weight=counts)
    again = BayesianGaussianMixture(**settings).fit(np.repeat(IRIS, counts, axis=0))
    assert_allclose(by_weight.covariance_prior_, again.covariance_prior_)
    assert_allclose(by_weight.lower_bound_, again.lower_bound_, rtol=1e-10)
    assert_allclose(by_weight.covariances_, again.covariances_, rtol=1e-9)


BAD_PARAMETERS = [
    ({"covariance_type": "EEV"}, "'covariance_type' parameter of BayesianGaussianMixture"),
    ({"weight_concentration_prior_type": "stick"}, "'weight_concentration_prior_type'"),
    ({"weight_concentration_prior": 0}, "'weight_concentration_prior'"),
    ({"mean_precision_prior": -1.0}, "'mean_precision_prior'"),
    ({"mean_prior": np.zeros(3)}, "'means' should have the shape"),
    ({"degrees_of_freedom_prior": 2.5}, "should be greater than 3"),
    ({"covariance_prior": np.ones((4, 4))}, "full covariance_prior"),
    ({"covariance_type": "spherical", "covariance_prior": -1.0}, "spherical covariance_prior"),
]


def test_bad_parameters_are_named():
    for parameters, words in BAD_PARAMETERS:
        with pytest.raises(ValueError, match=words):
            BayesianGaussianMixture(n_components=3, **parameters).fit(IRIS)
