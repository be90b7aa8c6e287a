"""Many fits at once are the fits one by one; padding a mixture changes nothing but its shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import get_component
from tests.conftest import x64
from tests.problems import WEIGHT, D, K, N, X
from tests.quick import quick_jit

SIZES = (1, 2, 3)
N_INIT = 2


SEEN = []  # what a start of one's own was given


def at_rows(key, X, n_components, sample_weight):
    """A start of one's own: means at rows that the key draws."""
    SEEN.append((key.shape, X.shape, n_components, sample_weight.shape))
    rows = jax.random.choice(key, X.shape[0], (n_components,), replace=False)
    widths = jnp.broadcast_to(X.std(0)[None, :], (n_components, D))
    log_weights = jnp.full(n_components, -np.log(n_components), X.dtype)
    return jaxgmm.GMMParams(log_weights, X[rows], widths, get_component("diag"))


def lane(results, i):
    return jax.tree.map(lambda a: np.asarray(a)[i], results)


def assert_same_fit(a, b, rtol):
    assert int(a.status) == int(b.status)
    assert abs(int(a.n_iter) - int(b.n_iter)) <= 3  # accelerated as much
    # Of components that are on: where one that is off lies depends on the start.
    on = np.isfinite(a.params.log_weights)
    for x, y in zip(*(jax.tree.leaves(r.params) for r in (a, b)), strict=True):
        np.testing.assert_allclose(np.asarray(x)[on], np.asarray(y)[on], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-10)


def em_step(params, x, w):
    """The mean log-likelihood of a "diag" mixture, and the means after a step of EM, in float64."""
    log_weights, means, widths = (
        np.asarray(a, float) for a in (params.log_weights, params.means, params.scale)
    )
    residuals = (x[:, None] - means) / widths
    joint = log_weights - np.log(widths).sum(1) - 0.5 * (residuals**2).sum(2) - 0.5 * D * np.log(2 * np.pi)
    log_prob = logsumexp(joint, axis=1)
    resp = w[:, None] * np.exp(joint - log_prob[:, None])
    return np.average(log_prob, weights=w), resp.T @ x / resp.sum(0)[:, None]


@functools.cache
def restarted(seed):
    """Four starts in float32."""
    x, w = X.astype(np.float32), WEIGHT.astype(np.float32)
    return jaxgmm.fit_restarts(jax.random.key(seed), x, K, w, covariance_type="diag", n_init=4)


def test_named_starts_reach_an_optimum_that_sits_still_and_the_key_alone_decides():
    results = restarted(1)
    assert results.status.shape == results.n_iter.shape == results.log_likelihood.shape == (4,)
    assert results.history.shape == (4, 256)
    assert results.params.means.shape == (4, K, D)
    assert results.params.log_weights.shape == (4, K)
    assert {a.dtype for a in jax.tree.leaves(results.params)} == {np.dtype("float32")}
    with jax.debug_nans(True):
        jax.tree.map(np.testing.assert_array_equal, results, restarted.__wrapped__(1))
    assert (np.asarray(restarted(2).params.means) != np.asarray(results.params.means)).any()
    for i in range(4):
        score, _ = em_step(lane(results, i).params, X, WEIGHT)
        np.testing.assert_allclose(results.log_likelihood[i], score, rtol=3e-6)
    winner = jaxgmm.best(results)
    assert winner.status == Status.CONVERGED
    assert winner.log_likelihood == results.log_likelihood.max()
    _, moved = em_step(winner.params, X, WEIGHT)
    np.testing.assert_allclose(moved, winner.params.means, atol=2e-3)


@functools.cache
def given_starts():
    rng = np.random.default_rng(3)
    means = np.stack([X[rng.choice(N, K, replace=False)] for _ in range(3)])
    widths = np.broadcast_to(X.std(0), (3, K, D))
    return jaxgmm.GMMParams(np.full((3, K), -np.log(K)), means, widths, get_component("diag"))


@quick_jit
def fit(start, tol, max_iter):
    return jaxgmm.fit(start, X, WEIGHT, tol=tol, max_iter=max_iter)


def test_every_lane_is_the_fit_from_the_mixture_that_was_given(double):
    starts = given_starts()
    results = quick_jit(
        lambda p: jaxgmm.fit_restarts(jax.random.key(0), X, K, WEIGHT, init=p, max_iter=6, tol=0.0)
    )(starts)
    assert results.params.model.name == "diag"
    for i in range(3):
        assert_same_fit(lane(results, i), fit(lane(starts, i), 0.0, 6), 1e-9)
    assert len(np.unique(results.log_likelihood)) == 3


