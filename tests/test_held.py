"""Parameters that a fit holds as they are, and adaptation of a mixture to new data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

import jaxgmm
from jaxgmm import Status, observe
from jaxgmm import _coordinates as coordinates
from jaxgmm.components import get_model
from jaxgmm.mixture import hold
from tests.conftest import case, start_from
from tests.problems import LABELS, WEIGHT, D, K, N, X, largest_slope, quick_fit
from tests.quick import quick_jit

OFFSET = 1000.0  # where the centring rounds
quick_step = quick_jit(jaxgmm.em_step)


def begin(name="full", dtype="float64", offset=0.0):
    start = start_from(X, LABELS, name, dtype)
    return dataclasses.replace(start, means=start.means + np.asarray(offset, dtype))


def some_held(start):
    """The mixture that several tests fit, which is one program."""
    return hold(start, means=[0], covariances=[1, 2])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("full", {"means": [0, 2]}),
        ("tied", {"covariances": True}),
        ("diag", {"means": True, "weights": True}),
    ],
    ids=str,
)
def test_what_is_held_stays_to_the_last_bit_and_the_rest_is_stationary(name, what, double):
    start = hold(begin(name, offset=OFFSET), **what)
    result = quick_fit(start, X + OFFSET, WEIGHT, tol=1e-9, reg_covar=0.0, max_iter=5000)
    assert result.status == Status.CONVERGED
    plain = quick_fit(start, X + OFFSET, WEIGHT, tol=0.0, reg_covar=0.0, max_iter=15, accelerate=False)
    assert np.diff(np.asarray(plain.history[:15])).min() > -1e-13
    held = np.isin(np.arange(K), np.arange(K) if what.get("means") is True else what.get("means", []))
    assert (np.asarray(result.params.means)[held] == np.asarray(start.means)[held]).all()
    if what.get("covariances"):
        jax.tree.map(np.testing.assert_array_equal, result.params.scale, start.scale)
    if what.get("weights"):
        assert_allclose(result.params.weights, start.weights, rtol=1e-15)
    assert largest_slope(result.params, X + OFFSET, WEIGHT) < 1e-7
    assert float(jnp.abs(result.params.means - start.means).max()) > 1e-3 or held.all()
    assert result.log_likelihood > jaxgmm.score(start, X + OFFSET, WEIGHT)


def test_some_covariances_are_held_where_they_are_the_components_own(double):
    start = some_held(begin())
    result = quick_fit(start, X, tol=1e-8)
    assert (np.asarray(result.params.scale)[1:] == np.asarray(start.scale)[1:]).all()
    assert np.abs(np.asarray(result.params.scale)[0] - np.asarray(start.scale)[0]).max() > 1e-3
    plain = quick_fit(start, X, tol=0.0, max_iter=15, accelerate=False, reg_covar=0.0)
    assert np.diff(np.asarray(plain.history[:15])).min() > -1e-13


def test_weights_alone_are_found_by_the_fixed_point_of_their_own_equation(double):
    """π_k = Σ r_nk / N, with densities that do not change."""
    start = hold(begin(), means=True, covariances=True)
    found = quick_fit(start, X, tol=1e-10).params
    resp, _ = jaxgmm.e_step(found, X)
    assert_allclose(found.weights, resp.mean(0), atol=1e-9)
    assert int(jaxgmm.n_parameters(found)) == K - 1


@quick_jit
def errors_and_information(params, X):
    return jaxgmm.inference.standard_errors(params, X), jaxgmm.inference.information(params, X).observed


def test_what_is_held_is_no_parameter_and_has_no_error(double):
    free = begin()
    each = D * (D + 1) // 2
    for what, n in (
        ({"covariances": True}, K * each),
        ({"means": [0]}, D),
        ({"covariances": [1, 2]}, 2 * each),
    ):
        held = hold(free, **what)
        assert int(jaxgmm.n_parameters(held)) == int(jaxgmm.n_parameters(free)) - n
    fitted = quick_fit(some_held(free), X, tol=1e-9).params
    errors, information = errors_and_information(fitted, X)
    assert information.shape == (int(jaxgmm.n_parameters(free)) - D - 2 * each,) * 2
    assert bool(errors.valid)
    assert (np.asarray(errors.means[0]) == 0).all()
    assert (np.asarray(errors.means[1:]) > 0).all()
    assert (np.asarray(errors.covariances[1:]) == 0).all()
    assert (np.asarray(errors.covariances[0]) > 0).all()


def test_one_component_with_its_mean_held_has_the_moments_about_it(double):
    start = hold(jaxgmm.make_params([1.0], [[0.5] * D], [np.eye(D)]), means=True)
    found, _ = quick_step(start, X, reg_covar=0.0)  # of one component a step is the fit
    gap = X - 0.5
    assert_allclose(found.covariances[0], gap.T @ gap / N, rtol=1e-9)


def test_a_fits_derivative_leaves_what_is_held_out(double):
    start = hold(begin("diag"), means=[0], covariances=True)
    direction = np.random.default_rng(0).normal(size=X.shape)

    def value(t):
        params = jaxgmm.fit(start, X + t * direction, tol=1e-12, max_iter=3000).params
        return (params.means**2).sum() + params.weights[0]

    # The slope is 0.14; its difference is in error by the fits' tol over 2e-4, 5e-9, and by h².
    both = quick_jit(jax.value_and_grad(value))
    difference = (float(both(1e-4)[0]) - float(both(-1e-4)[0])) / 2e-4
    assert_allclose(both(0.0)[1], difference, rtol=1e-6)


def test_what_is_held_is_saved_with_the_mixture(tmp_path):
    start = hold(begin(dtype="float32"), weights=True, means=[0, 2], covariances=True)
    assert start.model.name == "full-fixed-means[0,2]-covariances[all]"
    assert get_model(start.model.name) == start.model
    jaxgmm.save(tmp_path / "held.npz", start)
    assert jaxgmm.load(tmp_path / "held.npz").weights_rule == start.weights_rule
    assert hold(start).model.name == "full"


def test_several_starts_and_gaps_go_with_it(double):
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X + OFFSET)
    starts = jax.tree.map(lambda a: np.stack([a, a]), hold(begin("diag", offset=OFFSET), means=[1]))
    results = jaxgmm.fit_restarts(jax.random.key(0), observe(gaps, missing="nan"), K, init=starts)
    assert (np.asarray(results.params.means)[:, 1] == np.asarray(starts.means)[:, 1]).all()
    assert (np.asarray(results.status) == Status.CONVERGED).all()


def test_map_towards_a_mixture_moves_it_as_far_as_the_data_weigh(double):
    """Relevance adaptation: μ = (n x̄ + τ μ_old) / (n + τ), by a prior with a mean for each component."""
    old, tau = begin(), 50.0
    prior = jaxgmm.Prior(mean=old.means, strength=tau)
    adapted = quick_fit(old, X[:60], prior=prior, tol=1e-10, max_iter=3000)
    assert adapted.status == Status.CONVERGED
    resp, _ = map(np.asarray, jaxgmm.e_step(adapted.params, X[:60]))
    counts = resp.sum(0)[:, None]
    expected = (resp.T @ X[:60] + tau * np.asarray(old.means)) / (counts + tau)
    assert_allclose(adapted.params.means, expected, atol=1e-7)


def test_a_prior_with_a_scale_for_each_component_is_the_common_one_where_they_are_equal(double):
    scale = np.diag([0.5, 1.0, 2.0])
    for name, one, each in (
        ("full", scale, np.stack([scale] * K)),
        ("diag", np.diag(scale), np.ones((K, 1)) * np.diag(scale)),
    ):
        a, b = (
            quick_step(begin(name), X, prior=jaxgmm.Prior(mean=m, strength=0.1, dof=5.0, scale=s))[0]
            for m, s in ((np.zeros(D), one), (np.zeros((K, D)), each))
        )
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12, atol=1e-14), a, b)
    # 100 times the scale of one component adds 99 of its own to its scatter matrix, none to the others.
    wide = np.stack([scale, scale, 100 * scale])
    centre = {"mean": np.zeros((K, D)), "strength": 0.1, "dof": 5.0}
    found, plain = (
        quick_step(begin(), X, prior=jaxgmm.Prior(scale=s, **centre))[0].covariances
        for s in (wide, np.stack([scale] * K))
    )
    added = np.asarray(found - plain)
    assert_allclose(added[:2], 0, atol=1e-14)
    assert_allclose(added[2] / added[2, 0, 0], scale / scale[0, 0], atol=1e-12)
    assert added[2, 0, 0] > 0


def test_no_fit_takes_a_prior_where_means_are_held():
    for number, fit in enumerate(
        [
            jaxgmm.fit,
            jaxgmm.em_step,
            jaxgmm.fit_stream,
            jaxgmm.outofcore.fit_stepwise,
            lambda start, x, prior: jaxgmm.gradients.fit_unrolled(start, x, 2, prior=prior),
            lambda start, x, prior: jaxgmm.inference.convergence_rate(start, x, prior=prior),
            lambda start, x, prior: jaxgmm.fit_sharded(
                start, x, mesh=jax.sharding.Mesh(jax.devices(), ("rows",)), prior=prior
            ),
            lambda start, x, prior: jaxgmm.fit_restarts(
                jax.random.key(0), x, K, init=jax.tree.map(lambda a: jnp.stack([a, a]), start), prior=prior
            ),
            lambda start, x, prior: jaxgmm.parallel.engines.fit_engine(
                start, jaxgmm.parallel.engines.LocalEngine([x]), prior=prior
            ),
        ]
    ):
        with case(number):
            start, prior = (
                hold(begin(dtype="float32"), means=[0]),
                jaxgmm.Prior(mean=np.zeros(D), strength=1.0),
            )
            with pytest.raises(ValueError, match="where means are held"):
                fit(start, X.astype(np.float32), prior=prior)


def test_what_cannot_be_held_is_refused_by_name():
    for call, words in [
        (lambda: hold(begin(dtype="float32"), means=[3]), "from 0 to 2"),
        (lambda: hold(begin(dtype="float32"), means=[0.5]), "numbers of components"),
        (lambda: hold(begin(dtype="float32"), weights=[0]), "weights must be True or False"),
        (lambda: hold(begin("tied", "float32"), covariances=[0]), "share parts"),
        (lambda: hold(begin("student_t(full)", "float32"), means=True), "needs Gaussian components"),
        (
            lambda: jaxgmm.fit(
                hold(begin(dtype="float32"), means=True), X, prior=jaxgmm.Prior(dof=5.0, scale=1.0)
            ),
            "where means are held",
        ),
        (
            lambda: jaxgmm.fit_restarts(jax.random.key(0), X, K, covariance_type="full-means[0]"),
            "those of a start",
        ),
        (
            lambda: jaxgmm.fit_best(jax.random.key(0), X, K, covariance_type="full-covariances[all]"),
            "those of a start",
        ),
        (
            lambda: jaxgmm.fit_gradient(
                hold(begin(dtype="float32"), means=True), X, optax.adam(0.1), n_steps=1
            ),
            "does not hold",
        ),
        (lambda: get_model("full-means[a]"), "must be"),
    ]:
        with case(words), pytest.raises((ValueError, TypeError), match=words):
            call()


def test_what_is_held_is_not_rounded_by_the_centring():
    """In float32 a mean near 0, less a shift of 6 and the shift again, is another number."""
    start, x = begin("full", "float32", offset=6.0), (X + 6.0).astype(np.float32)
    far = np.asarray([0.0123, 0.0456, 0.0789], np.float32)
    assert (far - x.mean(0) + x.mean(0) != far).all()
    start = dataclasses.replace(start, means=start.means.at[0].set(far))
    start = hold(start, weights=True, means=[0], covariances=[0])
    result = quick_fit(start, x)
    assert (np.asarray(result.params.means)[0] == far).all()
    several = jax.tree.map(lambda a: jnp.stack([a]), start)
    results = jaxgmm.fit_restarts(jax.random.key(0), x, K, init=several)
    assert (np.asarray(results.params.means)[0, 0] == far).all()


def test_an_extrapolation_holds_what_a_step_holds(double):
    held = hold(begin(), means=[0], covariances=[1])
    for chart in (coordinates.extrapolation(held.model), coordinates.isometric(held.model)):
        other = dataclasses.replace(held, means=held.means + 1, scale=held.scale * 2)
        back = quick_jit(lambda p, q, c=chart: c.back(p, c.to(p, q)))(held, other)
        assert (np.asarray(back.means[0]) == np.asarray(held.means[0])).all()
        assert (np.asarray(back.scale[1]) == np.asarray(held.scale[1])).all()
        assert_allclose(back.means[1:], other.means[1:], rtol=1e-12)
        assert_allclose(np.asarray(back.scale)[[0, 2]], np.asarray(other.scale)[[0, 2]], rtol=1e-12)
