"""`GaussianMixture(merge=...)`: labels of clusters."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone

from jaxgmm.sklearn import GaussianMixture
from tests.problems import LABELS, X

# Four components, two beside one another in each of two places.
PLACES = np.repeat([[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]], 100, 0)
ROWS = 0.3 * X + PLACES
WEIGHT = np.random.default_rng(0).integers(0, 3, 200).astype(float)


def test_labels_and_probabilities_are_of_clusters_and_all_else_is_of_the_mixture():
    means = np.array([[0.0, -1, 0], [0, 1, 0], [40, -1, 0], [40, 1, 0]])
    options = {
        "n_components": 4,
        "means_init": means,
        "max_iter": 0,
        "covariance_type": "diag",
        "random_state": 0,
    }
    plain = GaussianMixture(**options).fit(ROWS, sample_weight=WEIGHT)
    merged = GaussianMixture(**options, merge="entropy")
    labels = merged.fit_predict(ROWS, sample_weight=WEIGHT)
    assert int(merged.merging_.n_clusters) == 2
    assert merged.merging_.merged[1] == WEIGHT.sum()  # the last merger is of all rows
    of = merged.merging_.labels_of()
    expected = np.stack([plain.predict_proba(ROWS)[:, of == c].sum(1) for c in range(2)], 1)
    np.testing.assert_allclose(merged.predict_proba(ROWS), expected, atol=1e-12)
    np.testing.assert_array_equal(labels, expected.argmax(1))
    np.testing.assert_array_equal(merged.predict(ROWS), labels)
    np.testing.assert_array_equal(labels, ROWS[:, 0] > 20)
    assert merged.bic(ROWS) == plain.bic(ROWS)
    np.testing.assert_array_equal(merged.score_samples(ROWS), plain.score_samples(ROWS))
    again = pickle.loads(pickle.dumps(merged))
    np.testing.assert_array_equal(again.predict(ROWS), labels)
    assert clone(merged).merge == "entropy"
    # A fit without it forgets what was merged.
    merged.set_params(merge=None).fit(ROWS, sample_weight=WEIGHT)
    assert not hasattr(merged, "merging_")
    assert merged.predict_proba(ROWS).shape == (200, 4)


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="The 'merge' parameter of GaussianMixture must be"):
        GaussianMixture(merge="likelihood").fit(X, LABELS)
