"""Statistics from the pairs of samples and components that count are those from all pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.data import Data
from jaxgmm.kernels import exact, sparse
from tests.conftest import on_host
from tests.quick import quick_jit

N, D, K, BLOCK = 500, 4, 3, 16
FAR, NEAR = 40.0, 1.0


def mixture(apart):
    """A mixture of clusters so far apart, and samples of it, those of one after those of another."""
    rng = np.random.default_rng(0)
    means = apart * np.array([[1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0]])
    root = rng.normal(size=(D, D))
    labels = np.sort(rng.choice(K, N, p=[0.2, 0.5, 0.3]))
    x = means[labels] + rng.normal(size=(N, D)) @ root
    params = jaxgmm.make_params([0.2, 0.5, 0.3], means.astype(np.float32), np.stack([root.T @ root] * K))
    return on_host(params), x.astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The sums by pairs for these few numbers too."""
    monkeypatch.setattr(exact, "_ONE_AT_A_TIME", 1)
    monkeypatch.setattr(sparse, "_FEATURES", 1)
    monkeypatch.setattr(sparse, "_COMPONENTS", 1)
    monkeypatch.setattr(sparse, "_LARGE", 1)
    monkeypatch.setattr(sparse, "_CHUNK", 8)
    monkeypatch.setattr(sparse, "_SHARE", 2)


def measured(params, x, w=None, by_pairs=True):
    # What is made of the responsibilities needs all of them.
    reassign = None if by_pairs else lambda r, *_: r
    shift = jnp.full(D, 0.5, x.dtype)
    return exact.sums(params, Data(x, w), shift, block_size=BLOCK, reassign=reassign)


def close(a, b, dtype):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        # Sums of up to N terms of the size of the largest, in another order.
        rounding = 30 * np.finfo(dtype).eps * np.abs(v).max()
        np.testing.assert_allclose(u, v, rtol=0, atol=rounding)


@pytest.fixture
def mark(monkeypatch):
    """From its call on sums over pairs come out doubled, and moments of all pairs three times as large."""

    def begin():
        by_pairs, block = sparse.sums, exact._gaussian_block
        monkeypatch.setattr(sparse, "sums", lambda *a: tuple(2 * part for part in by_pairs(*a)))
        monkeypatch.setattr(exact, "_gaussian_block", lambda *a: block(*a) * 3)

    return begin


def doubled(m):
    return dataclasses.replace(m, first=m.first * 2, second=m.second * 2)


def test_the_moments_are_those_of_all_pairs_block_by_block(mark):
    # Weights of zero where anything may stand, and the rows of a last block that overlaps.
    w = np.random.default_rng(1).uniform(0.5, 2, N).astype(np.float32)
    w[[3, 77]] = 0
    params, x = mixture(FAR)
    near, y = mixture(NEAR)
    wide = dataclasses.replace(params, scale=3 * params.scale)
    # Samples that two components share, in some blocks, but for those that are surveyed.
    one = slice(8 * BLOCK, 12 * BLOCK)
    unseen = (np.arange(N) % (N // BLOCK) != 0)[one, None]
    partly = x.copy()
    partly[one] = np.where(unseen, (params.means[0] + params.means[1]) / 2, x[one])
    all_pairs = quick_jit(lambda p, x, w: measured(p, x, w, by_pairs=False))

    def of(params, x, rows):
        return on_host(all_pairs(params, x, w * rows))

    rows = np.arange(N)
    here = (rows >= one.start) & (rows < one.stop)
    expected = [
        doubled(of(params, x, np.ones(N, np.float32))),
        of(near, y, np.ones(N, np.float32)) * 3,
        doubled(of(wide, partly, (~here).astype(np.float32))) + of(wide, partly, here.astype(np.float32)) * 3,
    ]
    mark()
    by_pairs = quick_jit(measured)
    for (p, data), moments in zip(((params, x), (near, y), (wide, partly)), expected, strict=True):
        spoilt = data.copy()
        spoilt[3], spoilt[77] = np.nan, np.inf
        close(by_pairs(p, spoilt, w), moments, np.float32)


def test_what_does_not_count_is_lost_in_rounding(dtype):
    r = jnp.asarray([[1.0, 1e-30, 1e-70, 0.5, jnp.nan], [0.0, 0.2, 0.3, 0.0, 0.1]], dtype)
    log_weights = jnp.log(jnp.asarray([0.5, 0.5], dtype))
    counts = sparse.counting(r, log_weights, jnp.ones(5, dtype))
    # ε³ is 1.7e-21 in single precision, 1.1e-47 in double.
    assert counts.tolist() == [
        [True, dtype == np.float64, False, True, False],
        [False, True, True, False, True],
    ]


def test_where_it_applies(monkeypatch):
    monkeypatch.undo()
    assert sparse.applies(200_000, 1024, 64, 32)
    assert not sparse.applies(200_000, 1024, 64, 16)
    assert not sparse.applies(200_000, 1024, 4, 64)
    assert not sparse.applies(10_000, 1024, 8, 32)
    assert not sparse.applies(2_000, 512, 64, 128)
