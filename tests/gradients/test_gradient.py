"""Fits by gradient, free coordinates, unrolled steps and what is said about a fit's derivative."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import get_component
from tests.inference.optimum import APART, ONES, TIGHT
from tests.problems import LABELS, WEIGHT, K, X
from tests.quick import quick_jit


def labelled(x, dtype="f8", off=None):
    """The "diag" mixture of the labels' own moments; perhaps with a component that is off."""
    groups = [x[k == LABELS] for k in range(K)]
    weights = np.array([len(g) * (k != off) for k, g in enumerate(groups)])
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum())
    parts = (log_weights, [g.mean(0) for g in groups], [g.std(0) for g in groups])
    return jaxgmm.GMMParams(*(np.asarray(a, dtype) for a in parts), get_component("diag"))


def log_prob(params, x):
    """(N,) of a "diag" mixture."""
    log_weights, means, widths = (np.asarray(a) for a in (params.log_weights, params.means, params.scale))
    residuals = (x[:, None] - means) / widths
    exponents = log_weights - np.log(widths).sum(1) - 0.5 * (residuals**2).sum(2)
    return logsumexp(exponents, axis=1) - 0.5 * x.shape[1] * np.log(2 * np.pi)


def arrays(params):
    return (np.exp(params.log_weights), np.asarray(params.means), np.asarray(params.scale))


def test_free_coordinates_and_back_also_with_a_component_that_is_off(double):
    scale = np.linalg.cholesky(np.stack([np.cov(X[k == LABELS].T) for k in range(K)]))
    params = dataclasses.replace(labelled(X, off=2), scale=scale, component=get_component("full"))

    @quick_jit
    def there_and_back(params):
        theta = jaxgmm.gradients.unconstrained(params)
        moved = jax.tree.map(lambda a: a + 3.0, theta)
        back, away = (jaxgmm.gradients.constrained(t, params) for t in (theta, moved))
        value = jax.value_and_grad(jaxgmm.gradients.negative_log_likelihood)(theta, params, X, WEIGHT)
        return back, away.covariances, *value, jaxgmm.score(params, X, WEIGHT)

    back, covariances, value, slope, score = there_and_back(params)
    for a, b in zip(arrays(back), arrays(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert np.linalg.eigvalsh(covariances).min() > 0
    np.testing.assert_allclose(value, -score, rtol=1e-12)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))
    assert slope["logits"][2] == 0
    assert (np.asarray(slope["logits"])[:2] != 0).all()
    np.testing.assert_array_equal(np.asarray(slope["means"])[2], 0)


