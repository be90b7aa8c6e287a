"""Fits by gradient, free coordinates, unrolled steps and what is said about a fit's derivative."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import dense, start_from
from tests.inference.optimum import APART, ONES, TIGHT, apart, not_identified
from tests.problems import LABELS, WEIGHT, K, X
from tests.quick import quick_jit


def test_free_coordinates_and_back_also_with_a_component_that_is_off(double):
    params = start_from(X, LABELS, "full", double)
    params = dataclasses.replace(params, log_weights=jnp.log(jnp.array([0.4, 0.6, 0.0])))
    theta = jaxgmm.gradients.unconstrained(params)
    for a, b in zip(dense(jaxgmm.gradients.constrained(theta, params)), dense(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    moved = jax.tree.map(lambda a: a + 3.0, theta)
    assert np.linalg.eigvalsh(dense(jaxgmm.gradients.constrained(moved, params))[2]).min() > 0
    value, slope = quick_jit(jax.value_and_grad(jaxgmm.gradients.negative_log_likelihood))(
        theta, params, X, WEIGHT
    )
    np.testing.assert_allclose(value, -jaxgmm.score(params, X, WEIGHT), rtol=1e-12)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    assert slope["logits"][2] == 0
    assert (slope["logits"][:2] != 0).all()
    np.testing.assert_array_equal(slope["means"][2], 0)


def test_lbfgs_finds_ems_fixed_point(double):
    """With a ridge large enough to matter, in other units, and far from the origin."""
    x = APART * np.array([1e2, 1e-2, 1.0]) + np.array([1e4, 0.0, 0.0])
    start = start_from(x, LABELS, "diag", double)
    em = jaxgmm.fit(start, x, WEIGHT, tol=1e-12, reg_covar=0.05, max_iter=5000)
    got = jaxgmm.fit_gradient(start, x, optax.lbfgs(), WEIGHT, n_steps=200, reg_covar=0.05)
    assert got.status == Status.CONVERGED
    for a, b in zip(dense(got.params), dense(em.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(got.log_likelihood, em.log_likelihood, rtol=1e-8)


def test_batches_come_near_and_the_same_key_gives_the_same_fit():
    x, adam = X.astype(np.float32), optax.adam(optax.cosine_decay_schedule(0.05, 400))
    start = start_from(X, LABELS, "diag", np.float32)
    best = jaxgmm.fit(start, x).log_likelihood
    runs = [
        jaxgmm.fit_gradient(start, x, adam, n_steps=400, batch_size=32, key=jax.random.key(s))
        for s in (0, 0, 1)
    ]
    for run in runs:
        assert run.log_likelihood > best - 0.02
        assert run.history.shape == (400,)
    np.testing.assert_array_equal(runs[0].params.means, runs[1].params.means)
    assert (runs[0].params.means != runs[2].params.means).any()
    with pytest.raises(ValueError, match="key must be given"):
        jaxgmm.fit_gradient(start, x, adam, n_steps=1, batch_size=32)
    with pytest.raises(TypeError, match="optimizer"):
        jaxgmm.fit_gradient(start, x, "adam", n_steps=1)


def test_a_diverging_fit_keeps_its_last_finite_parameters_and_says_so():
    start = start_from(X, LABELS, "diag", np.float32)
    start = dataclasses.replace(start, log_weights=start.log_weights.at[2].set(-jnp.inf))
    got = jaxgmm.fit_gradient(start, X.astype(np.float32), optax.sgd(1e30), n_steps=5)
    assert got.status == Status.NONFINITE
    assert np.isfinite(got.params.means).all()
    assert np.isfinite(got.params.scale).all()
    assert got.params.log_weights[2] == -np.inf
    assert (got.history[int(got.n_iter) :] == -np.inf).all()


diagnostics = quick_jit(jaxgmm.inference.fit_diagnostics)
PRIOR = jaxgmm.Prior(
    mean=np.array([0.5, -1.0, 0.0]), strength=3.0, dof=6.0, scale=2.5,
    weight_concentration=np.array([4.0, 2.0, 3.0]),
)  # fmt: skip


def test_unrolled_steps_are_em_steps(double):
    start = start_from(X, LABELS, "diag", double)
    got = jaxgmm.gradients.fit_unrolled(start, X, 3, WEIGHT)
    params, history = start, []
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHT)
        history.append(jaxgmm.score(params, X, WEIGHT))
    for a, b in zip(dense(got.params), dense(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(got.history, history, rtol=1e-10)
    assert got.log_likelihood == got.history[-1]
    assert got.n_iter == 3
    assert got.status == Status.MAX_ITER
    with pytest.raises(TypeError, match=r"prior must be a jaxgmm.Prior.*got 'default'"):
        jaxgmm.gradients.fit_unrolled(start, X, 3, prior="default")


def test_unrolled_steps_with_a_prior_are_em_steps_and_differentiable_in_all_that_they_are_given(double):
    """Against central differences, whose error is about h² = 1e-10 and 1e-14 / h of rounding."""
    start = start_from(X, LABELS, "diag", double)
    along = jax.tree.map(lambda a: jnp.cos(jnp.arange(np.size(a), dtype=float)).reshape(np.shape(a)), PRIOR)

    @quick_jit
    @jax.value_and_grad
    def value(t, start):
        prior = jax.tree.map(lambda a, b: a + t * b, PRIOR, along)
        moved = dataclasses.replace(start, means=start.means + t * jnp.eye(K))
        x, w = jnp.asarray(X) * (1 + t), jnp.asarray(WEIGHT) + t
        r = jaxgmm.gradients.fit_unrolled(moved, x, 3, w, prior=prior)
        return jnp.sin(r.params.means).sum() + r.params.covariances.sum() + r.objective

    h = 1e-5
    numerical = (value(h, start)[0] - value(-h, start)[0]) / (2 * h)
    got, slope = value(0.0, start)
    np.testing.assert_allclose(slope, numerical, rtol=1e-7)
    params = start
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHT, prior=PRIOR)
    climbed = jaxgmm.score(params, X, WEIGHT) + jaxgmm.log_prior(params, PRIOR) / WEIGHT.sum()
    expected = jnp.sin(params.means).sum() + params.covariances.sum() + climbed
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    # Also where a component is off, or so far away that it has no data.
    off = dataclasses.replace(start, log_weights=start.log_weights.at[1].set(-jnp.inf))
    away = dataclasses.replace(start, means=start.means.at[1].add(1e4))
    assert all(np.isfinite(value(0.0, hostile)).all() for hostile in (off, away))


def test_the_rate_is_that_of_plain_em_whatever_the_units(double):
    params = apart()
    report = diagnostics(params, APART, WEIGHT, reg_covar=0.0)
    # Errors of plain EM from a start nearby, once the slowest mode is left alone.
    moved, gaps = start_from(APART, LABELS, "diag", double), []
    for _ in range(200):
        moved, _ = jaxgmm.em_step(moved, APART, WEIGHT, reg_covar=0.0)
        gaps.append(float(np.linalg.norm(np.asarray(moved.means) - np.asarray(params.means))))
    # Far above rounding, and the distance of the fit from its fixed point, and as late as can be.
    seen = [b / a for a, b in itertools.pairwise(gaps) if b > 1e-9]
    np.testing.assert_allclose(report.rate, seen[-1], rtol=0.02)
    assert report.identified
    assert report.residual < 1e-10
    assert report.step < 1e-10
    assert report.n_products < 60

    units = np.array([1e-4, 1e3, 1.0])
    scaled = start_from(APART * units, LABELS, "diag", double)
    other = jaxgmm.fit(scaled, APART * units, WEIGHT, **TIGHT).params
    again = diagnostics(other, APART * units, WEIGHT, reg_covar=0.0)
    np.testing.assert_allclose(again.rate, report.rate, rtol=1e-6)


def test_equal_components_are_not_identified(double):
    one = start_from(X, np.zeros(len(X), int), "diag", double)
    fit = jaxgmm.fit(not_identified(one), X, ONES, **TIGHT)
    report = diagnostics(fit.params, X, ONES, reg_covar=0.0)
    assert not report.identified
    # Three components where one would do are a saddle point, or flat at best.
    assert report.rate > 1 - 1e-3
    assert report.distance == np.inf
