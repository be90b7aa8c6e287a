"""Many fits in a few slots are the same as one fit after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import _batch, em
from jaxgmm.data import Data
from tests.conftest import on_host, overlapping, soft_labels
from tests.quick import quick_jit

N, D, K, LANES = 60, 2, 3, 7
X = overlapping(N, D, K)[0]
OPTIONS = {"block_size": N, "history_size": 16}


def starts():
    """Some good ones, some that take much longer, and one that fails."""
    rng = np.random.default_rng(1)
    resp = np.stack([soft_labels(rng.integers(K, size=N), K) for _ in range(LANES)])
    params = on_host(quick_jit(jax.vmap(lambda r: jaxgmm.m_step(r, X, covariance_type="diag")))(resp))
    sick = np.where(np.arange(LANES)[:, None, None] == 1, np.nan, params.means)
    return jaxgmm.GMMParams(params.log_weights, sick, params.scale, *params.model)


def numbers(limit):
    return jnp.asarray(1e-3), jnp.asarray(limit, jnp.int32), jnp.asarray(1e-6), jnp.asarray(True)


def test_lanes_do_not_depend_on_how_many_are_under_way(monkeypatch, double):
    params, x = starts(), X
    one = quick_jit(lambda p, limit: em.run(p, Data(jnp.asarray(x)), *numbers(limit), **OPTIONS))
    singles = [one(jax.tree.map(lambda a, i=i: a[i], params), 200) for i in range(LANES)]
    alone = jax.tree.map(lambda *a: np.stack(a), *singles)
    assert len(set(alone.n_iter.tolist())) > 2
    assert int(alone.status[1]) == jaxgmm.Status.NONFINITE
    monkeypatch.setattr(_batch, "concurrency", lambda *_: 2)
    many = quick_jit(lambda p, limits: _batch.run_many(p, Data(jnp.asarray(x)), *numbers(limits), **OPTIONS))
    found = many(params, np.full(LANES, 200))
    np.testing.assert_array_equal(found.n_iter, alone.n_iter)
    np.testing.assert_array_equal(found.status, alone.status)
    np.testing.assert_allclose(found.history, alone.history, rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), found.params, alone.params
    )
    # Each lane stops at its own limit.
    limits = np.minimum(alone.n_iter, np.arange(LANES))
    np.testing.assert_array_equal(many(params, limits).n_iter, limits)


def test_a_cpu_takes_as_many_as_fit_its_cache():
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator computes all fits together")
    assert _batch.concurrency(50, 150, 4 * 3) == 50
    assert 1 < _batch.concurrency(50, 2000, 8 * 8) < 50
    assert _batch.concurrency(50, 10**6, 64 * 32) == 1
