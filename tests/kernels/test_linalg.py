import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgmm.kernels import linalg
from tests.quick import quick_jit


def test_lower_inverse_is_the_inverse_and_ignores_the_upper_triangle(dtype):
    rng = np.random.default_rng(0)
    lower = np.tril(rng.normal(size=(4, 5, 5))) + 3 * np.eye(5)
    full = lower + np.triu(rng.normal(size=(4, 5, 5)), 1)
    got = np.asarray(quick_jit(linalg.lower_inverse)(full.astype(dtype)))
    np.testing.assert_allclose(got @ lower, np.tile(np.eye(5), (4, 1, 1)), atol=2e-6)


def test_factors_and_inverses_of_many_are_those_of_each(monkeypatch):
    monkeypatch.setattr(linalg, "_FEW", 3 * (27 + 8))  # three factors at a time, one inverse
    a = np.random.default_rng(0).normal(size=(2, 7, 3, 3))
    squares = (a @ a.swapaxes(-1, -2) + np.eye(3)).astype(np.float32)

    @quick_jit
    def all_of(m):
        def both(cholesky, inverse):
            found, pull = jax.vjp(lambda m: (cholesky(m), inverse(m)), m)
            slope = pull(jax.tree.map(jnp.ones_like, found))[0]
            # Ours reads the lower triangle only: of the two, what a symmetric change does is the same.
            return *found, slope + slope.swapaxes(-1, -2)

        ours, in_lanes = linalg.cholesky, jax.vmap(linalg.cholesky)
        return (
            both(jnp.linalg.cholesky, jnp.linalg.inv),
            both(ours, linalg.inverse),
            both(in_lanes, jax.vmap(linalg.inverse)),
        )

    expected, *found = all_of(squares)
    for ours in found:
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 13, 33])
def test_the_inverse_by_blocks_is_that_by_substitution(monkeypatch, double, size):
    rng = np.random.default_rng(size)
    lower = np.tril(rng.normal(size=(3, 2, size, size))) + 3 * np.eye(size)
    expected = np.linalg.inv(lower)
    given = lower + np.triu(np.full((size, size), 7.0), 1)
    for few in (0, 1 << 30):
        monkeypatch.setattr(linalg, "_FEW", few)
        for got in quick_jit(lambda m: (linalg.lower_inverse(m), jax.vmap(linalg.lower_inverse)(m)))(given):
            np.testing.assert_allclose(got, expected, atol=20 * np.finfo(double).eps * np.abs(expected).max())


def test_as_many_inverses_as_lapack_would_divide_among_threads_are_made_by_blocks():
    def solves(shape):
        given = np.ones(shape, np.float32)
        return "triangular_solve" in str(jax.make_jaxpr(jax.vmap(linalg.lower_inverse))(given))

    assert solves((16, 8, 8))
    assert not solves((400, 8, 8))


