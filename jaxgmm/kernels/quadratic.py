"""The quadratic kernel: `Moments` by one matrix product over features of the data, and one back.

log π_k N(x | μ_k, Σ_k) is linear in the products x_i x_j, x_i and 1. With these features of a block of rows
as a matrix, the E-step is one product with the components' coefficients, and the sums over samples are
another, shared by all components and all restarts. The price is rounding: sums of squares about a common
centre cancel where components are far apart for their widths. `rounding` says by how much.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Family
from jaxgmm.density import log_constants, shares_of
from jaxgmm.kernels.blocked_sum import sum_rows
from jaxgmm.kernels.exact import Moments, location_and_variance, scatter, without_junk
from jaxgmm.kernels.linalg import einsum, epsilon, lower_inverse, outlived, safe_cholesky
from jaxgmm.mixture import GMMParams

_LARGE = 1 << 22  # N · K · D from which the second kernel's compilation pays
_MOST_FEATURES = 64
KERNELS = ("auto", "whitened", "quadratic")
AFFINE = ("dense", "shared")  # kinds that any linear coordinates will do for


class Coordinates(NamedTuple):
    """Coordinates u in which features are made, x = shift + centre + root u: their second moment is I."""

    centre: Array  # (D,)  relative to the shift
    root: Array  # (D, D)  lower triangular; diagonal unless the covariance structure allows for more
    total: Array  # (D, D)  Σ w u uᵀ


def n_features_of(kind: str, n_features: int) -> int:
    """How many features a row has."""
    return {
        "dense": n_features * (n_features + 3) // 2,
        "shared": n_features,
        "diagonal": 2 * n_features,
        "length": n_features + 1,
    }[kind]


def choose(kernel: str, family: Family, n_samples: int, n_components: int, n_features: int) -> str:
    """The kernel of a fit: "whitened", "quadratic", or "auto" where the second is to hand over to the first.

    Raises:
      ValueError: for an unknown name, or a family without the kernel that is asked for.
    """
    kernel = validate.choice(kernel, "kernel", KERNELS)
    if kernel == "quadratic" and family.quadratic is None:
        raise ValueError(f"{family.name!r} has no quadratic kernel; use kernel='auto' or 'whitened'")
    if kernel != "auto":
        return kernel
    if family.quadratic is None:
        return "whitened"
    large = n_samples * n_components * n_features >= _LARGE
    return "auto" if large and n_features <= _MOST_FEATURES else "whitened"


def coordinates(
    kind: str,
    x: Array,
    w: Array | None,
    shift: Array,
    centre: Array | None = None,
    block_size: int = 2048,
) -> Coordinates:
    """Survey the data: a root of their covariance, and their mean unless it is given as `centre`."""
    centre = (location_and_variance(x, w, block_size)[0] if centre is None else centre) - shift
    weight, spread = scatter(x, w, shift + centre, block_size)
    return coordinates_of(kind, centre, weight, spread / weight)


def coordinates_of(kind: str, centre: Array, weight: Array, spread: Array) -> Coordinates:
    """The same from the data's centre (D,), their total weight () and their covariance (D, D)."""
    n_features = spread.shape[0]
    variance = jnp.diagonal(spread)
    variance = jnp.where(variance > 0, variance, 1)
    if kind in AFFINE:
        # A ridge: directions without any width are not to be blown up to the others' size.
        ridge = (4 * n_features * epsilon(spread.dtype)) * variance
        root = safe_cholesky(spread + jnp.diag(ridge), ridge)
    else:
        # A multiple of I is one only in coordinates of one scale.
        if kind == "length":
            variance = jnp.broadcast_to(variance.mean(), variance.shape)
        root = jnp.diag(jnp.sqrt(variance))
    inverse = lower_inverse(root)
    return Coordinates(centre, root, weight * einsum("de,ef,gf->dg", inverse, spread, inverse))


class _Mixture(NamedTuple):
    means: Array  # (K, D)  in the coordinates
    inverse: Array  # (K, D, D)  C⁻¹ root, for kinds with correlations; else (K, D) 1 / σ²


