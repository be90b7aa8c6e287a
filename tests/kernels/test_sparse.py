"""Moments from the pairs of samples and components that count are those from all pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status, loop
from jaxgmm.kernels import exact, sparse
from jaxgmm.kernels.exact import accumulate
from jaxgmm.outofcore import _streaming_statistics as streaming_statistics
from jaxgmm.parallel.engines import _blocks as blocks
from tests.conftest import costly

N, D, K, BLOCK = 500, 4, 3, 16
FAR, NEAR = 40.0, 1.0


def mixture(name, dtype, apart):
    """Clusters so far apart, the samples of one after those of another, and a mixture of that structure."""
    rng = np.random.default_rng(0)
    centres = apart * np.array([[1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0]])
    labels = np.sort(rng.choice(K, N, p=[0.2, 0.5, 0.3]))
    x = centres[labels] + rng.normal(size=(N, D)) @ rng.normal(size=(D, D))
    x = jnp.asarray(x, dtype)
    resp = jnp.asarray(0.1 / K + 0.9 * np.eye(K)[labels], dtype)
    params = jaxgmm.m_step(resp, x, covariance_type=name)
    # Its components as narrow as the clusters: the samples of one are nothing to another.
    return params if apart == NEAR else jaxgmm.em_step(jaxgmm.em_step(params, x)[0], x)[0], x


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The sums by pairs for these few numbers too."""
    monkeypatch.setattr(exact, "_TURNS", 1)
    monkeypatch.setattr(sparse, "_FEATURES", 1)
    monkeypatch.setattr(sparse, "_COMPONENTS", 1)
    monkeypatch.setattr(sparse, "_LARGE", 1)
    monkeypatch.setattr(sparse, "_CHUNK", 8)
    monkeypatch.setattr(sparse, "_SHARE", 2)


def measured(params, x, w=None, by_pairs=True):
    return accumulate(params, x, w, shift=jnp.full(D, 0.5, x.dtype), by_pairs=by_pairs, block_size=BLOCK)


def close(a, b, dtype):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # Sums of up to N terms of the size of the largest, in another order.
        rounding = 30 * np.finfo(dtype).eps * float(jnp.abs(v).max())
        np.testing.assert_allclose(u, v, rtol=0, atol=rounding)


@pytest.fixture
def mark(monkeypatch):
    """From its call on sums over pairs come out doubled, and moments of all pairs three times as large."""

    def begin():
        by_pairs, block = sparse.sums, exact._block
        monkeypatch.setattr(sparse, "sums", lambda *a: tuple(2 * part for part in by_pairs(*a)))
        monkeypatch.setattr(exact, "_block", lambda *a: block(*a) * 3)

    return begin


def doubled(m):
    return dataclasses.replace(m, first=m.first * 2, second=m.second * 2)


@pytest.mark.parametrize("apart", [FAR, NEAR])
@pytest.mark.parametrize("structure", [costly(n, quick=("full",)) for n in ("full", "tied", "EEV")])
def test_the_moments_are_those_of_all_pairs(structure, apart, dtype, mark):
    params, x = mixture(structure, dtype, apart)
    # Weights of zero where anything may stand, and the rows of a last block that overlaps.
    w = np.random.default_rng(1).uniform(0.5, 2, N).astype(dtype)
    w[[3, 77]] = 0
    spoilt = x.at[3].set(jnp.nan).at[77].set(jnp.inf)
    expected = measured(params, x, jnp.asarray(w), by_pairs=False)
    mark()
    found = jax.jit(measured)(params, spoilt, jnp.asarray(w))
    close(found, doubled(expected) if apart == FAR else expected * 3, dtype)


def shared():
    """A mixture, its samples, and a sample that belongs to two of its components."""
    params, x = mixture("full", np.float32, FAR)
    wide = jaxgmm.make_params(params.weights, params.means, 9 * params.covariances, "full")
    return wide, x, (params.means[0] + params.means[1]) / 2


