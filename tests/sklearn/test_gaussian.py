"""`GaussianMixture`: the same as scikit-learn's where that is the same thing, and what it has beyond.

Nearly all fits are of three components on 129 to 192 rows of four features: these share one program.
"""

import dataclasses
import pickle
import tracemalloc

import jax
import numpy as np
import pytest
import sklearn.mixture
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import jaxgmm
from jaxgmm._host_arrays import padded_length
from jaxgmm.components import STRUCTURES as RECORDS
from jaxgmm.sklearn import GaussianMixture
from jaxgmm.sklearn._conversion import FULL
from jaxgmm.sklearn._data import in_blocks, load
from jaxgmm.sklearn._em_loop import climb
from jaxgmm.sklearn._init import m_step

IRIS = datasets.load_iris().data
ATTRIBUTES = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"]
STARTS = ["kmeans", "k-means++", "random", "random_from_data"]
TOLERANCE = {np.dtype("float32"): 2e-4, np.dtype("float64"): 1e-8}
every_start = pytest.mark.parametrize("init_params", STARTS)


def both(X, **parameters):
    """Theirs and ours, fitted alike."""
    settings = {"n_components": 3, "random_state": 0, "max_iter": 500, **parameters}
    theirs = sklearn.mixture.GaussianMixture(**settings).fit(X)
    return theirs, GaussianMixture(**settings).fit(X)


def ours(X=IRIS, weight=None, **parameters):
    settings = {"n_components": 3, "random_state": 0, "max_iter": 500, **parameters}
    return GaussianMixture(**settings).fit(X, None, weight)


