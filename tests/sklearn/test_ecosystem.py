"""Our estimators where scikit-learn's go: pipelines, searches, clones, data frames, files."""

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


def mixture_of(**parameters):
    return GaussianMixture(3, random_state=0, max_iter=300, **parameters)


def test_grid_search_and_cross_validation_score_by_the_held_out_likelihood():
    folds = KFold(8, shuffle=True, random_state=0)  # 131 rows or more: one program
    search = GridSearchCV(mixture_of(), {"reg_covar": [1e-2, 1e3]}, cv=folds).fit(IRIS)
    assert search.best_params_ == {"reg_covar": 1e-2}
    assert search.best_estimator_.predict(IRIS).shape == (150,)
    scores = cross_val_score(mixture_of(reg_covar=1e-2), IRIS, cv=folds)
    assert_allclose(scores.mean(), search.cv_results_["mean_test_score"][0])
    train, test = next(folds.split(IRIS))
    assert_allclose(scores[0], mixture_of(reg_covar=1e-2).fit(IRIS[train]).score(IRIS[test]))


def test_pipelines():
    pipeline = make_pipeline(StandardScaler(), PCA(4), mixture_of())
    labels = pipeline.fit_predict(IRIS)
    assert_array_equal(labels, pipeline.predict(IRIS))
    assert set(labels) == {0, 1, 2}
    assert pipeline.set_output(transform="default").score(IRIS) > -4


def test_clone_has_the_parameters_and_not_the_fit():
    mixture = mixture_of(covariance_type="full", reg_covar=1e-5).fit(IRIS)
    again = clone(mixture)
    assert again.get_params() == mixture.get_params()
    assert not hasattr(again, "means_")


def test_weights_are_routed_where_they_are_asked_for():
    weight = np.where(np.arange(150) < 20, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        mixture = mixture_of()
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        mixture.set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        pipeline = make_pipeline(scaler, mixture).fit(IRIS, sample_weight=weight)
        plain = make_pipeline(StandardScaler(), clone(mixture)).fit(IRIS)
    without = clone(mixture).fit(StandardScaler().fit_transform(IRIS[20:]))
    assert_allclose(pipeline[-1].lower_bound_, without.lower_bound_, atol=0.05)
    assert abs(plain[-1].lower_bound_ - without.lower_bound_) > 0.1


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library):
    frames = pytest.importorskip(library, reason=f"{library} is not installed")
    frame = frames.DataFrame({name: IRIS[:, i] for i, name in enumerate(NAMES)})
    mixture = mixture_of().fit(frame)
    assert mixture.feature_names_in_.tolist() == NAMES
    plain = mixture_of().fit(IRIS)
    assert_allclose(mixture.means_, plain.means_, rtol=1e-5)
    assert_array_equal(mixture.predict(frame), plain.predict(IRIS))
    renamed = frames.DataFrame({name.upper(): IRIS[:, i] for i, name in enumerate(NAMES)})
    with pytest.raises(ValueError, match="feature names"):
        mixture.predict(renamed)


def test_skops():
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    mixture = mixture_of().fit(IRIS)
    stored = skops.dumps(mixture)
    again = skops.loads(stored, trusted=skops.get_untrusted_types(data=stored))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
