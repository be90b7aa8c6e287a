"""What is counted, what is charged for it, and which of several fits is kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import FitResult, Status
from tests.conftest import start_from
from tests.problems import LABELS, STRUCTURES, D, K, N, X
from tests.quick import quick_jit

COUNTS = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N))  # of N rows in all
CRITERIA = (jaxgmm.aic, jaxgmm.bic, jaxgmm.icl)
FREE = {  # numbers in the covariances of K = 3 components in D = 3 dimensions
    "full": 18,
    "tied": 6,
    "diag": 9,
    "spherical": 3,
    "EII": 1,
    "EEI": 3,
    "VEI": 5,
    "EVI": 7,
    "VEE": 8,
    "EVE": 10,
    "VVE": 12,
    "EEV": 12,
    "VEV": 14,
    "EVV": 16,
}


@functools.cache
def params_of(name="full", dtype="float64"):
    return start_from(X, LABELS, name, np.dtype(dtype))


def with_one_off(params):
    """Its last component switched off."""
    log_weights = jax.nn.log_softmax(params.log_weights.at[K - 1].set(-jnp.inf))
    return dataclasses.replace(params, log_weights=log_weights)


def results_of(params, log_likelihoods, statuses, dtype=np.float32):
    """A FitResult of several lanes, told apart by their means."""
    n = len(statuses)
    lanes = jax.tree.map(lambda a: jnp.stack([a] * n), params)
    marked = dataclasses.replace(
        lanes, means=lanes.means + jnp.arange(n, dtype=lanes.means.dtype)[:, None, None]
    )
    return FitResult(
        marked,
        jnp.asarray(log_likelihoods, dtype),
        jnp.asarray(log_likelihoods, dtype),
        jnp.arange(n, dtype=jnp.int32),
        jnp.asarray(statuses, jnp.int32),
        jnp.zeros((n, 4), dtype),
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_n_parameters_counts_weights_means_and_covariances(name):
    scale = jaxgmm.mixture.scale_like(jaxgmm.components.get_component(name), K, D)
    scale = jax.tree.map(lambda a: np.ones(a.shape, np.float32), scale)
    params = jaxgmm.GMMParams(
        np.zeros(K, np.float32), np.zeros((K, D), np.float32), scale, jaxgmm.components.get_component(name)
    )
    got = jaxgmm.n_parameters(params)
    assert type(got) is int
    assert got == (K - 1) + K * D + FREE[name]


def test_a_switched_off_component_has_no_parameters(double):
    params = with_one_off(params_of())
    alone = jaxgmm.mixture.active(params)
    assert alone.n_components == K - 1
    assert jaxgmm.n_parameters(params) == jaxgmm.n_parameters(alone) == 1 + 2 * (D + D * (D + 1) // 2)
    traced = jax.jit(jaxgmm.n_parameters)(params)
    assert traced.dtype == np.int32
    assert int(traced) == jaxgmm.n_parameters(params)
    for criterion in CRITERIA:
        np.testing.assert_allclose(criterion(params, X), criterion(alone, X), rtol=1e-12)


def test_criteria_are_their_formulas_and_weights_are_counts(dtype):
    params, x, repeated = params_of("full", dtype.name), X.astype(dtype), np.repeat(X, COUNTS, axis=0)
    p, tolerance = jaxgmm.n_parameters(params), 50 * np.finfo(dtype).eps
    for w in (np.ones(N, dtype), COUNTS.astype(dtype)):
        resp, log_prob = (np.asarray(a, np.float64) for a in jaxgmm.e_step(params, x))
        deviance = -2 * (w * log_prob).sum()
        bic = deviance + p * np.log(w.sum())
        expected = (deviance + 2 * p, bic, bic - 2 * (w * np.log(resp.max(1))).sum())
        for criterion, value in zip(CRITERIA, expected, strict=True):
            got = criterion(params, x, w)
            assert got.shape == ()
            assert got.dtype == dtype
            np.testing.assert_allclose(got, value, rtol=tolerance)
    ones = np.ones(N, dtype)
    for criterion in CRITERIA:
        by_rows = criterion(params, repeated.astype(dtype), ones)
        np.testing.assert_allclose(criterion(params, x, COUNTS.astype(dtype)), by_rows, rtol=tolerance)
        np.testing.assert_allclose(criterion(params, x), criterion(params, x, ones), rtol=tolerance)


def test_icl_charges_for_labels_that_are_uncertain(double):
    covariances = np.stack([np.eye(D)] * K)
    excess = []
    for gap in (1.0, 3.0, 100.0):
        means = np.array([[0.0] * D, [gap] * D, [-gap] * D])
        params = jaxgmm.make_params(np.full(K, 1 / K), means, covariances)
        data, _ = jaxgmm.sample(jax.random.key(0), params, N)
        excess.append(float(jaxgmm.icl(params, data) - jaxgmm.bic(params, data)))
    assert excess[0] > 2 * excess[1] > 0
    assert excess[2] == pytest.approx(0, abs=1e-9)


def test_criteria_vmap_over_mixtures(double):
    pair = jax.tree.map(lambda *a: jnp.stack(a), params_of(), with_one_off(params_of()))
    both = quick_jit(jax.vmap(lambda p: [c(p, X) for c in CRITERIA]))(pair)
    for got, criterion in zip(both, CRITERIA, strict=True):
        expected = [criterion(params_of(), X), criterion(with_one_off(params_of()), X)]
        np.testing.assert_allclose(got, expected, rtol=1e-12)


# best

OK, BAD = Status.CONVERGED, Status.DEGENERATE
USED_UP = Status.MAX_ITER


def chosen(results, *arguments):
    """Which lane `best` returns, eagerly and inside jit."""
    one = jaxgmm.best(results, *arguments)
    traced = quick_jit(lambda r: jaxgmm.best(r, *arguments))(results)
    for got in (one, traced):
        assert got.status.shape == ()
        lane = jax.tree.map(lambda a: a[int(one.n_iter)], results)  # n_iter numbers the lanes
        jax.tree.map(np.testing.assert_array_equal, got, lane)
    return int(one.n_iter)


@pytest.mark.parametrize(
    ("log_likelihoods", "statuses", "expected"),
    [
        ([-3, -1, -2], [OK, OK, OK], 1),
        ([-3, -1, -2], [OK, USED_UP, OK], 1),
        ([-3, 99, -2], [OK, BAD, OK], 2),
        ([-3, 99, -2], [OK, Status.DECREASED, OK], 2),
        ([-3, 99, -2], [OK, Status.NONFINITE, OK], 2),
        ([np.nan, -5, np.nan], [Status.NONFINITE, OK, OK], 1),
        ([np.inf, -5, -np.inf], [OK, OK, OK], 1),
        ([-5], [OK], 0),
    ],
)
def test_best_has_the_highest_likelihood_of_the_lanes_that_did_not_fail(log_likelihoods, statuses, expected):
    assert chosen(results_of(params_of("spherical", "float32"), log_likelihoods, statuses)) == expected


@pytest.mark.parametrize("status", [BAD, Status.NONFINITE, Status.DECREASED])
def test_if_all_failed_best_returns_one_that_says_so(status):
    results = results_of(params_of("spherical", "float32"), [np.nan, -1.0], [status, status])
    assert jaxgmm.best(results).status == status
    with pytest.raises(RuntimeError, match=status.name):
        jaxgmm.check(jaxgmm.best(results))


def test_best_takes_the_smallest_of_a_criterion_that_is_an_array():
    results = results_of(params_of("spherical", "float32"), [-3, -1, -2, 0], [OK, OK, OK, BAD])
    assert chosen(results, np.array([5.0, 7.0, 6.0, 1.0])) == 0
    assert chosen(results, jnp.array([np.nan, 7.0, 6.0, 1.0])) == 2
    assert chosen(results, [3, 2, 4, 1]) == 1


def test_best_takes_the_smallest_of_a_criterion_that_is_a_function():
    x = X.astype(np.float32)
    results = results_of(params_of("spherical", "float32"), [-3, -1, -2], [BAD, OK, OK])
    bics = np.asarray(quick_jit(jax.vmap(lambda p: jaxgmm.bic(p, x)))(results.params))
    assert bics.argmin() == 0  # the lane that is not moved away from the data, which failed
    assert chosen(results, lambda p: jaxgmm.bic(p, x)) == 1
    assert chosen(results, lambda p: -jaxgmm.bic(p, x)) == 2


def test_best_wants_lanes_and_a_value_for_each():
    results = results_of(params_of("spherical", "float32"), [-3, -1, -2], [OK, OK, OK])
    one = jaxgmm.best(results)
    with pytest.raises(ValueError, match=r"leading axis.*shape \(\)"):
        jaxgmm.best(one)
    with pytest.raises(ValueError, match=r"leading axis.*\(1, 3\)"):
        jaxgmm.best(jax.tree.map(lambda a: a[None], results))
    for wrong in (np.zeros(2), np.zeros((3, 1)), 1.0, lambda p: p.weights):
        with pytest.raises(ValueError, match=r"criterion.*\(3,\)"):
            jaxgmm.best(results, wrong)


# check


def test_check_returns_what_converged_as_it_is():
    results = results_of(params_of("spherical", "float32"), [-3, -1], [OK, OK])
    assert jaxgmm.check(results) is results
    one = jaxgmm.best(results)
    assert jaxgmm.check(one) is one


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (Status.MAX_ITER, "max_iter"),
        (Status.NONFINITE, "NaN"),
        (Status.DECREASED, "likelihood"),
        (Status.DEGENERATE, "reg_covar"),
    ],
)
def test_check_raises_once_with_the_status_the_lane_and_the_remedy(status, remedy):
    results = results_of(params_of("spherical", "float32"), [-3, -1, -2], [OK, OK, status])
    with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*fit 2.*{remedy}.*1 of 3"):
        jaxgmm.check(results)
    with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*the fit.*{remedy}"):
        jaxgmm.check(jax.tree.map(lambda a: a[2], results))
    nested = jax.tree.map(lambda a: a[None], results)
    with pytest.raises(RuntimeError, match="fit 0, 2"):
        jaxgmm.check(nested)


def test_check_inside_jit_says_to_look_at_the_status():
    results = results_of(params_of("spherical", "float32"), [-3, -1], [OK, OK])
    with pytest.raises(TypeError, match=r"jit.*result\.status"):
        jax.jit(jaxgmm.check)(results)
