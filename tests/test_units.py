"""Features of extreme scale: fitted in units that are powers of two, with the results of ordinary ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm import Status
from jaxgmm import _units as units
from jaxgmm.components import gaussian, get_covariance, get_model
from tests.conftest import soft_labels, x64
from tests.problems import LABELS, WEIGHT, D, K, N, X, few_structures, fitted
from tests.quick import quick_jit

X32, W32 = X.astype(np.float32), WEIGHT.astype(np.float32)
KEY = jax.random.key(3)
SMALL = X[:24].astype(np.float32)


def array(scale=1.0):
    return jnp.asarray((X * np.asarray(scale)).astype(np.float32))


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
    weight = jnp.asarray(np.append(0, np.ones(N - 1)).astype(np.float32))

    def changed(scale, place, value):
        x = np.array(array(scale))
        x[place] = value
        return jnp.asarray(x)

    column = np.s_[:, 1]
    assert units.units_of(changed(1, 0, 1e30), weight, get_model("full")) is None
    one, zero = (units.units_of(changed(1e-20, 0, value), weight) for value in (1.0, 0.0))
    assert (one == zero).all()
    assert units.units_of(changed(1, column, 3.0), None, get_model("full")) is None
    assert units.units_of(changed(1, (0, 0), np.nan), None) is None
    assert units.units_of(changed(1, (), 0.0), None) is None


UNITS = (1.0, 2.0**100, 2.0**-100)


@few_structures
def test_steps_on_extreme_data_are_those_on_ordinary_ones(name):
    """Without a ridge, which is in the data's units, every number is the same but for its exponent.

    Each structure's `rescale` is tested with the others of its functions.
    """
    family = get_covariance(name)
    by = np.broadcast_to(np.float32(UNITS)[:, None], (3, D))

    @quick_jit
    def spheres(variances):
        scale = family.from_variances(variances)
        return [family.rescale(scale, unit) for unit in by]

    @quick_jit
    def back(scales):
        return [family.rescale(scale, unit) for scale, unit in zip(scales, 1 / by, strict=True)]

    means = np.stack([X32[k == LABELS].mean(0) for k in range(K)])
    log_weights = np.full(K, -np.log(K), np.float32)
    with x64(False):
        found = []
        for unit, scale in zip(UNITS, spheres(np.broadcast_to(X32.var(0) / 4, (K, D))), strict=True):
            start = jaxgmm.GMMParams(log_weights, means * np.float32(unit), scale, gaussian(family))
            found.append(jaxgmm.em_step(start, X32 * np.float32(unit), W32, reg_covar=0.0))
        scales = back([new.scale for new, _ in found])
        (first, moments), *_ = found
        for (new, sums), scale, unit in zip(found[1:], scales[1:], UNITS[1:], strict=True):
            np.testing.assert_allclose(np.exp(new.log_weights), np.exp(first.log_weights), rtol=1e-5)
            np.testing.assert_allclose(np.asarray(new.means) / unit, first.means, rtol=1e-4, atol=1e-5)
            for a, b in zip(jax.tree.leaves(scale), jax.tree.leaves(scales[0]), strict=True):
                np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-3, atol=1e-4)
            shift = float(sums.total_weight) * D * np.log(unit)
            np.testing.assert_allclose(
                sums.log_likelihood + shift, moments.log_likelihood, atol=1e-5 * abs(shift)
            )


def test_m_step_and_fit_take_features_of_extreme_and_different_scale():
    with x64(False):
        scale = np.asarray([1e-20, 1, 1e20], np.float32)
        expected = fitted("full").result
        far = jaxgmm.m_step(soft_labels(LABELS, K, np.float32), array(scale))
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
    """By one program for large and small data; its end is a fixed point of ordinary ones."""
    with x64(False):
        unit = np.float32(2.0**100)
        large, small = (
            jaxgmm.fit_best(KEY, x, 2, covariance_type="spherical", budget=12, reg_covar=0.0)
            for x in (SMALL * unit, SMALL / unit)
        )
        assert large.status == small.status == Status.CONVERGED
        shift = D * np.log(2.0**100)
        params = dataclasses.replace(
            large.params, means=large.params.means / unit, scale=large.params.scale / unit
        )
        after, moments = jaxgmm.em_step(params, SMALL, reg_covar=0.0)
        expected = float(moments.log_likelihood) / len(SMALL)
        for found, sign in ((large, 1), (small, -1)):
            np.testing.assert_allclose(found.log_likelihood + sign * shift, expected, atol=1e-5 * shift)
        # A fit ends within 0.01 / √N of its fixed point, in widths, which are about 1 here.
        np.testing.assert_allclose(after.means, params.means, atol=1e-2 / np.sqrt(len(SMALL)))
        # Which component comes first is decided by likelihoods that are rounded about another constant.
        means = (np.sort(np.asarray(p.means), axis=0) for p in (params, small.params))
        np.testing.assert_allclose(next(means), next(means) * unit, rtol=1e-4)
