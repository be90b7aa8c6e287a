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


def detector_of(method, contamination="auto"):
    """Gaussians are fitted to the rows but the farthest 20, for these would widen them."""
    trimmed = {"trim": 20 / 320, "covariance_type": "full-ratio(50)"} if method == "gaussian" else {}
    return GaussianMixtureOutliers(2, method=method, contamination=contamination, random_state=0, **trimmed)


@pytest.mark.parametrize("method", METHODS)
def test_rows_away_from_both_clusters_are_found(method):
    detector = detector_of(method)
    found = detector.fit(X + 1e3, sample_weight=ONES).predict(X + 1e3) == -1
    assert f1_score(BAD, found) > 0.75
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
    detector = detector_of("gaussian").fit(X, sample_weight=ONES)
    found = detector.predict(X) == -1
    assert found[BAD].sum() >= 19
    assert found[~BAD].sum() <= 6  # of 300 rows three lie beyond 99 %
    assert widest(detector) < 0.6


def test_contamination_is_the_share_that_is_found():
    for share in (0.05, 0.2):
        detector = detector_of("student_t", share)
        found = detector.fit(X, sample_weight=ONES).predict(X) == -1
        assert abs(found.mean() - share) < 0.01


def test_rows_far_out_have_scores_that_differ():
    """1 less a probability near 1 would be 0, or 1.1e-16, for all of them."""
    rows = X.copy()
    rows[:3] = [[9.0, 9.0], [10.0, 10.0], [11.0, 11.0]]
    for method in ("contaminated", "student_t", "gaussian"):
        detector = detector_of(method, 0.05).fit(X, sample_weight=ONES)
        scores = detector.score_samples(rows)
        assert (scores > 0).all()
        assert (np.diff(scores[:3]) < 0).all(), method
        complement = 1 - np.asarray(
            jaxgmm.outliers(detector.params_, (rows - detector.location_).astype(np.float32))
        )
        np.testing.assert_allclose(scores, complement, atol=1e-5)  # of float32


def test_a_weight_of_zero_leaves_a_row_out():
    """Wherever it lies. The trimmed share is one of weight: a row that counted would be trimmed first."""
    weight = np.where(np.arange(320) % 4 == 0, 0.0, 1.0)
    moved = np.where(weight[:, None] == 0, 40.0, X)
    for method in ("gaussian", "student_t"):
        one, other = (detector_of(method).fit(rows, sample_weight=weight) for rows in (X, moved))
        np.testing.assert_allclose(other.score_samples(X), one.score_samples(X), rtol=1e-6, err_msg=method)


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
