"""Right in float32: offsets, condition numbers, and where a fit stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import dense, overlapping, start_from, x64
from tests.problems import LABELS, D, K, N, X, few_structures, fitted

SINGLE, DOUBLE = np.float32, np.float64


def widened(params):
    """The same numbers in float64."""
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params)


@few_structures
def test_an_offset_costs_a_float32_fit_little(name):
    base = fitted(name).result
    for offset, allowed in ((1e3, 1e-3), (1e4, 1e-3), (1e5, 5e-3)):
        x = (X + offset).astype(SINGLE)
        result = jaxgmm.fit(start_from(x, LABELS, name, SINGLE), x)
        assert result.status == Status.CONVERGED
        assert abs(float(result.log_likelihood) - float(base.log_likelihood)) < allowed


@pytest.mark.parametrize("name", ["full", "VVE"])
def test_one_step_in_float32_at_a_high_condition_number(name):
    """Relative to the size of the covariance, 2e-5 of float64's."""
    for condition, offset in ((1e2, 1e3), (1e6, 0.0), (1e6, 1e3)):
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.geomspace(1, condition**-0.5, D)
        labels = rng.integers(K, size=N)
        x = (rng.normal(size=(K, D)) @ basis.T * 2)[labels] + rng.normal(size=(N, D)) @ basis.T + offset
        x = x.astype(SINGLE)
        start = start_from(x, labels, name, SINGLE, reg_covar=0.0)
        narrow, _ = jaxgmm.em_step(start, x, np.ones(N, SINGLE), reg_covar=0.0)
        with x64(True):
            exact, _ = jaxgmm.em_step(widened(start), x.astype(float), np.ones(N), reg_covar=0.0)
        for a, b in zip(dense(narrow)[2], dense(exact)[2], strict=True):
            assert np.linalg.norm(a - b) < 2e-5 * np.linalg.norm(b)


def test_float32_stops_where_float64_does():
    """Slow mixtures, whose likelihood stops changing in float32 long before they have converged."""
    for seed in range(3):
        data, labels = overlapping(N, D, K, seed=seed, separation=1.2)
        x = data.astype(SINGLE)
        narrow = jaxgmm.fit(start_from(x, labels, "full", SINGLE), x)
        assert narrow.status == Status.CONVERGED
        with x64(True):
            start = start_from(x.astype(float), labels, "full", DOUBLE)
            optimum = jaxgmm.fit(start, x.astype(float), tol=1e-9, max_iter=10_000)
            gap = float(optimum.log_likelihood - jaxgmm.score(widened(narrow.params), x.astype(float)))
        assert abs(gap) < 1e-6


@pytest.mark.parametrize("name", ["full", "diag"])
def test_features_of_very_different_units_fit_alike(name):
    units, results = np.array([2.0**-20, 1.0, 2.0**20]), []
    for scale in (np.ones(3), units):
        x = (X * scale).astype(SINGLE)
        results.append(jaxgmm.fit(start_from(x, LABELS, name, SINGLE, reg_covar=0.0), x, reg_covar=0.0))
    assert results[0].status == results[1].status == Status.CONVERGED
    shifted = float(results[1].log_likelihood) + np.log(units).sum()
    np.testing.assert_allclose(shifted, float(results[0].log_likelihood), atol=2e-5)


def test_the_default_ridge_is_negligible_where_features_have_mixed_units(double):
    x = X * np.array([1e-3, 1.0, 1e3])
    free, ridged = (
        jaxgmm.fit(start_from(x, LABELS, "full", double, reg_covar=r), x, reg_covar=r) for r in (0.0, 1e-6)
    )
    assert abs(float(free.log_likelihood - ridged.log_likelihood)) < 1e-8


def test_weights_of_many_small_blocks_do_not_drift():
    data = np.random.default_rng(0).normal(size=(1 << 18, 1)).astype(np.float32)
    start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
    _, moments = jaxgmm.em_step(start, data, block_size=16)
    np.testing.assert_allclose(float(moments.weight.sum()), 1 << 18, rtol=2e-7)
    log_prob = np.asarray(jaxgmm.log_prob(start, data), np.float64)
    np.testing.assert_allclose(float(moments.log_likelihood), log_prob.sum(), rtol=2e-7)
