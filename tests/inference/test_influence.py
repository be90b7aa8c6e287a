"""Influences against implicit differentiation, leave-one-out against refits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.inference._local_coordinates import entries
from tests.conftest import overlapping, start_from, x64

pytestmark = pytest.mark.slow

X, LABELS = overlapping(300, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, size=len(X))
FIELDS = ("weights", "means", "covariances")
TIGHT = {"tol": 1e-12, "max_iter": 5000, "reg_covar": 0.0}


@functools.cache
def fitted(name):
    with x64(True):
        return jaxgmm.check(jaxgmm.fit(start_from(X, LABELS, name, np.float64), X, WEIGHTS, **TIGHT)).params


@pytest.mark.slow
def test_influence_is_the_derivative_of_the_fit_by_its_weights(double):
    """Against the implicit function theorem at EM's fixed point, which knows of no likelihood."""
    params = fitted("full")
    along = jnp.asarray(np.random.default_rng(2).normal(size=len(X)))
    derivative = jax.jit(
        lambda w: jax.jvp(lambda w: entries(jaxgmm.fit(params, X, w, **TIGHT).params), (w,), (along,))[1]
    )(jnp.asarray(WEIGHTS))
    got = jaxgmm.inference.influence(params, X, WEIGHTS)
    for field in FIELDS:
        expected = getattr(derivative, field)
        moved = np.tensordot(along, getattr(got, field), axes=1)
        np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-9)


def test_a_function_of_few_numbers_has_the_same_influences(double):
    params = fitted("full")
    whole = jaxgmm.inference.influence(params, X, WEIGHTS)

    def distance(p):
        return {"gap": p.means[0] - p.means[1], "odds": p.log_weights[0] - p.log_weights[1]}

    few = jaxgmm.inference.influence(params, X, WEIGHTS, function=distance)
    np.testing.assert_allclose(few["gap"], whole.means[:, 0] - whole.means[:, 1], rtol=1e-9, atol=1e-12)
    w = params.weights
    odds = whole.weights[:, 0] / w[0] - whole.weights[:, 1] / w[1]
    np.testing.assert_allclose(few["odds"], odds, rtol=1e-9, atol=1e-12)


def test_weighted_influences_sum_to_nothing_and_blocks_do_not_show(double):
    x = np.tile(X, (20, 1))
    params = fitted("full")
    w = np.tile(WEIGHTS, 20)
    got = jaxgmm.inference.influence(params, x, w)
    small = jaxgmm.inference.influence(params, X, WEIGHTS)
    for field in FIELDS:
        a, b = np.asarray(getattr(got, field)), np.asarray(getattr(small, field))
        assert np.abs(np.tensordot(w, a, axes=1)).max() < 1e-8
        np.testing.assert_allclose(20 * a[-len(X) :], b, rtol=1e-8, atol=1e-11)


def refits(params, rows):
    """The real leave-one-out fits."""

    @jax.jit
    @jax.vmap
    def one(row):
        w = jnp.asarray(WEIGHTS).at[row].set(0)
        refit = jaxgmm.fit(params, X, w, **TIGHT)
        return refit.params, jaxgmm.log_prob(refit.params, jnp.asarray(X)[row][None, :])[0]

    return one(jnp.asarray(rows, jnp.int32))


def flat(e, n):
    return np.concatenate([np.asarray(getattr(e, f)).reshape(n, -1) for f in FIELDS], axis=1)


