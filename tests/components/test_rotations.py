"""Axes: their derivatives, their charts, and axes common to several covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import minimize

from jaxgmm.components.covariance.rotations import (
    cayley_signs,
    common_axes,
    principal_axes,
    rotation_from_free,
    rotation_to_free,
)
from tests.quick import quick_jit

RNG = np.random.default_rng(0)
FACTORS = np.tril(RNG.normal(size=(3, 4, 4))) + 2 * np.eye(4)
IDENTITY = np.eye(4)
SHARE = np.array([0.2, 0.3, 0.5])


def orthogonal(n, d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, d, d)))[0]


def test_principal_axes_diagonalise_and_their_tangents_are_those_of_differences(double):
    def parts(g):
        u, s = principal_axes(g)
        sign = jnp.sign(jax.lax.stop_gradient(u[..., :1, :]))
        return u * sign, s

    g, along = FACTORS, RNG.normal(size=FACTORS.shape)
    both = quick_jit(lambda g: jax.tree.map(jnp.asarray, jax.jvp(parts, (g,), (along,))))
    h = 1e-6
    ((u, s), tangent), (ups, _), (downs, _) = (
        jax.tree.map(np.asarray, both(g + step * along)) for step in (0, h, -h)
    )
    np.testing.assert_allclose(np.einsum("kdi,ki,kei->kde", u, s**2, u), g @ g.swapaxes(1, 2), rtol=1e-12)
    for got, up, down in zip(tangent, ups, downs, strict=True):
        np.testing.assert_allclose(got, (up - down) / (2 * h), atol=1e-7)


def test_equal_values_have_finite_derivatives_that_are_right_where_the_choice_does_not_matter(double):
    def rebuilt(g):
        u, s = principal_axes(g)
        return (u * s[None, :]) @ (u * s[None, :]).T

    g = np.diag([2.0, 1.0, 1.0])
    along = np.diag([0.3, 0.2, -0.1]) + 0.4 * np.outer([1, 0, 0], [0, 1, 1])

    @quick_jit
    def derivatives(g):
        return jax.jvp(rebuilt, (g,), (along,))[1], jax.grad(lambda g: rebuilt(g).sum())(g)

    np.testing.assert_allclose(derivatives(g)[0], along @ g.T + g @ along.T, atol=1e-5)
    assert np.isfinite(derivatives(np.eye(3))[1]).all()


@quick_jit
def to_free_and_back(q):
    free = rotation_to_free(q)
    return free, rotation_from_free(free, q.shape[-1]), cayley_signs(q)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_every_orthogonal_matrix_has_coordinates_of_moderate_size(d, double):
    q = np.concatenate([orthogonal(40, d), -np.eye(d)[None], np.eye(d)[None, ::-1], np.eye(d)[None]])
    # A small coordinate is an angle.
    rows, columns = np.tril_indices(d, -1)
    skew = np.zeros((d, d))
    skew[rows, columns], skew[columns, rows] = 1e-4, -1e-4
    q[-1] = expm(skew)
    free, back, signs = map(np.asarray, to_free_and_back(q))
    assert free.shape == (43, d * (d - 1) // 2)
    assert np.abs(free).max(initial=0) < 50
    np.testing.assert_allclose(back, q * signs[:, None, :], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(back), 1, rtol=1e-12)
    np.testing.assert_allclose(free[-1], 1e-4, rtol=1e-7)


@pytest.mark.parametrize("equal_volume", [False, True])
def test_common_axes_are_an_optimum(equal_volume, double):
    """Against a general optimiser over rotations, from there and from several other starts."""
    cov = np.einsum("kde,kfe->kdf", FACTORS, FACTORS)

    def criterion(q):
        logs = np.log(np.einsum("dj,kde,ej->kj", q, cov, q)).mean(1)
        return np.log(SHARE @ np.exp(logs)) if equal_volume else SHARE @ logs

    def of(angles, about=IDENTITY):
        skew = np.zeros((4, 4))
        skew[np.tril_indices(4, -1)] = angles
        skew = 0.5 * (skew - skew.T)
        return criterion(about @ np.linalg.solve(IDENTITY - skew, IDENTITY + skew))

    starts = np.random.default_rng(1).normal(size=(4, 6))
    others = [minimize(of, x, method="BFGS", tol=1e-9).fun for x in starts]
    find = quick_jit(lambda f: common_axes(f, jnp.asarray(SHARE), equal_volume=equal_volume))
    axes, factors, before = np.eye(4), FACTORS, criterion(np.eye(4))
    for _ in range(12):
        rotation, variances = map(np.asarray, find(factors))
        axes = axes @ rotation
        factors = np.einsum("df,kde->kfe", rotation, factors)
        assert criterion(axes) <= before + 1e-12
        before = criterion(axes)
    np.testing.assert_allclose(variances, np.einsum("dj,kde,ej->kj", axes, cov, axes), rtol=1e-10)
    # The criterion has local minima: this is one, and no worse than a general optimiser's usual one.
    here = minimize(lambda x: of(x, axes), np.zeros(6), method="BFGS", tol=1e-9).fun
    assert before < here + 1e-10
    assert before < np.median(others) + 1e-8


def test_axes_are_found_where_no_angle_has_a_slope(double):
    """Equal variances and a correlation: a plane turned by an eighth is best, and unturned it is a saddle."""
    factor = np.linalg.cholesky(np.array([[1.0, 0.6], [0.6, 1.0]]))
    find = quick_jit(lambda f: common_axes(f, jnp.full(2, 0.5), equal_volume=False))
    _, variances = find(np.stack([factor, 2 * factor]))
    np.testing.assert_allclose(np.sort(variances), [[0.4, 1.6], [1.6, 6.4]], rtol=1e-5)
