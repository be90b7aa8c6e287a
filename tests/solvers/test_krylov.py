"""GMRES and Arnoldi's iteration against dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.solvers.krylov import gmres, spectral_radius
from tests.conftest import on_host
from tests.quick import quick_jit

N = 30
RNG = np.random.default_rng(0)
NEAR_IDENTITY = np.eye(N) + 0.5 * RNG.normal(size=(N, N)) / np.sqrt(N)
RIGHT = RNG.normal(size=N)


@functools.cache
def solver(size=40):
    @quick_jit
    def solve(a, b, guess=None):
        small = float(jnp.finfo(b.dtype).eps) ** 0.75
        return gmres(lambda v: jnp.matmul(a, v), b, tol=small, size=size, guess=guess)

    return solve


def test_it_solves_and_measures_its_own_residual(dtype):
    a, b = NEAR_IDENTITY.astype(dtype), RIGHT.astype(dtype)
    expected = np.linalg.solve(NEAR_IDENTITY, RIGHT)
    for size in (40, 8):  # at once, and with restarts
        got = solver(size)(a, b)
        assert got.residual < 20 * np.finfo(dtype).eps ** 0.75
        left = b - a @ np.asarray(got.x)
        np.testing.assert_allclose(got.residual, np.linalg.norm(left) / np.linalg.norm(b), rtol=0.5)
        np.testing.assert_allclose(got.x, expected, rtol=2e-3 if dtype == np.float32 else 1e-9)
    assert solver(8)(a, b).n_products >= solver(40)(a, b).n_products


def test_scale_does_not_matter_and_zero_is_zero(double):
    a, b = NEAR_IDENTITY, RIGHT
    one, small, zero = (on_host(solver()(a, right)) for right in (b, b * 2.0**-90, 0 * b))
    np.testing.assert_allclose(small.x * 2.0**90, one.x, rtol=1e-5)
    assert (zero.x == 0).all()
    assert zero.residual == 0
    together = quick_jit(jax.vmap(solver(), (None, 0)))(a, np.stack([b, 0 * b]))
    x = np.asarray(together.x)
    np.testing.assert_allclose(x[0], one.x, rtol=1e-4)
    assert (x[1] == 0).all()


def test_a_good_guess_costs_one_product(double):
    expected = np.linalg.solve(NEAR_IDENTITY, RIGHT)
    got = solver()(NEAR_IDENTITY, RIGHT, expected)
    assert got.n_products == 1
    np.testing.assert_allclose(got.x, expected, rtol=1e-14)


def test_a_system_without_a_solution_is_not_called_solved(double):
    a = np.diag(np.r_[np.zeros(1), np.linspace(0.5, 1, N - 1)])
    got = on_host(solver()(a, np.ones(N)))
    assert got.residual > 0.1
    assert np.isfinite(got.x).all()
    # With a right-hand side that it can make, the same matrix is no problem.
    fine = on_host(solver()(a, np.r_[np.zeros(1), np.ones(N - 1)]))
    assert fine.residual < 1e-4
    assert fine.x[0] == 0


def test_the_spectral_radius_of_a_symmetric_operator(dtype):
    values = np.linspace(0, 0.97, N)
    q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
    a, start = ((q * values) @ q.T).astype(dtype), RIGHT.astype(dtype)
    radius = quick_jit(lambda a, s: spectral_radius(lambda v: jnp.matmul(a, v), s))
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(radius(dtype.type(sign) * a, start), 0.97, rtol=1e-5)
    # An invariant subspace ends the iteration early and does no harm.
    np.testing.assert_allclose(radius(0.5 * np.eye(N, dtype=dtype), start), 0.5, rtol=1e-6)
