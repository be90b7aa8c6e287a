"""A bound on the ratio of eigenvalues."""

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import VVE, eigen_ratio, full, get_covariance, get_model
from jaxgmm.components.covariance.eigen_ratio import truncation_level
from tests.conftest import soft_labels
from tests.problems import LABELS, D, K, X
from tests.quick import quick_jit

quick_m_step = quick_jit(jaxgmm.m_step, static_argnames="covariance_type")


def test_the_level_is_the_best_there_is(double):
    rng = np.random.default_rng(0)
    values, weight = np.exp(2 * rng.normal(size=(4, 3))), np.array([0.2, 0.5, 0.3, 0.0])
    level_of = quick_jit(truncation_level)
    for ratio in (1.0, 3.0, 50.0, 1e6):

        def cost(log_level, ratio=ratio):
            low = np.exp(log_level)
            clipped = np.clip(values, low, ratio * low)
            return (weight[:, None] * (np.log(clipped) + values / clipped)).sum()

        level = float(level_of(values, weight, ratio))
        grid = np.linspace(-8, 8, 400)
        near = grid[np.argmin([cost(g) for g in grid])]
        best = minimize_scalar(
            cost, bounds=(near - 0.1, near + 0.1), method="bounded", options={"xatol": 1e-12}
        )
        assert cost(np.log(level)) <= best.fun + 1e-12


@pytest.mark.parametrize("name", ["full", "tied", "diag", "spherical"])
def test_steps_stay_within_the_ratio_and_climb(name):
    x = X.astype(np.float32)

    @quick_jit
    def steps(resp):
        def iterate(resp, _):
            params = jaxgmm.m_step(resp, x, covariance_type=f"{name}-ratio(2)", reg_covar=0.0)
            resp, log_prob = jaxgmm.e_step(params, x)
            return resp, (log_prob.mean(), params.covariances)

        return jax.lax.scan(iterate, resp, length=12)[1]

    values, covariances = steps(soft_labels(LABELS, K, np.float32))
    eigenvalues = np.linalg.eigvalsh(np.asarray(covariances[-1], float))
    # For components that differ only in their shares: a tied matrix is the same in each.
    assert eigenvalues.max() <= 2.0 * (1 + 1e-5) * eigenvalues.min()
    assert (np.diff(values) > -2e-6).all()


def test_a_ratio_that_does_not_bind_changes_nothing_and_what_is_off_has_no_say(double):
    resp = soft_labels(LABELS, K)

    def step(resp, name):
        return np.asarray(quick_m_step(resp, X, covariance_type=name).covariances)

    np.testing.assert_allclose(step(resp, "full-ratio(1e6)"), step(resp, "full"), rtol=1e-12, atol=1e-14)
    # Without the third component, and as if the first were there twice, by halves.
    off, halves = resp.copy(), resp.copy()
    off[:, 2], off[:, 0] = 0, resp[:, 0] + resp[:, 2]
    halves[:, 0] = halves[:, 2] = off[:, 0] / 2
    padded, split = (step(r, "full-ratio(3)") for r in (off, halves))
    np.testing.assert_allclose(padded[:2], split[:2], rtol=1e-9, atol=1e-12)
    assert np.isfinite(padded).all()


def test_a_spike_becomes_a_mixture():
    """Equal points draw a component of `full` onto them; with the bound there is an optimum."""
    x = np.array(X, np.float32)
    x[:6] = 30.0
    # The others, by turns, in two more components.
    labels = np.where(np.arange(len(x)) < 6, 0, 1 + LABELS % 2)
    means = np.stack([x[labels == k].mean(0) for k in range(K)])
    results = []
    for name in ("full", "full-ratio(10)"):
        scale = np.stack([np.eye(D) * (0.5 if k == 0 else 2) for k in range(K)]).astype(np.float32)
        weights = np.log(np.bincount(labels) / len(x)).astype(np.float32)
        start = jaxgmm.GMMParams(weights, means, scale, *get_model(name))
        results.append(quick_jit(jaxgmm.fit)(start, x, reg_covar=0.0))
    assert results[0].status == Status.DEGENERATE
    assert results[1].status == Status.CONVERGED
    assert results[1].params.weights[0] > 0


def test_names_and_errors():
    assert get_covariance("full-ratio(100)") is eigen_ratio(full, 100)
    assert get_covariance("VVV-ratio(1e2)").name == "full-ratio(100)"
    with pytest.raises(ValueError, match="full, tied, diag and spherical; got 'VVE'"):
        eigen_ratio(VVE, 10.0)
    with pytest.raises(ValueError, match=r"at least 1; got 0\.5"):
        get_covariance("diag-ratio(0.5)")
    with pytest.raises(ValueError, match="must be one of"):
        get_covariance("diag-ratio(1e)")
