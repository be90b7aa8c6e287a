"""What is counted, what is charged for it, and which of several fits is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import FitResult, Status
from tests.conftest import overlapping, start_from

N, D, K = 50, 3, 2
X, LABELS = overlapping(N, D, K, seed=2)
COUNTS = np.random.default_rng(0).integers(0, 4, size=N)
CRITERIA = [jaxgmm.aic, jaxgmm.bic, jaxgmm.icl]


def params_of(name, dtype=np.float64):
    return start_from(X, LABELS, name, dtype)


def with_one_off(params):
    """The mixture with one more component, switched off."""

    def longer(a, b):
        return jnp.concatenate([a, b[:1]]) if a.shape[:1] == (K,) else a

    wider = jax.tree.map(longer, params, params)
    if params.family.name == "tied":
        wider = dataclasses.replace(wider, scale=params.scale)
    log_weights = wider.log_weights.at[K].set(-jnp.inf)
    return dataclasses.replace(wider, log_weights=log_weights)


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


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_n_parameters_counts_weights_means_and_covariances(k, d, name):
    covariance = {
        "full": k * d * (d + 1) // 2,
        "tied": d * (d + 1) // 2,
        "diag": k * d,
        "spherical": k,
    }[name]
    rng = np.random.default_rng(0)
    params = jaxgmm.m_step(rng.dirichlet(np.ones(k), size=9), rng.normal(size=(9, d)), covariance_type=name)
    got = jaxgmm.n_parameters(params)
    assert type(got) is int
    assert got == (k - 1) + k * d + covariance


def test_a_switched_off_component_has_no_parameters(name, double):
    params = params_of(name)
    padded = with_one_off(params)
    assert padded.n_components == K + 1
    assert jaxgmm.n_parameters(padded) == jaxgmm.n_parameters(params)
    for criterion in CRITERIA:
        np.testing.assert_allclose(criterion(padded, X), criterion(params, X), rtol=1e-12)


def test_n_parameters_under_jit_is_an_int32(name):
    params = params_of(name, np.float32)
    for one in (params, with_one_off(params)):
        traced = jax.jit(jaxgmm.n_parameters)(one)
        assert traced.dtype == np.int32
        assert int(traced) == jaxgmm.n_parameters(params)


@pytest.mark.parametrize("weighted", [False, True])
def test_criteria_are_their_formulas(weighted, name, dtype):
    params = params_of(name, dtype)
    w = COUNTS.astype(dtype) if weighted else np.ones(N, dtype)
    resp, log_prob = (np.asarray(a, np.float64) for a in jaxgmm.e_step(params, X.astype(dtype)))
    p, n = jaxgmm.n_parameters(params), w.sum()
    aic = -2 * (w * log_prob).sum() + 2 * p
    bic = -2 * (w * log_prob).sum() + p * np.log(n)
    icl = bic - 2 * (w * np.log(resp.max(1))).sum()
    arguments = (params, X.astype(dtype), *([w] if weighted else []))
    tolerance = 50 * np.finfo(dtype).eps
    for criterion, expected in zip(CRITERIA, (aic, bic, icl), strict=True):
        got = criterion(*arguments)
        assert got.shape == ()
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_are_counts(criterion, double):
    params = params_of("full")
    repeated = np.repeat(X, COUNTS, axis=0)
    np.testing.assert_allclose(criterion(params, X, COUNTS), criterion(params, repeated), rtol=1e-12)
    np.testing.assert_allclose(criterion(params, X), criterion(params, X, np.ones(N, int)), rtol=1e-12)


def test_icl_charges_for_labels_that_are_uncertain(double):
    covariances = np.stack([np.eye(D)] * 2)
    excess = []
    for gap in (1.0, 3.0, 100.0):
        means = np.array([[0.0] * D, [gap] * D])
        params = jaxgmm.make_params([0.5, 0.5], means, covariances)
        data, _ = jaxgmm.sample(jax.random.key(0), params, N)
        excess.append(float(jaxgmm.icl(params, data) - jaxgmm.bic(params, data)))
    assert excess[0] > 2 * excess[1] > 0
    assert excess[2] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_jit_and_vmap_over_mixtures(criterion):
    x = X.astype(np.float32)
    params = params_of("full", np.float32)
    pair = jax.tree.map(
        lambda *a: jnp.stack(a), with_one_off(params), with_one_off(params_of("full", np.float32))
    )
    both = jax.jit(jax.vmap(lambda p: criterion(p, x)))(pair)
    np.testing.assert_allclose(both, np.full(2, criterion(params, x)), rtol=1e-5)


# best

OK, BAD = Status.CONVERGED, Status.DEGENERATE
USED_UP = Status.MAX_ITER


def chosen(results, *arguments):
    """Which lane `best` returns, eagerly and inside jit."""
    one = jaxgmm.best(results, *arguments)
    traced = jax.jit(lambda r: jaxgmm.best(r, *arguments))(results)
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
    assert chosen(results_of(params_of("spherical", np.float32), log_likelihoods, statuses)) == expected


@pytest.mark.parametrize("status", [BAD, Status.NONFINITE, Status.DECREASED])
def test_if_all_failed_best_returns_one_that_says_so(status):
    results = results_of(params_of("spherical", np.float32), [np.nan, -1.0], [status, status])
    assert jaxgmm.best(results).status == status
    with pytest.raises(RuntimeError, match=status.name):
        jaxgmm.check(jaxgmm.best(results))


def test_best_takes_the_smallest_of_a_criterion_that_is_an_array():
    results = results_of(params_of("spherical", np.float32), [-3, -1, -2, 0], [OK, OK, OK, BAD])
    assert chosen(results, np.array([5.0, 7.0, 6.0, 1.0])) == 0
    assert chosen(results, jnp.array([np.nan, 7.0, 6.0, 1.0])) == 2
    assert chosen(results, [3, 2, 4, 1]) == 1


def test_best_takes_the_smallest_of_a_criterion_that_is_a_function():
    x = X.astype(np.float32)
    results = results_of(params_of("spherical", np.float32), [-3, -1, -2], [BAD, OK, OK])
    bics = np.asarray(jax.vmap(lambda p: jaxgmm.bic(p, x))(results.params))
    assert bics.argmin() == 0  # the lane that is not moved away from the data, which failed
    assert chosen(results, lambda p: jaxgmm.bic(p, x)) == 1
    assert chosen(results, lambda p: -jaxgmm.bic(p, x)) == 2


def test_best_wants_lanes_and_a_value_for_each():
    results = results_of(params_of("spherical", np.float32), [-3, -1, -2], [OK, OK, OK])
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
    results = results_of(params_of("spherical", np.float32), [-3, -1], [OK, OK])
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
    results = results_of(params_of("spherical", np.float32), [-3, -1, -2], [OK, OK, status])
    with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*lane 2.*{remedy}.*1 of 3"):
        jaxgmm.check(results)
    with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*the fit.*{remedy}"):
        jaxgmm.check(jax.tree.map(lambda a: a[2], results))
    nested = jax.tree.map(lambda a: a[None], results)
    with pytest.raises(RuntimeError, match="lane 0, 2"):
        jaxgmm.check(nested)


def test_check_inside_jit_says_to_look_at_the_status():
    results = results_of(params_of("spherical", np.float32), [-3, -1], [OK, OK])
    with pytest.raises(TypeError, match=r"jit.*result\.status"):
        jax.jit(jaxgmm.check)(results)
