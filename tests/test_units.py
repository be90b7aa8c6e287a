"""Features of extreme scale: fitted in units that are powers of two, with the results of ordinary ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import EMOptions, Status
from jaxgmm import _units as units
from jaxgmm.components import get_family
from tests.conftest import NAMES, costly, x64

N, D, K = 24, 3, 2
KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(N, D)) + 6 * (np.arange(N) >= N // 2)[:, None]


def array(scale=1.0):
    return jnp.asarray(X * np.asarray(scale), jnp.float32)


def test_ordinary_data_have_no_units_and_extreme_ones_powers_of_two():
    assert units.units_of(array(), None) is None
    assert units.units_of(array(1e8), None) is None
    sd = X.std(0)
    each = units.units_of(array([1e-20, 1, 1e20]), None, get_family("full"))
    assert each[1] == 1
    ratio = sd[[0, 2]] * [1e-20, 1e20] / each[[0, 2]]
    assert ((ratio > 0.5) & (ratio <= 1)).all()
    assert (np.log2(each) % 1 == 0).all()
    # Spheres stay spheres in one unit only.
    one = units.units_of(array([1e-20, 1, 1e20]), None, get_family("spherical"))
    assert (one == each[2]).all()


def test_rows_without_weight_and_constant_features_decide_nothing():
    weight = jnp.ones(N).at[0].set(0)
    assert units.units_of(array().at[0].set(1e30), weight, get_family("full")) is None
    tiny = array(1e-20)
    assert (units.units_of(tiny.at[0].set(1.0), weight) == units.units_of(tiny.at[0].set(0.0), weight)).all()
    assert units.units_of(array().at[:, 1].set(3.0), None, get_family("full")) is None
    assert units.units_of(array().at[0, 0].set(jnp.nan), None) is None
    assert units.units_of(jnp.zeros((N, D)), None) is None


def test_a_structure_without_rescale_is_fitted_as_the_data_are():
    assert units.units_of(array(1e20), None, get_family("full")._replace(rescale=None)) is None


@pytest.mark.parametrize(
    "name", [costly(n, quick=("full", "diag", "VEV", "EEI")) for n in [*NAMES, "factor(1)"]]
)
def test_extreme_data_have_the_fits_of_ordinary_ones(name):
    with x64(False):
        for scale in (2.0**100, 2.0**-100):
            # Without a ridge, which is in the data's units, every number is the same but for its exponent.
            options = {
                "covariance_type": name,
                "n_init": 2,
                "reg_covar": 0.0,
                "options": EMOptions(history_size=4),
            }
            expected = jaxgmm.fit_restarts(KEY, array(), K, **options)
            found = jaxgmm.fit_restarts(KEY, array(scale), K, **options)
            np.testing.assert_array_equal(found.status, expected.status)
            np.testing.assert_allclose(found.params.weights, expected.params.weights, rtol=1e-5)
            np.testing.assert_allclose(
                found.params.means / scale, expected.params.means, rtol=1e-4, atol=1e-5
            )
            rescaled = get_family(name).rescale
            one = jax.tree.map(lambda a: a[0], found.params.scale)
            back = rescaled(one, jnp.full(D, 1 / scale, jnp.float32))
            first = jax.tree.map(lambda a: a[0], expected.params.scale)
            for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(first), strict=True):
                np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-3, atol=1e-4)
            shift = D * np.log(scale)
            rounding = 1e-5 * abs(shift)
            for name_of in ("log_likelihood", "objective", "history"):
                a, b = getattr(found, name_of), getattr(expected, name_of)
                np.testing.assert_allclose(a + shift, b, atol=rounding)


def test_fit_em_step_and_m_step_take_extreme_data():
    with x64(False):
        scale = np.asarray([1e-20, 1, 1e20], np.float32)
        resp = np.eye(K)[(np.arange(N) >= N // 2).astype(int)]
        start = jaxgmm.m_step(resp, array(), reg_covar=0.0)
        far = jaxgmm.m_step(resp, array(scale), reg_covar=0.0)
        np.testing.assert_allclose(np.asarray(far.means) / scale, start.means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.asarray(far.scale) / scale[:, None], start.scale, rtol=1e-4, atol=1e-5)
        after, moments = jaxgmm.em_step(far, array(scale))
        expected, sums = jaxgmm.em_step(start, array())
        np.testing.assert_allclose(np.asarray(after.means) / scale, expected.means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.weight, sums.weight, rtol=1e-5)
        # The logarithms of the units, 20 log 10 of each sign, cancel.
        np.testing.assert_allclose(moments.log_likelihood, sums.log_likelihood, rtol=1e-4)
        result = jaxgmm.fit(far, array(scale))
        assert int(result.status) == Status.CONVERGED
        fitted = jaxgmm.fit(start, array())
        np.testing.assert_allclose(result.log_likelihood, fitted.log_likelihood, rtol=1e-4)
        np.testing.assert_allclose(result.params.weights, fitted.params.weights, rtol=1e-5)


def test_seeds_centres_and_hierarchies_take_extreme_data():
    with x64(False):
        for scale in (2.0**100, 2.0**-100):
            for seeds in (jaxgmm.init.kmeans_plusplus, jaxgmm.init.kmeans):
                expected = seeds(KEY, array(), K)
                np.testing.assert_allclose(seeds(KEY, array(scale), K) / scale, expected, rtol=1e-5)
            np.testing.assert_array_equal(
                jaxgmm.init.hierarchical_labels(array(scale), K), jaxgmm.init.hierarchical_labels(array(), K)
            )


def test_searches_take_extreme_data():
    with x64(False):
        options = {"covariance_types": ("spherical",), "budget": 60, "reg_covar": 0.0}
        expected = jaxgmm.select(KEY, array(), (1, 2), **options)
        found = jaxgmm.select(KEY, array(2.0**100), (1, 2), **options)
        shift = 2 * N * D * np.log(2.0**100)
        for a, b in zip(found.table, expected.table, strict=True):
            assert a["status"] == b["status"]
            assert a["bic"] - shift == pytest.approx(b["bic"], abs=1e-5 * shift)
        # Which component comes first is decided by likelihoods that are rounded about another constant.
        means = (np.sort(np.asarray(p.means), axis=0) for p in (found.best.params, expected.best.params))
        np.testing.assert_allclose(next(means) / 2.0**100, next(means), rtol=1e-4)
        best = jaxgmm.fit_best(KEY, array(2.0**100), 2, covariance_type="spherical", budget=60, reg_covar=0.0)
        np.testing.assert_allclose(best.log_likelihood, found.best.log_likelihood, rtol=1e-5)
