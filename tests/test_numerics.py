"""Right in float32: offsets, condition numbers, and where a fit stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import (
    CORE,
    NAMES,
    QUICK,
    costly,
    dense,
    every_name_at_a_cost,
    overlapping,
    soft_labels,
    start_from,
    x64,
)

OFFSETS = [(1e3, 1e-3), (1e4, 1e-3), (1e5, 5e-3)]


@pytest.mark.parametrize(
    ("name", "data"),
    [costly(n, d, quick=QUICK) for n in NAMES for d in ("iris", "faithful") if n in CORE or d == "iris"],
)
def test_an_offset_costs_float32_little(name, mclust, data):
    reference = mclust[data]
    X = np.array(reference["X"])
    labels = np.array(reference["hc_labels"]["3"])

    def fitted(offset):
        x = (X + offset).astype(np.float32)
        return jaxgmm.fit(start_from(x, labels, name, np.float32), x)

    def exactly(offset):
        """In float64, from what float32 can store of the shifted data."""
        x = (X + offset).astype(np.float32).astype(float) - offset
        with x64(True):
            return jaxgmm.fit(start_from(x, labels, name, np.float64), x)

    base = fitted(0.0)
    for offset, allowed in OFFSETS:
        result = fitted(offset)
        assert result.status == Status.CONVERGED
        # 1e5 away the data are rounded to 1/128, and the optimum itself moves: for EEV by 0.02 nats, in
        # float64 as well. What is float32's own is the difference to the fit of those data.
        other = base if name in CORE else exactly(offset)
        assert abs(float(result.log_likelihood) - float(other.log_likelihood)) < allowed


@every_name_at_a_cost
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_one_step_in_float32_at_a_high_condition_number(name, condition, offset):
    """Relative to the size of the covariance, 2e-5 of float64's."""
    rng = np.random.default_rng(0)
    n, d, k = 2000, 8, 3
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(1, condition**-0.5, d)
    labels = rng.integers(k, size=n)
    X = (rng.normal(size=(k, d)) @ basis.T * 2)[labels] + rng.normal(size=(n, d)) @ basis.T + offset
    X = X.astype(np.float32)
    start = start_from(X, labels, name, np.float32, reg_covar=0.0)
    narrow, _ = jaxgmm.em_step(start, X, reg_covar=0.0)
    by_hand = jaxgmm.m_step(soft_labels(labels, k, np.float32), X, covariance_type=name, reg_covar=0.0)
    with x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), start)
        exact, _ = jaxgmm.em_step(wide, X.astype(float), reg_covar=0.0)
        exact_by_hand = jaxgmm.m_step(
            soft_labels(labels, k, np.float32).astype(float),
            X.astype(float),
            covariance_type=name,
            reg_covar=0.0,
        )
    for got, expected in [(narrow, exact), (by_hand, exact_by_hand)]:
        for a, b in zip(dense(got)[2], dense(expected)[2], strict=True):
            assert np.linalg.norm(a - b) < 2e-5 * np.linalg.norm(b)


@pytest.mark.slow
def test_float32_stops_where_float64_does(name):
    """Slow mixtures, whose likelihood stops changing in float32 long before they have converged."""
    for seed in range(3):
        X, labels = overlapping(600, 2, 3, seed=seed, separation=1.2)
        x = X.astype(np.float32)
        narrow = jaxgmm.fit(start_from(x, labels, name, np.float32), x)
        assert narrow.status == Status.CONVERGED
        with x64(True):
            start = start_from(x.astype(float), labels, name, np.float64)
            optimum = jaxgmm.fit(start, x.astype(float), tol=1e-9, max_iter=10_000)
            wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), narrow.params)
            gap = float(optimum.log_likelihood - jaxgmm.score(wide, x.astype(float)))
        assert abs(gap) < 1e-6


def test_features_of_very_different_units_fit_alike(name):
    X, labels = overlapping(400, 3, 3)
    if name == "spherical":
        units = np.array([2.0**-20] * 3)
    else:
        units = np.array([2.0**-20, 1.0, 2.0**20])
    results = []
    for scale in (np.ones(3), units):
        x = (X * scale).astype(np.float32)
        results.append(jaxgmm.fit(start_from(x, labels, name, np.float32, reg_covar=0.0), x, reg_covar=0.0))
    assert results[0].status == results[1].status == Status.CONVERGED
    shifted = float(results[1].log_likelihood) + np.log(units).sum()
    np.testing.assert_allclose(shifted, float(results[0].log_likelihood), atol=2e-5)


@pytest.mark.slow
def test_the_default_ridge_is_negligible_where_features_have_mixed_units(double):
    X, labels = overlapping(400, 3, 3)
    x = X * np.array([1e-3, 1.0, 1e3])
    free, ridged = (
        jaxgmm.fit(start_from(x, labels, "full", double, reg_covar=r), x, reg_covar=r) for r in (0.0, 1e-6)
    )
    assert abs(float(free.log_likelihood - ridged.log_likelihood)) < 1e-8


def test_weights_of_many_small_blocks_do_not_drift():
    X = np.random.default_rng(0).normal(size=(1 << 18, 1)).astype(np.float32)
    start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
    _, moments = jaxgmm.em_step(start, X, block_size=16)
    np.testing.assert_allclose(float(moments.weight.sum()), 1 << 18, rtol=2e-7)
    log_prob = np.asarray(jaxgmm.log_prob(start, X), np.float64)
    np.testing.assert_allclose(float(moments.log_likelihood), log_prob.sum(), rtol=2e-7)
