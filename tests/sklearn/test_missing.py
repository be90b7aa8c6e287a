"""Missing entries in the estimators, the imputer, and classes that are not known."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as PlainMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jaxgmm
from jaxgmm.sklearn import (
    BayesianGaussianMixture,
    GaussianMixture,
    GaussianMixtureClassifier,
    GaussianMixtureImputer,
)
from jaxgmm.sklearn._data import load
from tests.conftest import case
from tests.sklearn.test_checks import failures

IRIS = datasets.load_iris().data
RNG = np.random.default_rng(0)
GAPS = RNG.random(IRIS.shape) < 0.2
GAPS[:4] = [[True] * 4, [False] * 4, [True, False, False, False], [False, True, True, True]]
HOLES = np.where(GAPS, np.nan, IRIS)
FAR = np.array([1e3, 0, -1e3, 0])  # where centring in float64 counts


def mixture_of(**parameters):
    return GaussianMixture(2, missing="nan", random_state=0, **parameters)


@pytest.fixture(scope="module")
def fitted():
    return mixture_of(tol=0, max_iter=30).fit(HOLES)


@pytest.fixture(scope="module")
def imputer():
    return GaussianMixtureImputer(2, random_state=0).fit(HOLES)


@pytest.mark.parametrize(("name", "dtype"), [("full", "float32"), ("diag", "float64")], indirect=["dtype"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_fit_is_that_of_the_library_from_the_same_start(name, dtype):
    weights, means = np.array([0.4, 0.6]), IRIS[[10, 100]]
    precisions = np.ones((2, 4)) if name == "diag" else np.stack([np.eye(4)] * 2)
    mixture = mixture_of(
        covariance_type=name, weights_init=weights, means_init=means + FAR, precisions_init=precisions,
        reg_covar=0, tol=0, max_iter=400,
    ).fit(HOLES + FAR)  # fmt: skip
    start = jaxgmm.make_params(weights, means, precisions, name)
    data = jaxgmm.observe(HOLES.astype(dtype), missing="nan")
    result = jaxgmm.fit(start, data, reg_covar=0, tol=1e-7, max_iter=2000)
    assert result.status == jaxgmm.Status.CONVERGED
    covariances = np.asarray(result.params.covariances)
    if name == "diag":
        covariances = np.diagonal(covariances, axis1=1, axis2=2)
    tol = 2e-3 if dtype == np.float32 else 1e-5
    assert_allclose(mixture.means_ - FAR, result.params.means, atol=tol)
    assert_allclose(mixture.weights_, result.params.weights, atol=tol)
    assert_allclose(mixture.covariances_, covariances, atol=tol)
    assert_allclose(mixture.lower_bound_, result.log_likelihood, atol=tol)
    # Another fit altogether than that of rows filled in by the features' means.
    filled = np.where(GAPS, np.nanmean(HOLES, 0), IRIS)
    other = PlainMixture(2, covariance_type=name, means_init=means, tol=1e-7, max_iter=2000).fit(filled)
    assert np.abs(other.means_ - (mixture.means_ - FAR)).max() > 10 * tol


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_incomplete_rows_are_evaluated_as_the_library_does(fitted):
    params, data = fitted.to_params(), jaxgmm.observe(HOLES.astype(np.float32), missing="nan")
    assert_array_equal(fitted.predict(HOLES), jaxgmm.predict(params, data))
    assert_allclose(fitted.predict_proba(HOLES), jaxgmm.responsibilities(params, data), atol=1e-4)
    log_prob = np.asarray(jaxgmm.log_prob(params, data))
    assert_allclose(fitted.score_samples(HOLES), log_prob, atol=1e-4)
    assert_allclose(fitted.score(HOLES), log_prob.mean(), atol=1e-4)
    assert_allclose(fitted.predict_proba(HOLES)[0], fitted.weights_, atol=1e-6)  # nothing is observed
    assert fitted.score_samples(HOLES)[0] == pytest.approx(0, abs=1e-6)
    deviance, free = -2 * log_prob.sum(), 2 * 14 + 1
    assert_allclose(fitted.aic(HOLES), deviance + 2 * free, rtol=1e-5)
    assert_allclose(fitted.bic(HOLES), deviance + free * np.log(150), rtol=1e-5)
    assert fitted.icl(HOLES) > fitted.bic(HOLES)
    again = mixture_of(tol=0, max_iter=30)
    assert_array_equal(again.fit_predict(HOLES), fitted.predict(HOLES))


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_every_start_is_a_mixture_of_the_rows_and_follows_random_state(init_params):
    one, same, other = (
        GaussianMixture(2, missing="nan", init_params=init_params, random_state=seed, max_iter=0).fit(HOLES)
        for seed in (0, 0, 5)
    )
    assert_array_equal(one.means_, same.means_)
    low, high = np.nanmin(HOLES, 0), np.nanmax(HOLES, 0)
    assert ((one.means_ >= low) & (one.means_ <= high)).all()
    assert one.score(HOLES) > -6
    assert init_params == "kmeans" or np.abs(one.means_ - other.means_).max() > 1e-3


def test_without_gaps_nothing_changes():
    settings = {"n_components": 3, "random_state": 0, "max_iter": 500}
    plain, open_to = GaussianMixture(**settings), GaussianMixture(missing="nan", **settings)
    for attribute in ("weights_", "means_", "covariances_", "lower_bounds_"):
        expected = getattr(plain.fit(IRIS), attribute)
        assert_array_equal(getattr(open_to.fit(IRIS), attribute), expected)
    assert_array_equal(open_to.score_samples(IRIS), plain.score_samples(IRIS))


def test_masked_entries_and_data_frames_are_taken_as_nan_is(fitted):
    expected = fitted.score_samples(HOLES)
    assert_array_equal(fitted.score_samples(np.ma.masked_array(IRIS, GAPS)), expected)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(HOLES, columns=list("abcd")).astype("Float64")
    assert frame.isna().to_numpy().sum() == GAPS.sum()
    named = mixture_of(tol=0, max_iter=30)
    with pytest.warns(ConvergenceWarning):
        named.fit(frame)
    assert_array_equal(named.score_samples(frame), expected)


def test_what_is_refused_and_what_the_tag_says():
    assert mixture_of().__sklearn_tags__().input_tags.allow_nan
    assert not GaussianMixture().__sklearn_tags__().input_tags.allow_nan
    for estimator in (GaussianMixture(), BayesianGaussianMixture()):
        with pytest.raises(ValueError, match="NaN"):
            estimator.fit(HOLES)
    with pytest.raises(ValueError, match="'missing' parameter"):
        GaussianMixture(missing="yes").fit(IRIS)
    with pytest.raises(ValueError, match="infinity"):
        mixture_of().fit(np.where(GAPS, np.inf, IRIS))
    empty = np.where(np.arange(4) == 2, np.nan, IRIS)
    for estimator in (mixture_of(), GaussianMixtureImputer()):
        with pytest.raises(ValueError, match="feature 2 has no observed entry"):
            estimator.fit(empty)


def test_the_search_for_the_best_optimum_takes_gaps():
    mixture = mixture_of(covariance_type="diag", n_init="auto").fit(HOLES)
    one = mixture_of(covariance_type="diag", init_params="random_from_data", tol=1e-6, max_iter=500).fit(
        HOLES
    )
    assert mixture.converged_
    assert mixture.lower_bound_ >= one.lower_bound_ - 1e-4
    assert mixture.score(HOLES) == pytest.approx(mixture.lower_bound_, abs=1e-3)


def test_a_prior_and_weights_go_with_gaps():
    counts = np.random.default_rng(1).integers(0, 3, size=150)
    counts[np.cumsum(counts) > 150] = 0  # so that the repeated rows share a program with the others
    start = {"weights_init": [0.4, 0.6], "means_init": IRIS[[10, 100]]}
    start["precisions_init"] = np.stack([np.eye(4)] * 2)
    settings = {"prior": jaxgmm.Prior(dof=8.0, scale=np.eye(4), mean=IRIS.mean(0), strength=0.1), "tol": 1e-5}
    by_weight = mixture_of(**start, **settings, max_iter=300).fit(HOLES, sample_weight=counts)
    repeated = mixture_of(**start, **settings, max_iter=300).fit(np.repeat(HOLES, counts, axis=0))
    assert_allclose(by_weight.means_, repeated.means_, atol=1e-3)
    without = mixture_of(**start, tol=1e-5, max_iter=300).fit(HOLES, sample_weight=counts)
    assert np.abs(without.covariances_ - by_weight.covariances_).max() > 1e-2


def test_one_component_is_fitted_by_em_and_goes_on_from_where_it_was():
    mixture = GaussianMixture(missing="nan", tol=1e-7, max_iter=300).fit(HOLES)
    data = jaxgmm.observe(HOLES.astype(np.float32), missing="nan")
    after, _ = jaxgmm.em_step(mixture.to_params(), data, reg_covar=0)
    # With a fifth of the entries missing a step takes away most of the error: what is left is about a step.
    assert_allclose(mixture.means_, after.means, atol=1e-4)
    assert_allclose(mixture.covariances_, after.covariances, atol=1e-4)
    assert mixture.n_iter_ > 2
    early = GaussianMixture(missing="nan", max_iter=1, tol=1e-7, warm_start=True)
    with pytest.warns(ConvergenceWarning):
        first = early.fit(HOLES).lower_bound_
    early.set_params(max_iter=300).fit(HOLES)
    assert early.lower_bound_ > first
    assert_allclose(early.means_, mixture.means_, atol=1e-3)


def test_a_row_of_weight_0_may_lie_anywhere():
    far = np.where(np.arange(4) > 0, 1e9, np.nan)
    weight = np.append(np.ones(150), 0.0)
    assert_allclose(load(np.vstack([HOLES, far]), weight).offset, load(HOLES).offset)
    settings = {"covariance_type": "diag", "tol": 1e-6, "max_iter": 300}
    mixture = GaussianMixture(missing="nan", **settings).fit(np.vstack([HOLES, far]), sample_weight=weight)
    without = GaussianMixture(missing="nan", **settings).fit(HOLES)
    assert_allclose(mixture.means_, without.means_, atol=1e-5)
    assert_allclose(mixture.covariances_, without.covariances_, atol=1e-4)


# The imputer.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_imputer_is_impute_of_its_mixture(imputer, dtype):
    given = HOLES.astype(dtype)
    filled = imputer.transform(given)
    assert filled.dtype == dtype
    assert np.isnan(given).any()  # the argument is as it was
    assert_array_equal(filled[~GAPS], given[~GAPS])
    expected = np.asarray(jaxgmm.impute(imputer.mixture_.to_params(), HOLES.astype(np.float32)))
    assert_allclose(filled[GAPS], expected[GAPS], atol=1e-3)
    by_means = np.where(GAPS, np.nanmean(HOLES, 0), HOLES)
    errors = [np.sqrt(np.mean((a - IRIS)[GAPS] ** 2)) for a in (filled, by_means)]
    assert errors[0] < 0.6 * errors[1]
    assert_array_equal(imputer.transform(IRIS), IRIS)


def test_the_imputer_far_from_zero_keeps_its_digits():
    near = GaussianMixtureImputer(2, random_state=0).fit_transform(HOLES)
    far = GaussianMixtureImputer(2, random_state=0).fit_transform(HOLES + 1e5)
    assert_allclose(far - 1e5, near, atol=2e-2)


def test_draws_vary_as_the_data_do_and_follow_random_state(imputer):
    def drawn(seed):
        sampler = GaussianMixtureImputer(2, sample=True, random_state=seed)
        sampler.mixture_, sampler.n_features_in_ = imputer.mixture_, 4
        return sampler.transform(HOLES)

    first, second = drawn(1), drawn(2)
    assert_array_equal(first, drawn(1))
    assert_array_equal(first[~GAPS], HOLES[~GAPS])
    assert (first != second)[GAPS].all()
    means = imputer.transform(HOLES)
    for column in range(4):
        gaps = GAPS[:, column]
        assert first[gaps, column].var() > means[gaps, column].var()
    many = np.stack([drawn(seed) for seed in range(40)])
    spread = many.std(0)[GAPS].max()
    assert np.abs(many.mean(0) - means)[GAPS].max() < 5 * spread / np.sqrt(40)


def test_the_imputer_in_a_pipeline_and_with_names(imputer):
    assert imputer.get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3"]
    assert imputer.get_feature_names_out(list("abcd")).tolist() == list("abcd")
    pipeline = make_pipeline(StandardScaler(), GaussianMixtureImputer(2, random_state=0), GaussianMixture(2))
    labels = pipeline.fit_predict(HOLES)
    assert labels.shape == (150,)
    assert np.isfinite(pipeline[:-1].transform(HOLES)).all()
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(HOLES, columns=list("abcd"))
    framed = GaussianMixtureImputer(2, random_state=0).set_output(transform="pandas").fit_transform(frame)
    assert framed.columns.tolist() == list("abcd")
    assert_allclose(framed.to_numpy(), imputer.transform(HOLES), atol=1e-5)


def test_what_the_imputer_refuses():
    for parameters, words in (
        ({"sample": 2}, "'sample' parameter"),
        ({"n_components": 0}, "'n_components' parameter"),
        ({"n_components": 151}, "n_samples >= n_components"),
    ):
        with pytest.raises(ValueError, match=words):
            GaussianMixtureImputer(**parameters).fit(HOLES)


# No EM, as in test_checks: the check of n_iter_ asks for an iteration.
@pytest.mark.parametrize(
    "estimator",
    [
        GaussianMixtureImputer(covariance_type="spherical", max_iter=0),
        GaussianMixture(covariance_type="spherical", max_iter=0, missing="nan"),
    ],
    ids=["GaussianMixtureImputer", "GaussianMixture"],
)
def test_an_estimator_passes_scikit_learns_checks(estimator):
    assert failures(estimator, {"check_transformer_n_iter"}) == {}


# Classes that are not known.


def overlapping():
    """Two classes with different covariances that overlap, a tenth of them labelled."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 300)
    X = rng.normal(size=(600, 6))
    X[y == 1] = 0.5 * X[y == 1] + [1.6, 0.8, 0, 0, 0, 0]
    shown = np.where(rng.random(600) < 0.1, y, -1)
    return X, y, shown


