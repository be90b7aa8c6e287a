"""What is counted, what is charged for it, and which of several fits is kept."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import jaxgmm
from jaxgmm import FitResult, Status
from tests.conftest import case
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


def params_of(name="full", dtype=np.float64):
    """The mixture of the labels' own moments."""
    groups = [X[k == LABELS] for k in range(K)]
    means, cov = np.stack([g.mean(0) for g in groups]), np.stack([np.cov(g.T) for g in groups])
    scale = np.linalg.cholesky(cov) if name == "full" else np.sqrt(np.einsum("kdd->k", cov) / D)
    parts = (np.asarray(a, dtype) for a in (np.log(np.bincount(LABELS) / N), means, scale))
    return jaxgmm.GMMParams(*parts, jaxgmm.components.get_component(name))


def with_one_off(params):
    """Its last component switched off."""
    weights = np.exp(params.log_weights) * (np.arange(K) < K - 1)
    with np.errstate(divide="ignore"):
        return dataclasses.replace(params, log_weights=np.log(weights / weights.sum()))


def expected_of(params, x, w):
    """AIC, BIC and ICL of a "full" mixture, by SciPy."""
    on = np.flatnonzero(np.isfinite(params.log_weights))
    cov = params.scale @ params.scale.swapaxes(1, 2)
    densities = [multivariate_normal(params.means[k], cov[k]).logpdf(x) for k in on]
    joint = np.stack(densities) + params.log_weights[on, None]
    log_prob = logsumexp(joint, axis=0)
    p, deviance = len(on) * (1 + D + D * (D + 1) // 2) - 1, -2 * (w * log_prob).sum()
    bic = deviance + p * np.log(w.sum())
    return deviance + 2 * p, bic, bic - 2 * (w * (joint.max(0) - log_prob)).sum()


def results_of(log_likelihoods, statuses):
    """A FitResult of several lanes, told apart by their means."""
    n, values = len(statuses), np.asarray(log_likelihoods, np.float32)
    lanes = jax.tree.map(lambda a: np.stack([a] * n), params_of("spherical", np.float32))
    moved = lanes.means + np.arange(n, dtype=np.float32)[:, None, None]
    lanes, index = dataclasses.replace(lanes, means=moved), np.arange(n, dtype=np.int32)
    statuses, history = np.asarray(statuses, np.int32), np.zeros((n, 4), np.float32)
    return FitResult(lanes, values, values, index, statuses, history)


def test_n_parameters_counts_weights_means_and_covariances():
    for name in STRUCTURES:
        with case(name):
            scale = jaxgmm.mixture.scale_like(jaxgmm.components.get_component(name), K, D)
            scale = jax.tree.map(lambda a: np.ones(a.shape, np.float32), scale)
            params = jaxgmm.GMMParams(
                np.zeros(K, np.float32),
                np.zeros((K, D), np.float32),
                scale,
                jaxgmm.components.get_component(name),
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


@quick_jit
def all_criteria(params, x, w):
    return [criterion(params, x, w) for criterion in CRITERIA]


def test_criteria_are_their_formulas_and_weights_are_counts(dtype):
    params, x, tolerance = params_of(dtype=dtype), X.astype(dtype), 50 * np.finfo(dtype).eps
    repeated = np.repeat(x, COUNTS, axis=0)
    for w, same in ((np.ones(N, dtype), x), (COUNTS.astype(dtype), repeated)):
        got = all_criteria(params, x, w)
        assert {(a.shape, a.dtype) for a in got} == {((), dtype)}
        expected = expected_of(jax.tree.map(np.float64, params), x.astype(float), w)
        np.testing.assert_allclose(got, expected, rtol=tolerance)
        np.testing.assert_allclose(all_criteria(params, same, None), got, rtol=tolerance)
        # Outside of jit the sum of the weights is NumPy's.
        np.testing.assert_allclose(jaxgmm.bic(params, x, w), got[1], rtol=tolerance)


def test_icl_charges_for_labels_that_are_uncertain(double):
    rng, excess = np.random.default_rng(0), []
    for gap in (1.0, 3.0, 100.0):
        means = np.array([[0.0] * D, [gap] * D, [-gap] * D])
        params = dataclasses.replace(params_of(), means=means, scale=np.stack([np.eye(D)] * K))
        data = means[rng.integers(K, size=N)] + rng.normal(size=(N, D))
        _, bic, icl = all_criteria(params, data, None)
        excess.append(float(icl) - float(bic))
    assert excess[0] > 2 * excess[1] > 0
    assert excess[2] == pytest.approx(0, abs=1e-9)


def test_criteria_vmap_over_mixtures(double):
    both = (params_of(), with_one_off(params_of()))
    pair = jax.tree.map(lambda *a: np.stack(a), *both)
    got = quick_jit(jax.vmap(lambda p: [c(p, X) for c in CRITERIA]))(pair)
    expected = np.transpose([expected_of(params, X, np.ones(N)) for params in both])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# best

OK, BAD = Status.CONVERGED, Status.DEGENERATE
USED_UP = Status.MAX_ITER


_traced = quick_jit(jaxgmm.best)


def chosen(results, *criterion):
    """Which lane `best` returns, eagerly and inside jit."""
    one = jaxgmm.best(results, *criterion)
    for got in (one, _traced(results, *criterion)):
        assert got.status.shape == ()
        lane = jax.tree.map(lambda a: a[int(one.n_iter)], results)  # n_iter numbers the lanes
        jax.tree.map(np.testing.assert_array_equal, got, lane)
    return int(one.n_iter)


def test_best_has_the_highest_likelihood_of_the_lanes_that_did_not_fail():
    for log_likelihoods, statuses, expected in [
        ([-3, -1, -2], [OK, OK, OK], 1),
        ([-3, -1, -2], [OK, USED_UP, OK], 1),
        ([-3, 99, -2], [OK, BAD, OK], 2),
        ([-3, 99, -2], [OK, Status.DECREASED, OK], 2),
        ([-3, 99, -2], [OK, Status.NONFINITE, OK], 2),
        ([np.nan, -5, np.nan], [Status.NONFINITE, OK, OK], 1),
        ([np.inf, -5, -np.inf], [OK, OK, OK], 1),
    ]:
        with case(log_likelihoods):
            assert chosen(results_of(log_likelihoods, statuses)) == expected


def test_if_all_failed_best_returns_one_that_says_so():
    for status in [BAD, Status.NONFINITE, Status.DECREASED]:
        with case(status):
            results = results_of([np.nan, -1.0, 0.0], [status] * 3)
            assert jaxgmm.best(results).status == status
            with pytest.raises(RuntimeError, match=status.name):
                jaxgmm.check(jaxgmm.best(results))


def test_best_takes_the_smallest_of_a_criterion():
    results = results_of([-3, -1, -2], [OK, OK, BAD])
    assert chosen(results, np.array([5.0, 7.0, 1.0], np.float32)) == 0
    assert chosen(results, np.array([np.nan, 7.0, 1.0], np.float32)) == 1
    assert jaxgmm.best(results, [3, 2, 1]).n_iter == 1
    # A function of one mixture; the means of the lanes are larger and larger.
    assert jaxgmm.best(results, lambda p: p.means.sum()).n_iter == 0
    assert quick_jit(lambda r: jaxgmm.best(r, lambda p: -p.means.sum()))(results).n_iter == 1


def test_best_wants_lanes_and_a_value_for_each():
    results = results_of([-3, -1, -2], [OK, OK, OK])
    one = jaxgmm.best(results)
    with pytest.raises(ValueError, match=r"leading axis.*shape \(\)"):
        jaxgmm.best(one)
    with pytest.raises(ValueError, match=r"leading axis.*\(1, 3\)"):
        jaxgmm.best(jax.tree.map(lambda a: a[None], results))
    for wrong in (np.zeros(2), np.zeros((3, 1)), 1.0, lambda p: p.log_weights):
        with pytest.raises(ValueError, match=r"criterion.*\(3,\)"):
            jaxgmm.best(results, wrong)


# check


def test_check_returns_what_converged_as_it_is():
    results = results_of([-3, -1, -2], [OK, OK, OK])
    assert jaxgmm.check(results) is results
    one = jaxgmm.best(results)
    assert jaxgmm.check(one) is one


def test_check_raises_once_with_the_status_the_lane_and_the_remedy():
    for status, remedy in [
        (Status.MAX_ITER, "max_iter"),
        (Status.NONFINITE, "NaN"),
        (Status.DECREASED, "likelihood"),
        (Status.DEGENERATE, "reg_covar"),
    ]:
        with case(status, remedy):
            results = results_of([-3, -1, -2], [OK, OK, status])
            with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*fit 2.*{remedy}.*1 of 3"):
                jaxgmm.check(results)
            with pytest.raises(RuntimeError, match=rf"(?s){status.name}.*the fit.*{remedy}"):
                jaxgmm.check(jax.tree.map(lambda a: a[2], results))
            nested = jax.tree.map(lambda a: a[None], results)
            with pytest.raises(RuntimeError, match="fit 0, 2"):
                jaxgmm.check(nested)


def test_check_inside_jit_says_to_look_at_the_status():
    results = results_of([-3, -1], [OK, OK])
    with pytest.raises(TypeError, match=r"jit.*result\.status"):
        jax.jit(jaxgmm.check)(results)
