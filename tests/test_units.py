"""Features of extreme scale: fitted in units that are powers of two, with the results of ordinary ones."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm import Status
from jaxgmm import _units as units
from jaxgmm.components import get_covariance, get_model
from tests.conftest import x64
from tests.problems import STRUCTURES, D, N, X, fitted
from tests.test_em import X32, begin, step

KEY = jax.random.key(3)
SMALL = X[:24].astype(np.float32)


def array(scale=1.0):
    return jnp.asarray(X * np.asarray(scale), jnp.float32)


def test_ordinary_data_have_no_units_and_extreme_ones_powers_of_two():
    assert units.units_of(array(), None) is None
    assert units.units_of(array(1e8), None) is None
    sd = X.std(0)
    each = units.units_of(array([1e-20, 1, 1e20]), None, get_model("full"))
    assert each[1] == 1
    ratio = sd[[0, 2]] * [1e-20, 1e20] / each[[0, 2]]
    assert ((ratio > 0.5) & (ratio <= 1)).all()
    assert (np.log2(each) % 1 == 0).all()
    # Spheres stay spheres in one unit only.
    one = units.units_of(array([1e-20, 1, 1e20]), None, get_model("spherical"))
    assert (one == each[2]).all()
    # A structure without `rescale` is fitted as the data are.
    assert units.units_of(array(1e20), None, get_model(get_covariance("full")._replace(rescale=None))) is None


def test_rows_without_weight_and_constant_features_decide_nothing():
    weight = jnp.ones(N).at[0].set(0)
    assert units.units_of(array().at[0].set(1e30), weight, get_model("full")) is None
    tiny = array(1e-20)
    assert (units.units_of(tiny.at[0].set(1.0), weight) == units.units_of(tiny.at[0].set(0.0), weight)).all()
    assert units.units_of(array().at[:, 1].set(3.0), None, get_model("full")) is None
    assert units.units_of(array().at[0, 0].set(jnp.nan), None) is None
    assert units.units_of(jnp.zeros((N, D)), None) is None


def test_steps_on_extreme_data_are_those_on_ordinary_ones():
    for name in STRUCTURES:
        check_steps(name)


def check_steps(name):
    """Without a ridge, which is in the data's units, every number is the same but for its exponent."""
    here = begin(name)
    rescaled = jax.jit(here.covariance.rescale)
    expected, moments = step(here)
    for scale in (2.0**100, 2.0**-100):
        unit = jnp.full(D, scale, jnp.float32)
        there = jaxgmm.GMMParams(
            here.log_weights, here.means * scale, rescaled(here.scale, unit), *here.model
        )
        found, sums = step(there, X32 * np.float32(scale))
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.means / scale, expected.means, rtol=1e-4, atol=1e-5, err_msg=name)
        back = rescaled(found.scale, 1 / unit)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(expected.scale), strict=True):
            np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-3, atol=1e-4, err_msg=name)
        shift = float(sums.total_weight) * D * np.log(scale)
        np.testing.assert_allclose(
            sums.log_likelihood + shift, moments.log_likelihood, atol=1e-5 * abs(shift)
        )


def test_m_step_and_fit_take_features_of_extreme_and_different_scale():
    with x64(False):
        scale = np.asarray([1e-20, 1, 1e20], np.float32)
        _, start, expected = fitted("full")
        far = jaxgmm.m_step(
            jaxgmm.e_step(start, X32)[0], array(scale), sample_weight=np.ones(N, np.float32), reg_covar=0.0
        )
        result = jaxgmm.fit(far, array(scale))
        assert int(result.status) == Status.CONVERGED
        # The logarithms of the units, 20 log 10 of each sign, cancel.
        np.testing.assert_allclose(result.log_likelihood, expected.log_likelihood, rtol=1e-4)
        np.testing.assert_allclose(result.params.weights, expected.params.weights, atol=1e-3)
        np.testing.assert_allclose(np.asarray(result.params.means) / scale, expected.params.means, atol=1e-2)


def test_seeds_centres_and_hierarchies_take_extreme_data():
    with x64(False):
        expected = jaxgmm.init.kmeans(KEY, SMALL, 2)
        for scale in (2.0**100, 2.0**-100):
            centres = jaxgmm.init.kmeans(KEY, SMALL * np.float32(scale), 2)
            np.testing.assert_allclose(centres / scale, expected, rtol=1e-5)
        expected = jaxgmm.init.hierarchical_labels(SMALL, 2)
        np.testing.assert_array_equal(jaxgmm.init.hierarchical_labels(SMALL * 2.0**100, 2), expected)


def test_searches_take_extreme_data():
    with x64(False):
        options = {"covariance_type": "spherical", "budget": 12, "reg_covar": 0.0}
        expected = jaxgmm.fit_best(KEY, SMALL, 2, **options)
        found = jaxgmm.fit_best(KEY, SMALL * np.float32(2.0**100), 2, **options)
        assert found.status == expected.status
        shift = D * np.log(2.0**100)
        np.testing.assert_allclose(found.log_likelihood + shift, expected.log_likelihood, atol=1e-5 * shift)
        # Which component comes first is decided by likelihoods that are rounded about another constant.
        means = (np.sort(np.asarray(p.means), axis=0) for p in (found.params, expected.params))
        np.testing.assert_allclose(next(means) / 2.0**100, next(means), rtol=1e-4)