def test_lbfgs_finds_ems_fixed_point(double):
    """With a ridge large enough to matter, in other units, and far from the origin."""
    x = APART * np.array([1e2, 1e-2, 1.0]) + np.array([1e4, 0.0, 0.0])
    start = labelled(x)
    em = jaxgmm.fit(start, x, WEIGHT, tol=1e-12, reg_covar=0.05, max_iter=5000)
    got = jaxgmm.fit_gradient(start, x, optax.lbfgs(), WEIGHT, n_steps=200, reg_covar=0.05)
    assert got.status == Status.CONVERGED
    for a, b in zip(arrays(got.params), arrays(em.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(got.log_likelihood, em.log_likelihood, rtol=1e-8)


@quick_jit
def em_steps(start, x, w, reg_covar, prior):
    """The mixtures after each of 200 plain steps of EM, and the mean log-likelihood before it."""

    def step(params, _):
        new, statistics = jaxgmm.em_step(params, x, w, reg_covar=reg_covar, prior=prior)
        return new, (new, statistics.log_likelihood / w.sum())

    return jax.lax.scan(step, start, length=200)[1]


def far_away(updates, params):
    """A step that leaves the domain, of a mixture that is farther away than any in a fit."""
    size = jnp.where(jnp.abs(params["means"]).max() > 1e2, jnp.float32(1e30), jnp.float32(1))
    return jax.tree.map(lambda a: size * a, updates)


def test_batches_come_near_the_same_key_gives_the_same_fit_and_a_diverging_one_says_so():
    x, start = X.astype(np.float32), labelled(X, "f4")
    adam = optax.chain(optax.adam(optax.cosine_decay_schedule(0.05, 400)), optax.stateless(far_away))
    best = np.asarray(em_steps(start, x, np.ones(len(x), "f4"), np.float32(1e-6), None)[1])[-1]

    def run(start, seed):
        return jaxgmm.fit_gradient(start, x, adam, n_steps=400, batch_size=32, key=jax.random.key(seed))

    runs = [run(start, seed) for seed in (0, 0, 1)]
    for one in runs:
        assert one.log_likelihood > best - 0.02
        assert one.history.shape == (400,)
    np.testing.assert_array_equal(runs[0].params.means, runs[1].params.means)
    assert (np.asarray(runs[0].params.means) != np.asarray(runs[2].params.means)).any()
    # The last parameters that were finite are kept.
    off = labelled(X, "f4", off=2)
    got = run(dataclasses.replace(off, means=off.means + np.float32(1e4)), 0)
    assert got.status == Status.NONFINITE
    assert all(np.isfinite(a).all() for a in arrays(got.params))
    assert got.params.log_weights[2] == -np.inf
    assert (np.asarray(got.history)[int(got.n_iter) :] == -np.inf).all()
    with pytest.raises(ValueError, match="key must be given"):
        jaxgmm.fit_gradient(start, x, adam, n_steps=1, batch_size=32)
    with pytest.raises(TypeError, match="optimizer"):
        jaxgmm.fit_gradient(start, x, "adam", n_steps=1)


diagnostics = quick_jit(jaxgmm.inference.fit_diagnostics)
PRIOR = jaxgmm.Prior(
    mean=np.array([0.5, -1.0, 0.0]), strength=3.0, dof=6.0, scale=2.5,
    weight_concentration=np.array([4.0, 2.0, 3.0]),
)  # fmt: skip


def test_unrolled_steps_are_em_steps(double):
    start = labelled(X)
    got = jaxgmm.gradients.fit_unrolled(start, X, 3, WEIGHT)
    after, history = em_steps(start, X, WEIGHT, 1e-6, None)
    for a, b in zip(arrays(got.params), arrays(jax.tree.map(lambda a: np.asarray(a)[2], after)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(got.history, np.asarray(history)[1:4], rtol=1e-10)
    assert got.log_likelihood == np.asarray(got.history)[-1]
    assert got.n_iter == 3
    assert got.status == Status.MAX_ITER
    with pytest.raises(TypeError, match=r"prior must be a jaxgmm.Prior.*got 'default'"):
        jaxgmm.gradients.fit_unrolled(start, X, 3, prior="default")


def test_unrolled_steps_with_a_prior_are_em_steps_and_differentiable_in_all_that_they_are_given(double):
    """Against central differences, whose error is about h² = 1e-10 and 1e-14 / h of rounding."""
    start = labelled(X)
    along = jax.tree.map(lambda a: np.cos(np.arange(np.size(a), dtype=float)).reshape(np.shape(a)), PRIOR)

    @quick_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def value(t, start):
        prior = jax.tree.map(lambda a, b: a + t * b, PRIOR, along)
        moved = dataclasses.replace(start, means=start.means + t * jnp.eye(K))
        x, w = jnp.asarray(X) * (1 + t), jnp.asarray(WEIGHT) + t
        r = jaxgmm.gradients.fit_unrolled(moved, x, 3, w, prior=prior)
        return jnp.sin(r.params.means).sum() + r.params.covariances.sum() + r.objective, r

    h = 1e-5
    numerical = (value(h, start)[0][0] - value(-h, start)[0][0]) / (2 * h)
    (_, got), slope = value(0.0, start)
    np.testing.assert_allclose(slope, numerical, rtol=1e-7)

    params = jax.tree.map(lambda a: np.asarray(a)[2], em_steps(start, X, WEIGHT, 1e-6, PRIOR)[0])
    log_prior = quick_jit(jaxgmm.log_prior)(params, PRIOR)
    for a, b in zip(arrays(got.params), arrays(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    climbed = np.average(log_prob(params, X), weights=WEIGHT) + log_prior / WEIGHT.sum()
    np.testing.assert_allclose(got.objective, climbed, rtol=1e-9)
    # Also where a component is off, or so far away that it has no data.
    away = dataclasses.replace(start, means=start.means + 1e4 * np.array([[0.0], [1.0], [0.0]]))
    for hostile in (labelled(X, off=1), away):
        (total, _), slope = value(0.0, hostile)
        assert np.isfinite(total)
        assert np.isfinite(slope)


def test_the_rate_is_that_of_plain_em_whatever_the_units(double):
    params = jaxgmm.fit(labelled(APART), APART, WEIGHT, **TIGHT).params
    report = diagnostics(params, APART, WEIGHT, reg_covar=0.0)
    # Errors of plain EM from a start nearby, once the slowest mode is left alone.
    after, _ = em_steps(labelled(APART), APART, WEIGHT, 0.0, None)
    gaps = np.linalg.norm(np.asarray(after.means) - np.asarray(params.means), axis=(1, 2))
    # Far above rounding, and the distance of the fit from its fixed point, and as late as can be.
    seen = [b / a for a, b in itertools.pairwise(gaps) if b > 1e-9]
    np.testing.assert_allclose(report.rate, seen[-1], rtol=0.02)
    assert report.identified
    assert report.residual < 1e-10
    assert report.step < 1e-10
    assert report.n_products < 60

    units = np.array([1e-4, 1e3, 1.0])
    other = jaxgmm.fit(labelled(APART * units), APART * units, WEIGHT, **TIGHT).params
    again = diagnostics(other, APART * units, WEIGHT, reg_covar=0.0)
    np.testing.assert_allclose(again.rate, report.rate, rtol=1e-6)


def test_equal_components_are_not_identified(double):
    parts = (np.log([0.2, 0.3, 0.5]), np.tile(X.mean(0), (K, 1)), np.tile(X.std(0), (K, 1)))
    fit = jaxgmm.fit(jaxgmm.GMMParams(*parts, get_component("diag")), X, ONES, **TIGHT)
    report = diagnostics(fit.params, X, ONES, reg_covar=0.0)
    assert not report.identified
    # Three components where one would do are a saddle point, or flat at best.
    assert report.rate > 1 - 1e-3
    assert report.distance == np.inf
