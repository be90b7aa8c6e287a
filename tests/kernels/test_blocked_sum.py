"""Rows a block at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgmm.kernels import blocked_sum
from tests.quick import quick_jit


def test_sum_rows_counts_every_row_once(dtype):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(100, 2)), rng.uniform(size=100)

    def body(wb, xb):
        return {"w": wb.sum(), "x": (wb[:, None] * xb).sum(0)}

    sums = quick_jit(functools.partial(blocked_sum.sum_rows, body), static_argnames="block_size")
    for block_size in (1, 7, 100, 1000):
        got = sums(w.astype(dtype), x.astype(dtype), block_size=block_size)
        tolerance = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(got["w"], w.sum(), rtol=tolerance)
        np.testing.assert_allclose(got["x"], w @ x, rtol=tolerance, atol=50 * tolerance)


def test_map_rows_gives_every_row_its_own_output():
    x = np.arange(200, dtype=np.float32).reshape(100, 2)

    @functools.partial(quick_jit, static_argnames="block_size")
    def mapped(x, block_size):
        return blocked_sum.map_rows(lambda b: {"sum": b.sum(1), "row": b}, x, block_size=block_size)

    for block_size in (1, 7, 100, 1000):
        out = mapped(x, block_size=block_size)
        np.testing.assert_array_equal(out["row"], x)
        np.testing.assert_array_equal(out["sum"], x.sum(1))


def test_sums_over_many_blocks_are_compensated():
    n, block = 1 << 20, 4
    x = np.full((n, 1), 0.1, np.float32)
    exact = float(np.float64(np.float32(0.1)) * n)

    @jax.jit
    def both(x):
        got = blocked_sum.sum_rows(lambda w, b: (w[:, None] * b).sum(), None, x, block_size=block)
        plain = jax.lax.scan(lambda c, b: (c + b.sum(), None), jnp.float32(0), x.reshape(-1, block))[0]
        return got, plain

    got, plain = both(x)
    assert abs(float(plain) / exact - 1) > 1e-4
    assert abs(float(got) / exact - 1) < 1e-7


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator has no such cache")
def test_block_rows_fit_the_cache_and_never_exceed_the_data():
    assert blocked_sum.block_rows(50, 3, 2) == 50
    for k, d in [(1, 1), (16, 16), (64, 32), (32, 128), (1000, 1000)]:
        found = blocked_sum.block_rows(10**6, k, d)
        assert 128 <= found <= 2048
        assert found & (found - 1) == 0
        turned = blocked_sum.block_rows(10**6, k, d, one_at_a_time=True)
        assert turned == 128 or (128 < turned <= 2048 and turned * d * max(4, k / 16) <= 1 << 18)
    assert blocked_sum.block_rows(10**6, 8, 8, n_fits=50) < blocked_sum.block_rows(10**6, 8, 8)