@pytest.mark.slow
def test_leaving_one_out_is_what_a_refit_gives(double):
    params = fitted("full")
    rows = np.arange(0, len(X), 10)
    real, log_prob = refits(params, rows)
    loo = jaxgmm.inference.leave_one_out(params, X, WEIGHTS, rows=rows)
    errors = jaxgmm.inference.standard_errors(params, X, WEIGHTS)
    unit = flat(errors, 1)
    base = flat(entries(params), 1)
    moved, guessed = ((flat(jax.vmap(entries)(p), len(rows)) - base) / unit for p in (real, loo.params))
    error = np.linalg.norm(guessed - moved, axis=1) / np.linalg.norm(moved, axis=1)
    assert np.median(error) < 0.02
    before = np.asarray(jaxgmm.log_prob(params, X))[rows]
    fall = np.asarray(loo.log_prob)[rows] - before
    assert np.median(np.abs(fall / (np.asarray(log_prob) - before) - 1)) < 0.02
    assert (fall < 0).all()
    # By the influence function: the same to first order.
    linear = -WEIGHTS[rows, None] * flat(jaxgmm.inference.influence(params, X, WEIGHTS), len(X))[rows] / unit
    assert np.median(np.linalg.norm(linear - moved, axis=1) / np.linalg.norm(moved, axis=1)) < 0.04


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["full", "diag", "spherical", "tied"])
def test_one_component_without_a_row_is_found_exactly(double, name):
    """Also without an outlier, where a Newton step in logarithms of widths is off by its whole leverage."""
    x = np.random.default_rng(0).normal(size=(100, 2)) @ np.array([[2.0, 0.5], [0.0, 0.7]]) + 3
    x[0] = [9.0, 6.0]
    w = np.random.default_rng(1).uniform(0.5, 1.5, size=100)
    whole = np.ones((100, 1))
    params = jaxgmm.m_step(whole, x, covariance_type=name, sample_weight=w, reg_covar=0.0)
    loo = jaxgmm.inference.leave_one_out(params, x, w, rows=[0, 5])
    for i, row in enumerate([0, 5]):
        real = jaxgmm.m_step(
            whole, x, covariance_type=name, sample_weight=np.where(np.arange(100) == row, 0, w), reg_covar=0.0
        )
        np.testing.assert_allclose(loo.params.means[i], real.means, rtol=1e-10)
        np.testing.assert_allclose(loo.params.covariances[i], real.covariances, rtol=1e-4)
        expected = jaxgmm.log_prob(real, x[row : row + 1])[0]
        np.testing.assert_allclose(loo.log_prob[row], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_most_influential_rows_are_nearer_to_refits_than_the_influence_function(double):
    params = fitted("full")
    influence = flat(jaxgmm.inference.influence(params, X, WEIGHTS), len(X))
    unit = flat(jaxgmm.inference.standard_errors(params, X, WEIGHTS), 1)
    rows = np.argsort(-np.linalg.norm(WEIGHTS[:, None] * influence / unit, axis=1))[:12]
    base = flat(entries(params), 1)
    loo = jaxgmm.inference.leave_one_out(params, X, WEIGHTS, rows=rows)
    moved, guessed = (
        (flat(jax.vmap(entries)(p), len(rows)) - base) / unit for p in (refits(params, rows)[0], loo.params)
    )
    linear = -WEIGHTS[rows, None] * influence[rows] / unit
    ours, plain = (
        np.linalg.norm(g - moved, axis=1) / np.linalg.norm(moved, axis=1) for g in (guessed, linear)
    )
    assert np.median(ours) < 0.75 * np.median(plain)
    assert np.median(ours) < 0.03


def test_leverages_sum_to_takeuchis_penalty(double):
    params = fitted("full")
    loo = jaxgmm.inference.leave_one_out(params, X, WEIGHTS)
    # With s_i = −∇ log p and B = Σ w² s sᵀ, tr(H⁻¹ B) weighs each leverage once more.
    total = float((WEIGHTS * jaxgmm.log_prob(params, X)).sum())
    penalty = (float(jaxgmm.inference.takeuchi(params, X, WEIGHTS)) + 2 * total) / 2
    np.testing.assert_allclose((WEIGHTS * loo.leverage).sum(), penalty, rtol=1e-9)
    assert loo.params is None
    assert loo.valid


def test_float32_is_near_float64():
    params = fitted("full")
    with x64(True):
        expected = jaxgmm.inference.influence(params, X, WEIGHTS)
    narrow = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), np.float32), params)
    got = jaxgmm.inference.influence(narrow, X.astype(np.float32), WEIGHTS.astype(np.float32))
    for field in FIELDS:
        a, b = (np.asarray(getattr(i, field), float) for i in (got, expected))
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_failures_are_nan_and_arguments_are_checked(double):
    params = fitted("full")
    twins = jax.tree.map(lambda a: jnp.concatenate([a[:1], a[:1]]), params)
    twins = dataclasses.replace(twins, log_weights=jnp.full(2, -np.log(2)))
    with pytest.warns(RuntimeWarning, match="not positive definite"):
        assert all(np.isnan(a).all() for a in jax.tree.leaves(jaxgmm.inference.influence(twins, X, WEIGHTS)))
    with pytest.warns(RuntimeWarning, match="not positive definite"):
        assert np.isnan(jaxgmm.inference.leave_one_out(twins, X, WEIGHTS).log_prob).all()
    with pytest.raises(TypeError, match="function must take GMMParams; got int"):
        jaxgmm.inference.influence(params, X, function=3)
    with pytest.raises(ValueError, match="rows must be from 0 to 299; got 0 to 300"):
        jaxgmm.inference.leave_one_out(params, X, rows=[0, 300])
    with pytest.raises(TypeError, match="rows must be a sequence of row indices"):
        jaxgmm.inference.leave_one_out(params, X, rows=[0.5])
