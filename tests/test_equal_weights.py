"""Mixtures whose components all have the same weight, over structures with and without arrays for each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import equal_weights, full, get_model, tied
from tests.conftest import overlapping, start_from

K = 3
X, LABELS = overlapping(200, 2, K, seed=3)
X, LABELS = (np.concatenate([a, a[LABELS == 0]]) for a in (X, LABELS))  # of the first kind twice as many


def start(base, dtype):
    return start_from(X, LABELS, base, dtype)


def test_a_fit_keeps_the_weights_equal_and_climbs():
    base = "full"
    x = X.astype(np.float32)
    unequal = start(base, np.float32)
    assert float(jnp.ptp(unequal.weights)) > 0.1
    params = jaxgmm.GMMParams(unequal.log_weights, unequal.means, unequal.scale, *equal_weights(base))
    for accelerate in (False, True):
        result = jaxgmm.fit(params, x, reg_covar=0.0, accelerate=accelerate)
        assert result.status == Status.CONVERGED
        np.testing.assert_allclose(result.params.weights, 1 / K, rtol=1e-6)
        history = np.asarray(result.history)
        assert (np.diff(history[np.isfinite(history)]) > -40 * np.finfo(np.float32).eps).all()
    # The means and covariances are at an optimum, the weights are not.
    slope = jax.jit(jax.grad(lambda p: jaxgmm.score(p, x)))(result.params)
    assert float(jnp.abs(slope.means).max()) < 1e-3
    assert float(jnp.ptp(slope.log_weights)) > 0.02


def test_padded_fits_share_the_weight_among_the_components_that_are_on():
    x = X.astype(np.float32)
    results = jaxgmm.fit_components(
        jax.random.key(1), x, (1, 2, 4), covariance_type="spherical-equal", n_init=2
    )
    for weights, k in zip(np.asarray(results.params.weights), (1, 2, 4), strict=True):
        np.testing.assert_allclose(np.sort(weights), [0.0] * (4 - k) + [1 / k] * k, rtol=1e-6)
    for i, k in enumerate((1, 2, 4)):
        params = jax.tree.map(lambda a, i=i: a[i], results.params)
        free = k * 2 + k
        assert jaxgmm.n_parameters(params) == free
        expected = -2 * len(X) * float(jaxgmm.score(params, x)) + free * np.log(len(X))
        np.testing.assert_allclose(jaxgmm.bic(params, x), expected, rtol=1e-5)


def test_a_start_that_is_switched_off_in_part():
    params = start("full", np.float32)
    model = equal_weights("full")
    off = jaxgmm.GMMParams(params.log_weights.at[1].set(-jnp.inf), params.means, params.scale, *model)
    np.testing.assert_allclose(jaxgmm.fit(off, X.astype(np.float32)).params.weights, [0.5, 0, 0.5], rtol=1e-6)


def test_the_m_step_has_equal_weights_and_the_e_step_knows_nothing_of_it():
    resp = np.random.default_rng(0).dirichlet([1, 2, 6], size=len(X))
    equal, free = (jaxgmm.m_step(resp, X, covariance_type=f) for f in ("full-equal", "full"))
    np.testing.assert_allclose(equal.weights, 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(equal.covariances, free.covariances)
    relabelled = jaxgmm.GMMParams(free.log_weights, free.means, free.scale, *equal.model)
    np.testing.assert_array_equal(jaxgmm.log_prob(relabelled, X), jaxgmm.log_prob(free, X))


def test_names_and_records(tmp_path):
    assert get_model("full-equal") == equal_weights(full) == equal_weights(equal_weights("full"))
    assert get_model("factor(2)-equal").name == "factor(2)-equal"
    assert equal_weights(tied) != tied
    for name in ("full-equal-equal", "fall-equal", "-equal"):
        with pytest.raises(ValueError, match="covariance_type must be one of"):
            get_model(name)
    # As many components as features: variances (2, 2) are not taken for a matrix.
    params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]], "diag-equal")
    jaxgmm.save(tmp_path / "model.npz", params)
    assert jaxgmm.load(tmp_path / "model.npz").model == equal_weights("diag")


# Of one structure and two components all that asks how many parameters are free, and which.
PAIR = np.random.default_rng(5).normal(size=(120, 2)) + np.where(np.arange(120) < 80, 0.0, 3.0)[:, None]
SPLIT = (np.arange(120) >= 80).astype(int)


def fitted(name="spherical-equal"):
    start = start_from(PAIR, SPLIT, name, np.float64)
    return jaxgmm.fit(start, PAIR, tol=1e-10, reg_covar=0.0).params


def test_weights_that_are_held_equal_are_no_free_parameters_and_known_exactly(double):
    """Two means of two numbers, two variances, and no weight."""
    params = fitted()
    assert jaxgmm.n_parameters(params) == 6
    deviance = -2 * len(PAIR) * float(jaxgmm.score(params, PAIR))
    np.testing.assert_allclose(jaxgmm.bic(params, PAIR), deviance + 6 * np.log(120), rtol=1e-12)
    info = jaxgmm.inference.information(params, PAIR)
    # Of the same mixture with free weights, the part of the means and variances.
    free = dataclasses.replace(params, weights_rule=jaxgmm.components.Weights())
    rest = jaxgmm.inference.information(free, PAIR)
    np.testing.assert_allclose(info.observed, rest.observed[1:, 1:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(info.score, rest.score[1:], atol=1e-6)
    assert float(info.distance) < 1e-6  # the optimum with equal weights, and none with free ones
    assert float(rest.distance) > 1
    errors = jaxgmm.inference.standard_errors(params, PAIR, kind="observed")
    np.testing.assert_array_equal(errors.weights, 0)
    spread = np.sqrt(np.diag(np.linalg.inv(info.observed))[:4])
    np.testing.assert_allclose(errors.means.ravel(), spread, rtol=1e-8)


def test_free_coordinates_and_other_fits_keep_the_weights_equal(double):
    start = start_from(PAIR, SPLIT, "spherical-equal", np.float64)
    uneven = dataclasses.replace(start, log_weights=jnp.log(jnp.asarray([0.7, 0.3])))
    theta = jaxgmm.gradients.unconstrained(uneven)
    assert sum(a.size for a in jax.tree.leaves(theta)) == jaxgmm.n_parameters(uneven)
    np.testing.assert_allclose(jaxgmm.gradients.constrained(theta, uneven).weights, 0.5, rtol=1e-12)
    np.testing.assert_allclose(jaxgmm.outofcore.stepwise_init(uneven).params.weights, 0.5, rtol=1e-12)
