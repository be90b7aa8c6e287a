"""Refits: reproducible, matched, marked when they fail, and as uncertain as the information says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxgmm
from jaxgmm import Status
from jaxgmm.inference._bootstrap import divergences, match
from tests.conftest import overlapping, start_from, x64

pytestmark = pytest.mark.slow

FIELDS = ("weights", "means", "covariances")


@functools.cache
def three():
    """800 float64 samples of three well-identified components in two dimensions, and their fit."""
    with x64(True):
        covariances = np.array([[[1.0, 0.5], [0.5, 1.0]], [[1.5, -0.4], [-0.4, 0.6]], [[0.5, 0], [0, 2.0]]])
        truth = jaxgmm.make_params([0.3, 0.3, 0.4], [[0.0, 0.0], [4.0, 0.5], [1.5, 5.0]], covariances)
        X, _ = jaxgmm.sample(jax.random.key(0), truth, 800)
        return jaxgmm.check(jaxgmm.fit(truth, X, tol=1e-9, reg_covar=0.0)).params, X


@functools.cache
def refits():
    params, X = three()
    with x64(True):
        return jaxgmm.inference.bootstrap(jax.random.key(1), params, X)


def test_standard_errors_are_those_of_400_refits(double):
    """A standard deviation of 400 draws is itself 3.5 % uncertain."""
    params, X = three()
    refitted = refits().standard_errors()
    assert refits().usable.all()
    for kind in ("observed", "sandwich"):
        direct = jaxgmm.inference.standard_errors(params, X, kind=kind)
        ratio = [np.ravel(np.asarray(getattr(direct, f)) / np.asarray(getattr(refitted, f))) for f in FIELDS]
        ratio = np.concatenate(ratio)
        assert np.median(np.abs(ratio - 1)) < 0.1
        assert np.abs(np.median(ratio) - 1) < 0.1


def test_keys_matter(double):
    assert np.unique(np.asarray(refits().log_likelihood)).size == 400


def test_values_and_intervals_are_numpys(double):
    r = refits()
    values = r.values()
    np.testing.assert_allclose(values.covariances, r.params.covariances)
    intervals = r.intervals(0.9)
    for field in FIELDS:
        v = np.asarray(getattr(values, field))
        np.testing.assert_allclose(getattr(intervals.lower, field), np.quantile(v, 0.05, axis=0), rtol=1e-12)
        np.testing.assert_allclose(getattr(intervals.upper, field), np.quantile(v, 0.95, axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            getattr(r.standard_errors(), field), v.std(0, ddof=1), rtol=1e-9, atol=1e-15
        )
    gap = r.standard_errors(lambda p: p.means[0] - p.means[1])
    np.testing.assert_allclose(gap, np.asarray(r.params.means[:, 0] - r.params.means[:, 1]).std(0, ddof=1))


def test_a_refit_that_fails_is_marked_and_left_out(double):
    r = refits()
    broken = dataclasses.replace(
        r,
        status=r.status.at[3].set(int(Status.DEGENERATE)),
        params=jax.tree.map(lambda a: a.at[3].set(1e9), r.params),
    )
    assert not broken.usable[3]
    assert broken.usable.sum() == 399
    assert np.isnan(broken.values().means[3]).all()
    expected = np.delete(np.asarray(r.params.means), 3, axis=0).std(0, ddof=1)
    np.testing.assert_allclose(broken.standard_errors().means, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["nonparametric", "weighted", "parametric"])
def test_each_kind_on_one_component_in_float32(kind):
    """Weights carry through: rows of weight 0, wherever they lie, are never seen."""
    x = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    w = np.ones(200, np.float32)
    if kind != "parametric":
        x[::2], w[::2] = 1e6, 0
    inside = x[w > 0, 0]
    params = jaxgmm.make_params([1.0], [[inside.mean()]], [inside.var()], "spherical")
    given = None if kind == "parametric" else w
    r = jaxgmm.inference.bootstrap(jax.random.key(2), params, x, given, n_replicates=200, kind=kind)
    assert r.usable.all()
    assert r.params.means.dtype == np.float32
    # A standard deviation of 200 draws is 5 % uncertain; four of these.
    expected = inside.std() / np.sqrt(len(inside))
    np.testing.assert_allclose(r.standard_errors().means[0, 0], expected, rtol=0.2)
    np.testing.assert_allclose(
        np.asarray(r.params.means).mean(), inside.mean(), atol=4 * expected / np.sqrt(200)
    )


@pytest.mark.parametrize("name", ["full", "tied"])  # with a scale for each component, and without
def test_components_are_matched_by_the_best_assignment(double, name):
    X, labels = overlapping(200, 2, 4, seed=2)
    params = start_from(X, labels, name, double)
    order = np.array([2, 0, 3, 1])
    per_component = {"full": lambda a: a[order], "tied": lambda a: a}[name]
    shuffled = dataclasses.replace(
        params,
        log_weights=params.log_weights[order],
        means=params.means[order] + 0.01,
        scale=jax.tree.map(per_component, params.scale),
    )
    back = jax.jit(match)(shuffled, params)
    np.testing.assert_allclose(back.means, params.means + 0.01)
    np.testing.assert_allclose(back.covariances, params.covariances)
    np.testing.assert_allclose(back.weights, params.weights)
    # What is unlike everything still goes where the whole costs least.
    other = dataclasses.replace(params, means=params.means[::-1] + jnp.asarray([[1.0, -1.0]]))
    cost = np.asarray(divergences(params, other))
    columns = linear_sum_assignment(cost)[1]
    np.testing.assert_allclose(jax.jit(match)(other, params).means, np.asarray(other.means)[columns])


def test_divergences_are_jeffreys(double):
    one = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 4.0]]])
    two = jaxgmm.make_params([1.0], [[1.0, 2.0]], [[[2.0, 0.0], [0.0, 1.0]]])

    def kl(v, m, u):  # of N(0, v) from N(m, u), by the feature
        return 0.5 * (np.log(u / v) + (v + m * m) / u - 1).sum()

    v, m, u = np.array([1.0, 4.0]), np.array([1.0, 2.0]), np.array([2.0, 1.0])
    np.testing.assert_allclose(divergences(one, two), [[kl(v, m, u) + kl(u, m, v)]], rtol=1e-12)


def test_switched_off_components_go_together(double):
    params, _ = three()
    off = dataclasses.replace(params, log_weights=params.log_weights.at[1].set(-jnp.inf))
    shuffled = jax.tree.map(lambda a: a[jnp.array([1, 2, 0])], off)
    back = jax.jit(match)(shuffled, off)
    np.testing.assert_array_equal(back.log_weights, off.log_weights)
    np.testing.assert_array_equal(back.means, off.means)


def test_what_does_not_fit_is_refused(double):
    params, X = three()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"kind must be one of \[.*\]; got 'jackknife'"):
        jaxgmm.inference.bootstrap(key, params, X, kind="jackknife")
    with pytest.raises(ValueError, match="sample_weight must be None for kind='parametric'"):
        jaxgmm.inference.bootstrap(key, params, X, np.ones(len(X)), kind="parametric")
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        jaxgmm.inference.bootstrap(key, params, X, batch_size=0)
    with pytest.raises(ValueError, match="n_components must not exceed n_samples = 799; got 800"):
        jaxgmm.inference.bootstrap_likelihood_ratio(key, X, 800)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_the_likelihood_ratio_tells_two_groups_from_one(n_groups):
    """Both in one program: the shapes are the same."""
    x = np.random.default_rng(0).normal(size=(120, 1)).astype(np.float32)
    if n_groups == 2:
        x[:60] += 6
    test = jaxgmm.inference.bootstrap_likelihood_ratio(
        jax.random.key(1), x, 1, covariance_type="spherical", n_replicates=19, n_init=2
    )
    assert test.null.shape == (19,)
    assert (np.asarray(test.null) >= 0).all()
    gain = 2 * len(x) * (test.results.log_likelihood[1] - test.results.log_likelihood[0])
    np.testing.assert_allclose(test.statistic, max(float(gain), 0), rtol=1e-6)
    reached = (np.asarray(test.null) >= float(test.statistic)).sum()
    np.testing.assert_allclose(test.p_value, (1 + reached) / 20, rtol=1e-6)
    assert (test.p_value > 0.1) == (n_groups == 1)