@pytest.mark.parametrize(
    ("name", "dtype"), [("full", "float32"), ("full", "float64"), ("diag", "float64")], indirect=["dtype"]
)
def test_the_same_seed_takes_the_same_path_as_scikit_learn(name, dtype):
    X = IRIS - IRIS.mean(0)
    tol = TOLERANCE[dtype]
    for init_params in STARTS:
        # With a smaller ridge the rounding of E[x²] − μ² decides in scikit-learn where ties of seeds go.
        theirs, mixture = both(X, covariance_type=name, init_params=init_params, reg_covar=1e-3)
        assert abs(mixture.n_iter_ - theirs.n_iter_) <= (0 if dtype == np.float64 else 1)
        assert mixture.converged_
        assert_allclose(mixture.lower_bound_, theirs.lower_bound_, rtol=0.1 * tol)
        assert_attributes(mixture, theirs, tol)
        if dtype == np.float64:
            if hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
                assert_allclose(mixture.lower_bounds_[1:], theirs.lower_bounds_[1:], rtol=1e-10)
            assert_array_equal(mixture.predict(X), theirs.predict(X))
            assert_allclose(mixture.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
            for method in ("score", "aic", "bic"):
                assert_allclose(getattr(mixture, method)(X), getattr(theirs, method)(X), rtol=1e-10)


def assert_attributes(mixture, theirs, tol):
    for attribute in ATTRIBUTES:
        expected = getattr(theirs, attribute)
        atol = tol * np.abs(expected).max()
        assert_allclose(getattr(mixture, attribute), expected, atol=atol, rtol=0, err_msg=attribute)


def test_every_start_of_every_structure_is_scikit_learns(double):
    X = IRIS - IRIS.mean(0)  # of data off the origin its tied covariance of seeds is too wide
    for name in ("tied", "spherical"):
        for init_params in STARTS:
            theirs, mixture = both(X, covariance_type=name, init_params=init_params, max_iter=0)
            theirs.weights_ /= theirs.weights_.sum()  # scikit-learn makes them sum to 1 in its first step
            assert_attributes(mixture, theirs, 1e-8)


def test_on_features_of_very_different_scales_float32_reaches_scikit_learns_likelihood():
    X = datasets.load_wine().data[:, [0, 4, 7, 12]]  # variances from 0.016 to 99,000
    theirs, mixture = both(X)
    assert mixture.score(X) >= theirs.score(X) - 1e-6 * abs(theirs.score(X))


def test_n_init_keeps_the_best():
    X = np.random.RandomState(3).randn(150, 4)
    theirs, mixture = both(X, n_init=3)
    assert_allclose(mixture.lower_bound_, theirs.lower_bound_, rtol=1e-5)
    assert mixture.lower_bound_ > ours(X).lower_bound_


def test_weights_are_as_good_as_repetition(dtype):
    counts = np.random.default_rng(0).integers(0, 3, size=len(IRIS))
    repeated = np.repeat(IRIS, counts, axis=0)
    # From given parameters, so that it does not depend on how a start is drawn.
    settings = {
        "weights_init": [0.2, 0.3, 0.5], "means_init": IRIS[[0, 60, 110]],
        "precisions_init": np.stack([np.eye(4)] * 3), "max_iter": 20, "tol": 0,
    }  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        once, by_weight = ours(repeated, **settings), ours(IRIS, counts, **settings)
    for attribute in ATTRIBUTES:
        expected = getattr(once, attribute)
        atol = 0.1 * TOLERANCE[dtype] * np.abs(expected).max()
        assert_allclose(getattr(by_weight, attribute), expected, atol=atol, rtol=0)
    for method in ("aic", "bic", "icl", "score"):
        value = getattr(by_weight, method)(IRIS, sample_weight=counts)
        assert_allclose(value, getattr(by_weight, method)(repeated), rtol=1e-6)


def test_only_ratios_of_weights_matter():
    weight = np.random.default_rng(2).uniform(0.5, 2, len(IRIS))
    expected = ours(IRIS, weight)
    for factor in (1e-20, 1e20):
        found = ours(IRIS, weight * factor)
        assert_allclose(found.means_, expected.means_, rtol=1e-5, atol=1e-6)
        assert_allclose(found.weights_, expected.weights_, rtol=1e-5)
        assert found.n_iter_ == expected.n_iter_


@every_start
def test_a_row_of_weight_zero_counts_for_nothing_in_any_start(init_params):
    X = np.vstack([IRIS, np.full((3, 4), 1e3)])
    mixture = ours(X, np.r_[np.ones(150), np.zeros(3)], init_params=init_params)
    assert (np.abs(mixture.means_) < 10).all()


def test_a_structure_beyond_scikit_learns_climbs_and_is_what_its_attributes_say():
    mixture = ours(covariance_type="EEI", reg_covar=0)
    assert mixture.converged_
    assert np.diff(mixture.lower_bounds_).min() > -2e-5
    k, d = mixture.means_.shape
    covariances, weights = jax.jit(lambda p: (p.covariances, p.weights))(mixture.to_params())
    assert_allclose(mixture.weights_, weights, rtol=1e-5)
    assert mixture.covariances_.shape == (k, d, d)
    assert_allclose(mixture.covariances_, covariances, rtol=1e-4, atol=1e-5)
    assert_allclose(mixture.covariances_ @ mixture.precisions_, np.stack([np.eye(d)] * k), atol=1e-7)
    upper = mixture.precisions_cholesky_
    assert_array_equal(upper, np.triu(upper))
    assert_allclose(upper @ np.swapaxes(upper, 1, 2), mixture.precisions_, rtol=1e-9)
    other = sklearn.mixture.GaussianMixture(k, covariance_type="full")
    other.weights_, other.means_ = mixture.weights_, mixture.means_
    other.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(np.asarray(covariances, float)))
    assert_allclose(mixture.score_samples(IRIS), other.score_samples(IRIS), rtol=1e-3, atol=1e-3)
    assert mixture._n_parameters() == jaxgmm.n_parameters(mixture.to_params())
    assert_pickles_predict_the_same(mixture)
    assert_comes_back(mixture, "EEI")