def test_unlabelled_samples_make_a_better_classifier():
    X, y, shown = overlapping()
    fresh = shown < 0
    model = GaussianMixtureClassifier("EDDA", unlabelled=-1).fit(X, shown)
    labelled = GaussianMixtureClassifier("EDDA").fit(X[~fresh], y[~fresh])
    assert model.score(X[fresh], y[fresh]) > labelled.score(X[fresh], y[fresh]) + 0.02
    assert model.classes_.tolist() == [0, 1]
    assert model.predict_proba(X).shape == (600, 2)
    assert model.n_iter_ > 1
    assert_allclose(model.class_prior_, model.mixture_.weights_)


def test_the_semi_supervised_fit_is_a_fixed_point_of_em_with_labels():
    X, _, shown = overlapping()
    model = GaussianMixtureClassifier("EDDA", unlabelled=-1, tol=0, max_iter=200, reg_covar=0)
    with pytest.warns(ConvergenceWarning, match="max_iter=200"):
        model.fit(X, shown)
    data = jaxgmm.observe(X.astype(np.float32), labels=shown)
    after, _ = jaxgmm.em_step(model.mixture_.to_params(), data, reg_covar=0)
    assert_allclose(after.means, model.mixture_.means_, atol=1e-3)
    assert_allclose(after.weights, model.class_prior_, atol=1e-3)
    without, _ = jaxgmm.em_step(model.mixture_.to_params(), X.astype(np.float32), reg_covar=0)
    assert np.abs(np.asarray(without.weights) - model.class_prior_).max() > 2e-3