def test_what_outlives_a_result_does_not_change_it():
    outlived = quick_jit(linalg.outlived)
    pull = quick_jit(jax.grad(lambda r, u: linalg.outlived(r, u).sum(), argnums=(0, 1)))
    for held in (0.0, -2.5, np.inf, -np.inf, np.nan):
        used = np.full((2, 3), held, np.float32)
        for value in (-1.5, np.inf, -np.inf, np.nan):
            result = np.asarray([value, 2.0], np.float32)
            np.testing.assert_array_equal(outlived(result, used, used), result)
        ones = np.ones(2, np.float32)
        for got, expected in zip(pull(ones, used), (ones, np.zeros((2, 3))), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_what_outlives_a_result_is_kept_until_it_is_there():
    """The program reads the array at a place that it does not know before it has the result."""
    if jax.default_backend() != "cpu":
        pytest.skip("only the CPU backend reuses operand buffers")
    program = str(jax.make_jaxpr(linalg.outlived)(jnp.ones(1), jnp.ones(4)))
    assert re.search(r"= eq \S+ inf", program)
    assert re.search(r"= dynamic_slice\[", program)


def test_transposed_rows_are_exact():
    for n_features, n_uses in ((3, 2), (8, 8), (16, 16), (64, 4)):
        x = (np.random.default_rng(0).normal(size=(50, n_features)) * 1e10).astype(np.float32)
        np.testing.assert_array_equal(quick_jit(linalg.transposed, static_argnames="n_uses")(x, n_uses), x.T)


def test_column_squares_are_sums_of_squares():
    for size in (2, 8, 9):
        a = np.random.default_rng(0).normal(size=(4, size, size)).astype(np.float32)
        expected = np.square(a.astype(float)).sum(1)
        found = quick_jit(linalg.column_squares)(a)
        np.testing.assert_allclose(found, expected, rtol=size * np.finfo(np.float32).eps)


def test_derivatives_of_the_inverse_and_of_the_factors(double):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 4, 4)) + 3 * np.eye(4)
    a, lower = root @ root.swapaxes(1, 2), np.tril(root)
    change = rng.normal(size=a.shape)
    change = change + change.swapaxes(1, 2)

    @quick_jit
    def tangents(a, lower, change):
        ours, theirs = (jax.jvp(f, (a,), (change,))[1] for f in (linalg.cholesky, jax.lax.linalg.cholesky))
        return ours, theirs, *jax.jvp(linalg.lower_inverse, (lower,), (jnp.tril(change),))

    ours, theirs, inverse, of_inverse = tangents(a, lower, change)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    inverse = np.asarray(inverse)
    np.testing.assert_allclose(of_inverse, -inverse @ np.tril(change) @ inverse, atol=1e-12)


def test_safe_cholesky_touches_only_the_matrices_that_fail_and_has_finite_gradients(dtype):
    good, bad = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0 - 1e-3]])
    a, jitter = np.stack([good, bad]).astype(dtype), np.full((2, 2), 0.1, dtype)

    @quick_jit
    def factors_and_gradient(m):
        total, pull = jax.vjp(lambda m: linalg.safe_cholesky(m, jitter), m)
        return total, pull(jnp.ones_like(total))[0]

    factors, gradient = map(np.asarray, factors_and_gradient(a))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(factors[0] @ factors[0].T, good, rtol=4 * eps)
    np.testing.assert_allclose(factors[1] @ factors[1].T, bad + 0.1 * np.eye(2), rtol=4 * eps)
    assert np.isfinite(gradient).all()


def test_embed_diagonal():
    got = quick_jit(linalg.embed_diagonal)(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    np.testing.assert_array_equal(got, [[[1, 0], [0, 2]], [[3, 0], [0, 4]]])


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("kde,kef->kdf", [(5, 4, 4), (5, 4, 4)]),
        ("k,kde,kfe->df", [(5,), (5, 4, 2), (5, 3, 2)]),
        ("...de,...ef,...gf->...dg", [(4, 4), (4, 4), (4, 4)]),
        ("kdb,keb->kde", [(5, 3, 40), (5, 3, 40)]),  # not tiny
    ],
)
def test_products_of_tiny_matrices_are_products(subscripts, shapes):
    rng = np.random.default_rng(0)
    operands = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def total(product):
        return lambda *arrays: (product(subscripts, *arrays) ** 2).sum()

    expected = np.einsum(subscripts, *[np.asarray(a, float) for a in operands])
    every = tuple(range(len(shapes)))
    exact = functools.partial(jnp.einsum, precision="highest")

    @quick_jit
    def everything(*operands):
        alone = linalg.einsum(subscripts, *operands)
        stacked = [jnp.stack([a, 2 * a]) for a in operands]
        many = jax.vmap(lambda *arrays: linalg.einsum(subscripts, *arrays))(*stacked)
        return alone, many, *(jax.grad(total(f), argnums=every)(*operands) for f in (linalg.einsum, exact))

    alone, many, mine, theirs = everything(*operands)
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(many[1], expected * 2 ** len(shapes), rtol=1e-5, atol=1e-4)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
