"""Densities against SciPy in float64, and at the ends of the number range."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import jaxgmm
from jaxgmm.components import FAMILIES
from tests.conftest import CORE, costly, dense, given, overlapping, soft_labels, start_from

X, LABELS = overlapping(300, 3, 3)


# Beyond the core, one for each kind of factor: the others have these very functions.
@pytest.fixture(params=[costly(n, quick=[*CORE, "VEE"]) for n in [*CORE, "VEI", "VEE", "EEV"]])
def name(request):
    return request.param


def oracle(params, x):
    """log π_k N(x | μ_k, Σ_k) (N, K) by SciPy."""
    weights, means, covariances = dense(params)
    with np.errstate(divide="ignore"):
        return np.stack(
            [
                np.log(w) + stats.multivariate_normal(m, c).logpdf(x)
                for w, m, c in zip(weights, means, covariances, strict=True)
            ],
            axis=1,
        )


@pytest.fixture
def params(name, dtype):
    return start_from(X, LABELS, name, dtype)


def _tolerance(dtype):
    return {"float32": 2e-5, "float64": 1e-11}[dtype.name]


def test_log_prob_and_responsibilities_agree_with_scipy(params, dtype):
    joint = oracle(params, X.astype(dtype).astype(float))
    total = logsumexp(joint, axis=1)
    tolerance = _tolerance(dtype)
    np.testing.assert_allclose(
        jaxgmm.log_prob(params, X.astype(dtype)), total, rtol=tolerance, atol=tolerance
    )
    resp, log_prob = jaxgmm.e_step(params, X.astype(dtype))
    np.testing.assert_allclose(log_prob, total, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(resp, np.exp(joint - total[:, None]), atol=tolerance)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(jaxgmm.responsibilities(params, X.astype(dtype)), resp)
    np.testing.assert_array_equal(jaxgmm.predict(params, X.astype(dtype)), joint.argmax(1))


def test_component_log_prob_has_no_weights(params, dtype):
    expected = oracle(params, X.astype(dtype).astype(float)) - np.log(dense(params)[0])
    got = jaxgmm.component_log_prob(params, X.astype(dtype))
    np.testing.assert_allclose(got, expected, rtol=_tolerance(dtype), atol=_tolerance(dtype))


def test_score_is_the_weighted_mean(params, dtype):
    x = X.astype(dtype)
    log_prob = np.asarray(jaxgmm.log_prob(params, x), np.float64)
    w = np.random.default_rng(0).uniform(size=len(x))
    np.testing.assert_allclose(jaxgmm.score(params, x), log_prob.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        jaxgmm.score(params, x, w.astype(dtype)), np.average(log_prob, weights=w), rtol=1e-5
    )


def test_a_sample_without_weight_does_not_count_wherever_it_is(params, dtype):
    far = np.concatenate([X, [[1e25] * 3]]).astype(dtype)
    w = np.r_[np.ones(len(X)), 0].astype(dtype)
    np.testing.assert_allclose(jaxgmm.score(params, far, w), jaxgmm.score(params, X.astype(dtype)), rtol=1e-6)


@pytest.mark.parametrize("distance", [1e3, 1e10, 1e18, 1e25, 1e38])
def test_responsibilities_far_away_are_finite_and_sum_to_one(params, dtype, distance):
    directions = np.random.default_rng(0).normal(size=(20, 3))
    directions /= np.abs(directions).max(1, keepdims=True)
    x = (directions * distance).astype(dtype)
    resp, log_prob = jaxgmm.e_step(params, x)
    assert np.isfinite(resp).all()
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)
    assert not np.isnan(log_prob).any()
    assert (np.asarray(log_prob) < 0).all()
    # The nearest component in its own metric takes all that it should.
    q = np.stack(
        [np.einsum("nd,de,ne->n", directions, np.linalg.inv(c), directions) for c in dense(params)[2]], 1
    )
    clear = np.partition(q, 1, axis=1)[:, 1] > 1.01 * q.min(1)
    if distance > 1e4:
        np.testing.assert_array_equal(np.asarray(resp)[clear].argmax(1), q[clear].argmin(1))


def test_many_rows_go_by_blocks_and_agree_with_few(params, dtype):
    x = np.tile(X, (20, 1)).astype(dtype)[:-7]
    few = jaxgmm.log_prob(params, x[:300])
    many = jaxgmm.log_prob(params, x)
    assert many.shape == (5993,)
    np.testing.assert_allclose(many[:300], few, rtol=1e-6)
    np.testing.assert_allclose(many[5700:], few[:293], rtol=1e-6)
    np.testing.assert_array_equal(jaxgmm.predict(params, x)[-5:], jaxgmm.predict(params, x[-5:]))


def test_gradients_are_finite_at_switched_off_components_and_structural_zeros(params, dtype):
    off = dataclasses.replace(params, log_weights=params.log_weights.at[1].set(-jnp.inf))
    x = jnp.asarray(X.astype(dtype))
    g_params, g_x = jax.grad(lambda p, x: jaxgmm.log_prob(p, x).sum(), argnums=(0, 1))(off, x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((g_params, g_x)))
    np.testing.assert_array_equal(g_params.means[1], 0)


def test_gradients_agree_with_finite_differences(name, double):
    params = start_from(X, LABELS, name, double)
    x = jnp.asarray(X[:50])

    def f(p, x):
        return jaxgmm.log_prob(p, x).sum()

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    if name in ("full", "tied"):
        direction = dataclasses.replace(direction, scale=jnp.tril(direction.scale))
    h = 1e-6
    up, down = (jax.tree.map(lambda a, d, s=s: a + s * h * d, params, direction) for s in (1, -1))
    slope = (f(up, x) - f(down, x)) / (2 * h)
    gradient = jax.grad(f)(params, x)
    inner = sum(
        float((a * b).sum()) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    np.testing.assert_allclose(inner, slope, rtol=1e-6)


def test_elbo_is_its_formula_and_below_the_likelihood(params, dtype):
    x = X.astype(dtype)
    resp = soft_labels(LABELS, 3, dtype)
    w = np.random.default_rng(0).uniform(size=len(x)).astype(dtype)
    joint = oracle(params, x.astype(float))
    expected = (resp * (joint - np.log(resp))).sum(1)
    np.testing.assert_allclose(jaxgmm.elbo(params, resp, x), expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(jaxgmm.elbo(params, resp, x, w), (w * expected).sum(), rtol=1e-5)
    assert jaxgmm.elbo(params, resp, x) < jaxgmm.log_prob(params, x).sum()


def test_elbo_takes_hard_labels(params, dtype):
    hard = np.eye(3)[LABELS].astype(dtype)
    expected = oracle(params, X.astype(dtype).astype(float))[np.arange(len(X)), LABELS].sum()
    np.testing.assert_allclose(jaxgmm.elbo(params, hard, X.astype(dtype)), expected, rtol=1e-5)


def test_samples_have_the_mixtures_moments_and_labels(params, dtype):
    n = 40_000
    x, labels = jaxgmm.sample(jax.random.key(0), params, n)
    weights, means, covariances = dense(params)
    assert x.shape == (n, 3)
    assert x.dtype == dtype
    assert labels.dtype == np.int32
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    for k in range(3):
        own = x[labels == k]
        error = np.sqrt(weights[k] * (1 - weights[k]) / n)
        assert abs(len(own) / n - weights[k]) < 5 * error
        spread = np.sqrt(np.diag(covariances[k]) / len(own))
        assert (np.abs(own.mean(0) - means[k]) < 5 * spread).all()
        whitener = np.linalg.inv(np.linalg.cholesky(covariances[k]))
        np.testing.assert_allclose(
            whitener @ np.cov(own.T) @ whitener.T, np.eye(3), atol=6 / np.sqrt(len(own))
        )


def test_samples_are_a_function_of_the_key(params):
    a, b, c = (jaxgmm.sample(jax.random.key(s), params, 50) for s in (0, 0, 1))
    np.testing.assert_array_equal(a[0], b[0])
    assert (np.asarray(a[0]) != np.asarray(c[0])).any()


def test_a_switched_off_component_is_never_sampled_or_predicted(name):
    ones = given(FAMILIES[name], np.ones((2, 1, 1)))
    off = jaxgmm.make_params([0.0, 1.0], [[0.0], [5.0]], ones, name)
    _, labels = jaxgmm.sample(jax.random.key(0), off, 100)
    assert (labels == 1).all()
    assert (jaxgmm.predict(off, [[0.0], [-1e20]]) == 1).all()


def test_it_runs_inside_jit_and_vmap(params, dtype):
    x = jnp.asarray(X[:20].astype(dtype))
    jitted = jax.jit(jaxgmm.log_prob)(params, x)
    np.testing.assert_allclose(jitted, jaxgmm.log_prob(params, x), rtol=1e-6)
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    both = jax.vmap(jaxgmm.log_prob, in_axes=(0, None))(batch, x)
    np.testing.assert_allclose(both[1], jitted, rtol=1e-6)
    rowwise = jax.vmap(lambda row: jaxgmm.log_prob(params, row[None, :])[0])(x)
    np.testing.assert_allclose(rowwise, jitted, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_responsibilities_sum_to_one_whatever_the_constant(scale, dtype):
    # D = 500 features of scale 1e-8 have a log density of 9,000 nats, of which float32 holds 1e-3.
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(200, 500)) * scale).astype(dtype)
    means = rng.normal(size=(12, 500)) * 0.03 * scale
    params = jaxgmm.make_params(np.full(12, 1 / 12), means, np.full((12, 500), scale**2), "diag")
    resp, _ = jaxgmm.e_step(params, X)
    assert np.abs(np.asarray(resp, np.float64).sum(1) - 1).max() <= 4 * np.finfo(dtype).eps
    # And they are right: the constant does not round the differences between components.
    y = (X[:, None, :].astype(np.float64) - np.asarray(params.means, np.float64)[None]) / scale
    joint = -0.5 * np.square(y).sum(-1)
    expected = np.exp(joint - joint.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    # A squared distance is a sum of 500 numbers, of which √500 roundings add up.
    np.testing.assert_allclose(resp, expected, atol=500 * np.sqrt(500) * np.finfo(dtype).eps / 4)
