import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxgmm.kernels import linalg
from tests.conftest import costly, times_used


def test_lower_inverse_is_the_inverse_and_ignores_the_upper_triangle(dtype):
    rng = np.random.default_rng(0)
    lower = np.tril(rng.normal(size=(4, 5, 5))) + 3 * np.eye(5)
    full = lower + np.triu(rng.normal(size=(4, 5, 5)), 1)
    got = linalg.lower_inverse(jnp.asarray(full, dtype))
    np.testing.assert_allclose(got @ jnp.asarray(lower, dtype), np.tile(np.eye(5), (4, 1, 1)), atol=2e-6)


@pytest.mark.parametrize("n", [1, 6, 7])
def test_factors_and_inverses_of_many_are_those_of_each(monkeypatch, n):
    monkeypatch.setattr(linalg, "_FEW", 3 * (27 + 8))  # three factors at a time, one inverse
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, n, 3, 3))
    squares = jnp.asarray(a @ a.swapaxes(-1, -2) + np.eye(3), jnp.float32)

    def by_hand(m):
        return jnp.linalg.cholesky(m), jnp.linalg.inv(m)

    def ours(m):
        return linalg.cholesky(m), linalg.inverse(m)

    for program in (ours, jax.vmap(ours)):
        found, pull = jax.vjp(program, squares)
        for one, other in zip(found, by_hand(squares), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        ones = tuple(jnp.ones_like(m) for m in found)
        one, other = pull(ones)[0], jax.vjp(by_hand, squares)[1](ones)[0]
        # Ours reads the lower triangle only: of the two, what a symmetric change does is the same.
        np.testing.assert_allclose(
            one + one.swapaxes(-1, -2), other + other.swapaxes(-1, -2), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("size", [costly(n, quick=(1, 13, 70)) for n in (1, 2, 3, 8, 13, 32, 33, 70)])
def test_the_inverse_by_blocks_is_that_by_substitution(monkeypatch, dtype, size):
    rng = np.random.default_rng(size)
    lower = np.tril(rng.normal(size=(3, 2, size, size))) + 3 * np.eye(size)
    expected = np.linalg.inv(lower)
    given = jnp.asarray(lower + np.triu(np.full((size, size), 7.0), 1), dtype)
    for few in (0, 1 << 30):
        monkeypatch.setattr(linalg, "_FEW", few)
        for function in (linalg.lower_inverse, jax.vmap(linalg.lower_inverse)):
            got = function(given)
            np.testing.assert_allclose(got, expected, atol=20 * np.finfo(dtype).eps * np.abs(expected).max())


def test_as_many_inverses_as_lapack_would_divide_among_threads_are_made_by_blocks():
    def solves(shape):
        given = jnp.ones(shape, jnp.float32)
        return "triangular_solve" in str(jax.make_jaxpr(jax.vmap(linalg.lower_inverse))(given))

    assert solves((16, 8, 8))
    assert not solves((400, 8, 8))


def test_an_inverse_that_is_asked_for_again_is_not_made_again():
    a, b = jnp.eye(3), 2 * jnp.eye(3)

    def both(a, b):
        with linalg.inverted_once({"factor": a, "width": a[0]}):
            first = linalg.lower_inverse(a) + linalg.lower_inverse(a) + linalg.lower_inverse(b)
        return first + linalg.lower_inverse(a)

    np.testing.assert_array_equal(both(a, b), 3.5 * np.eye(3))
    assert times_used("triangular_solve", jax.make_jaxpr(both)(a, b)) == 3


@pytest.mark.parametrize("held", [0.0, -2.5, np.inf, -np.inf, np.nan])
def test_what_outlives_a_result_does_not_change_it(dtype, held):
    used = jnp.full((2, 3), held, dtype)
    for value in (-1.5, np.inf, -np.inf, np.nan):
        result = jnp.asarray([value, 2.0], dtype)
        np.testing.assert_array_equal(jax.jit(linalg.outlived)(result, used, used), result)
    pull = jax.grad(lambda r, u: linalg.outlived(r, u).sum(), argnums=(0, 1))
    for got, expected in zip(pull(jnp.ones(2, dtype), used), (np.ones(2), np.zeros((2, 3))), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_what_outlives_a_result_is_kept_until_it_is_there():
    """The program reads the array at a place that it does not know before it has the result."""
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere nothing is written over that would be missed")
    program = str(jax.make_jaxpr(linalg.outlived)(jnp.ones(1), jnp.ones(4)))
    assert re.search(r"= eq \S+ inf", program)
    assert re.search(r"= dynamic_slice\[", program)


@pytest.mark.parametrize(("n_features", "n_uses"), [(3, 2), (8, 8), (16, 16), (64, 4)])
def test_transposed_rows_are_exact(dtype, n_features, n_uses):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, n_features)) * 1e10, dtype)
    np.testing.assert_array_equal(linalg.transposed(x, n_uses), x.T)