def _localise(kind: str, params: GMMParams, c: Coordinates) -> _Mixture:
    shape = (params.n_components, params.n_features)
    means = einsum("de,ke->kd", lower_inverse(c.root), params.means - c.centre[None, :])
    if kind in AFFINE:
        identity = jnp.broadcast_to(c.root[None], (shape[0], *c.root.shape))
        return _Mixture(means, params.family.whitener(params.scale)(identity))
    precision = params.family.inverse_diagonal(params.scale, shape)
    return _Mixture(means, precision * jnp.square(jnp.diagonal(c.root))[None, :])


def _pairs(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(n_features)


def _squares(kind: str, u: Array) -> Array | None:
    """Features of second degree of coordinates u, whose own are those of first degree.

    They are (F, B) of (D, B) for the affine kinds and (B, F) of (B, D) for the others. The two degrees are
    kept apart, and 1 is no feature: to put them together in memory would cost as much as their products do.
    """
    if kind == "dense":
        i, j = _pairs(u.shape[0])
        return u[i] * u[j]
    if kind == "diagonal":
        return jnp.square(u)
    if kind == "length":
        return jnp.square(u).sum(1, keepdims=True)
    return None


class _Coefficients(NamedTuple):
    """log π_k N(x | μ_k, Σ_k), less what all components share, as a function of a row's features."""

    second: Array | None  # (K, F)
    first: Array  # (K, D)
    constant: Array  # (K,)


def _coefficients(kind: str, m: _Mixture, constant: Array) -> _Coefficients:
    n_features = m.means.shape[1]
    if kind in AFFINE:
        precision = einsum("ked,kef->kdf", m.inverse, m.inverse)
        linear = einsum("kde,ke->kd", precision, m.means)
    else:
        precision = m.inverse
        linear = precision * m.means
    constant = constant - 0.5 * (linear * m.means).sum(1)
    if kind == "dense":
        i, j = _pairs(n_features)
        # A symmetric form by its triangle: off the diagonal, twice.
        twice = jnp.asarray(np.where(i == j, -0.5, -1), precision.dtype)
        second = precision[:, i, j] * twice[None, :]
    elif kind == "shared":
        second = None
    else:
        second = -0.5 * (precision if kind == "diagonal" else precision[:, :1])
    return _Coefficients(second, linear, constant)


def _squares_of_means(kind: str, means: Array) -> tuple[Array, Array] | tuple[None, None]:
    """The features of second degree of the means (K, D), rounded, and what that left out; (K, F) each.

    Only for kinds of which the first is taken from a block's sums at once.
    """
    if kind not in ("dense", "diagonal"):
        return None, None
    # A number's leading half has products without rounding (Dekker).
    info = jnp.finfo(means.dtype)
    half = lax.reduce_precision(means, info.nexp, info.nmant // 2)
    rest = means - half
    i, j = _pairs(means.shape[1]) if kind == "dense" else (np.arange(means.shape[1]),) * 2
    product = means[:, i] * means[:, j]
    left = (half[:, i] * half[:, j] - product) + half[:, i] * rest[:, j] + rest[:, i] * half[:, j]
    return product, lax.stop_gradient(left + rest[:, i] * rest[:, j])


def _unfold(raw: Array, n_features: int) -> Array:
    """Sums of the products of pairs (K, F) as symmetric matrices (K, D, D)."""
    i, j = _pairs(n_features)
    back = np.zeros((n_features, n_features), np.int32)
    back[i, j] = back[j, i] = np.arange(len(i))
    return raw[:, back]


def accumulate(
    params: GMMParams,
    x: Array,
    sample_weight: Array | None,
    c: Coordinates,
    *,
    shift: Array,
    block_size: int,
) -> Moments:
    """`exact.accumulate` by the quadratic kernel; `params.means` are relative to `shift`."""
    kind = params.family.quadratic
    assert kind is not None
    m = _localise(kind, params, c)
    constant, common = log_constants(params)
    coefficients = _coefficients(kind, m, constant)
    inverse = lower_inverse(c.root)
    origin = shift + c.centre
    bulk, left = _squares_of_means(kind, m.means)

    # Products of two features are made fastest where one feature's numbers lie side by side; nothing else is
    # worth a transposition.
    axes = "fb" if kind in AFFINE else "bf"

    def block(w: Array, b: Array) -> tuple[Any, ...]:
        w, row = without_junk(w, b)
        row = row - origin[None, :]
        if kind in AFFINE:
            u = einsum("de,be->db", inverse, row)
        else:
            u = row * jnp.diagonal(inverse)[None, :]
        squares = _squares(kind, u)
        terms = [einsum(f"kf,{axes}->kb", coefficients.first, u)]
        if squares is not None and coefficients.second is not None:
            terms.append(einsum(f"kf,{axes}->kb", coefficients.second, squares))
        joint = functools.reduce(jnp.add, terms, coefficients.constant[:, None])
        shares, total, top = shares_of(joint)
        r = shares * (w / total)[None, :]
        second = None if squares is None else einsum(f"kb,{axes}->kf", r, squares)
        log_likelihood = outlived((w * (top + jnp.log(total))).sum(), b, *terms, joint) + common * w.sum()
        weight = outlived(r.sum(1), shares)
        # The bulk of the sums goes at once: rounding the totals would be the largest error of all.
        between = einsum(f"kb,{axes}->kf", r, u) - weight[:, None] * m.means  # Σ r (u − μ)
        if second is not None and bulk is not None:
            second = second - weight[:, None] * bulk
        return weight, between, second, log_likelihood, w.sum()

    weight, between, second, log_likelihood, total_weight = sum_rows(
        block, sample_weight, x, block_size=block_size
    )
    # Σ r (u − μ)(u − μ)ᵀ: of the products of μ with itself, what is still to be subtracted.
    if bulk is not None and left is not None:
        second = second - weight[:, None] * left
    if kind in AFFINE:
        outer = m.means[:, :, None] * between[:, None, :]
        crossed = outer + outer.swapaxes(1, 2)
        if kind == "dense":
            second = _unfold(second, x.shape[1]) - crossed
            second = einsum("kde,kef,kgf->kdg", m.inverse, second, m.inverse)
        else:
            crossed = crossed + weight[:, None, None] * m.means[:, :, None] * m.means[:, None, :]
            common = m.inverse[0]
            log_likelihood = log_likelihood - 0.5 * (einsum("de,ef->df", common, c.total) * common).sum()
            second = einsum("de,ef,gf->dg", common, c.total - crossed.sum(0), common)
        moved = einsum("kde,ke->kd", m.inverse, between)
    else:
        if kind == "diagonal":
            second = (second - 2 * between * m.means) * m.inverse
        else:
            crossed = (2 * between + weight[:, None] * m.means) * m.means
            second = (second[:, 0] - crossed.sum(1)) * m.inverse[:, 0]
        moved = between * jnp.diagonal(c.root)[None, :]
        moved = params.family.whitener(params.scale)(moved[:, :, None])[:, :, 0]
    return Moments(weight, moved, second, log_likelihood, total_weight)


def rounding(params: GMMParams, c: Coordinates) -> Array:
    """() by how many standard deviations, about, rounding alone can move a component in one step.

    A squared distance is a sum of terms P_ij u_i u_j, and a second moment a sum of products u_i u_j: in units
    of what they add up to, they are as large as aᵀ|P|a with a_i² = μ_i² + Σ_ii. That is the squared distance
    from the common centre in widths, times the condition number where a component is thin across the axes.
    """
    kind = params.family.quadratic
    assert kind is not None
    m = _localise(kind, params, c)
    if kind in AFFINE:
        identity = jnp.broadcast_to(jnp.eye(c.root.shape[0], dtype=c.root.dtype), m.inverse.shape)
        factors = einsum("de,kef->kdf", lower_inverse(c.root), params.family.colour(params.scale, identity))
        typical = jnp.sqrt(jnp.square(m.means) + jnp.square(factors).sum(2))
        precision = jnp.abs(einsum("ked,kef->kdf", m.inverse, m.inverse))
        size = einsum("kde,kd,ke->k", precision, typical, typical)
    else:
        size = params.means.shape[1] + (m.inverse * jnp.square(m.means)).sum(1)
    return epsilon(size.dtype) * jnp.sqrt((params.weights * jnp.square(size)).sum())