def peak_memory(call):
    """How many bytes of the host a call takes at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["diag", "spherical"])
def test_samples_without_correlations_are_scikit_learns_and_take_no_dense_factors(name):
    d, deviations = 500, np.array([2.0, 3.0])
    kinds = GaussianMixture, sklearn.mixture.GaussianMixture
    mixtures = [kind(2, covariance_type=name, random_state=0) for kind in kinds]
    for mixture in mixtures:
        mixture.weights_, mixture.means_ = np.array([0.3, 0.7]), np.arange(2.0 * d).reshape(2, d)
        scale = np.repeat(deviations[:, None], d, 1) if name == "diag" else deviations
        mixture.covariances_, mixture.precisions_cholesky_ = scale**2, 1 / scale
    (X, labels), (expected, from_which) = (mixture.sample(9) for mixture in mixtures)
    assert_allclose(X, expected)
    assert_array_equal(labels, from_which)
    assert peak_memory(lambda: mixtures[0].sample(9)) < d * d * X.itemsize


def test_many_rows_are_not_copied_to_float64():
    X, resp = np.ones((1 << 18, 8), np.float32), np.full((1 << 18, 2), 0.5)
    rows = load(X)
    assert peak_memory(lambda: m_step(resp, rows, FULL, 1.0)) < X.nbytes
    copied = peak_memory(lambda: in_blocks(lambda x: (x,), X, np.zeros(8), np.float32, 1 << 14))
    assert copied < 1.5 * X.nbytes


def assert_pickles_predict_the_same(mixture):
    again = pickle.loads(pickle.dumps(mixture))
    assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
    assert_array_equal(again.sample(9)[0], mixture.sample(9)[0])
    assert_array_equal(again.fit(IRIS).covariances_, mixture.covariances_)


@pytest.mark.parametrize("name", ["full", RECORDS["full"]], ids=["full", "an object"])
def test_pickles_predict_the_same(name):
    assert_pickles_predict_the_same(ours(covariance_type=name))


def test_params_go_out_and_come_back(dtype):
    mixture = ours()
    params = mixture.to_params()
    assert params.means.dtype == dtype
    lower = np.asarray(params.scale)  # of "full" these are Cholesky factors
    assert_allclose(np.exp(params.log_weights), mixture.weights_, rtol=1e-5)
    assert_allclose(params.means, mixture.means_, rtol=1e-5)
    assert_allclose(lower @ np.swapaxes(lower, 1, 2), mixture.covariances_, rtol=1e-5, atol=1e-6)
    assert_comes_back(mixture, "full")


def assert_comes_back(mixture, name):
    back = GaussianMixture.from_params(mixture.to_params(), random_state=1)
    assert back.covariance_type == name
    for attribute in ATTRIBUTES:
        assert_allclose(getattr(back, attribute), getattr(mixture, attribute), rtol=1e-4, atol=1e-6)
    assert_array_equal(back.predict(IRIS), mixture.predict(IRIS))
    assert back.sample(5)[0].shape == (5, 4)
    on = back.set_params(warm_start=True, max_iter=300).fit(IRIS)
    assert on.score(IRIS) >= mixture.score(IRIS) - 1e-5


def test_attributes_have_the_dtype_of_the_data(dtype):
    for given in {np.float64, dtype.type}:
        X = IRIS.astype(given)
        mixture = ours(X)
        for attribute in ATTRIBUTES:
            value = getattr(mixture, attribute)
            assert type(value) is np.ndarray
            assert value.dtype == given
        assert mixture.predict_proba(X).dtype == mixture.score_samples(X).dtype == given
        assert mixture.predict(X).dtype == np.int64
        assert isinstance(mixture.lower_bound_, float)
        assert len(mixture.lower_bounds_) == mixture.n_iter_


def test_an_offset_costs_no_digits_in_float32():
    far = IRIS + np.array([1e6, -1e5, 1e7, 0])
    near, off = (ours(X, tol=1e-5) for X in (IRIS, far))
    assert_allclose(off.means_ - [1e6, -1e5, 1e7, 0], near.means_, atol=1e-3)
    assert_allclose(off.covariances_, near.covariances_, atol=1e-3)
    assert_allclose(off.score(far), near.score(IRIS), atol=1e-4)
    assert_array_equal(off.predict(far), near.predict(IRIS))


def test_a_prior_saves_what_collapses_and_is_part_of_the_bound(double):
    X = np.repeat(IRIS[[0, 20, 60, 90, 110, 140]], 25, axis=0)
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        ours(X, covariance_type="diag", reg_covar=0)
    mixture = ours(X, covariance_type="diag", reg_covar=0, prior="default")
    assert (mixture.covariances_ > 1e-6).all()
    assert np.diff(mixture.lower_bounds_).min() > -1e-9

    prior = jaxgmm.Prior(IRIS.mean(0), 0.01, 6.0, 0.3 * IRIS.var(0))
    settings = {"covariance_type": "diag", "tol": 1e-10, "max_iter": 2000}
    mixture = ours(prior=prior, **settings)
    expected = mixture.score(IRIS) + float(jaxgmm.log_prior(mixture.to_params(), prior)) / len(IRIS)
    assert_allclose(mixture.lower_bound_, expected, rtol=1e-8)
    away = dataclasses.replace(prior, mean=np.asarray(prior.mean) + 100)
    moved = ours(IRIS + 100, prior=away, **settings)
    assert_allclose(moved.covariances_, mixture.covariances_, rtol=1e-6)


def test_auto_takes_what_fit_best_finds(monkeypatch):
    """In place of the search, which has its own tests and compiles for ten seconds, stands a known fit."""
    known, seen = ours(), []

    def search(key, x, n_components, sample_weight, **options):
        seen.append((n_components, np.asarray(sample_weight).sum(), options))
        params = jax.tree.map(np.asarray, known.to_params())
        offset = (IRIS[:1] - np.asarray(x)[:1]).astype(x.dtype)
        params = dataclasses.replace(params, means=params.means - offset)
        history = np.array([known.lower_bound_ - 1, known.lower_bound_, np.nan])
        return jaxgmm.FitResult(params, *[history[1]] * 2, np.int32(7), np.int32(status), history)

    monkeypatch.setattr("jaxgmm.sklearn._gaussian.fit_best", search)
    status = jaxgmm.Status.CONVERGED
    mixture = ours(n_init="auto", max_iter=1, tol=1e3)  # neither is used
    assert seen == [(3, 150.0, {"covariance_type": "full", "reg_covar": 1e-6, "prior": None})]
    assert (mixture.converged_, mixture.n_iter_) == (True, 7)
    assert_allclose(mixture.lower_bounds_, [known.lower_bound_ - 1, known.lower_bound_])
    assert_allclose(mixture.means_, known.means_, rtol=1e-5)
    assert_allclose(mixture.covariances_, known.covariances_, rtol=1e-4)
    status = jaxgmm.Status.DEGENERATE
    with pytest.raises(ValueError, match="ill-defined"):
        ours(n_init="auto")


def test_sentinel_values_are_fitted_in_float64_as_scikit_learn_fits_them():
    for given in (np.float32, np.float64):
        X = np.concatenate([IRIS, np.full((5, 4), 99999.0)]).astype(given)
        theirs = sklearn.mixture.GaussianMixture(3, random_state=0, max_iter=500).fit(X.astype(float))
        mixture = ours(X)
        assert mixture.converged_
        assert mixture.weights_.dtype == given
        assert_allclose(mixture.weights_, theirs.weights_, atol=1e-6)
        order = np.argsort(theirs.means_[:, 0])[:2]
        assert_allclose(mixture.means_[order], theirs.means_[order], atol=1e-5)
        assert_allclose(mixture.means_.max(), 99999, rtol=1e-6)
        assert_array_equal(mixture.predict(X), theirs.predict(X.astype(np.float64)))
    with pytest.raises(ValueError, match="ill-defined"):
        ours(X, reg_covar=0.0)


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e30, 1e40])
def test_data_of_extreme_scale_are_fitted(scale):
    expected = ours(reg_covar=0.0)
    for given in (np.float32, np.float64) if scale < 1e38 else (np.float64,):
        X = (IRIS * scale).astype(given)
        found = ours(X, reg_covar=0.0)
        assert found.converged_
        assert_allclose(found.means_ / scale, expected.means_, rtol=1e-4)
        assert_allclose(np.asarray(found.covariances_, float) / scale**2, expected.covariances_, rtol=1e-3)
        assert_array_equal(found.predict(X), expected.predict(IRIS))


def test_verbose_says_what_scikit_learn_says(capsys):
    settings = {"n_components": 3, "random_state": 0, "verbose_interval": 3}
    GaussianMixture(verbose=1, **settings).fit(IRIS)
    mine = capsys.readouterr().out
    sklearn.mixture.GaussianMixture(verbose=1, **settings).fit(IRIS)
    assert mine == capsys.readouterr().out
    GaussianMixture(verbose=2, **settings).fit(IRIS)
    out = capsys.readouterr().out
    assert "ll change" in out
    assert "time lapse" in out


def test_more_steps_than_one_chunk(double):
    X = np.random.default_rng(0).normal(size=(150, 4))
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        theirs, mixture = both(X, max_iter=130, tol=0)
    assert mixture.n_iter_ == theirs.n_iter_ == len(mixture.lower_bounds_) == 130
    assert not mixture.converged_
    assert_allclose(mixture.lower_bound_, theirs.lower_bound_, rtol=1e-8)


def test_in_float32_a_tol_below_rounding_still_ends():
    assert ours(IRIS.astype(np.float32), tol=1e-12, max_iter=5000).converged_


BAD_PARAMETERS = [
    ({"n_components": 0}, r"'n_components' parameter of GaussianMixture must be an int in the range \[1"),
    ({"n_components": 2.0}, "n_components"),
    ({"tol": -1.0}, "'tol' parameter"),
    ({"reg_covar": -1}, "'reg_covar'"),
    ({"max_iter": -1}, "'max_iter'"),
    ({"n_init": "often"}, "'n_init'.*'auto'"),
    ({"init_params": "kmean"}, "'init_params'"),
    ({"warm_start": 1}, "'warm_start'"),
    ({"covariance_type": 3}, "'covariance_type'"),
    ({"covariance_type": "ful"}, "did you mean 'full'"),
    ({"covariance_type": "factor(7)"}, "factor"),
    ({"prior": "weak"}, "'prior'"),
    ({"precisions_init": np.ones((2, 4, 4))}, "full precision"),
    ({"means_init": np.ones((3, 5))}, r"'means' should have the shape of \(3, 4\), but got \(3, 5\)"),
    ({"weights_init": np.ones(2)}, r"'weights' should have the shape of \(3,\), but got \(2,\)"),
    ({"weights_init": [-0.5, 0.5, 1.0]}, r"'weights' should be in the range \[0, 1\]"),
    ({"weights_init": [0.5, 0.5, 0.5]}, r"should be normalized, but got sum\(weights\) = 1.50000"),
]
BAD_WEIGHTS = [
    (np.ones(149), "expected"), (-np.ones(150), "negative"), (np.zeros(150), "zero"),
    (np.full(150, np.nan), "finite"), (np.ones((150, 2)), "1D"),
    (np.where(np.arange(150) < 7, 1.0, -2.0), "got -2.0 at index 7"),
]  # fmt: skip


def test_bad_parameters_and_weights_are_named():
    for parameters, words in BAD_PARAMETERS:
        with pytest.raises(ValueError, match=words):
            ours(**parameters)
    for weight, words in BAD_WEIGHTS:
        with pytest.raises(ValueError, match=words):
            ours(IRIS, weight)


def test_attributes_set_by_hand_are_a_mixture():
    mixture, fitted = GaussianMixture(3), ours()
    for attribute in ("weights_", "means_", "precisions_cholesky_"):
        setattr(mixture, attribute, getattr(fitted, attribute))
    assert_array_equal(mixture.predict(IRIS.tolist()), fitted.predict(IRIS))
    assert mixture._n_parameters() == 44


def test_a_warm_start_of_another_shape_says_so():
    mixture = ours(warm_start=True)
    with pytest.raises(ValueError, match="warm_start"):
        mixture.set_params(n_components=2).fit(IRIS)


def test_a_failed_fit_leaves_the_estimator_unfitted():
    mixture = GaussianMixture(3, covariance_type="ful")
    with pytest.raises(ValueError, match="covariance_type"):
        mixture.fit(IRIS)
    for call in (mixture.to_params, lambda: mixture.icl(IRIS), mixture.sample):
        with pytest.raises(NotFittedError):
            call()


def test_precisions_init_of_every_shape_and_a_structure_of_ones_own():
    own = RECORDS["spherical"]._replace(name="mine")
    dense, one = np.stack([4 * np.eye(4)] * 3), 4 * np.eye(4)
    for structure, precisions in (("full-equal", dense), ("tied", one), (own, dense)):
        mixture = ours(
            covariance_type=structure, precisions_init=precisions, weights_init=np.ones(3) / 3,
            means_init=IRIS[[0, 60, 110]], max_iter=0,
        )  # fmt: skip
        assert_allclose(mixture.precisions_, precisions, rtol=1e-5, atol=1e-5)
    assert GaussianMixture.from_params(mixture.to_params()).covariance_type == own


def test_rows_are_padded_by_an_eighth_at_most():
    for n in [1, 63, 64, 65, 500, 513, 1000, 1025, 10**5, 10**6 + 1]:
        assert n <= padded_length(n) <= max(64, n + 64, 1.125 * n)
    assert len({padded_length(n) for n in range(1, 10**4)}) < 60


def test_folds_of_one_size_share_a_program():
    X = np.random.default_rng(0).normal(size=(150, 4))
    before = None
    for n in (150, 149, 140, 131):
        ours(X[:n], tol=1e-3 * n, reg_covar=1e-6 * n).predict(X[:n])
        programs = climb._cache_size()
        assert before in (None, programs)
        before = programs


def test_masked_entries_text_and_odd_counts_are_refused_by_name():
    pandas = pytest.importorskip("pandas", reason="the extra test has it")
    with pytest.raises(ValueError, match="masked"):
        GaussianMixture().fit(np.ma.masked_array(IRIS, IRIS > 7))
    with pytest.raises(ValueError, match="column 'b' does not hold numbers"):
        GaussianMixture().fit(pandas.DataFrame({"a": [1.0, 2.0], "b": np.array(["x", "y"], object)}))
    with pytest.raises(ValueError, match="column 'b' has a missing value in row 1"):
        GaussianMixture().fit(pandas.DataFrame({"a": [1.0, 2.0], "b": pandas.array([1, None], "Int64")}))
    mixture = ours()
    for count in (0, np.int64(-1)):
        with pytest.raises(ValueError, match=f"'n_samples': {count} . The sampling requires"):
            mixture.sample(count)
    for count in ("3", 2.5, True):
        with pytest.raises(TypeError, match="n_samples must be an int"):
            mixture.sample(count)
