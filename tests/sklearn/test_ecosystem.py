"""Our estimators where scikit-learn's go: pipelines, searches, clones, processes, data frames, pickles."""

import pickle

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxgmm.sklearn import GaussianMixture

IRIS = datasets.load_iris().data
NAMES = ["sepal length", "sepal width", "petal length", "petal width"]


@pytest.mark.slow
def test_grid_search():
    search = GridSearchCV(
        GaussianMixture(random_state=0, max_iter=300),
        {"n_components": [1, 3], "reg_covar": [1e-2, 1e3]},
        cv=KFold(3, shuffle=True, random_state=0),
    ).fit(IRIS)
    assert search.best_params_ == {"n_components": 3, "reg_covar": 1e-2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(IRIS).shape == (150,)


def test_pipelines():
    pipeline = make_pipeline(StandardScaler(), PCA(4), GaussianMixture(3, random_state=0, max_iter=300))
    labels = pipeline.fit_predict(IRIS)
    assert_array_equal(labels, pipeline.predict(IRIS))
    assert set(labels) == {0, 1, 2}
    assert pipeline.set_output(transform="default").score(IRIS) > -4


def test_clone_has_the_parameters_and_not_the_fit():
    mixture = GaussianMixture(3, covariance_type="full", reg_covar=1e-5, random_state=0).fit(IRIS)
    again = clone(mixture)
    assert again.get_params() == mixture.get_params()
    assert not hasattr(again, "means_")


def test_cross_val_score_is_the_held_out_likelihood():
    mixture = GaussianMixture(2, random_state=0, max_iter=300)
    scores = cross_val_score(mixture, IRIS, cv=3)
    held_out = clone(mixture).fit(IRIS[50:]).score(IRIS[:50])
    assert_allclose(scores[0], held_out)


def test_weights_are_routed_where_they_are_asked_for():
    weight = np.where(np.arange(150) < 50, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        mixture = GaussianMixture(2, random_state=0, max_iter=300)
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        mixture.set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        pipeline = make_pipeline(scaler, mixture).fit(IRIS, sample_weight=weight)
        plain = make_pipeline(StandardScaler(), clone(mixture)).fit(IRIS)
    without = clone(mixture).fit(StandardScaler().fit_transform(IRIS[50:]))
    assert_allclose(pipeline[-1].lower_bound_, without.lower_bound_, atol=0.05)
    assert abs(plain[-1].lower_bound_ - without.lower_bound_) > 0.5


@pytest.mark.slow
def test_two_processes():
    search, alone = (
        GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 2]}, cv=2, n_jobs=n).fit(IRIS)
        for n in (2, None)
    )
    assert_allclose(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], rtol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library):
    frames = pytest.importorskip(library, reason=f"{library} is not installed")
    frame = frames.DataFrame({name: IRIS[:, i] for i, name in enumerate(NAMES)})
    mixture = GaussianMixture(3, random_state=0).fit(frame)
    assert mixture.feature_names_in_.tolist() == NAMES
    plain = GaussianMixture(3, random_state=0).fit(IRIS)
    assert_allclose(mixture.means_, plain.means_, rtol=1e-5)
    assert_array_equal(mixture.predict(frame), plain.predict(IRIS))
    renamed = frames.DataFrame({name.upper(): IRIS[:, i] for i, name in enumerate(NAMES)})
    with pytest.raises(ValueError, match="feature names"):
        mixture.predict(renamed)


def test_pickle():
    mixture = GaussianMixture(3, random_state=0).fit(IRIS)
    again = pickle.loads(pickle.dumps(mixture))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))


def test_skops():
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    mixture = GaussianMixture(3, random_state=0).fit(IRIS)
    stored = skops.dumps(mixture)
    again = skops.loads(stored, trusted=skops.get_untrusted_types(data=stored))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
