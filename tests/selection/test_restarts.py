"""Many fits at once are the fits one by one; padding a mixture changes nothing but its shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import soft_labels, x64
from tests.problems import WEIGHT, D, K, N, X
from tests.quick import quick_jit

SIZES = (1, 2, 3)
N_INIT = 2


def at_rows(key, X, n_components, sample_weight):
    """A start of one's own: means at rows that the key draws."""
    rows = jax.random.choice(key, X.shape[0], (n_components,), replace=False)
    variances = jnp.broadcast_to(X.var(0)[None, :], (n_components, D))
    weights = jnp.full(n_components, 1 / n_components, X.dtype)
    return jaxgmm.make_params(weights, X[rows], variances, "diag")


def lane(results, i):
    return jax.tree.map(lambda a: a[i], results)


def assert_same_fit(a, b, rtol):
    assert int(a.status) == int(b.status)
    assert abs(int(a.n_iter) - int(b.n_iter)) <= 3  # accelerated as much
    # Of components that are on: where one that is off lies depends on the start.
    for x, y in zip(*(jax.tree.leaves(jaxgmm.mixture.active(r.params)) for r in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-10)


def restarted(seed):
    """Four starts in float32."""
    x, w = X.astype(np.float32), WEIGHT.astype(np.float32)
    return jaxgmm.fit_restarts(jax.random.key(seed), x, K, w, covariance_type="diag", n_init=4)


def test_named_starts_reach_an_optimum_that_sits_still_and_the_key_alone_decides():
    x, w, results = X.astype(np.float32), WEIGHT.astype(np.float32), restarted(1)
    assert results.status.shape == results.n_iter.shape == results.log_likelihood.shape == (4,)
    assert results.history.shape == (4, 256)
    assert results.params.means.shape == (4, K, D)
    assert results.params.weights.shape == (4, K)
    assert {a.dtype for a in jax.tree.leaves(results.params)} == {np.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, results, restarted(1))
    assert (np.asarray(restarted(2).params.means) != np.asarray(results.params.means)).any()
    for i in range(4):
        score = jaxgmm.score(lane(results, i).params, x, w)
        np.testing.assert_allclose(results.log_likelihood[i], score, rtol=3e-6)
    winner = jaxgmm.best(results)
    assert winner.status == Status.CONVERGED
    assert winner.log_likelihood == results.log_likelihood.max()
    moved, _ = jaxgmm.em_step(winner.params, x, w)
    np.testing.assert_allclose(moved.means, winner.params.means, atol=2e-3)


@functools.cache
def given_starts():
    rng = np.random.default_rng(3)
    one = [
        jaxgmm.m_step(soft_labels(rng.integers(K, size=N), K, X.dtype), X, covariance_type="diag")
        for _ in range(3)
    ]
    return jax.tree.map(lambda *a: jnp.stack(a), *one)


def test_every_lane_is_the_fit_from_the_mixture_that_was_given(double):
    starts, options = given_starts(), {"max_iter": 6, "tol": 0.0}
    run = quick_jit(
        lambda starts: jaxgmm.fit_restarts(jax.random.key(0), X, K, WEIGHT, init=starts, **options)
    )
    results = run(starts)
    assert results.params.model.name == "diag"
    for i in range(3):
        assert_same_fit(lane(results, i), jaxgmm.fit(lane(starts, i), X, WEIGHT, **options), 1e-9)
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


def test_a_start_of_ones_own_is_given_the_key_the_data_and_the_weights():
    seen = []

    def init(key, X, n_components, sample_weight):
        seen.append((key.shape, X.shape, n_components, sample_weight.shape))
        return at_rows(key, X, n_components, sample_weight)

    x = X.astype(np.float32)
    jax.eval_shape(
        lambda k, w: jaxgmm.fit_restarts(k, x, K, w, n_init=2, init=init, covariance_type="diag"),
        jax.random.key(0), jnp.ones(N, jnp.float32),
    )  # fmt: skip
    assert set(seen) == {((), (N, D), K, (N,))}


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
    start = at_rows(key, jnp.asarray(X), K, None)
    log_weights = jnp.where(jnp.arange(K) < k, -jnp.log(float(k)), -jnp.inf)
    return jaxgmm.fit(dataclasses.replace(start, log_weights=log_weights), X, WEIGHT, tol=1e-6)


@pytest.mark.parametrize("k", SIZES)
def test_each_size_is_the_best_of_the_fits_from_its_own_starts(k, double):
    keys = jax.random.split(jax.random.key(0), (len(SIZES) * N_INIT))
    each = [alone(key, k) for key in keys[(k - 1) * N_INIT :][:N_INIT]]
    one = lane(components(), k - 1)
    assert one.status == Status.CONVERGED
    assert_same_fit(one, max(each, key=lambda r: float(r.log_likelihood)), 1e-4)
    # More components never fit worse.
    assert (np.diff(components().log_likelihood) > 0).all()
    # Padding stays off.
    assert (np.isneginf(one.params.log_weights) == (np.arange(K) >= k)).all()
    np.testing.assert_allclose(one.params.weights.sum(), 1, rtol=1e-12)
    assert all(np.isfinite(a).all() for a in (one.params.means, one.params.scale))


def test_padding_says_nothing_of_the_data(double):
    params = lane(components().params, 1)
    active = jaxgmm.mixture.active(params)
    assert active.n_components == 2
    np.testing.assert_allclose(jaxgmm.log_prob(params, X), jaxgmm.log_prob(active, X), rtol=1e-12)
    assert (jaxgmm.responsibilities(params, X)[:, 2:] == 0).all()
    assert int(jaxgmm.predict(params, X).max()) < 2
    assert int(jaxgmm.sample(jax.random.key(0), params, 200)[1].max()) == 1
    assert jaxgmm.n_parameters(params) == jaxgmm.n_parameters(active)
    gradient = quick_jit(jax.grad(lambda p: jaxgmm.log_prob(p, X).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(gradient.means[2], 0)
    assert (gradient.log_weights[:2] != 0).all()


def test_one_component_is_the_sample_mean_and_variance(double):
    params = lane(components().params, 0)
    mean = np.average(X, axis=0, weights=WEIGHT)
    np.testing.assert_allclose(params.means[0], mean, rtol=1e-6)
    variance = np.average((X - mean) ** 2, axis=0, weights=WEIGHT)
    np.testing.assert_allclose(params.scale[0] ** 2, variance, rtol=1e-5)


def test_sizes_may_come_in_any_order_and_more_than_once(double):
    mixed = components((3, 1, 1))
    on = (np.asarray(mixed.params.log_weights) > -np.inf).sum(1)
    np.testing.assert_array_equal(on, [3, 1, 1])
    np.testing.assert_allclose(mixed.log_likelihood[1:], [components().log_likelihood[0]] * 2, rtol=1e-10)
