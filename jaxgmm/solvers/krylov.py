"""Krylov methods: GMRES and Arnoldi, for an operator known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.linalg import PRECISION, eigvalsh, epsilon, lower_inverse
from jaxgmm.kernels.manual_axes import varying_like

Operator = Callable[[Array], Array]


class Answer(NamedTuple):
    """The solution of a linear system, and how good it is."""

    x: Array  # (n,)
    residual: Array  # ()  ‖b − A x‖ / ‖b‖, measured by a product; 0 for b = 0
    n_products: Array  # ()  int32: products with A


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=PRECISION)


def _norm(v: Array) -> Array:
    return jnp.sqrt(jnp.square(v).sum())


def _extend(matvec: Operator, basis: Array, j: Array) -> tuple[Array, Array]:
    """One step of Arnoldi's: column j of the Hessenberg matrix (m + 1,), and the basis with vector j + 1."""
    w = matvec(basis[j])
    # Twice, or in float32 the basis loses its orthogonality. Rows that are not filled yet are zero.
    first = _dot(basis, w)
    w = w - _dot(first, basis)
    second = _dot(basis, w)
    w = w - _dot(second, basis)
    length = _norm(w)
    # What is left of a vector that lay in the span is rounding, and points nowhere.
    new = length > 8 * epsilon(w.dtype) * _norm(first)
    w = jnp.where(new, w / jnp.where(new, length, 1), 0)
    column = (first + second).at[j + 1].set(jnp.where(new, length, 0))
    return column, basis.at[j + 1].set(w)


def gmres(
    matvec: Operator,
    b: Array,
    *,
    tol: float,
    guess: Array | None = None,
    size: int = 40,
    restarts: int = 10,
) -> Answer:
    """Solve A x = b by GMRES, restarted every `size` products.

    It ends when the residual is below `tol`, when a restart no longer halves it (it is then rounding, or the
    system has no solution), or after `restarts`.

    Args:
      matvec: v (n,) -> A v (n,).
      b: (n,).
      tol: bound on ‖b − A x‖ / ‖b‖.
      guess: (n,) where to start, or None for 0.
      size: how many basis vectors are kept; at most n are of use.
      restarts: how often the basis is built, at most.

    References:
      Saad & Schultz (1986), GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
      systems.
    """
    n, m = b.size, min(b.size, size)
    dtype = b.dtype
    # The squares of small numbers underflow.
    top = jnp.abs(b).max()
    norm = top * _norm(b / jnp.where(top > 0, top, 1))
    unit = b / jnp.where(norm > 0, norm, 1)

    def cycle(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        x, r, length, _, count = state

        def go_on(s: tuple[Array, ...]) -> Array:
            j, _, _, _, g = s
            return (j < m) & (jnp.abs(g[j]) > tol)

        def iterate(s: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
            j, basis, upper, rotation, g = s
            column, basis = _extend(matvec, basis, j)
            column = _dot(rotation, column)
            a, c = column[j], column[j + 1]
            # One Givens rotation of rows j and j + 1 makes the new column upper triangular.
            hypot = jnp.sqrt(a * a + c * c)
            some = hypot > 0
            cos, sin = (jnp.where(some, t / jnp.where(some, hypot, 1), d) for t, d in ((a, 1), (c, 0)))
            upper = upper.at[:, j].set(column.at[j].set(hypot).at[j + 1].set(0)[:m])
            rows = rotation[j], rotation[j + 1]
            rotation = rotation.at[j].set(cos * rows[0] + sin * rows[1])
            rotation = rotation.at[j + 1].set(cos * rows[1] - sin * rows[0])
            g = g.at[j + 1].set(-sin * g[j]).at[j].multiply(cos)
            return j + 1, basis, upper, rotation, g

        first = jnp.zeros((m + 1, n), dtype).at[0].set(r / jnp.where(length > 0, length, 1))
        g = jnp.zeros(m + 1, dtype).at[0].set(length)
        upper, rotation = jnp.zeros((m, m), dtype), jnp.eye(m + 1, dtype=dtype)
        j, basis, upper, _, g = lax.while_loop(
            go_on, iterate, varying_like((jnp.zeros((), jnp.int32), first, upper, rotation, g), b)
        )
        filled = (jnp.arange(m, dtype=jnp.int32) < j) & (jnp.abs(jnp.diagonal(upper)) > 0)
        square = jnp.where(filled[None, :] & filled[:, None], upper, jnp.eye(m, dtype=dtype))
        right = jnp.where(filled, g[:m], 0)
        y = _dot(lower_inverse(square.T).T, right)
        x = x + _dot(y, basis[:m])
        r = unit - matvec(x)
        return x, r, _norm(r), length, count + j + 1

    def unfinished(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        _, _, length, before, count = state
        # The residual that GMRES carries along is a little too small in float32: hence the 8.
        return (length > 8 * tol) & (length <= 0.5 * before) & (count < restarts * (m + 1))

    x, r, count = jnp.zeros_like(b), unit, jnp.zeros((), jnp.int32)
    if guess is not None:
        x = guess / jnp.where(norm > 0, norm, 1)
        r, count = unit - matvec(x), count + 1
    start = varying_like((x, r, _norm(r), jnp.full((), jnp.inf, dtype), count), b)
    x, _, length, _, count = lax.while_loop(unfinished, cycle, start)
    return Answer(x * norm, length, count)


def spectral_radius(matvec: Operator, start: Array, *, size: int = 40) -> Array:
    """() the largest eigenvalue in absolute value, of an operator that is symmetric or nearly so.

    The largest Ritz value of `size` steps of Arnoldi's iteration from `start` (n,); it never exceeds the
    spectral radius of a symmetric operator, and comes near it from below.

    References:
      Saad (2011), Numerical Methods for Large Eigenvalue Problems, §6.2.
    """
    n, m = start.size, min(start.size, size)
    basis = jnp.zeros((m + 1, n), start.dtype).at[0].set(start / _norm(start))

    def step(basis: Array, j: Array) -> tuple[Array, Array]:
        column, basis = _extend(matvec, basis, j)
        return basis, column

    _, columns = lax.scan(step, basis, jnp.arange(m, dtype=jnp.int32))
    hessenberg = columns[:, :m].T
    return jnp.abs(eigvalsh(0.5 * (hessenberg + hessenberg.T))).max()
