"""Distribution function and quantiles of one-dimensional mixtures, against SciPy and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

import jaxgmm
from jaxgmm.distributions import cdf, quantile
from tests.closed import build, dense
from tests.quick import quick_jit

# Two components that overlap, and one that is far away and narrow.
WEIGHTS, MEANS, SD = np.array([0.3, 0.5, 0.2]), np.array([-2.0, 0.5, 300.0]), np.array([1.0, 2.0, 1e-2])
X = np.array([-9.0, -2.0, 0.1, 5.0, 299.99, 300.02])
Q = np.array([1e-9, 0.02, 0.3, 0.55, 0.83, 0.999])


def mixture(dtype=np.float64, off=False):
    params = build("spherical", WEIGHTS, MEANS[:, None], (SD**2)[:, None, None], dtype)
    if off:
        arrays = (params.log_weights, params.means, params.scale)
        none, means, scale = (np.concatenate([a[:1], a]) for a in arrays)
        none[0], means[0] = -np.inf, -1e6
        params = dataclasses.replace(params, log_weights=none, means=means, scale=scale)
    return params


def exact(params, x, tail="cdf"):
    w, mu, cov = dense(params)
    return getattr(stats.norm, tail)(np.asarray(x, float)[..., None], mu[:, 0], np.sqrt(cov[:, 0, 0])) @ w


@pytest.mark.parametrize("off", [False, True])
def test_they_are_scipys_also_beside_a_component_that_is_off(dtype, off):
    params, x, q = mixture(dtype, off), X.astype(dtype), Q.astype(dtype)
    # In float32 z = (x − μ) / σ has an error of 1e-7 |z|, which moves Φ(z) by 1e-7 z² of itself in the tail:
    # 5e-6 at z = −7. Half a unit of x = 300, 1.5e-5, are 1.5e-3 standard deviations of the third component.
    f32 = dtype == np.float32
    found = cdf(params, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, exact(params, x), rtol=2e-5 if f32 else 1e-12)
    roots = [brentq(lambda t, p=p: exact(params, t) - p, -30, 400, xtol=1e-13, rtol=1e-14) for p in q]
    found = quantile(params, q)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, roots, rtol=2e-6 if f32 else 1e-9)


def test_they_are_inverse_to_each_other(dtype):
    params, x = mixture(dtype), X.astype(dtype)
    q = Q.astype(dtype)
    # In float32 the numbers beside a quantile of the narrow component are 3e-5 away, 3e-3 deviations.
    np.testing.assert_allclose(
        cdf(params, quantile(params, q)), q, rtol=1e-3 if dtype == np.float32 else 1e-9
    )
    # Where F is flat, at 5 with its 0.01 of the mass beyond, a rounding error of F moves x by that over p(x).
    x = x[[0, 1, 2, 3]]
    np.testing.assert_allclose(
        quantile(params, cdf(params, x)), x, rtol=1e-4 if dtype == np.float32 else 1e-9
    )


def test_the_upper_tail_is_as_accurate_as_q(double):
    params = build("spherical", [0.5, 0.5], [[0.0], [1.0]], np.ones((2, 1, 1)))
    q = np.array([1 - 2.0**-40, 1 - 2.0**-53])
    np.testing.assert_allclose(exact(params, quantile(params, q), "sf"), 1 - q, rtol=1e-11)


def test_extreme_arguments_have_limits(dtype):
    params, inf, nan = mixture(dtype), np.inf, np.nan
    q = np.array([[0, 1, -0.1, 1.1, nan]], dtype)
    np.testing.assert_array_equal(quantile(params, q), [[-inf, inf, nan, nan, nan]])
    x = np.array([-inf, inf, nan, -3e38, 3e38], dtype)
    # The weights sum to 1 up to rounding.
    np.testing.assert_allclose(cdf(params, x), [0, 1, nan, 0, 1], rtol=1e-6)
    least = np.finfo(dtype).tiny * 4
    assert exact(params, quantile(params, np.asarray(least))) == pytest.approx(least, rel=1e-3)
    for function, at in ((quantile, q[0]), (cdf, x)):
        both = quick_jit(jax.vmap(jax.grad(function, (0, 1)), (None, 0)))(params, at)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(both))
        assert not np.any(both[1])


def test_a_quantile_between_components_is_where_the_mass_before_it_ends(double):
    params = build("spherical", [0.25, 0.75], [[-1e3], [1e3]], np.ones((2, 1, 1)))
    x = quantile(params, np.array([0.2499999, 0.25, 0.2500001]))
    np.testing.assert_allclose(exact(params, x), [0.2499999, 0.25, 0.2500001], rtol=1e-12)
    assert np.all(np.diff(x) > 0)


def test_derivatives_are_those_of_finite_differences(double):
    params, q = mixture(off=True), Q[1:]
    start = params.log_weights, params.means, params.scale
    direction = [np.cos(np.arange(a.size)).reshape(a.shape) for a in start]

    def f(t):
        return quantile(_moved(params, direction, t), q + 0.01 * t)

    def forward_mode(t):
        both = jax.jvp(f, (t,), (jnp.ones_like(t),))
        return both, both

    def orders(t):
        (reverse, second), (value, forward) = jax.jacrev(forward_mode, has_aux=True)(t)
        return value, forward, reverse, second

    h = 1e-5
    value, forward, reverse, second = quick_jit(jax.vmap(orders))(jnp.array([-h, 0, h]))
    np.testing.assert_allclose(forward[1], (value[2] - value[0]) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
    np.testing.assert_allclose(second[1], (forward[2] - forward[0]) / (2 * h), rtol=1e-5)
    # The density is the derivative of the distribution function.
    got = jax.vmap(jax.grad(cdf, 1), (None, 0))(params, X)
    np.testing.assert_allclose(got, np.exp(jaxgmm.log_prob(params, X[:, None])), rtol=1e-9)


def _moved(params, direction, t):
    arrays = (params.log_weights, params.means, params.scale)
    moved = [jnp.asarray(a) + t * b for a, b in zip(arrays, direction, strict=True)]
    return dataclasses.replace(params, log_weights=moved[0], means=moved[1], scale=moved[2])


def test_other_mixtures_are_refused_by_name():
    two = build("diag", [1.0], [[0.0, 0.0]], np.eye(2)[None], np.float32)
    robust = jaxgmm.make_params([1.0], [[0.0]], [1.0], jaxgmm.components.student_t("spherical", dof=5.0))
    for function in (cdf, quantile):
        name = function.__name__
        with pytest.raises(ValueError, match=rf"{name} needs a mixture of one feature; .* 2: .*marginal\("):
            function(two, 0.5)
        with pytest.raises(ValueError, match=f"{name} needs Gaussian components"):
            function(robust, 0.5)
        with pytest.raises(TypeError, match="must hold real numbers"):
            function(mixture(np.float32), 1j)