def test_a_block_whose_pairs_are_many_is_summed_as_it_was(mark):
    params, x, middle = shared()
    # One block of samples that two components share, but for those that are surveyed.
    one = slice(8 * BLOCK, 12 * BLOCK)
    unseen = (jnp.arange(N) % (N // BLOCK) != 0)[one, None]
    x = x.at[one].set(jnp.where(unseen, middle, x[one]))
    first, here, last = (
        measured(params, part, by_pairs=False) for part in jnp.split(x, [one.start, one.stop])
    )
    mark()
    found = jax.jit(measured)(params, x)
    close(found, doubled(first) + here * 3 + doubled(last), np.float32)


def test_under_vmap_each_is_what_it_is_alone(mark):
    params, x, middle = shared()
    several = jnp.stack([x, jnp.broadcast_to(middle, x.shape), x + 0.1])
    near, *far = (measured(params, several[i], by_pairs=False) for i in (1, 0, 2))
    mark()
    found = jax.jit(jax.vmap(lambda x: measured(params, x)))(several)
    for i, expected in enumerate((doubled(far[0]), near * 3, doubled(far[1]))):
        close(jax.tree.map(lambda a, i=i: a[i], found), expected, np.float32)


def test_what_does_not_count_is_lost_in_rounding(dtype):
    r = jnp.asarray([[1.0, 1e-30, 1e-70, 0.5, jnp.nan], [0.0, 0.2, 0.3, 0.0, 0.1]], dtype)
    log_weights = jnp.log(jnp.asarray([0.5, 0.5], dtype))
    counts = sparse.counting(r, log_weights, jnp.ones(5, dtype))
    # ε³ is 1.7e-21 in single precision, 1.1e-47 in double.
    assert counts.tolist() == [
        [True, dtype == np.float64, False, True, False],
        [False, True, True, False, True],
    ]


def run(params, x, **options):
    numbers = jnp.asarray(1e-5, x.dtype), jnp.asarray(60), jnp.asarray(1e-6, x.dtype), jnp.asarray(True)
    return loop.run(params, x, None, *numbers, block_size=BLOCK, history_size=60, **options)


def test_a_fit_by_pairs_ends_where_another_does_and_has_a_derivative(monkeypatch):
    params, x = mixture("full", np.float32, FAR)
    # Loops that end when they do have no reverse derivative, and would say so as they are traced.
    jax.make_jaxpr(jax.grad(lambda x: run(params, x).log_likelihood))(x)
    by_pairs = jax.jit(run)(params, x)
    monkeypatch.setattr(sparse, "_FEATURES", D + 1)
    jax.clear_caches()
    other = jax.jit(run)(params, x)
    assert by_pairs.status == other.status == Status.CONVERGED
    np.testing.assert_allclose(by_pairs.log_likelihood, other.log_likelihood, rtol=4e-6)  # 30 ε
    np.testing.assert_allclose(by_pairs.params.means, other.params.means, atol=1e-4)


def many(params, x):
    starts = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    numbers = jnp.asarray(1e-5, x.dtype), jnp.asarray(60), jnp.asarray(1e-6, x.dtype), jnp.asarray(True)
    return loop.run_many(starts, x, None, *numbers, block_size=BLOCK, history_size=60)


def one_pass(module):
    def measured(params, x):
        rest = (None, jnp.ones(())) if module is streaming_statistics else ()
        return module._moments(
            params, x, jnp.ones(N, x.dtype), jnp.zeros(D, x.dtype), *rest, block_size=BLOCK
        )

    return measured


@pytest.mark.parametrize("fit", [run, many, one_pass(streaming_statistics), one_pass(blocks)])
def test_what_is_not_differentiated_takes_them(fit, monkeypatch):
    taken, by_pairs = [], sparse.sums
    monkeypatch.setattr(sparse, "sums", lambda *a: taken.append(None) or by_pairs(*a))
    jax.clear_caches()
    jax.make_jaxpr(fit)(*mixture("full", np.float32, NEAR))
    assert taken


def test_a_bad_sample_is_not_left_out():
    params, x = mixture("full", np.float32, FAR)
    result = jax.jit(run)(params, x.at[123, 1].set(jnp.nan))
    assert result.status == Status.NONFINITE


def test_restarts_are_fits():
    params, x = mixture("full", np.float32, FAR)
    found, one = jax.jit(many)(params, x), jax.jit(run)(params, x)
    np.testing.assert_allclose(found.log_likelihood, jnp.stack([one.log_likelihood] * 2), rtol=1e-6)


def test_where_it_applies(monkeypatch):
    monkeypatch.undo()
    assert sparse.applies(200_000, 1024, 64, 32)
    assert not sparse.applies(200_000, 1024, 64, 16)
    assert not sparse.applies(200_000, 1024, 4, 64)
    assert not sparse.applies(10_000, 1024, 8, 32)
    assert not sparse.applies(2_000, 512, 64, 128)
