"""Many fits in a few slots are the same as one fit after another."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import loop
from jaxgmm.kernels.blocked_sum import block_rows
from tests.conftest import overlapping, soft_labels

N, D, K, LANES = 60, 2, 3, 7


def starts(X, name):
    """Some good ones, and some that take much longer."""
    rng = np.random.default_rng(1)
    one = [
        jaxgmm.m_step(soft_labels(rng.integers(K, size=N), K, X.dtype), X, covariance_type=name)
        for _ in range(LANES)
    ]
    return jax.tree.map(lambda *a: jnp.stack(a), *one)


def many(params, X, kernel, limits=200, prior_of=None, x=None, run=loop.run_many):
    numbers = (jnp.asarray(v, X.dtype) for v in (1e-3, 1e-6))
    tol, reg = numbers
    return run(
        params, jnp.asarray(X) if x is None else x, None, tol, jnp.asarray(limits, jnp.int32), reg,
        jnp.asarray(True), prior_of, block_size=block_rows(N, K, D), history_size=16, kernel=kernel,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["whitened", pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "width",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(LANES, marks=pytest.mark.slow),
    ],
)
def test_lanes_do_not_depend_on_how_many_are_under_way(monkeypatch, double, width, kernel):
    X = overlapping(N, D, K)[0]
    params = starts(X, "full")
    one = jax.jit(functools.partial(many, X=X, kernel=kernel, run=loop.run))
    singles = [one(jax.tree.map(lambda a, i=i: a[i], params)) for i in range(LANES)]
    alone = jax.tree.map(lambda *a: np.stack(a), *singles)
    assert len(set(alone.n_iter.tolist())) > 2
    monkeypatch.setattr(loop, "concurrency", lambda *_: width)
    found = many(params, X, kernel)
    np.testing.assert_array_equal(found.n_iter, alone.n_iter)
    np.testing.assert_array_equal(found.status, alone.status)
    np.testing.assert_allclose(found.history, alone.history, rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), found.params, alone.params
    )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_lane_has_its_own_prior_and_the_derivative_of_a_fit_of_its_own(monkeypatch, double):
    X = overlapping(N, D, K)[0]
    params = jax.tree.map(lambda a: a[:3], starts(X, "diag"))
    priors = [jaxgmm.default_prior(X, K, covariance_type="diag", strength=0.5 + i) for i in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *priors)
    monkeypatch.setattr(loop, "concurrency", lambda *_: 2)

    def lanes(x):
        found = many(params, X, "whitened", prior_of=lambda i: jax.tree.map(lambda a: a[i], stacked), x=x)
        return (found.params.means**2).sum((1, 2))

    def single(x, i):
        own = jax.tree.map(lambda a: a[i], params)
        found = jaxgmm.fit(own, x, tol=1e-3, max_iter=200, prior=priors[i])
        return (found.params.means**2).sum()

    x = jnp.asarray(X)
    got = jax.jacrev(lanes)(x)
    for i in range(3):
        np.testing.assert_allclose(got[i], jax.grad(single)(x, i), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_lane_that_fails_leaves_its_slot_to_the_next(monkeypatch, double):
    X = overlapping(N, D, K)[0]
    params = starts(X, "full")
    sick = params.means.at[1].set(jnp.nan)
    sick = jaxgmm.GMMParams(params.log_weights, sick, params.scale, params.family)
    monkeypatch.setattr(loop, "concurrency", lambda *_: 2)
    found, sound = many(sick, X, "whitened"), many(params, X, "whitened")
    assert int(found.status[1]) == jaxgmm.Status.NONFINITE
    others = np.arange(LANES) != 1
    np.testing.assert_array_equal(found.n_iter[others], sound.n_iter[others])
    np.testing.assert_allclose(found.log_likelihood[others], sound.log_likelihood[others], rtol=1e-12)


def test_each_lane_stops_at_its_own_limit(monkeypatch, double):
    X = overlapping(N, D, K)[0]
    limits = np.arange(1, LANES + 1)
    monkeypatch.setattr(loop, "concurrency", lambda *_: 3)
    np.testing.assert_array_equal(many(starts(X, "full"), X, "whitened", limits).n_iter, limits)


def test_a_cpu_takes_as_many_as_fit_its_cache():
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere all of them are under way at once")
    assert loop.concurrency(50, 150, 4 * 3) == 50
    assert 1 < loop.concurrency(50, 2000, 8 * 8) < 50
    assert loop.concurrency(50, 10**6, 64 * 32) == 1


@pytest.mark.slow
def test_fifty_fits_at_once_come_to_an_end():
    """LAPACK's batched solvers of jaxlib 0.10 wait for each other on a machine with few cores."""
    program = """
import jax, jax.numpy as jnp, jaxgmm
X = jax.random.normal(jax.random.key(0), (400, 8))
resp = jax.nn.softmax(3 * jax.random.normal(jax.random.key(1), (50, 400, 8)))
starts = jax.vmap(lambda r: jaxgmm.m_step(r, X))(resp)
results = jax.jit(jax.vmap(lambda p: jaxgmm.fit(p, X, max_iter=30)))(starts)
print(results.n_iter.sum() > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "True", done.stderr