def test_a_classifier_takes_gaps_and_unlabelled_samples_at_once():
    X, y, shown = overlapping()
    gaps = np.random.default_rng(0).random(X.shape) < 0.2
    gaps[:2] = True
    holes = np.where(gaps, np.nan, X)
    options = {"covariance_type": "diag", "missing": "nan", "tol": 1e-7, "max_iter": 300, "reg_covar": 0}
    model = GaussianMixtureClassifier("EDDA", unlabelled=-1, **options).fit(holes, shown)
    data = jaxgmm.observe(holes.astype(np.float32), missing="nan", labels=shown)
    after, _ = jaxgmm.em_step(model.mixture_.to_params(), data, reg_covar=0)
    assert_allclose(after.means, model.mixture_.means_, atol=1e-3)
    assert_allclose(after.weights, model.class_prior_, atol=1e-3)
    assert_allclose(model.predict_proba(holes)[0], model.class_prior_, atol=1e-6)  # nothing is observed
    # With all labels a diagonal class has the means and variances of its observed entries.
    complete = GaussianMixtureClassifier("EDDA", unlabelled=-1, **options).fit(holes, y)
    for k in (0, 1):
        assert_allclose(complete.mixture_.means_[k], np.nanmean(holes[y == k], axis=0), atol=1e-3)
        assert_allclose(complete.mixture_.covariances_[k], np.nanvar(holes[y == k], axis=0), rtol=1e-3)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        GaussianMixtureClassifier("EDDA").fit(holes, y)
    with pytest.raises(ValueError, match="feature 1 has no observed entry"):
        GaussianMixtureClassifier("EDDA", missing="nan").fit(np.where(np.arange(6) == 1, np.nan, X), y)


