"""The outlier detector: the methods against each other, its thresholds, and scikit-learn's checks."""

import types

import numpy as np
import pytest
from sklearn.metrics import f1_score

import jaxgmm
from jaxgmm import GMMParams, Status
from jaxgmm.components import get_model
from jaxgmm.sklearn import GaussianMixtureOutliers
from jaxgmm.sklearn._outliers import METHODS
from tests.sklearn.test_checks import SHARED, failures

RNG = np.random.default_rng(0)
CLUSTERS = np.concatenate([RNG.normal(-3, 0.5, (150, 2)), RNG.normal(3, 0.5, (150, 2))])
X = np.concatenate([CLUSTERS, RNG.uniform(-12, 12, (20, 2))])
BAD = np.arange(320) >= 300
ONES = np.ones(320)  # with weights there is one program for each method


@pytest.mark.parametrize("method", METHODS)
def test_rows_away_from_both_clusters_are_found(method):
    detector = GaussianMixtureOutliers(2, method=method, contamination="auto", random_state=0)
    found = detector.fit(X + 1e3, sample_weight=ONES).predict(X + 1e3) == -1
    # A Gaussian has nowhere to put outliers but in its covariances, which they widen.
    assert f1_score(BAD, found) > (0.5 if method == "gaussian" else 0.75)
    score = detector.score_samples(X + 1e3)
    np.testing.assert_array_equal(found, score < detector.offset_)
    again = detector.fit(X + 1e3, sample_weight=ONES).score_samples(X + 1e3)
    np.testing.assert_array_equal(again, score)
    direct = 1 - np.asarray(
        jaxgmm.outliers(detector.params_, (X + 1e3 - detector.location_).astype(np.float32))
    )
    np.testing.assert_allclose(score, direct, atol=1e-5)


def widest(detector):
    """The largest standard deviation of a component in any direction; that of the clusters is 0.5."""
    return np.linalg.eigvalsh(np.asarray(detector.params_.covariances)).max() ** 0.5


def test_a_trimmed_fit_is_that_of_the_other_rows():
    options = {"method": "gaussian", "covariance_type": "full-ratio(50)", "contamination": "auto"}
    detector = GaussianMixtureOutliers(2, trim=20 / 320, random_state=0, **options).fit(X)
    found = detector.predict(X) == -1
    assert found[BAD].sum() >= 19
    assert found[~BAD].sum() <= 6  # of 300 rows three lie beyond 99 %
    assert widest(detector) < 0.6


def test_contamination_is_the_share_that_is_found():
    for share in (0.05, 0.2):
        detector = GaussianMixtureOutliers(2, method="student_t", contamination=share, random_state=0)
        found = detector.fit(X, sample_weight=ONES).predict(X) == -1
        assert abs(found.mean() - share) < 0.01


def test_rows_far_out_have_scores_that_differ():
    """1 less a probability near 1 would be 0, or 1.1e-16, for all of them."""
    far = np.array([[9.0, 9.0], [10.0, 10.0], [11.0, 11.0]])
    for method in ("contaminated", "student_t", "gaussian"):
        detector = GaussianMixtureOutliers(2, method=method, contamination=0.05, random_state=0)
        scores = detector.fit(X, sample_weight=ONES).score_samples(far)
        assert (scores > 0).all()
        assert (np.diff(scores) < 0).all(), method
        some = X[:50]
        complement = 1 - np.asarray(jaxgmm.outliers(detector.params_, some - detector.location_))
        np.testing.assert_allclose(detector.score_samples(some), complement, atol=1e-5)  # of float32


def test_a_weight_of_zero_leaves_a_row_out():
    weight = np.where(BAD, 0.0, 1.0)
    detector = GaussianMixtureOutliers(2, method="gaussian", contamination="auto", random_state=0)
    detector.fit(X, sample_weight=weight)
    assert f1_score(BAD, detector.predict(X) == -1) > 0.8
    assert widest(detector) < 0.6


def test_what_cannot_be_fitted_is_refused():
    for parameters, words in (
        ({"method": "trimmed"}, "method"),
        ({"contamination": 0.7}, "contamination"),
        ({"n_components": 0}, "n_components"),
        ({"trim": 1.0}, "trim"),
        ({"covariance_type": "WWW"}, "must be one of"),
        ({"n_components": 400}, "n_samples >= n_components"),
    ):
        with pytest.raises(ValueError, match=words):
            GaussianMixtureOutliers(**parameters).fit(X)


def moments(detector, key, data, weight, model):
    """One component, which is fitted without EM: nothing is compiled for the shape of the data."""
    center = np.average(data, axis=0, weights=weight)
    variance = np.average(np.square(data - center), axis=0, weights=weight) + 1e-6
    params = GMMParams(np.zeros(1), center[None], np.sqrt(variance)[None], *get_model(model))
    return types.SimpleNamespace(params=params, status=Status.CONVERGED, n_iter=1)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_pass(monkeypatch):
    # Of the interface; a fit, which would be compiled for each shape, is tested above.
    monkeypatch.setattr(GaussianMixtureOutliers, "_fitted", moments)
    detector = GaussianMixtureOutliers(method="gaussian", covariance_type="diag", random_state=0)
    assert failures(detector, SHARED) == {}
