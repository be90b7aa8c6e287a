"""A bound on the ratio of eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import jaxgmm
from jaxgmm import Status
from jaxgmm.components import VVE, eigen_ratio, full, get_family
from jaxgmm.components.covariance.eigen_ratio import truncation_level
from tests.conftest import QUICK, costly, overlapping, soft_labels

X, LABELS = overlapping(150, 3, 3)
NAMES = ["full", "tied", "diag", "spherical"]


@pytest.mark.parametrize("ratio", [1.0, 3.0, 50.0, 1e6])
def test_the_level_is_the_best_there_is(ratio, double):
    rng = np.random.default_rng(0)
    values, weight = np.exp(2 * rng.normal(size=(4, 3))), np.array([0.2, 0.5, 0.3, 0.0])

    def cost(log_level):
        low = np.exp(log_level)
        clipped = np.clip(values, low, ratio * low)
        return (weight[:, None] * (np.log(clipped) + values / clipped)).sum()

    level = float(truncation_level(jnp.asarray(values), jnp.asarray(weight), ratio))
    grid = np.linspace(-8, 8, 400)
    near = grid[np.argmin([cost(g) for g in grid])]
    best = minimize_scalar(cost, bounds=(near - 0.1, near + 0.1), method="bounded", options={"xatol": 1e-12})
    assert cost(np.log(level)) <= best.fun + 1e-12


@pytest.mark.parametrize("name", [costly(n, quick=QUICK) for n in NAMES])
def test_fits_stay_within_the_ratio_and_climb(name):
    x = X.astype(np.float32)
    family = eigen_ratio(get_family(name), 2.0)
    resp = soft_labels(LABELS, 3, np.float32)
    start = jaxgmm.m_step(resp, x, covariance_type=family, reg_covar=0.0)
    result = jaxgmm.fit(start, x, reg_covar=0.0)
    assert result.status == Status.CONVERGED
    for params in (start, result.params):
        values = np.linalg.eigvalsh(np.asarray(params.covariances, float))
        # For components that differ only in their shares: a tied matrix is the same in each.
        assert values.max() <= 2.0 * (1 + 1e-5) * values.min()
    history = np.asarray(result.history)
    assert (np.diff(history[np.isfinite(history)]) > -2e-6).all()


def test_a_ratio_that_does_not_bind_changes_nothing(double):
    resp = soft_labels(LABELS, 3)
    free = jaxgmm.m_step(resp, X)
    held = jaxgmm.m_step(resp, X, covariance_type="full-ratio(1e6)")
    np.testing.assert_allclose(held.covariances, free.covariances, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_component_that_is_off_has_no_say_and_gradients_are_finite(double):
    resp = np.pad(soft_labels(LABELS, 3), ((0, 0), (0, 1)))
    padded = jaxgmm.m_step(resp, X, covariance_type="full-ratio(3)")
    alone = jaxgmm.m_step(resp[:, :3], X, covariance_type="full-ratio(3)")
    np.testing.assert_allclose(padded.covariances[:3], alone.covariances, rtol=1e-9, atol=1e-12)
    assert np.isfinite(padded.covariances).all()

    def total(x):
        return jnp.sin(jaxgmm.m_step(resp, x, covariance_type="full-ratio(3)").covariances[:3]).sum()

    along = np.random.default_rng(1).normal(size=X.shape)
    slope = float((jax.jit(jax.grad(total))(jnp.asarray(X)) * along).sum())
    h = 1e-6
    np.testing.assert_allclose(slope, (total(X + h * along) - total(X - h * along)) / (2 * h), rtol=1e-5)


@pytest.mark.slow
def test_a_spike_becomes_a_mixture(tmp_path):
    """Three equal points draw a component of `full` onto them; with the bound there is an optimum."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(40, 2)), np.full((6, 2), 4.0)]).astype(np.float32)
    resp = np.repeat(np.eye(2, dtype=np.float32), [40, 6], axis=0)
    results = {}
    for name in ("full", "full-ratio(10)"):
        start = jaxgmm.m_step(resp, x, covariance_type=name, reg_covar=0.0)
        results[name] = jaxgmm.fit(start, x, reg_covar=0.0)
    assert results["full"].status == Status.DEGENERATE
    good = results["full-ratio(10)"]
    assert good.status == Status.CONVERGED
    jaxgmm.io.save(tmp_path / "m", good.params)
    assert jaxgmm.io.load(tmp_path / "m").family is good.params.family


def test_names_and_errors():
    assert get_family("full-ratio(100)") is eigen_ratio(full, 100)
    assert get_family("VVV-ratio(1e2)").name == "full-ratio(100)"
    with pytest.raises(ValueError, match="full, tied, diag and spherical; got 'VVE'"):
        eigen_ratio(VVE, 10.0)
    with pytest.raises(ValueError, match=r"at least 1; got 0\.5"):
        get_family("diag-ratio(0.5)")
    with pytest.raises(ValueError, match="not a number"):
        get_family("diag-ratio(1e)")
