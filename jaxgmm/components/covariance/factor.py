"""Factor analysers: Σ_k = Λ_k Λ_kᵀ + Ψ_k with loadings Λ (D, q) and a diagonal Ψ.

A covariance of D² numbers is described by D(q + 1), and everything that EM does with it costs O(Dq) a sample.
Scale is {"loadings": Λ (K, D, q), "noise": √Ψ (K, D)}. Λ is known up to a rotation of its columns.

In units of the noise, U = Ψ^(-1/2) Λ, the covariance is I + U Uᵀ = C Cᵀ with C = A_1 … A_q, one factor for
each column: A_i = (I + w wᵀ)^(1/2), which is I plus a multiple of w wᵀ, where w is the i-th column as
A_1 … A_{i−1} whiten it. It has the short forms

  C⁻¹ = I − P Zᵀ,   C = I + (U − Z) Pᵀ,   P = C⁻¹ U,

with P and Z (D, q) that the recursion gives and whose columns are shorter than 1. No Gram matrix I + UᵀU is
factored, so that a float32 U of condition 1e4 costs four digits and not eight; and nothing divides by the
length of a column, so that it is smooth at U = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Collapse, Covariance, Partial, compiled
from jaxgmm.components.covariance.full import SQRT_HALF
from jaxgmm.components.covariance.letters import covariance_shape
from jaxgmm.kernels.linalg import (
    cholesky,
    eigh,
    einsum,
    embed_diagonal,
    epsilon,
    eye,
    lower_inverse,
    safe_cholesky,
    triangular_factor,
    weighted_squares,
)
from jaxgmm.kernels.manual_axes import varying_like

Scale = dict[str, Array]

# What share of the variances a start's loadings explain: enough for the first M-step to turn them to where
# the data vary, and little enough not to matter to the distances by which seeds are chosen.
_SHARE = 0.1

# Turns of `from_covariance`, which people call, and the least share of a variance that it leaves to noise.
_MAX_NEAREST = 2000
_LEAST_NOISE = 1e-6

_UNROLLED = 8  # columns: up to here XLA sees the recursion as plain products, which it hoists out of loops


class _Root(NamedTuple):
    """The square root C of I + U Uᵀ: C⁻¹ = I − P Zᵀ and C = I + (U − Z) Pᵀ."""

    unit: Array  # (K, D, q)  U, the loadings in units of the noise
    inner: Array  # (K, D, q)  P = C⁻¹ U
    outer: Array  # (K, D, q)  Z
    log_det: Array  # (K,)  log |I + U Uᵀ|


@jax.jit
def _root(scale: Scale) -> _Root:
    unit = scale["loadings"] / scale["noise"][:, :, None]
    rank = unit.shape[-1]

    def take_in(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        inner, outer, log_det = carry
        w = lax.dynamic_index_in_dim(inner, i, 2, keepdims=False)
        square = jnp.square(w).sum(-1)
        root = jnp.sqrt(1 + square)
        z = w / (1 + root)[:, None]
        shares = einsum("kd,kdq->kq", w, inner) / root[:, None]
        whitened = inner - z[:, :, None] * shares[:, None, :]
        return (
            # w itself becomes w / root; as a difference, that would lose the digits of root.
            lax.dynamic_update_index_in_dim(whitened, w / root[:, None], i, 2),
            lax.dynamic_update_index_in_dim(outer, z, i, 2),
            log_det + jnp.log1p(square),
        )

    start = (unit, jnp.zeros_like(unit), jnp.zeros(unit.shape[0], unit.dtype))
    inner, outer, log_det = lax.fori_loop(0, rank, take_in, varying_like(start), unroll=rank <= _UNROLLED)
    return _Root(unit, inner, outer, log_det)


def _through(left: Array, right: Array, x: Array) -> Array:
    """left rightᵀ x for x (K, D, B)."""
    return einsum("kdq,kqb->kdb", left, einsum("kdq,kdb->kqb", right, x))


def _whitener(scale: Scale) -> Callable[[Array], Array]:
    root, inverse = _root(scale), 1 / scale["noise"]

    def whiten(residuals: Array) -> Array:
        x = residuals * inverse[:, :, None]
        return x - _through(root.inner, root.outer, x)

    return whiten


def _colour(scale: Scale, y: Array) -> Array:
    root = _root(scale)
    return scale["noise"][:, :, None] * (y + _through(root.unit - root.outer, root.inner, y))


def _log_det(scale: Scale, shape: tuple[int, int]) -> Array:
    return 2 * jnp.log(scale["noise"]).sum(-1) + _root(scale).log_det


def _diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    return jnp.square(scale["noise"]) + jnp.square(scale["loadings"]).sum(-1)


def _rows(a: Array, b: Array) -> Array:
    """The diagonal of a bᵀ: (K, D) from (K, D, q) twice."""
    return (a * b).sum(-1)


def _gram(a: Array, b: Array) -> Array:
    return einsum("kdq,kdr->kqr", a, b)


def _times(a: Array, b: Array) -> Array:
    return einsum("kdq,kqr->kdr", a, b)


def _inverse_diagonal(scale: Scale, shape: tuple[int, int]) -> Array:
    unit, p, z, _ = _root(scale)
    squares = 1 - 2 * _rows(p, z) + _rows(_times(z, _gram(p, p)), z)
    # 1/Σ⁻¹_jj is a variance given the other features, no larger than the variance without them.
    return jnp.maximum(squares, 1 / (1 + _rows(unit, unit))) / jnp.square(scale["noise"])


def _second_moment(scale: Scale, y: Array, resp: Array) -> dict[str, Array]:
    """Σ r y yᵀ P and the diagonal of Σ r y yᵀ: all that the M-step reads."""
    projected = einsum("kdq,kdb->kqb", _root(scale).inner, y) * resp[:, None, :]
    return {"projected": einsum("kdb,kqb->kdq", y, projected), "squares": weighted_squares(y, resp)}


def _squared_length(root: _Root, moved: Array, grown: Array) -> Array:
    """‖C⁻¹ (U′U′ᵀ − UUᵀ + diag(grown)) C⁻ᵀ‖²_F for U′ = U + moved; every term is of second order in them."""
    _, p, z, _ = root
    a = moved - _times(p, _gram(z, moved))
    b = p + 0.5 * a
    # The low-rank part is a bᵀ + b aᵀ.
    ab = _gram(a, b)
    low = (_gram(a, a) * _gram(b, b)).sum((1, 2)) + (ab * ab.swapaxes(1, 2)).sum((1, 2))
    mixed = (grown * _rows(a - _times(z, _gram(p, a)), b - _times(z, _gram(p, b)))).sum(-1)
    # (I + UUᵀ)⁻¹ = I − z yᵀ − y zᵀ.
    y = p - 0.5 * _times(z, _gram(p, p))
    scaled = grown[:, :, None]
    zy = _gram(z, scaled * y)
    square = (grown * grown * (1 - 4 * _rows(z, y))).sum(-1)
    square = square + 2 * (zy * zy.swapaxes(1, 2)).sum((1, 2))
    square = square + 2 * (_gram(z, scaled * z) * _gram(y, scaled * y)).sum((1, 2))
    return jnp.maximum(2 * low + 4 * mixed + square, 0)


def _update(
    scale: Scale, weight: Array, mean: Array, second: dict[str, Array], ridge: Array
) -> tuple[Scale, Array]:
    """One EM step on the latent factors too, of which it is the exact M-step.

    With S the scatter about the new mean plus diag(ridge), Δ = C⁻¹ Ψ^(-1/2) S Ψ^(-1/2) C⁻ᵀ − I and
    Θ = I + PᵀΔP, Rubin and Thayer's Λ′ = Sβᵀ(I − βΛ + βSβᵀ)⁻¹ and Ψ′ = diag(S − Λ′βS), β = ΛᵀΣ⁻¹, read

      U′ − U = C⁻ᵀ Δ P Θ⁻¹,   ψ′/ψ − 1 = diag(C⁻ᵀ Δ C⁻¹ − (U′ − U) Θ (U′ − U)ᵀ):

    differences, which are small where the change is and do not cancel.
    """
    root = _root(scale)
    unit, p, z, _ = root
    eps = epsilon(mean.dtype)
    active = weight > 0
    share = 1 / jnp.where(active, weight, 1)
    pp = _gram(p, p)

    rho = (ridge[None, :] / jnp.square(scale["noise"]))[:, :, None]
    ridged = rho * (p - _times(z, pp))
    ridged = ridged - _times(p, _gram(z, ridged))
    wide = rho[:, :, 0] * (1 - 2 * _rows(p, z)) + _rows(_times(p, _gram(z, rho * z)), p)

    spread = second["squares"] * share[:, None]
    across = einsum("kd,kdq->kq", mean, p)
    delta_p = second["projected"] * share[:, None, None] - mean[:, :, None] * across[:, None, :] + ridged - p
    delta_p = jnp.where(active[:, None, None], delta_p, 0)
    delta = jnp.where(active[:, None], spread - mean * mean + wide - 1, 0)

    m = _gram(p, delta_p)
    m = 0.5 * (m + m.swapaxes(1, 2))
    theta = eye(m.shape[-1], m.dtype, 3) + m
    # The rounding of what cancelled in m, where a mean moved by thousands of widths, included.
    largest = 1 + jnp.abs(m).max((1, 2)) + jnp.square(across).sum(1)
    jitter = jnp.broadcast_to(4 * eps * largest[:, None], m.shape[:2])
    inverse = lower_inverse(safe_cholesky(theta, jitter))
    core = delta_p - _times(z, m)
    moved = einsum("kdq,krq,krs->kds", core, inverse, inverse)
    grown = delta - 2 * _rows(z, delta_p) + _rows(_times(z, m), z) - _rows(core, moved)

    # Ψ has no bound from below in a likelihood whose Σ has: a feature may be all factor. Far below where
    # Σ itself would be called degenerate, its last digits' square keeps it positive.
    loadings = unit + moved
    least = 4 * eps * eps * (_rows(loadings, loadings) + jnp.maximum(1 + grown, 0) + eps * eps)
    vanished = 4 * eps * jnp.where(active[:, None], spread + mean * mean, 0) + eps * eps
    psi = jnp.where(1 + grown > 0, jnp.maximum(1 + grown, least), vanished)
    new = {
        "loadings": scale["loadings"] + scale["noise"][:, :, None] * moved,
        "noise": scale["noise"] * jnp.sqrt(psi),
    }
    return new, _squared_length(root, moved, psi - 1)


def _to_covariance(scale: Scale, shape: tuple[int, int]) -> Array:
    low = einsum("...dq,...eq->...de", scale["loadings"], scale["loadings"])
    return low + embed_diagonal(jnp.square(scale["noise"]))


def _from_variances(rank: int, variances: Array) -> Scale:
    """Loadings that explain a small share of every variance, in directions that are as good as random.

    At Λ = 0 EM stands still. From anywhere else its first M-steps are those of the power method.
    """
    n_features = variances.shape[-1]
    validate.rank(rank, n_features)
    # cos(√2 d² j): no direction of data has reason to be orthogonal to it, and it is the same everywhere.
    phase = np.outer(np.arange(1, n_features + 1) ** 2, np.sqrt(2) * np.arange(1, rank + 1))
    rows = np.cos(phase) + 1e-3
    rows = rows / np.sqrt(np.square(rows).sum(1, keepdims=True))
    width = jnp.sqrt(variances)
    return {
        "loadings": width[:, :, None] * jnp.asarray(float(np.sqrt(_SHARE)) * rows, width.dtype)[None],
        "noise": float(np.sqrt(1 - _SHARE)) * width,
    }


def _n_parameters(rank: int, n_components: Any, n_features: int) -> Any:
    validate.rank(rank, n_features)
    return n_components * (n_features * rank - rank * (rank - 1) // 2 + n_features)


def _collapse(rank: int, n_features: int) -> Collapse:
    # The noise vanishes where the factors explain all: on q + 1 samples, which span q directions. On q + 2 it
    # may vanish in some features (a Heywood case), and the loadings keep the covariance regular.
    return Collapse(each=min(rank + 2, n_features + 1))


def _nearest(rank: int, covariance: Array) -> Scale:
    """The loadings (D, q) and noise (D,) of the likeliest factor structure for one covariance (D, D)."""
    n_features = covariance.shape[-1]
    width = jnp.sqrt(jnp.diagonal(covariance))
    correlation = covariance / (width[:, None] * width[None, :])
    inverse = lower_inverse(cholesky(correlation))
    eps = epsilon(covariance.dtype)

    def loadings(psi: Array) -> Array:
        root = jnp.sqrt(psi)
        values, vectors = eigh(correlation / (root[:, None] * root[None, :]))
        lengths = jnp.sqrt(jnp.maximum(values[n_features - rank :] - 1, 0))
        return root[:, None] * vectors[:, n_features - rank :] * lengths[None, :]

    def go_on(state: tuple[Array, Array, Array]) -> Array:
        psi, previous, count = state
        return (count < _MAX_NEAREST) & (jnp.abs(psi - previous) > 2 * eps * psi).any()

    def iterate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        psi, _, count = state
        return jnp.maximum(1 - jnp.square(loadings(psi)).sum(-1), _LEAST_NOISE), psi, count + 1

    psi = (1 - 0.5 * rank / n_features) / jnp.square(inverse).sum(0)
    psi, _, _ = lax.while_loop(go_on, iterate, varying_like((psi, psi + 1, jnp.zeros((), jnp.int32))))
    # Where the covariance is not positive definite, psi is NaN from the start.
    return {"loadings": width[:, None] * loadings(psi), "noise": width * jnp.sqrt(psi)}


def _from_covariance(rank: int, covariances: Array) -> Scale:
    """The likeliest factor structure for each covariance (K, D, D); itself where it has the structure.

    Jöreskog's equations diag(ΛΛᵀ + Ψ) = diag(Σ), and Λ from the first q eigenvectors of Ψ^(-1/2) Σ Ψ^(-1/2),
    in turn. This is the one place where D × D matrices are factored.
    """
    validate.rank(rank, covariances.shape[-1])
    return jax.vmap(functools.partial(_nearest, rank))(covariances)


def _to_natural(reference: Scale, weights: Array, scale: Scale, shift: Array) -> dict[str, Array]:
    """Loadings as the reference whitens them, and the logarithms of the noise.

    EM's steps have no part along a rotation of the loadings, so nothing need be aligned.
    """
    root = jnp.sqrt(weights)
    return {
        "loadings": root[:, None, None] * _whitener(reference)(scale["loadings"]),
        "noise": 2 * SQRT_HALF * root[:, None] * jnp.log(scale["noise"] / reference["noise"]),
        "shift": root[:, None] * shift,
    }


def _from_natural(reference: Scale, weights: Array, natural: dict[str, Array]) -> tuple[Scale, Array]:
    root = jnp.sqrt(weights)
    scale = {
        "loadings": _colour(reference, natural["loadings"] / root[:, None, None]),
        "noise": reference["noise"] * jnp.exp(natural["noise"] / (2 * SQRT_HALF * root[:, None])),
    }
    return scale, natural["shift"] / root[:, None]


def _to_unconstrained(scale: Scale) -> dict[str, Array]:
    """Λ rotated until it is lower trapezoidal with a positive diagonal, in units of the noise; log noise."""
    unit = scale["loadings"] / scale["noise"][:, :, None]
    n_features, rank = unit.shape[1:]
    top = unit[:, :rank, :]
    rotation = einsum("kde,kef->kdf", lower_inverse(triangular_factor(top)), top).swapaxes(1, 2)
    turned = _times(unit, rotation)
    rows, columns = np.tril_indices(n_features, -1, rank)
    diagonal = jnp.diagonal(turned[:, :rank, :], axis1=1, axis2=2)
    return {
        "log_diagonal": jnp.log(diagonal),
        "lower": turned[:, rows, columns],
        "log_noise": jnp.log(scale["noise"]),
    }


def _from_unconstrained(free: dict[str, Array], shape: tuple[int, int]) -> Scale:
    rank = free["log_diagonal"].shape[-1]
    rows, columns = np.tril_indices(shape[1], -1, rank)
    unit = jnp.zeros((*shape, rank), free["lower"].dtype).at[:, rows, columns].set(free["lower"])
    unit = unit.at[:, np.arange(rank), np.arange(rank)].set(jnp.exp(free["log_diagonal"]))
    noise = jnp.exp(free["log_noise"])
    return {"loadings": unit * noise[:, :, None], "noise": noise}


def _rescale(scale: Scale, unit: Array) -> Scale:
    return {"loadings": scale["loadings"] * unit[None, :, None], "noise": scale["noise"] * unit[None, :]}


@functools.lru_cache
def factor(rank: int) -> Covariance:
    """Factor analysers: every component has a covariance Λ_k Λ_kᵀ + Ψ_k of its own, with `rank` factors.

    x = μ_k + Λ_k z + e with z ~ N(0, I_q) and e ~ N(0, Ψ_k), Ψ_k diagonal: D(q + 1) − q(q − 1)/2 numbers for
    a covariance in place of D(D + 1)/2, and O(N K D q) for an EM step in place of O(N K D²). A fit stores
    nothing of size D × D; `params.covariances`, for people, does.

    A step is exact EM with the factors z among what is missing. The likelihood rises with every step; a step
    to the best Λ_k and Ψ_k given the responsibilities would take D × D moments. Where the likelihood is
    highest with a feature that is all factor (a Heywood case), its Ψ shrinks towards zero ever more slowly:
    such a fit may reach max_iter, and says so, and derivatives of it mean little.

    Args:
      rank: q, the number of factors, at least 1 and below the number of features.

    Returns:
      A `Covariance` whose scale is {"loadings": Λ (K, D, q), "noise": √Ψ (K, D)}. Its name, such as
      "factor(2)", can be passed as covariance_type too.

    Raises:
      ValueError, TypeError: for a rank that is not an int or is below 1; where it is used, for a rank that is
        not below the number of features.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.components import factor
      >>> X = jax.random.normal(jax.random.key(0), (200, 6))
      >>> resp = jaxgmm.init.random_resp(jax.random.key(1), X, 2)
      >>> jaxgmm.m_step(resp, X, covariance_type=factor(2)).scale["loadings"].shape
      (2, 6, 2)

    References:
      Rubin & Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47; Ghahramani & Hinton
      (1996), The EM algorithm for mixtures of factor analyzers; McLachlan, Peel & Bean (2003), Modelling
      high-dimensional data by mixtures of factor analyzers, CSDA 41.
    """
    rank = validate.count(rank, "rank", 1)
    return Covariance(
        name=f"factor({rank})",
        covariance_shape=Partial(covariance_shape, "VVV"),
        whitener=_whitener,
        colour=_colour,
        log_det=_log_det,
        diagonal=_diagonal,
        inverse_diagonal=_inverse_diagonal,
        second_moment=_second_moment,
        update=_update,
        to_covariance=Partial(compiled, _to_covariance),
        from_covariance=Partial(compiled, Partial(_from_covariance, rank)),
        from_variances=Partial(_from_variances, rank),
        n_parameters=Partial(_n_parameters, rank),
        to_natural=_to_natural,
        from_natural=_from_natural,
        to_unconstrained=_to_unconstrained,
        from_unconstrained=_from_unconstrained,
        free_volumes=True,
        rescale=_rescale,
        by_feature=True,
        collapse=Partial(_collapse, rank),
    )