def test_names_of_classes_given_probabilities_and_weights():
    X, y, shown = overlapping()
    names = np.array(["?", "a", "b"])[shown + 1]
    model = GaussianMixtureClassifier("EDDA", unlabelled="?", class_prior=[0.9, 0.1]).fit(X, names)
    assert model.classes_.tolist() == ["a", "b"]
    assert_allclose(model.class_prior_, [0.9, 0.1])
    assert_allclose(model.mixture_.weights_, [0.9, 0.1], atol=1e-6)
    # A sample of weight 0 does not count, whether it is labelled or not.
    weight = np.where(np.arange(600) % 5 == 0, 0.0, 1.0)
    kept = weight > 0
    by_weight = GaussianMixtureClassifier("EDDA", unlabelled=-1).fit(X, shown, sample_weight=weight)
    without = GaussianMixtureClassifier("EDDA", unlabelled=-1).fit(X[kept], shown[kept])
    assert_allclose(by_weight.predict_proba(X), without.predict_proba(X), atol=1e-5)
    # All samples without a label may have weight 0.
    supervised = GaussianMixtureClassifier("EDDA", unlabelled=-1).fit(X, shown, sample_weight=shown >= 0)
    plain = GaussianMixtureClassifier("EDDA").fit(X[shown >= 0], shown[shown >= 0])
    assert_allclose(supervised.predict_proba(X), plain.predict_proba(X), atol=1e-6)
    # With every label there is nothing to share.
    complete = GaussianMixtureClassifier("EDDA", unlabelled=-1).fit(X, y)
    plain = GaussianMixtureClassifier("EDDA").fit(X, y)
    assert_array_equal(complete.predict_proba(X), plain.predict_proba(X))
    assert complete.n_iter_ == 1


def test_what_a_semi_supervised_fit_refuses():
    for parameters, labels, words in [
        ({"model_type": "MclustDA"}, [0, 1, -1], "unlabelled=-1 needs model_type='EDDA'"),
        ({"model_type": "EDDA"}, [-1, -1, -1], "no class is known"),
        ({"model_type": "EDDA", "n_init": "auto"}, [0, 1, -1], "n_init must not be 'auto'"),
    ]:
        with case(words), pytest.raises(ValueError, match=words):
            GaussianMixtureClassifier(unlabelled=-1, **parameters).fit(IRIS, np.repeat(labels, 50))


def test_far_outliers_among_unlabelled_samples_are_fitted_in_float64():
    X, _, shown = overlapping()
    model, near = (
        GaussianMixtureClassifier("EDDA", unlabelled=-1, reg_covar=0).fit(x, shown) for x in (1e-12 * X, X)
    )
    assert_allclose(model.mixture_.means_ * 1e12, near.mixture_.means_, atol=1e-2)
    assert not jax.config.jax_enable_x64