def test_starting_mixtures_that_do_not_fit_are_refused(double):
    starts = given_starts()
    with pytest.raises(ValueError, match=r"leading axis.*\(n_init, 2, 3\).*got \(3, 3, 3\)"):
        jaxgmm.fit_restarts(jax.random.key(0), X, 2, init=starts)
    with pytest.raises(ValueError, match=r"must have a leading axis.*got \(3, 3\)"):
        jaxgmm.fit_restarts(jax.random.key(0), X, K, init=lane(starts, 0))
    uneven = dataclasses.replace(starts, log_weights=starts.log_weights[:2])
    with pytest.raises(ValueError, match=r"differ in their leading axis: \[2, 3\]"):
        jaxgmm.fit_restarts(jax.random.key(0), X, K, init=uneven)
    with pytest.raises(TypeError, match="give them to fit_restarts"):
        jaxgmm.fit_components(jax.random.key(0), X, SIZES, init=starts)

    def one_more(key, X, n_components, _):
        return at_rows(key, X, n_components + 1, jnp.ones(len(X)))

    with pytest.raises(ValueError, match="init must give a mixture of 3 components; it gave 4"):
        jaxgmm.fit_restarts(jax.random.key(0), X, K, init=one_more, covariance_type="diag")


# Several numbers of components


@functools.cache
def components(sizes=SIZES):
    """fit_components in float64, the best of two starts of our own for each number."""
    with x64(True):
        return jaxgmm.fit_components(
            jax.random.key(0), X, sizes, WEIGHT, covariance_type="diag", n_init=N_INIT, init=at_rows, tol=1e-6
        )


def alone(key, k):
    """`fit` from the same start, without padding where k is K."""
    start = at_rows(key, X, K, WEIGHT)
    with np.errstate(divide="ignore"):
        log_weights = np.log((np.arange(K) < k) / k)
    return fit(dataclasses.replace(start, log_weights=log_weights), 1e-6, 1000)


def test_each_size_is_the_best_of_the_fits_from_its_own_starts(double):
    keys = jax.random.split(jax.random.key(0), (len(SIZES) * N_INIT))
    SEEN.clear()
    results = components()
    assert set(SEEN) == {((), (N, D), K, (N,))}
    # More components never fit worse.
    assert (np.diff(results.log_likelihood) > 0).all()
    for k in SIZES:
        each = [alone(key, k) for key in keys[(k - 1) * N_INIT :][:N_INIT]]
        one = lane(results, k - 1)
        assert one.status == Status.CONVERGED
        assert_same_fit(one, max(each, key=lambda r: float(r.log_likelihood)), 1e-4)
        # Padding stays off.
        assert (np.isneginf(one.params.log_weights) == (np.arange(K) >= k)).all()
        np.testing.assert_allclose(np.exp(one.params.log_weights).sum(), 1, rtol=1e-12)
        assert all(np.isfinite(a).all() for a in (one.params.means, one.params.scale))


def test_padding_says_nothing_of_the_data(double):
    params = lane(components().params, 1)
    active = jaxgmm.mixture.active(params)
    assert active.n_components == 2
    assert jaxgmm.n_parameters(params) == jaxgmm.n_parameters(active)

    @quick_jit
    def said(params):
        gradient = jax.grad(lambda p: jaxgmm.log_prob(p, X).sum())(params)
        drawn = jaxgmm.sample(jax.random.key(0), params, 200)[1]
        return jaxgmm.responsibilities(params, X), jaxgmm.predict(params, X), drawn, gradient

    resp, labels, drawn, gradient = said(params)
    np.testing.assert_allclose(jaxgmm.score(params, X, WEIGHT), em_step(active, X, WEIGHT)[0], rtol=1e-12)
    assert (np.asarray(resp)[:, 2:] == 0).all()
    assert int(labels.max()) < 2
    assert int(drawn.max()) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(np.asarray(gradient.means)[2], 0)
    assert (np.asarray(gradient.log_weights)[:2] != 0).all()


def test_one_component_is_the_sample_mean_and_variance(double):
    params = lane(components().params, 0)
    mean = np.average(X, axis=0, weights=WEIGHT)
    np.testing.assert_allclose(params.means[0], mean, rtol=1e-6)
    variance = np.average((X - mean) ** 2, axis=0, weights=WEIGHT)
    np.testing.assert_allclose(params.scale[0] ** 2, variance, rtol=1e-5)


def test_sizes_may_come_in_any_order_and_more_than_once(double):
    mixed = jax.tree.map(np.asarray, components((3, 1, 1)))
    on = (mixed.params.log_weights > -np.inf).sum(1)
    np.testing.assert_array_equal(on, [3, 1, 1])
    one = np.asarray(components().log_likelihood)[0]
    np.testing.assert_allclose(mixed.log_likelihood[1:], [one] * 2, rtol=1e-10)
