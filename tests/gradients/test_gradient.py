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
from tests.conftest import dense, overlapping, start_from

pytestmark = pytest.mark.slow

X, LABELS = overlapping(200, 2, 2, seed=1, separation=2.5)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, size=len(X))
LBFGS = optax.lbfgs()
ADAM = optax.adam(0.02)


def padded(params):
    """With a component that is switched off; for a family whose arrays all have a row for each component."""
    more = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), params)
    return dataclasses.replace(more, log_weights=more.log_weights.at[-1].set(-jnp.inf))


def test_free_coordinates_and_back(name, double):
    params = start_from(X, LABELS, name, double)
    theta = jaxgmm.gradients.unconstrained(params)
    for a, b in zip(dense(jaxgmm.gradients.constrained(theta, params)), dense(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    moved = jax.tree.map(lambda a: a + 3.0, theta)
    assert np.linalg.eigvalsh(dense(jaxgmm.gradients.constrained(moved, params))[2]).min() > 0
    value = jaxgmm.gradients.negative_log_likelihood(theta, params, X, WEIGHTS)
    np.testing.assert_allclose(value, -jaxgmm.score(params, X, WEIGHTS), rtol=1e-12)


def test_a_switched_off_component_stays_off_in_free_coordinates(double):
    params = padded(start_from(X, LABELS, "full", double))
    slope = jax.grad(jaxgmm.gradients.negative_log_likelihood)(
        jaxgmm.gradients.unconstrained(params), params, X
    )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    assert slope["logits"][-1] == 0
    got = jaxgmm.fit_gradient(params, X, ADAM, n_steps=5).params
    assert got.log_weights[-1] == -np.inf
    assert np.isfinite(got.means).all()


def test_lbfgs_finds_ems_fixed_point(double):
    """With a ridge large enough to matter, in other units, and far from the origin."""
    x = X * np.array([1e2, 1e-2]) + np.array([1e4, 0.0])
    start = start_from(x, LABELS, "full", double)
    em = jaxgmm.fit(start, x, WEIGHTS, tol=1e-12, reg_covar=0.05, max_iter=5000)
    got = jaxgmm.fit_gradient(start, x, LBFGS, WEIGHTS, n_steps=150, reg_covar=0.05)
    assert got.status == Status.CONVERGED
    for a, b in zip(dense(got.params), dense(em.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(got.log_likelihood, em.log_likelihood, rtol=1e-8)


def test_batches_come_near_and_the_same_key_gives_the_same_fit():
    x = X.astype(np.float32)
    start = start_from(X, LABELS, "diag", np.float32)
    best = jaxgmm.fit(start, x).log_likelihood
    runs = [
        jaxgmm.fit_gradient(start, x, ADAM, n_steps=400, batch_size=32, key=jax.random.key(s))
        for s in (0, 0, 1)
    ]
    for run in runs:
        assert run.log_likelihood > best - 0.02
        assert run.history.shape == (400,)
    np.testing.assert_array_equal(runs[0].params.means, runs[1].params.means)
    assert (runs[0].params.means != runs[2].params.means).any()
    with pytest.raises(ValueError, match="key must be given"):
        jaxgmm.fit_gradient(start, x, ADAM, n_steps=1, batch_size=32)
    with pytest.raises(TypeError, match="optimizer"):
        jaxgmm.fit_gradient(start, x, "adam", n_steps=1)


def test_many_features():
    rng = np.random.default_rng(0)
    d = 300
    labels = rng.integers(2, size=400)
    x = (rng.normal(size=(400, d)) + labels[:, None] * rng.normal(size=d)).astype(np.float32)
    start = start_from(x, labels, "diag", np.float32)
    got = jaxgmm.fit_gradient(start, x, ADAM, n_steps=20)
    assert np.isfinite(got.history).all()
    assert got.log_likelihood > jaxgmm.score(start, x)


def test_a_diverging_fit_keeps_its_last_finite_parameters_and_says_so():
    start = start_from(X, LABELS, "full", np.float32)
    got = jaxgmm.fit_gradient(start, X.astype(np.float32), optax.sgd(1e30), n_steps=5)
    assert got.status == Status.NONFINITE
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(got.params))
    assert (got.history[int(got.n_iter) :] == -np.inf).all()


def test_unrolled_steps_are_em_steps(name, double):
    start = start_from(X, LABELS, name, double)
    got = jaxgmm.gradients.fit_unrolled(start, X, 3, WEIGHTS)
    params, history = start, []
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHTS)
        history.append(jaxgmm.score(params, X, WEIGHTS))
    for a, b in zip(dense(got.params), dense(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(got.history, history, rtol=1e-10)
    assert got.log_likelihood == got.history[-1]
    assert got.n_iter == 3
    assert got.status == Status.MAX_ITER


PRIOR = jaxgmm.Prior(
    mean=np.array([0.5, -1.0]), strength=3.0, dof=6.0, scale=np.array([[2.0, 0.3], [0.3, 1.0]]),
    weight_concentration=np.array([4.0, 2.0]),
)  # fmt: skip


def test_unrolled_steps_with_a_prior_are_em_steps_with_it(double):
    start = start_from(X, LABELS, "full", double)
    got = jaxgmm.gradients.fit_unrolled(start, X, 3, WEIGHTS, prior=PRIOR)
    params = start
    for _ in range(3):
        params, _ = jaxgmm.em_step(params, X, WEIGHTS, prior=PRIOR)
    for a, b in zip(dense(got.params), dense(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    likelihood = jaxgmm.score(params, X, WEIGHTS)
    np.testing.assert_allclose(got.log_likelihood, likelihood, rtol=1e-10)
    climbed = likelihood + jaxgmm.log_prior(params, PRIOR) / WEIGHTS.sum()
    np.testing.assert_allclose(got.objective, climbed, rtol=1e-10)
    with pytest.raises(TypeError, match=r"prior must be a jaxgmm.Prior.*got 'default'"):
        jaxgmm.gradients.fit_unrolled(start, X, 3, prior="default")


def test_unrolled_steps_are_differentiable_in_every_number_of_a_prior(double):
    start = start_from(X, LABELS, "full", double)
    along = jax.tree.map(lambda a: jnp.cos(jnp.arange(np.size(a), dtype=float)).reshape(np.shape(a)), PRIOR)
    along = dataclasses.replace(along, scale=along.scale + along.scale.T)

    @jax.jit
    def value(t):
        prior = jax.tree.map(lambda a, b: a + t * b, PRIOR, along)
        r = jaxgmm.gradients.fit_unrolled(start, X, 3, WEIGHTS, prior=prior)
        return jnp.sin(r.params.means).sum() + r.params.covariances.sum() + r.objective

    h = 1e-5
    numerical = (value(h) - value(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(value)(0.0), numerical, rtol=1e-7)


@pytest.mark.exhaustive
def test_unrolled_derivatives_also_in_the_start(double):
    start = start_from(X, LABELS, "full", double)

    def value(t):
        moved = dataclasses.replace(start, means=start.means + t * jnp.array([[1.0, 0.0], [0.0, -1.0]]))
        r = jaxgmm.gradients.fit_unrolled(moved, jnp.asarray(X) * (1 + t), 4, jnp.asarray(WEIGHTS) + t)
        return jnp.sin(r.params.means).sum() + r.params.covariances.sum() + r.log_likelihood

    h = 1e-5
    numerical = (value(h) - value(-h)) / (2 * h)
    zero = jnp.zeros(())
    np.testing.assert_allclose(jax.grad(value)(zero), numerical, rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(value, (zero,), (jnp.ones(()),))[1], numerical, rtol=1e-7)


@pytest.mark.exhaustive
def test_many_unrolled_steps_have_the_fits_derivative(double):
    start = start_from(X, LABELS, "diag", double)
    x = jnp.asarray(X)
    unrolled = jax.grad(lambda x: jaxgmm.gradients.fit_unrolled(start, x, 300).params.means[0].sum())(x)
    implicit = jax.grad(lambda x: jaxgmm.fit(start, x, tol=1e-12).params.means[0].sum())(x)
    np.testing.assert_allclose(implicit, unrolled, rtol=1e-7, atol=1e-10)
    assert jaxgmm.gradients.fit_unrolled(start, x, 300).status == Status.CONVERGED


def test_the_rate_is_that_of_plain_em(name, double):
    start = start_from(X, LABELS, name, double)
    fit = jaxgmm.fit(start, X, WEIGHTS, tol=1e-12, max_iter=5000)
    rate = float(jaxgmm.inference.convergence_rate(fit.params, X, WEIGHTS))
    # Errors of plain EM from a start nearby, once the slowest mode is left alone.
    path = [start_from(X, LABELS, name, double)]
    for _ in range(40):
        path.append(jaxgmm.em_step(path[-1], X, WEIGHTS)[0])
    gaps = [float(jnp.linalg.norm(p.means - fit.params.means)) for p in path]
    # Far above rounding, about 1e-14, and as late as can be: of the faster modes 3 % are left at 3e-10.
    seen = [b / a for a, b in itertools.pairwise(gaps) if b > 5e-12]
    np.testing.assert_allclose(rate, seen[-1], rtol=0.02)
    report = jaxgmm.inference.fit_diagnostics(fit.params, X, WEIGHTS)
    np.testing.assert_allclose(report.rate, rate)
    assert report.identified
    assert report.residual < 1e-10
    assert report.step < 1e-10
    assert report.n_products < 60


def test_a_rate_in_other_units_is_the_same(double):
    start = start_from(X, LABELS, "full", double)
    fit = jaxgmm.fit(start, X, tol=1e-12, reg_covar=0.0)
    units = np.array([1e-4, 1e3])
    scaled = start_from(X * units, LABELS, "full", double)
    other = jaxgmm.fit(scaled, X * units, tol=1e-12, reg_covar=0.0)
    a, b = (
        jaxgmm.inference.fit_diagnostics(p.params, x, reg_covar=0.0)
        for p, x in ((fit, X), (other, X * units))
    )
    np.testing.assert_allclose(a.rate, b.rate, rtol=1e-6)
    assert b.residual < 1e-10


def test_twin_components_are_not_identified(dtype):
    one = start_from(X, np.zeros(len(X), int), "full", dtype)
    twins = jax.tree.map(lambda a: jnp.concatenate([a, a]), one)
    twins = dataclasses.replace(twins, log_weights=jnp.log(jnp.asarray([0.3, 0.7], dtype)))
    fit = jaxgmm.fit(twins, X.astype(dtype))
    report = jaxgmm.inference.fit_diagnostics(fit.params, X.astype(dtype))
    assert not report.identified
    # Two components where one would do are a saddle point, or flat at best.
    assert report.rate > 1 - 1e-3
    assert report.distance == np.inf
