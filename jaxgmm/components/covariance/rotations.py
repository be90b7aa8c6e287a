"""Orthogonal matrices: differentiable eigenvectors, charts, and common principal axes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.kernels.linalg import eigh, einsum, epsilon, eye, inverse, svd
from jaxgmm.kernels.manual_axes import varying_like

SWEEPS = 6  # of `common_axes`


@jax.custom_jvp
def principal_axes(factors: Array) -> tuple[Array, Array]:
    """Left singular vectors (..., D, D), in columns, and values (..., D) of G (..., D, D), the largest first.

    They are the eigenvectors of G Gᵀ and the roots of its eigenvalues, with twice the digits that an
    eigendecomposition of the product would have. Where two values are equal their axes may turn freely and
    have no derivative: it is finite there, and right for whatever does not depend on the choice of axes.
    """
    return svd(factors)[:2]


@principal_axes.defjvp
def _principal_axes_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    (g,), (g_dot,) = primals, tangents
    u, s = principal_axes(g)
    half = einsum("...di,...de,...fe,...fj->...ij", u, g_dot, g, u)
    moved = half + jnp.swapaxes(half, -1, -2)
    squares = jnp.square(s)
    gap = squares[..., None, :] - squares[..., :, None]
    floor = 8 * epsilon(s.dtype) * (squares[..., None, :] + squares[..., :, None])
    size = jnp.square(gap) + jnp.square(floor)
    turns = gap / jnp.where(size > 0, size, 1)
    s_dot = jnp.diagonal(half, axis1=-2, axis2=-1) / jnp.where(s > 0, s, 1)
    return (u, s), (einsum("...di,...ij->...dj", u, moved * turns), s_dot)


def orthogonalise(q: Array) -> Array:
    """Q (..., D, D) with the rounding errors of its orthogonality squared (one Newton–Schulz step)."""
    return 1.5 * q - 0.5 * einsum("...de,...fe,...fg->...dg", q, q, q)


def cayley_signs(q: Array) -> Array:
    """Signs s (..., D) for the columns of an orthogonal Q for which I + Q diag(s) is far from singular.

    Gaussian elimination of Q + diag(s), in which each sign is that of the pivot it is added to: every pivot
    is at least 1. Q diag(s) is then a rotation that turns nothing around, the domain of Cayley's chart.

    References:
      O'Dorney (2014), Minimizing the Cayley transform of an orthogonal matrix by multiplying by signature
      matrices, Linear Algebra and its Applications 448.
    """
    d = q.shape[-1]

    def eliminate(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, signs = state
        row = lax.dynamic_index_in_dim(left, j, left.ndim - 2, keepdims=True)
        column = lax.dynamic_index_in_dim(left, j, left.ndim - 1, keepdims=True)
        pivot = lax.dynamic_index_in_dim(row, j, row.ndim - 1, keepdims=True)
        sign = jnp.where(pivot < 0, -1, 1).astype(left.dtype)
        signs = lax.dynamic_update_index_in_dim(signs, sign[..., 0, 0], j, signs.ndim - 1)
        return left - column * (row / (pivot + sign)), signs

    left = lax.stop_gradient(q)
    return lax.fori_loop(0, d, eliminate, varying_like((left, jnp.ones_like(left[..., 0]))))[1]


def rotation_to_free(q: Array) -> Array:
    """Free coordinates (..., D(D − 1)/2) of orthogonal Q, up to the signs of its columns.

    Cayley's chart: ω = 2 (I + Q)⁻¹(Q − I) is skew, and for a small rotation ω_ij, i > j, is its angle.
    """
    d = q.shape[-1]
    signed = q * cayley_signs(q)[..., None, :]
    identity = jnp.broadcast_to(eye(d, q.dtype), q.shape)
    skew = 2 * einsum("...de,...ef->...df", inverse(identity + signed), signed - identity)
    rows, columns = np.tril_indices(d, -1)
    return 0.5 * (skew[..., rows, columns] - skew[..., columns, rows])


def rotation_from_free(free: Array, n_features: int) -> Array:
    """The rotation (..., D, D) of free coordinates: (I − ω/2)⁻¹(I + ω/2)."""
    rows, columns = np.tril_indices(n_features, -1)
    half = jnp.zeros((*free.shape[:-1], n_features, n_features), free.dtype)
    half = half.at[..., rows, columns].set(0.5 * free).at[..., columns, rows].set(-0.5 * free)
    identity = jnp.broadcast_to(eye(n_features, free.dtype), half.shape)
    return einsum("...de,...ef->...df", inverse(identity - half), identity + half)


@functools.lru_cache
def _rounds(n_features: int) -> tuple[Any, ...]:
    """A round robin: who meets whom, (P,) and (P,), who rests; the next order of rows (D,); how many rounds.

    The players of a round robin move one seat on between rounds (with an even number, all but the last), so
    that every round has the same partners by seat, and after the last all sit where they sat.
    """
    circle = n_features - 1 + n_features % 2
    first = np.arange(1, circle // 2 + 1)
    second = circle - first
    if n_features % 2 == 0:
        first, second = np.append(first, 0), np.append(second, n_features - 1)
    seats = np.arange(n_features)
    # Rows are kept as the pairs' first, their second, and the one that sits out.
    rest = np.setdiff1d(seats, [*first, *second])
    following = np.argsort(np.concatenate([first, second, rest]))[
        np.append(np.roll(seats[:circle], -1), seats[circle:])
    ]
    one, other, out, then = (a.astype(np.int32) for a in (first, second, rest, following))
    return one, other, out, then, circle


def _criterion(variances: Array, share: Array, equal_volume: bool) -> Array:
    """What common axes minimise, from the variances (K, D) along them, up to constants."""
    logs = jnp.log(variances).mean(-1)
    if not equal_volume:
        return (share * logs).sum()
    top = logs.max()
    return top + jnp.log((share * jnp.exp(logs - top)).sum())


def common_axes(factors: Array, share: Array, *, equal_volume: bool) -> tuple[Array, Array]:
    """The axes D that serve Σ_k = λ_k D A_k Dᵀ best for covariances G_k G_kᵀ, and their variances along them.

    Minimises Σ_k n_k log |diag(Dᵀ G_k G_kᵀ D)|, or with equal volumes log Σ_k n_k |diag(…)|^{1/D}. As in
    majorisation–minimisation, A_k is held at the present variances a_kj while Σ_k n_k tr(G_kᵀ D A_k⁻¹ Dᵀ G_k)
    is lowered; here one plane of two axes at a time (all disjoint planes of a round together), where the
    minimum over the angle is known in closed form: it is P cos 2θ + Q sin 2θ. It never raises the criterion,
    and being one-sided, on rows of factors, it keeps the digits of small variances. What it finds is a local
    minimum; there may be others.

    Args:
      factors: (K, D, D) G_k, in coordinates where the present axes are the identity.
      share: (K,) the weights n_k, summing to 1.
      equal_volume: whether all λ_k are the same.

    Returns:
      Rotation R (D, D) of the present axes, variances (K, D).

    References:
      Browne & McNicholas (2014), Estimating common principal components in high dimensions, Advances in Data
      Analysis and Classification 8; Flury & Gautschi (1986) for planes.
    """
    n_features = factors.shape[-1]
    identity = eye(n_features, factors.dtype)
    if n_features == 1:
        return identity, jnp.square(factors[:, :, 0])

    # Where a plane's variances are equal in every component its angle has no slope, whatever the
    # correlations: the axes of the pooled covariance are tried, in units in which each component counts.
    still = lax.stop_gradient(factors)
    own = jnp.square(still).sum(-1)
    scaled = still / jnp.sqrt(own.sum(-1))[:, None, None]
    pooled = einsum("k,kde,kfe->df", share, scaled, scaled)
    others = eigh(lax.stop_gradient(pooled))[1]
    along = jnp.square(einsum("df,kde->kfe", others, still)).sum(-1)
    margin = 64 * epsilon(factors.dtype)
    better = _criterion(along, share, equal_volume) < _criterion(own, share, equal_volume) - margin
    turned = jnp.where(better, others, identity)
    rows = einsum("df,kde->kfe", turned, factors)

    # The axes themselves ride along, as one more matrix that has no weight.
    rows = jnp.concatenate([rows, turned.T[None]])
    share = jnp.concatenate([share, jnp.zeros(1, share.dtype)])
    first, second, rest, following, n_rounds = _rounds(n_features)

    def one(rows: Array, _: None) -> tuple[Array, None]:
        variances = jnp.square(rows).sum(-1)
        if equal_volume:
            logs = jnp.log(variances[:-1]).mean(-1)
            weight = share[:-1] * jnp.exp(logs - lax.stop_gradient(logs.max()))
            weight = jnp.concatenate([weight, share[-1:]])
        else:
            weight = share
        a, b = rows[:, first], rows[:, second]
        va, vb = variances[:, first], variances[:, second]
        cross = (a * b).sum(-1)
        ratio = jnp.minimum(va / vb, _LARGE) + jnp.minimum(vb / va, _LARGE) - 2
        p = 0.5 * (weight[:, None] * ratio).sum(0)
        q = (weight[:, None] * (cross / vb - cross / va)).sum(0)
        # The minimum of −p cos 2θ + q' sin 2θ, p ≥ 0, lies within an eighth of a turn.
        tangent = jnp.where(p > 0, q / jnp.where(p > 0, p, 1), 0)
        tangent = jnp.clip(tangent, -_LARGE, _LARGE)
        cos_2 = 1 / jnp.sqrt(1 + tangent * tangent)
        cos = jnp.sqrt(0.5 * (1 + cos_2))[None, :, None]
        sin = (0.5 * tangent * cos_2)[None, :, None] / cos
        moved = [cos * a + sin * b, cos * b - sin * a, rows[:, rest]]
        return jnp.concatenate(moved, axis=1)[:, following], None

    rows, _ = lax.scan(one, rows, None, length=SWEEPS * n_rounds)
    return rows[-1].T, jnp.square(rows[:-1]).sum(-1)


_LARGE = 1e15
