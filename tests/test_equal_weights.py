"""Mixtures whose components all have the same weight."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import equal_weights, full, get_model, tied
from tests.conftest import overlapping
from tests.quick import quick_jit

X, LABELS = overlapping(200, 2, 3, seed=3)
X, LABELS = (np.concatenate([a, a[LABELS == 0]]) for a in (X, LABELS))  # of the first kind twice as many
N, K = len(X), 3


def start(name, dtype=np.float64):
    """Two numbers and one variance for each of three components, in NumPy arrays."""
    groups = [X[k == LABELS] for k in range(K)]
    arrays = (
        np.log(np.bincount(LABELS) / N),
        np.stack([g.mean(0) for g in groups]),
        np.array([np.sqrt(g.var(0).mean()) for g in groups]),
    )
    return jaxgmm.GMMParams(*(a.astype(dtype) for a in arrays), *get_model(name))


quick_fit = quick_jit(functools.partial(jaxgmm.fit, X=X, tol=1e-10, reg_covar=0.0))


@functools.cache
def fitted(accelerate=True):
    """A fit with equal weights in float64."""
    result = quick_fit(start("spherical-equal"), accelerate=accelerate)
    assert result.status == Status.CONVERGED
    return result


def test_a_fit_keeps_the_weights_equal_and_climbs(double):
    assert np.ptp(np.exp(start("spherical").log_weights)) > 0.1
    for accelerate in (False, True):
        result = fitted(accelerate)
        np.testing.assert_allclose(result.params.weights, 1 / K, rtol=1e-12)
        history = np.asarray(result.history)
        assert (np.diff(history[np.isfinite(history)]) > -40 * np.finfo(float).eps).all()


def test_padded_fits_share_the_weight_among_the_components_that_are_on():
    x, sizes = X.astype(np.float32), (1, 2, 4)
    run = functools.partial(jaxgmm.fit_components, covariance_type="spherical-equal", n_init=2)
    results = quick_jit(lambda key: run(key, x, sizes, init="random_points"))(jax.random.key(1))
    for i, (weights, k) in enumerate(zip(np.asarray(results.params.weights), sizes, strict=True)):
        np.testing.assert_allclose(np.sort(weights), [0.0] * (4 - k) + [1 / k] * k, rtol=1e-6)
        params = jax.tree.map(lambda a, i=i: np.asarray(a)[i], results.params)
        assert jaxgmm.n_parameters(params) == k * 2 + k


def test_a_start_that_is_switched_off_in_part(double):
    params = start("spherical-equal")
    off = dataclasses.replace(params, log_weights=np.array([params.log_weights[0], -np.inf, -1.0]))
    np.testing.assert_allclose(quick_fit(off, accelerate=True).params.weights, [0.5, 0, 0.5])


def test_the_m_step_has_equal_weights_and_the_e_step_knows_nothing_of_it(double):
    resp = np.random.default_rng(0).dirichlet([1, 2, 6], size=len(X))

    @quick_jit
    def of(resp):
        equal, free = (jaxgmm.m_step(resp, X, covariance_type=f"spherical{s}") for s in ("-equal", ""))
        relabelled = dataclasses.replace(free, weights_rule=equal.weights_rule)
        return equal, free, jaxgmm.log_prob(relabelled, X), jaxgmm.log_prob(free, X)

    equal, free, *log_probs = of(resp)
    np.testing.assert_allclose(equal.weights, 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(equal.scale, free.scale)
    np.testing.assert_array_equal(*log_probs)


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


def test_weights_that_are_held_equal_are_no_free_parameters_and_known_exactly(double):
    """Three means of two numbers, three variances, and no weight."""
    params = fitted().params
    assert jaxgmm.n_parameters(params) == 9

    @quick_jit
    def of(params, free):
        infos = (jaxgmm.inference.information(p, X) for p in (params, free))
        errors = jaxgmm.inference.standard_errors(params, X, kind="observed")
        return *infos, errors, jaxgmm.log_prob(params, X), jaxgmm.bic(params, X)

    # Of the same mixture with free weights, the part of the means and variances.
    free = dataclasses.replace(params, weights_rule=jaxgmm.components.Weights())
    info, rest, errors, log_prob, bic = jax.tree.map(np.asarray, of(params, free))
    np.testing.assert_allclose(bic, -2 * log_prob.sum() + 9 * np.log(N), rtol=1e-12)
    np.testing.assert_allclose(info.observed, rest.observed[2:, 2:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(info.score, rest.score[2:], atol=1e-6)
    assert info.distance < 1e-6  # the optimum with equal weights, and none with free ones
    assert rest.distance > 1
    np.testing.assert_array_equal(errors.weights, 0)
    spread = np.sqrt(np.diag(np.linalg.inv(info.observed))[: 2 * K])
    np.testing.assert_allclose(np.ravel(errors.means), spread, rtol=1e-8)


def test_free_coordinates_and_other_fits_keep_the_weights_equal(double):
    uneven = start("spherical-equal")

    @quick_jit
    def there_and_back(params):
        theta = jaxgmm.gradients.unconstrained(params)
        return theta, jaxgmm.gradients.constrained(theta, params).weights

    theta, weights = there_and_back(uneven)
    assert sum(a.size for a in jax.tree.leaves(theta)) == jaxgmm.n_parameters(uneven)
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(jaxgmm.outofcore.stepwise_init(uneven).params.weights, 1 / 3, rtol=1e-12)
