"""`GaussianMixture`: the same as scikit-learn's where that is the same thing, and what it has beyond."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
import sklearn.mixture
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import jaxgmm
from jaxgmm.components import FAMILIES
from jaxgmm.sklearn import GaussianMixture
from jaxgmm.sklearn._conversion import SHAPED
from jaxgmm.sklearn._data import padded_length
from jaxgmm.sklearn._em_loop import climb
from tests.conftest import CORE, costly

IRIS = datasets.load_iris().data
ATTRIBUTES = ["weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"]
# Quick tests take two of the four structures.
TYPES = [costly(n, quick=["full", "spherical"]) for n in CORE]
tolerance = {np.dtype("float32"): 2e-4, np.dtype("float64"): 1e-8}


def both(X, **parameters):
    """Theirs and ours, fitted alike."""
    settings = {"random_state": 0, "max_iter": 500, **parameters}
    theirs = sklearn.mixture.GaussianMixture(**settings).fit(X)
    return theirs, GaussianMixture(**settings).fit(X)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_the_same_seed_takes_the_same_path_as_scikit_learn(name, init_params, either):
    X = IRIS - IRIS.mean(0)
    # With a smaller ridge the rounding of E[x²] − μ² decides in scikit-learn where ties of single seeds go.
    theirs, ours = both(X, n_components=3, covariance_type=name, init_params=init_params, reg_covar=1e-3)
    tol = tolerance[either]
    assert abs(ours.n_iter_ - theirs.n_iter_) <= (0 if either == np.float64 else 1)
    assert ours.converged_
    assert_allclose(ours.lower_bound_, theirs.lower_bound_, rtol=0.1 * tol)
    for attribute in ATTRIBUTES:
        expected = getattr(theirs, attribute)
        atol = tol * np.abs(expected).max()
        assert_allclose(getattr(ours, attribute), expected, atol=atol, rtol=0, err_msg=attribute)
    if either == np.float64:
        if hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
            assert_allclose(ours.lower_bounds_[1:], theirs.lower_bounds_[1:], rtol=1e-10)
        assert_array_equal(ours.predict(X), theirs.predict(X))
        assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
        for method in ("score", "aic", "bic"):
            assert_allclose(getattr(ours, method)(X), getattr(theirs, method)(X), rtol=1e-10)


REAL = {
    "iris": (3, datasets.load_iris), "wine": (3, datasets.load_wine),
    "breast cancer": (2, datasets.load_breast_cancer), "digits": (10, datasets.load_digits),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("data", REAL)
@pytest.mark.parametrize("name", CORE)
def test_it_reaches_scikit_learns_likelihood_on_its_own_data(name, data, dtype):
    k, load = REAL[data]
    X = load().data
    theirs, ours = both(X, n_components=k, covariance_type=name)
    assert ours.score(X) >= theirs.score(X) - 1e-6 * abs(theirs.score(X))


@pytest.mark.slow
def test_n_init_keeps_the_best(dtype):
    X = np.random.RandomState(3).randn(150, 4)
    theirs, ours = both(X, n_components=3, n_init=4)
    single = both(X, n_components=3)[1]
    assert_allclose(ours.lower_bound_, theirs.lower_bound_, rtol=1e-5)
    assert ours.lower_bound_ > single.lower_bound_


def weighted(settings, X, *weight):
    """A fit from given parameters, so that it does not depend on how a start is drawn."""
    with pytest.warns(ConvergenceWarning):
        return GaussianMixture(3, max_iter=20, tol=0, **settings).fit(X, None, *weight)


@pytest.mark.parametrize("name", TYPES)
def test_weights_are_as_good_as_repetition(name, dtype):
    counts = np.random.default_rng(0).integers(0, 3, size=len(IRIS))
    precisions = {"full": np.stack([np.eye(4)] * 3), "tied": np.eye(4), "diag": np.ones((3, 4))}
    settings = {
        "covariance_type": name, "weights_init": [0.2, 0.3, 0.5], "means_init": IRIS[[0, 60, 110]],
        "precisions_init": precisions.get(name, np.ones(3)),
    }  # fmt: skip
    once = weighted(settings, np.repeat(IRIS, counts, axis=0))
    by_weight = weighted(settings, IRIS, counts)
    for attribute in ATTRIBUTES:
        expected = getattr(once, attribute)
        atol = 0.1 * tolerance[dtype] * np.abs(expected).max()
        assert_allclose(getattr(by_weight, attribute), expected, atol=atol, rtol=0)
    repeated = np.repeat(IRIS, counts, axis=0)
    for method in ("aic", "bic", "icl"):
        value = getattr(by_weight, method)(IRIS, sample_weight=counts)
        assert_allclose(value, getattr(by_weight, method)(repeated), rtol=1e-6)
    assert_allclose(by_weight.score(IRIS, sample_weight=counts), by_weight.score(repeated), rtol=1e-6)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_a_row_of_weight_zero_counts_for_nothing_in_any_start(init_params):
    X = np.vstack([IRIS, np.full((3, 4), 1e3)])
    mixture = GaussianMixture(3, init_params=init_params, random_state=0, max_iter=300)
    mixture.fit(X, sample_weight=np.r_[np.ones(150), np.zeros(3)])
    assert (np.abs(mixture.means_) < 10).all()


@pytest.mark.parametrize("name", [costly(n, quick=["EEV"]) for n in [*FAMILIES, "factor(2)", "full-equal"]])
def test_every_structure_fits_climbs_and_is_what_its_attributes_say(name):
    mixture = GaussianMixture(3, covariance_type=name, random_state=0, max_iter=300, reg_covar=0).fit(IRIS)
    assert mixture.converged_
    assert np.diff(mixture.lower_bounds_).min() > -2e-5
    family = jaxgmm.components.get_family(name)
    k, d = mixture.means_.shape
    covariances = np.asarray(mixture.to_params().covariances)
    if family not in SHAPED:
        assert mixture.covariances_.shape == (k, d, d)
        assert_allclose(mixture.covariances_, covariances, rtol=1e-4, atol=1e-5)
        assert_allclose(mixture.covariances_ @ mixture.precisions_, np.stack([np.eye(d)] * k), atol=1e-7)
        upper = mixture.precisions_cholesky_
        assert_array_equal(upper, np.triu(upper))
        assert_allclose(upper @ np.swapaxes(upper, 1, 2), mixture.precisions_, rtol=1e-9)
    other = sklearn.mixture.GaussianMixture(k, covariance_type="full")
    other.weights_, other.means_ = mixture.weights_, mixture.means_
    other.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances.astype(float)))
    assert_allclose(mixture.score_samples(IRIS), other.score_samples(IRIS), rtol=1e-3, atol=1e-3)
    assert mixture._n_parameters() == jaxgmm.n_parameters(mixture.to_params())


@pytest.mark.parametrize(
    "name", ["full", "tied", "diag", "spherical", pytest.param("VVE", marks=pytest.mark.slow)]
)
def test_params_go_out_and_come_back(name, dtype):
    mixture = GaussianMixture(3, covariance_type=name, random_state=0).fit(IRIS)
    params = mixture.to_params()
    assert params.means.dtype == dtype
    assert_allclose(jaxgmm.score(params, IRIS.astype(dtype)), mixture.score(IRIS), rtol=1e-5)
    back = GaussianMixture.from_params(params, random_state=1)
    assert back.covariance_type == name
    for attribute in ATTRIBUTES:
        assert_allclose(getattr(back, attribute), getattr(mixture, attribute), rtol=1e-4, atol=1e-6)
    assert_array_equal(back.predict(IRIS), mixture.predict(IRIS))
    assert back.sample(5)[0].shape == (5, 4)
    on = back.set_params(warm_start=True, max_iter=300).fit(IRIS)
    assert on.score(IRIS) >= mixture.score(IRIS) - 1e-5


@pytest.mark.slow
def test_a_family_of_ones_own_goes_through():
    own = FAMILIES["full"]._replace(name="mine")
    mixture = clone(GaussianMixture(3, covariance_type=own, random_state=0)).fit(IRIS)
    plain = GaussianMixture(3, random_state=0).fit(IRIS)
    assert_allclose(mixture.score(IRIS), plain.score(IRIS), rtol=1e-5)
    again = GaussianMixture.from_params(mixture.to_params())
    assert again.covariance_type == own


@pytest.mark.parametrize("given", [np.float32, np.float64])
def test_attributes_have_the_dtype_of_the_data(given, dtype):
    X = IRIS.astype(given)
    mixture = GaussianMixture(3, random_state=0).fit(X)
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
    near, off = (GaussianMixture(3, random_state=0, tol=1e-5, max_iter=500).fit(X) for X in (IRIS, far))
    assert_allclose(off.means_ - [1e6, -1e5, 1e7, 0], near.means_, atol=1e-3)
    assert_allclose(off.covariances_, near.covariances_, atol=1e-3)
    assert_allclose(off.score(far), near.score(IRIS), atol=1e-4)
    assert_array_equal(off.predict(far), near.predict(IRIS))


def test_a_prior_saves_what_collapses():
    X = np.repeat(IRIS[[0, 20, 60, 90, 110, 140]], 25, axis=0)
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        GaussianMixture(3, reg_covar=0, random_state=0, max_iter=500).fit(X)
    mixture = GaussianMixture(3, prior="default", reg_covar=0, random_state=0, max_iter=500).fit(X)
    assert (np.linalg.eigvalsh(mixture.covariances_) > 1e-6).all()
    assert np.diff(mixture.lower_bounds_).min() > -1e-5


@pytest.mark.slow
def test_the_bound_with_a_prior_is_the_posterior_per_sample(double):
    prior = jaxgmm.default_prior(IRIS, 3, weight_concentration=2.0)
    mixture = GaussianMixture(3, prior=prior, random_state=0, tol=1e-10, max_iter=2000).fit(IRIS)
    params = mixture.to_params()
    expected = mixture.score(IRIS) + float(jaxgmm.log_prior(params, prior)) / len(IRIS)
    assert_allclose(mixture.lower_bound_, expected, rtol=1e-8)
    fitted = jaxgmm.fit(params, IRIS, prior=prior, reg_covar=0)
    assert_allclose(float(fitted.objective), expected, rtol=1e-6)
    away = dataclasses.replace(prior, mean=np.asarray(prior.mean) + 100)
    moved = GaussianMixture(3, prior=away, random_state=0, tol=1e-10, max_iter=2000).fit(IRIS + 100)
    assert_allclose(moved.covariances_, mixture.covariances_, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_auto_finds_at_least_what_restarts_find():
    auto = GaussianMixture(3, n_init="auto", random_state=0).fit(IRIS)
    assert auto.converged_
    assert auto.n_iter_ >= 1
    assert auto.score(IRIS) >= GaussianMixture(3, n_init=20, random_state=0).fit(IRIS).score(IRIS) - 1e-4
    again = GaussianMixture(3, n_init="auto", random_state=0).fit(IRIS)
    assert_array_equal(auto.means_, again.means_)


def test_a_failed_start_is_passed_over_if_another_does_not_fail(monkeypatch):
    from jaxgmm.sklearn import _init as init
    from jaxgmm.sklearn._conversion import CollapsedError

    whole, failing = init.m_step, {1, 2}  # of the calls: the first start, in float32 and in float64
    calls = []

    def sometimes(*args):
        calls.append(1)
        if len(calls) in failing:
            raise CollapsedError
        return whole(*args)

    monkeypatch.setattr(init, "m_step", sometimes)
    assert GaussianMixture(3, n_init=2, random_state=0).fit(IRIS).converged_
    calls.clear()
    failing.add(3)
    with pytest.raises(ValueError, match="ill-defined"):
        GaussianMixture(3, n_init=1, random_state=0).fit(IRIS)


SENTINELS = np.concatenate([
    np.random.default_rng(0).normal(size=(200, 2)), np.random.default_rng(1).normal(size=(200, 2)) + 6
])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [("diag", 99999.0), ("full", 99999.0), ("spherical", 1e6), ("tied", 99999.0)]
)
def test_sentinel_values_are_fitted_as_scikit_learn_fits_them(name, value, either):
    X = np.concatenate([SENTINELS, np.full((5, 2), value)]).astype(either)
    theirs, ours = both(X.astype(np.float64), n_components=3, covariance_type=name)
    ours = GaussianMixture(3, covariance_type=name, random_state=0, max_iter=500).fit(X)
    assert ours.converged_
    assert ours.weights_.dtype == either
    # "tied" is as wide as the sentinel is far and stays in float32, whose last digit there this is.
    rounding = np.finfo(np.float32).eps * value
    assert_allclose(ours.weights_, theirs.weights_, atol=1e-6)
    order = np.argsort(theirs.means_[:, 0])[:2]
    assert_allclose(ours.means_[order], theirs.means_[order], atol=rounding if name == "tied" else 1e-5)
    assert_allclose(ours.means_.max(), value, rtol=1e-6)
    assert_array_equal(ours.predict(X), theirs.predict(X.astype(np.float64)))


def test_a_collapse_is_still_an_error():
    X = np.concatenate([SENTINELS, np.full((5, 2), 99999.0)])
    with pytest.raises(ValueError, match="ill-defined"):
        GaussianMixture(3, covariance_type="diag", reg_covar=0.0, random_state=0).fit(X)


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-20])
def test_data_of_extreme_scale_are_fitted(scale, either):
    X = (SENTINELS * scale).astype(either)
    expected = GaussianMixture(2, reg_covar=0.0, random_state=0).fit(SENTINELS)
    found = GaussianMixture(2, reg_covar=0.0, random_state=0).fit(X)
    assert found.converged_
    assert_allclose(found.means_ / scale, expected.means_, rtol=1e-4)
    assert_allclose(np.asarray(found.covariances_, float) / scale / scale, expected.covariances_, rtol=1e-3)
    assert_array_equal(found.predict(X), expected.predict(SENTINELS))


def test_only_ratios_of_weights_matter():
    weight = np.random.default_rng(2).uniform(0.5, 2, len(SENTINELS))
    expected = GaussianMixture(2, random_state=0).fit(SENTINELS, sample_weight=weight)
    for factor in (1e-20, 1e20):
        found = GaussianMixture(2, random_state=0).fit(SENTINELS, sample_weight=weight * factor)
        assert_allclose(found.means_, expected.means_, rtol=1e-5, atol=1e-6)
        assert_allclose(found.weights_, expected.weights_, rtol=1e-5)
        assert found.n_iter_ == expected.n_iter_


def test_verbose_says_what_scikit_learn_says(capsys):
    settings = {"n_components": 3, "random_state": 0, "verbose_interval": 3}
    GaussianMixture(verbose=1, **settings).fit(IRIS)
    ours = capsys.readouterr().out
    sklearn.mixture.GaussianMixture(verbose=1, **settings).fit(IRIS)
    assert ours == capsys.readouterr().out
    GaussianMixture(verbose=2, **settings).fit(IRIS)
    out = capsys.readouterr().out
    assert "ll change" in out
    assert "time lapse" in out


@pytest.mark.slow
def test_more_steps_than_one_chunk(double):
    X = np.random.default_rng(0).normal(size=(150, 4))
    settings = {"n_components": 3, "random_state": 0, "max_iter": 300, "tol": 0}
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        theirs, ours = both(X, **settings)
    assert ours.n_iter_ == theirs.n_iter_ == 300
    assert not ours.converged_
    assert_allclose(ours.lower_bound_, theirs.lower_bound_, rtol=1e-8)
    assert len(ours.lower_bounds_) == 300


def test_in_float32_a_tol_below_rounding_still_ends():
    mixture = GaussianMixture(3, random_state=0, tol=1e-12, max_iter=5000).fit(IRIS.astype(np.float32))
    assert mixture.converged_


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
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
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        GaussianMixture(**{"n_components": 3, **parameters}).fit(IRIS)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.ones(149), "expected"), (-np.ones(150), "negative"), (np.zeros(150), "zero"),
        (np.full(150, np.nan), "finite"), (np.ones((150, 2)), "1D"),
    ],
)  # fmt: skip
def test_bad_weights_are_named(weight, words):
    with pytest.raises(ValueError, match=words):
        GaussianMixture(3).fit(IRIS, sample_weight=weight)


def test_numbers_too_large_for_float32_are_fitted_in_float64(dtype):
    mixture = GaussianMixture(3, random_state=0).fit(IRIS * 1e40)
    expected = GaussianMixture(3, random_state=0).fit(IRIS)
    assert_allclose(mixture.means_ / 1e40, expected.means_, rtol=1e-4)
    assert_array_equal(mixture.predict(IRIS * 1e40), expected.predict(IRIS))


def test_attributes_set_by_hand_are_a_mixture():
    mixture = GaussianMixture(2, covariance_type="diag")
    mixture.weights_, mixture.means_ = np.array([0.5, 0.5]), np.array([[0.0, 0.0], [9.0, 9.0]])
    mixture.precisions_cholesky_ = np.ones((2, 2))
    assert mixture.predict([[1.0, 0.0], [8.0, 9.0]]).tolist() == [0, 1]
    assert mixture._n_parameters() == 9


def test_a_warm_start_of_another_shape_says_so():
    mixture = GaussianMixture(3, warm_start=True, random_state=0).fit(IRIS)
    with pytest.raises(ValueError, match="warm_start"):
        mixture.set_params(n_components=2).fit(IRIS)


def test_a_failed_fit_leaves_the_estimator_unfitted():
    mixture = GaussianMixture(3, covariance_type="ful")
    with pytest.raises(ValueError, match="covariance_type"):
        mixture.fit(IRIS)
    for call in (mixture.to_params, lambda: mixture.icl(IRIS), mixture.sample):
        with pytest.raises(NotFittedError):
            call()


def test_pickles_predict_the_same_in_every_precision(dtype):
    for name in ("full", "EEV", FAMILIES["spherical"]):
        mixture = GaussianMixture(3, covariance_type=name, random_state=0).fit(IRIS)
        again = pickle.loads(pickle.dumps(mixture))
        assert_array_equal(again.predict_proba(IRIS), mixture.predict_proba(IRIS))
        assert_array_equal(again.sample(9)[0], mixture.sample(9)[0])
        assert_array_equal(again.fit(IRIS).covariances_, mixture.covariances_)


def test_precisions_init_of_every_shape():
    for name, precisions in (
        ("EEV", np.stack([4 * np.eye(4)] * 3)),
        ("EII", np.stack([4 * np.eye(4)] * 3)),
        ("tied", 4 * np.eye(4)),
    ):
        mixture = GaussianMixture(
            3, covariance_type=name, precisions_init=precisions, weights_init=np.ones(3) / 3,
            means_init=IRIS[[0, 60, 110]], max_iter=0,
        ).fit(IRIS)  # fmt: skip
        assert_allclose(mixture.precisions_, precisions, rtol=1e-5, atol=1e-5)


def test_rows_are_padded_by_an_eighth_at_most():
    for n in [1, 63, 64, 65, 500, 513, 1000, 1025, 10**5, 10**6 + 1]:
        assert n <= padded_length(n) <= max(64, n + 64, 1.125 * n)
    assert len({padded_length(n) for n in range(1, 10**4)}) < 60


def test_folds_of_one_size_share_a_program():
    X = np.random.default_rng(0).normal(size=(150, 4))
    before = None
    for n in (150, 149, 140, 131):
        GaussianMixture(3, random_state=0, tol=1e-3 * n, reg_covar=1e-6 * n).fit(X[:n]).predict(X[:n])
        programs = climb._cache_size()
        assert before in (None, programs)
        before = programs


def test_the_cache_of_programs_is_made_for_its_owner(tmp_path):
    from jaxgmm.sklearn import cache_compiled

    names = [
        "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    try:
        folder = cache_compiled(tmp_path / "programs")
        if folder is None:
            pytest.skip("this JAX has no cache to be trusted")
        assert folder.stat().st_mode & 0o077 == 0
        jax.jit(lambda a: a * 17 + 3)(np.ones(3, np.float32))
        open_to_all = tmp_path / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        with pytest.raises(PermissionError, match="yours alone"):
            cache_compiled(open_to_all)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_masked_entries_text_and_odd_counts_are_refused_by_name():
    pandas = pytest.importorskip("pandas", reason="the extra test has it")
    with pytest.raises(ValueError, match="masked"):
        GaussianMixture().fit(np.ma.masked_array(IRIS, IRIS > 7))
    with pytest.raises(ValueError, match="column 'b' does not hold numbers"):
        GaussianMixture().fit(pandas.DataFrame({"a": [1.0, 2.0], "b": np.array(["x", "y"], object)}))
    with pytest.raises(ValueError, match="column 'b' has a missing value in row 1"):
        GaussianMixture().fit(pandas.DataFrame({"a": [1.0, 2.0], "b": pandas.array([1, None], "Int64")}))
    mixture = GaussianMixture().fit(IRIS)
    for count in ("3", 2.5, True):
        with pytest.raises(TypeError, match="n_samples must be an int"):
            mixture.sample(count)
