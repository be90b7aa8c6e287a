"""Krylov methods: GMRES and Arnoldi, for an operator known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.kernels.linalg import PRECISION, eigvalsh, epsilon
from jaxgmm.kernels.manual_axes import varying_like

Operator = Callable[[Array], Array]


class Answer(NamedTuple):
    """The solution of a linear system, and how good it is."""

    x: Array  # (n,)
    residual: Array  # ()  ‖b − A x‖ / ‖b‖, measured by a product; 0 for b = 0
    n_products: Array  # ()  int32: products with A


class _Cycle(NamedTuple):
    """GMRES between two products."""

    x: Array  # (n,)
    basis: Array  # (m + 1, n)
    upper: Array  # (m, m)  the Hessenberg matrix, rotated to a triangle
    rotation: Array  # (m + 1, m + 1)
    right: Array  # (m + 1,)  the right side, rotated
    j: Array  # ()  int32: vectors that have had their product
    is_ended: Array  # ()  bool: x is new, and its residual is to be measured
    length: Array  # ()  of the residual when the cycle began
    before: Array  # ()  and of the cycle before
    n_products: Array  # ()  int32


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=PRECISION)


def _norm(v: Array) -> Array:
    return jnp.sqrt(jnp.square(v).sum())


def _extend(w: Array, basis: Array, j: Array) -> tuple[Array, Array]:
    """One step of Arnoldi's, from the product w with vector j of the basis.

    Returns:
      Column j of the Hessenberg matrix (m + 1,), and the basis with vector j + 1.
    """
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
    scale = jnp.where(norm > 0, norm, 1)
    unit = b / scale

    def begun(x: Array, r: Array, before: Array, count: Array) -> _Cycle:
        length = _norm(r)
        basis = jnp.zeros((m + 1, n), dtype).at[0].set(r / jnp.where(length > 0, length, 1))
        right = jnp.zeros(m + 1, dtype).at[0].set(length)
        upper, rotation = jnp.zeros((m, m), dtype), jnp.eye(m + 1, dtype=dtype)
        return _Cycle(
            x,
            basis,
            upper,
            rotation,
            right,
            jnp.zeros((), jnp.int32),
            jnp.zeros((), bool),
            length,
            before,
            count,
        )

    def restarted(s: _Cycle, w: Array) -> _Cycle:
        return varying_like(begun(s.x, unit - w, s.length, s.n_products + 1), b)

    def extended(s: _Cycle, w: Array) -> _Cycle:
        j, g, rotation = s.j, s.right, s.rotation
        column, basis = _extend(w, s.basis, j)
        column = _dot(rotation, column)
        a, c = column[j], column[j + 1]
        # One Givens rotation of rows j and j + 1 makes the new column upper triangular.
        hypot = jnp.sqrt(a * a + c * c)
        some = hypot > 0
        cos, sin = (jnp.where(some, t / jnp.where(some, hypot, 1), d) for t, d in ((a, 1), (c, 0)))
        upper = s.upper.at[:, j].set(column.at[j].set(hypot).at[j + 1].set(0)[:m])
        rows = rotation[j], rotation[j + 1]
        rotation = rotation.at[j].set(cos * rows[0] + sin * rows[1])
        rotation = rotation.at[j + 1].set(cos * rows[1] - sin * rows[0])
        g = g.at[j + 1].set(-sin * g[j]).at[j].multiply(cos)
        j = j + 1
        is_last = (j == m) | (jnp.abs(g[j]) <= tol)

        def solved() -> Array:
            def substitute(i: Array, y: Array) -> Array:
                k = j - 1 - i
                d = upper[k, k]
                value = jnp.where(d == 0, 0, (g[k] - _dot(upper[k], y)) / jnp.where(d == 0, 1, d))
                return y.at[k].set(value)

            y = lax.fori_loop(0, j, substitute, varying_like(jnp.zeros(m, dtype), b))
            return s.x + _dot(y, basis[:m])

        x = lax.cond(is_last, solved, lambda: s.x)
        return _Cycle(x, basis, upper, rotation, g, j, is_last, s.length, s.before, s.n_products + 1)

    def turn(s: _Cycle) -> _Cycle:
        # The only product: a program with several is several times as large.
        w = matvec(jnp.where(s.is_ended, s.x, s.basis[s.j]))
        return lax.cond(s.is_ended, restarted, extended, s, w)

    def unfinished(s: _Cycle) -> Array:
        # The residual that GMRES carries along is a little too small in float32: hence the 8.
        again = (s.length > 8 * tol) & (s.length <= 0.5 * s.before) & (s.n_products < restarts * (m + 1))
        return s.is_ended | (s.j > 0) | again

    infinite = jnp.full((), jnp.inf, dtype)
    start = begun(jnp.zeros_like(b), unit, infinite, jnp.zeros((), jnp.int32))
    if guess is not None:
        start = start._replace(x=guess / scale, is_ended=jnp.ones((), bool), length=infinite)
    end = lax.while_loop(unfinished, turn, varying_like(start, b))
    return Answer(end.x * norm, end.length, end.n_products)


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
        column, basis = _extend(matvec(basis[j]), basis, j)
        return basis, column

    _, columns = lax.scan(step, basis, jnp.arange(m, dtype=jnp.int32))
    hessenberg = columns[:, :m].T
    return jnp.abs(eigvalsh(0.5 * (hessenberg + hessenberg.T))).max()
