"""The number of components of the shortest description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.selection import fit_mml
from jaxgmm.selection._mml import _Charge
from tests.conftest import case, on_host
from tests.quick import quick_jit
from tests.selection.test_grid import X  # three clusters

N, D = X.shape
MOST = 8
KEYS = jax.random.split(jax.random.key(0), 2)


@quick_jit
def several(keys, w):
    """A fit for each of two keys."""
    return jax.vmap(
        lambda key: fit_mml(key, X, MOST, w, covariance_type="spherical", init="kmeans++", tol=1e-4)
    )(keys)


def search(keys, w):
    """On the host, where to take one of them compiles nothing."""
    return on_host(several(keys, np.asarray(w, np.float32)))


def one_of(found, i):
    return jax.tree.map(lambda a: a[i], found)


def length(params, log_likelihood, n, each):
    """Equation 15 of Figueiredo & Jain (2002), without the rounding of parameters."""
    weights = np.exp(np.asarray(params.log_weights, float))
    weights = weights[weights > 0]
    k = len(weights)
    return each / 2 * np.log(n * weights).sum() + k / 2 * np.log(n) - n * log_likelihood


def test_it_finds_the_number_and_its_length_is_the_formulas():
    found = one_of(search(KEYS, np.ones(N)), 0)
    assert int(found.n_components) == 3
    assert found.status == jaxgmm.Status.CONVERGED
    params = jaxgmm.mixture.active(found.params)
    assert params.n_components == 3
    np.testing.assert_allclose(jaxgmm.score(params, X), found.log_likelihood, rtol=1e-6)
    each = D + 1  # a mean and a variance
    np.testing.assert_allclose(found.length, length(params, float(found.log_likelihood), N, each), rtol=1e-6)
    np.testing.assert_allclose(found.objective, -found.length / N, rtol=1e-6)
    lengths = np.asarray(found.lengths)
    assert lengths.shape == (MOST,)
    assert lengths.argmin() == 2
    assert np.isfinite(lengths[:3]).all()  # from three on the weakest is removed
    assert lengths[2] == found.length
    # The fixed point: π_k ∝ n_k − T/2, and the means and variances of the M-step.
    resp = np.asarray(jaxgmm.responsibilities(params, X))
    left = resp.sum(0) - each / 2
    np.testing.assert_allclose(params.weights, left / left.sum(), atol=1e-4)
    step = jaxgmm.em_step(params, X)[0]
    np.testing.assert_allclose(step.means, params.means, atol=3e-3)
    assert "3 components" in repr(found)
    half = _Charge(each, 0).half_bic(found.params.log_weights, N * found.log_likelihood, jnp.float32(N))
    np.testing.assert_allclose(2 * half, jaxgmm.bic(params, X), rtol=1e-6)


def test_counts_are_repeated_rows_and_the_fits_of_a_batch_do_not_meet():
    found, turned = (search(keys, np.full(N, 2.0)) for keys in (KEYS, KEYS[::-1]))
    for i in range(2):
        one = one_of(found, i)
        jax.tree.map(np.testing.assert_array_equal, one, one_of(turned, 1 - i))
        expected = length(one.params, float(one.log_likelihood), 2 * N, D + 1)
        np.testing.assert_allclose(one.length, expected, rtol=1e-6)
    assert jaxgmm.best(found).length == found.length.min()
    sparse = one_of(search(KEYS, np.arange(N) < 6), 0)
    assert int(sparse.n_components) >= 1
    assert np.isfinite(sparse.params.means).all()


def test_data_of_extreme_scale_have_the_mixture_of_ordinary_ones_in_their_units():
    unit = np.float32(2.0**100)
    options = {"covariance_type": "spherical", "init": "kmeans++", "tol": 1e-4, "reg_covar": 0.0}
    large, small = (on_host(fit_mml(KEYS[0], x, MOST, **options)) for x in (X * unit, X / unit))
    mixtures = []
    for found, scale in ((large, unit), (small, 1 / unit)):
        assert found.n_components == 3
        on = np.isfinite(found.params.log_weights)
        means, width = found.params.means[on] / scale, found.params.scale[on] / scale
        first = np.argsort(means[:, 0])
        mixtures.append((means[first], width[first]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *mixtures)
    np.testing.assert_allclose(mixtures[0][0], [[-6, 0], [0, 6], [6, 0]], atol=0.7)  # as X was drawn
    # A density in units u times as large is u^−D of it.
    np.testing.assert_allclose(large.length - small.length, 200 * N * D * np.log(2), rtol=1e-5)


def test_bad_arguments():
    for options, message in [
        ({"max_components": N + 1}, "max_components must not exceed"),
        ({"min_components": 9}, "min_components must lie between"),
        ({"criterion": "aic"}, "criterion must be one of"),
        ({"covariance_type": "full-equal"}, "weights that are free"),
        ({"covariance_type": "background(full)"}, "no component to remove"),
    ]:
        with case(options, message):
            with pytest.raises(ValueError, match=message):
                fit_mml(jax.random.key(0), X, **{"max_components": MOST, **options})
            data = jaxgmm.observe(X, groups=np.arange(N) // 2)
            with pytest.raises(ValueError, match="groups"):
                fit_mml(jax.random.key(0), data, MOST)
