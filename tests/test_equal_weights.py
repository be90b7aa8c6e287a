"""Mixtures whose components all have the same weight, over structures with and without arrays for each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import equal_weights, full, get_family, tied
from tests.conftest import QUICK, costly, overlapping, start_from, x64

K = 3
X, LABELS = overlapping(200, 2, K, seed=3)
X, LABELS = (np.concatenate([a, a[LABELS == 0]]) for a in (X, LABELS))  # of the first kind twice as many
EQUAL = {"full": np.float32, "tied": np.float64, "spherical": np.float32}


def start(base, dtype):
    return start_from(X, LABELS, base, dtype)


@pytest.mark.parametrize("base", [costly(n, quick=QUICK) for n in EQUAL])
def test_a_fit_keeps_the_weights_equal_and_climbs(base):
    dtype = np.dtype(EQUAL[base])
    with x64(dtype == np.float64):
        unequal = start(base, dtype)
        assert float(jnp.ptp(unequal.weights)) > 0.1
        params = jaxgmm.GMMParams(unequal.log_weights, unequal.means, unequal.scale, equal_weights(base))
        for accelerate in (False, True):
            result = jaxgmm.fit(params, X.astype(dtype), reg_covar=0.0, accelerate=accelerate)
            assert result.status == Status.CONVERGED
            np.testing.assert_allclose(result.params.weights, 1 / K, rtol=1e-6)
            history = np.asarray(result.history)
            assert (np.diff(history[np.isfinite(history)]) > -40 * np.finfo(dtype).eps).all()
        # The means and covariances are at an optimum, the weights are not.
        slope = jax.grad(lambda p: jaxgmm.score(p, X.astype(dtype)))(result.params)
        assert float(jnp.abs(slope.means).max()) < 1e-3
        assert float(jnp.ptp(slope.log_weights)) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("base", [costly(n, quick=QUICK) for n in ("full", "tied")])
def test_padded_fits_share_the_weight_among_the_components_that_are_on(base):
    x = X.astype(np.float32)
    results = jaxgmm.fit_components(
        jax.random.key(1), x, (1, 2, 4), covariance_type=base + "-equal", n_init=2
    )
    for weights, k in zip(np.asarray(results.params.weights), (1, 2, 4), strict=True):
        np.testing.assert_allclose(np.sort(weights), [0.0] * (4 - k) + [1 / k] * k, rtol=1e-6)
    for i, k in enumerate((1, 2, 4)):
        params = jax.tree.map(lambda a, i=i: a[i], results.params)
        free = k * 2 + get_family(base).n_parameters(k, 2)
        assert jaxgmm.n_parameters(params) == free
        expected = -2 * len(X) * float(jaxgmm.score(params, x)) + free * np.log(len(X))
        np.testing.assert_allclose(jaxgmm.bic(params, x), expected, rtol=1e-5)


def test_a_start_that_is_switched_off_in_part_and_a_bad_one():
    params = start("full", np.float32)
    family = equal_weights("full")
    off = jaxgmm.GMMParams(params.log_weights.at[1].set(-jnp.inf), params.means, params.scale, family)
    np.testing.assert_allclose(jaxgmm.fit(off, X.astype(np.float32)).params.weights, [0.5, 0, 0.5], rtol=1e-6)
    bad = jaxgmm.GMMParams(params.log_weights * jnp.nan, params.means, params.scale, family)
    result = jax.jit(lambda p: jaxgmm.fit(p, X.astype(np.float32)))(bad)
    assert result.status == Status.NONFINITE


def test_the_m_step_has_equal_weights_and_the_e_step_knows_nothing_of_it():
    resp = np.random.default_rng(0).dirichlet([1, 2, 6], size=len(X))
    equal, free = (jaxgmm.m_step(resp, X, covariance_type=f) for f in ("full-equal", "full"))
    np.testing.assert_allclose(equal.weights, 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(equal.covariances, free.covariances)
    relabelled = jaxgmm.GMMParams(free.log_weights, free.means, free.scale, equal.family)
    np.testing.assert_array_equal(jaxgmm.log_prob(relabelled, X), jaxgmm.log_prob(free, X))


def test_names_and_records(tmp_path):
    assert get_family("full-equal") == equal_weights(full) == equal_weights(equal_weights("full"))
    assert get_family("factor(2)-equal").name == "factor(2)-equal"
    assert equal_weights(tied) != tied
    for name in ("full-equal-equal", "fall-equal", "-equal"):
        with pytest.raises(ValueError, match="covariance_type must be one of"):
            get_family(name)
    # As many components as features: variances (2, 2) are not taken for a matrix.
    params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]], "diag-equal")
    jaxgmm.save(tmp_path / "model.npz", params)
    assert jaxgmm.load(tmp_path / "model.npz").family == equal_weights("diag")


# Of one structure and two components all that asks how many parameters are free, and which.
PAIR = np.random.default_rng(5).normal(size=(120, 2)) + np.where(np.arange(120) < 80, 0.0, 3.0)[:, None]
SPLIT = (np.arange(120) >= 80).astype(int)


def fitted(name="spherical-equal"):
    start = start_from(PAIR, SPLIT, name, np.float64)
    return jaxgmm.fit(start, PAIR, tol=1e-10, reg_covar=0.0).params


def test_every_count_of_free_parameters_is_the_same(double):
    """Two means of two numbers, two variances, and no weight."""
    from jaxgmm.sklearn import GaussianMixture

    params = fitted()
    assert jaxgmm.n_parameters(params) == 6
    row = jaxgmm.select(jax.random.key(0), PAIR, [2], covariance_types=["spherical-equal"], budget=8).table[0]
    assert row["n_parameters"] == 6
    deviance = -2 * len(PAIR) * float(jaxgmm.score(params, PAIR))
    np.testing.assert_allclose(row["bic"], deviance + 6 * np.log(120), atol=1e-3)
    np.testing.assert_allclose(row["aic"], deviance + 12, atol=1e-3)
    mixture = GaussianMixture.from_params(params)
    np.testing.assert_allclose(mixture.bic(PAIR), jaxgmm.bic(params, PAIR), rtol=1e-9)
    assert jaxgmm.inference.information(params, PAIR).observed.shape == (6, 6)


def test_weights_that_are_held_equal_are_known_exactly(double):
    params = fitted()
    info = jaxgmm.inference.information(params, PAIR)
    # Of the same mixture with free weights, the part of the means and variances.
    free = dataclasses.replace(params, family=get_family("spherical"))
    rest = jaxgmm.inference.information(free, PAIR)
    np.testing.assert_allclose(info.observed, rest.observed[1:, 1:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(info.score, rest.score[1:], atol=1e-6)
    assert float(info.distance) < 1e-6  # the optimum with equal weights, and none with free ones
    assert float(rest.distance) > 1
    inverse = np.linalg.inv(info.observed)
    for kind, spread in {"observed": inverse, "sandwich": inverse @ info.opg @ inverse}.items():
        errors = jaxgmm.inference.standard_errors(params, PAIR, kind=kind)
        np.testing.assert_array_equal(errors.weights, 0)
        np.testing.assert_allclose(errors.means.ravel(), np.sqrt(np.diag(spread)[:4]), rtol=1e-8)
    intervals = jaxgmm.inference.confidence_intervals(params, PAIR)
    for end in (intervals.lower, intervals.upper):
        np.testing.assert_array_equal(end.weights, params.weights)
    np.testing.assert_array_equal(jaxgmm.inference.influence(params, PAIR).weights, 0)
    loo = jaxgmm.inference.leave_one_out(params, PAIR, rows=[0])
    np.testing.assert_allclose(loo.params.weights, 0.5, rtol=1e-12)
    # The trace of two 6 × 6 matrices: about as many as there are free parameters.
    penalty = (
        float(jaxgmm.inference.takeuchi(params, PAIR)) + 2 * 120 * float(jaxgmm.score(params, PAIR))
    ) / 2
    np.testing.assert_allclose(penalty, np.trace(np.linalg.solve(info.observed, info.opg)), rtol=1e-9)


def test_leaving_a_row_out_is_a_refit_with_equal_weights(double):
    params = fitted()
    rows = np.argsort(jaxgmm.log_prob(params, PAIR))[:2]
    loo = jaxgmm.inference.leave_one_out(params, PAIR, rows=rows)
    for i, row in enumerate(rows):
        refit = jaxgmm.fit(params, PAIR, np.arange(120) != row, tol=1e-10, reg_covar=0.0).params
        moved = np.linalg.norm(refit.means - params.means)
        assert np.linalg.norm(loo.params.means[i] - refit.means) < 0.05 * moved


def test_a_fit_by_gradient_and_fixed_steps_keep_the_weights_equal(double):
    params = fitted()
    start = start_from(PAIR, SPLIT, "spherical-equal", np.float64)
    uneven = dataclasses.replace(start, log_weights=jnp.log(jnp.asarray([0.7, 0.3])))
    found = jaxgmm.fit_gradient(uneven, PAIR, optax.lbfgs(), n_steps=60, reg_covar=0.0)
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(found.params.weights, 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.params.means, params.means, rtol=1e-4)
    theta = jaxgmm.gradients.unconstrained(uneven)
    assert sum(a.size for a in jax.tree.leaves(theta)) == jaxgmm.n_parameters(uneven)
    np.testing.assert_allclose(jaxgmm.gradients.constrained(theta, uneven).weights, 0.5, rtol=1e-12)
    once = jaxgmm.gradients.fit_unrolled(uneven, PAIR, 1).params
    np.testing.assert_allclose(once.means, jaxgmm.em_step(start, PAIR)[0].means, rtol=1e-12)
    np.testing.assert_allclose(jaxgmm.outofcore.stepwise_init(uneven).params.weights, 0.5, rtol=1e-12)