@pytest.mark.parametrize("size", [2, 8, 9])
def test_column_squares_are_sums_of_squares(dtype, size):
    a = jnp.asarray(np.random.default_rng(0).normal(size=(4, size, size)), dtype)
    expected = np.square(np.asarray(a, np.float64)).sum(1)
    np.testing.assert_allclose(linalg.column_squares(a), expected, rtol=size * np.finfo(dtype).eps)


def test_derivatives_of_the_inverse_and_of_the_factors(double):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 4, 4)) + 3 * np.eye(4)
    a, lower = jnp.asarray(root @ root.swapaxes(1, 2)), jnp.asarray(np.tril(root))
    check_grads(linalg.lower_inverse, (lower,), order=2)
    check_grads(lambda m: linalg.cholesky(0.5 * (m + m.swapaxes(1, 2))), (a,), order=2)
    change = jnp.asarray(rng.normal(size=a.shape))
    change = change + change.swapaxes(1, 2)
    theirs = jax.jvp(jax.lax.linalg.cholesky, (a,), (change,))[1]
    np.testing.assert_allclose(jax.jvp(linalg.cholesky, (a,), (change,))[1], theirs, atol=1e-12)


def test_safe_cholesky_touches_only_the_matrices_that_fail(dtype):
    good, bad = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0 - 1e-3]])
    a = jnp.asarray(np.stack([good, bad]), dtype)
    factors = linalg.safe_cholesky(a, jnp.full((2, 2), 0.1, dtype))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(factors[0] @ factors[0].T, good, rtol=4 * eps)
    np.testing.assert_allclose(factors[1] @ factors[1].T, bad + 0.1 * np.eye(2), rtol=4 * eps)


def test_safe_cholesky_has_finite_gradients_where_it_had_to_add_jitter(dtype):
    a = jnp.asarray([[1.0, 1.0], [1.0, 0.9]], dtype)
    gradient = jax.grad(lambda m: linalg.safe_cholesky(m, jnp.full(2, 0.5, dtype)).sum())(a)
    assert np.isfinite(gradient).all()


def test_embed_diagonal():
    got = linalg.embed_diagonal(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(got, [[[1, 0], [0, 2]], [[3, 0], [0, 4]]])


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("kde,kef->kdf", [(5, 4, 4), (5, 4, 4)]),
        costly("de,kef,gf->kdg", [(3, 4), (5, 4, 2), (3, 2)]),
        ("k,kde,kfe->df", [(5,), (5, 4, 2), (5, 3, 2)]),
        costly("kde,ke->kd", [(30, 4, 4), (30, 4)]),
        costly("...de,...fe->...df", [(6, 2, 4, 4), (6, 2, 3, 4)]),
        ("...de,...ef,...gf->...dg", [(4, 4), (4, 4), (4, 4)]),
        ("kdb,keb->kde", [(5, 3, 40), (5, 3, 40)]),  # not tiny
    ],
)
def test_products_of_tiny_matrices_are_products(subscripts, shapes):
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def total(product):
        return lambda *arrays: (product(subscripts, *arrays) ** 2).sum()

    expected = np.einsum(subscripts, *[np.asarray(a, float) for a in operands])
    np.testing.assert_allclose(linalg.einsum(subscripts, *operands), expected, rtol=1e-5, atol=1e-5)
    many = jax.vmap(lambda *arrays: linalg.einsum(subscripts, *arrays))(
        *[jnp.stack([a, 2 * a]) for a in operands]
    )
    np.testing.assert_allclose(many[1], expected * 2 ** len(shapes), rtol=1e-5, atol=1e-4)
    every = tuple(range(len(shapes)))
    exact = functools.partial(jnp.einsum, precision="highest")
    mine, theirs = (jax.grad(total(f), argnums=every)(*operands) for f in (linalg.einsum, exact))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
