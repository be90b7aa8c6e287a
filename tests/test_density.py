"""Densities against SciPy in float64, and at the ends of the number range."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import jaxgmm
from jaxgmm.components import STRUCTURES as RECORDS
from tests.conftest import dense, given, on_host, soft_labels, start_from
from tests.problems import LABELS, K, N, X
from tests.quick import quick_jit

each = pytest.mark.parametrize(
    ("name", "dtype"), [("full", "float32"), ("full", "float64"), ("VVE", "float32")], indirect=["dtype"]
)


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


@functools.cache
def begin(name="full", dtype="float32"):
    """A mixture of a structure, near the clusters."""
    return start_from(X, LABELS, name, dtype)


@pytest.fixture
def params(name, dtype):
    return begin(name, dtype.name)


def _tolerance(dtype):
    return {"float32": 2e-5, "float64": 1e-11}[dtype.name]


@each
def test_densities_scores_and_bounds_are_scipys(params, dtype):
    x, tolerance = X.astype(dtype), _tolerance(dtype)
    joint = oracle(params, x.astype(float))
    total = logsumexp(joint, axis=1)
    resp, log_prob = jaxgmm.e_step(params, x)
    for found in (jaxgmm.log_prob(params, x), log_prob):
        np.testing.assert_allclose(found, total, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(resp, np.exp(joint - total[:, None]), atol=tolerance)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(jaxgmm.responsibilities(params, x), resp)
    np.testing.assert_array_equal(jaxgmm.predict(params, x), joint.argmax(1))
    own = joint - np.log(dense(params)[0])
    np.testing.assert_allclose(jaxgmm.component_log_prob(params, x), own, rtol=tolerance, atol=tolerance)
    # The score is the weighted mean; a sample without weight does not count wherever it is.
    w = np.random.default_rng(0).uniform(size=N).astype(dtype)
    np.testing.assert_allclose(jaxgmm.score(params, x, w), np.average(total, weights=w), rtol=1e-5)
    far, w[3] = x.copy(), 0
    far[3] = 1e25
    np.testing.assert_allclose(jaxgmm.score(params, far, w), np.average(total, weights=w), rtol=1e-5)
    # The bound is its formula, below the likelihood, and takes hard labels.
    soft = soft_labels(LABELS, K, dtype)
    bound = (soft * (joint - np.log(soft))).sum(1)
    np.testing.assert_allclose(jaxgmm.elbo(params, soft, x, w), (w * bound).sum(), rtol=1e-5)
    hard = np.eye(K)[LABELS].astype(dtype)
    ones = np.ones(N, dtype)
    np.testing.assert_allclose(
        jaxgmm.elbo(params, hard, x, ones), joint[np.arange(N), LABELS].sum(), rtol=1e-5
    )
    assert jaxgmm.elbo(params, soft, x, ones) < total.sum()


@each
def test_responsibilities_far_away_are_finite_and_sum_to_one(params, dtype):
    directions = np.random.default_rng(0).normal(size=(N, 3))
    directions /= np.abs(directions).max(1, keepdims=True)
    for distance in (1e3, 1e10, 1e18, 1e25, 1e38):
        resp, log_prob = jaxgmm.e_step(params, (directions * distance).astype(dtype))
        assert np.isfinite(resp).all()
        np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-6)
        assert not np.isnan(log_prob).any()
        assert (np.asarray(log_prob) < 0).all()
        # The nearest component in its own metric takes all that it should.
        inverses = np.linalg.inv(dense(params)[2])
        q = np.einsum("nd,kde,ne->nk", directions, inverses, directions)
        clear = np.partition(q, 1, axis=1)[:, 1] > 1.01 * q.min(1)
        if distance > 1e4:
            np.testing.assert_array_equal(np.asarray(resp)[clear].argmax(1), q[clear].argmin(1))


def test_many_rows_go_by_blocks_and_agree_with_few():
    x, params = X.astype(np.float32), begin()
    many = np.tile(x, (30, 1))[:-7]
    few = jaxgmm.log_prob(params, x)
    found = jaxgmm.log_prob(params, many)
    assert found.shape == (5993,)
    np.testing.assert_allclose(found[:N], few, rtol=1e-6)
    np.testing.assert_allclose(found[5800:], few[:193], rtol=1e-6)
    np.testing.assert_array_equal(jaxgmm.predict(params, many)[-5:], jaxgmm.predict(params, x)[188:193])


@pytest.mark.parametrize("name", ["full", "EEV"])
def test_gradients_agree_with_finite_differences_and_are_finite_where_a_component_is_off(name, double):
    x, params = X, on_host(jaxgmm.m_step(soft_labels(LABELS, K), X, covariance_type=name))

    def f(p, x):
        return jaxgmm.log_prob(p, x).sum()

    both = quick_jit(jax.value_and_grad(f, argnums=(0, 1)))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), params)
    if name == "full":
        direction = dataclasses.replace(direction, scale=np.tril(direction.scale))
    h = 1e-6
    up, down = (jax.tree.map(lambda a, d, s=s: a + s * h * d, params, direction) for s in (1, -1))
    slope = (both(up, x)[0] - both(down, x)[0]) / (2 * h)
    _, (gradient, _) = on_host(both(params, x))
    inner = sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(inner, slope, rtol=1e-6)
    off = dataclasses.replace(params, log_weights=np.where(np.arange(K) == 1, -np.inf, params.log_weights))
    _, (g_params, g_x) = on_host(both(off, x))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((g_params, g_x)))
    np.testing.assert_array_equal(g_params.means[1], 0)


@each
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


def test_samples_are_a_function_of_the_key():
    params = begin()
    a, b, c = (jaxgmm.sample(jax.random.key(s), params, 40_000) for s in (0, 0, 1))
    np.testing.assert_array_equal(a[0], b[0])
    assert (np.asarray(a[0]) != np.asarray(c[0])).any()


@pytest.mark.parametrize("name", ["full", "EEV"])
def test_a_switched_off_component_is_never_sampled_or_predicted(name):
    ones = given(RECORDS[name], np.ones((2, 1, 1)))
    off = jaxgmm.make_params([0.0, 1.0], [[0.0], [5.0]], ones, name)
    _, labels = jaxgmm.sample(jax.random.key(0), off, 100)
    assert (np.asarray(labels) == 1).all()
    assert (np.asarray(jaxgmm.predict(off, [[0.0], [-1e20]])) == 1).all()


def test_it_runs_inside_jit_and_vmap():
    x, params = X.astype(np.float32), begin()
    eager = jaxgmm.log_prob(params, x)

    @quick_jit
    def each_way(batch, params, x):
        together = jax.vmap(jaxgmm.log_prob, in_axes=(0, None))(batch, x)
        rowwise = jax.vmap(lambda row: jaxgmm.log_prob(params, row[None, :])[0])(x)
        return jaxgmm.log_prob(params, x), together, rowwise

    batch = jax.tree.map(lambda a: np.stack([a, a]), on_host(params))
    inside, together, rowwise = each_way(batch, params, x)
    np.testing.assert_allclose(inside, eager, rtol=1e-6)
    np.testing.assert_allclose(together[1], eager, rtol=1e-6)
    np.testing.assert_allclose(rowwise, eager, rtol=1e-5)


def test_responsibilities_sum_to_one_whatever_the_constant():
    # D = 500 features of scale 1e-8 have a log density of 9,000 nats, of which float32 holds 1e-3.
    eps = np.finfo(np.float32).eps
    for scale in (1e-8, 1.0, 1e8):
        rng = np.random.default_rng(0)
        x = (rng.normal(size=(200, 500)) * scale).astype(np.float32)
        means = rng.normal(size=(12, 500)) * 0.03 * scale
        params = jaxgmm.make_params(np.full(12, 1 / 12), means, np.full((12, 500), scale**2), "diag")
        resp, _ = jaxgmm.e_step(params, x)
        assert np.abs(np.asarray(resp, np.float64).sum(1) - 1).max() <= 4 * eps
        # And they are right: the constant does not round the differences between components.
        y = (x[:, None, :].astype(np.float64) - np.asarray(params.means, np.float64)[None]) / scale
        joint = -0.5 * np.square(y).sum(-1)
        expected = np.exp(joint - joint.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        # A squared distance is a sum of 500 numbers, of which √500 roundings add up.
        np.testing.assert_allclose(resp, expected, atol=500 * np.sqrt(500) * eps / 4)


def test_impute_gives_complete_rows_back():
    params = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
    x = np.array([[2.0, 1.0], [0.5, -3.0]], np.float32)
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(jaxgmm.impute(params, x, key), x)
