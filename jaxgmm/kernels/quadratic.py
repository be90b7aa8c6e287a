"""Quadratic kernel: `Statistics` by one matrix product over features of the data, and one back.

log π_k N(x | μ_k, Σ_k) is linear in the products x_i x_j, x_i and 1. With these features of a block of rows
as a matrix, the E-step is one product with the components' coefficients, and the sums over samples are
another, shared by all components and all restarts. The price is rounding: sums of squares about a common
centre cancel where components are far apart for their widths. `rounding` says by how much.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm import _validate as validate
from jaxgmm.components.base import Component
from jaxgmm.data import Context, Data, scatter
from jaxgmm.density import log_constants, shares_of
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.blocked_sum import block_rows, sum_rows, zero_unused
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.linalg import einsum, epsilon, lower_inverse, outlived, safe_cholesky
from jaxgmm.kernels.programs import work_of_fits
from jaxgmm.mixture import GMMParams

_LARGE = 1 << 22  # N · K · D from which the second kernel's compilation pays
_MOST_FEATURES = 64
KERNELS = ("auto", "whitened", "quadratic")
AFFINE = ("matrix", "pooled")  # second moments that any linear coordinates will do for


class Coordinates(NamedTuple):
    """Coordinates u in which features are made, x = shift + centre + root u: their second moment is I."""

    centre: Array  # (D,)  relative to the shift
    root: Array  # (D, D)  lower triangular; diagonal unless the covariance structure allows for more
    total: Array  # (D, D)  Σ w u uᵀ


def n_features_of(kind: str, n_features: int) -> int:
    """How many features a row has."""
    return {
        "matrix": n_features * (n_features + 3) // 2,
        "pooled": n_features,
        "diagonal": 2 * n_features,
        "trace": n_features + 1,
    }[kind]


def applies(component: Component) -> bool:
    """Whether a component has this kernel: Gaussians of structures that name their second moments."""
    return component.is_gaussian and not callable(component.covariance.second_moment)


def choose(
    kernel: str, component: Component, n_samples: int, n_components: int, n_features: int
) -> tuple[Kernel, ...]:
    """The kernels of a fit, in order: for "auto", quadratic then whitened if the problem is large.

    Each begins where the one before ended, or at the start if that one failed; `em.run` runs them.

    Raises:
      ValueError: for an unknown name, or a component without the kernel that is asked for.
    """
    kernel = validate.choice(kernel, "kernel", KERNELS)
    if kernel == "quadratic" and not applies(component):
        raise ValueError(f"{component.name!r} has no quadratic kernel; use kernel='auto' or 'whitened'")
    if kernel == "quadratic":
        return (QUADRATIC,)
    large = n_samples * n_components * n_features >= _LARGE and n_features <= _MOST_FEATURES
    if kernel == "auto" and applies(component) and large:
        return QUADRATIC, WHITENED
    return (WHITENED,)


def choose_for(
    data: Data, kernel: str, component: Component, n_components: int, n_fits: int = 1, trimmed: bool = False
) -> tuple[Kernel, ...]:
    """`choose` for these rows: with gaps, noise, labels or trimming the whitened kernel."""
    if data.is_plain and not trimmed:
        return choose(kernel, component, data.x.shape[0], n_fits * n_components, data.n_features)
    return (not_quadratic(kernel),)


def not_quadratic(kernel: str) -> Kernel:
    """The kernel of rows with gaps, noise or labels, or trimmed, unless another one is asked for."""
    if validate.choice(kernel, "kernel", KERNELS) == "quadratic":
        raise ValueError(
            "the quadratic kernel takes complete rows without labels, and no trim; use kernel='auto'"
        )
    return WHITENED


def work(
    kernels: tuple[Kernel, ...], n_samples: int, n_components: int, n_features: int, n_fits: int = 1
) -> float:
    """Predicted multiply–adds of fits with these kernels, by which the options of the compiler are chosen."""
    if kernels != (WHITENED,):
        return math.inf  # the compensated sums need fused multiply–adds, which small programs do without
    return work_of_fits(n_samples, n_components, n_features, n_fits)


def prepare(component: Component, data: Data, context: Context) -> Coordinates:
    """The coordinates of the rows, by one pass over them."""
    centre = context.mean - context.shift
    weight, spread = scatter(data.x, data.weight, context.shift + centre)
    return coordinates_of(kind_of(component), centre, weight, spread / weight)


def kind_of(component: Component) -> str:
    """Which features a component's structure needs: its second moment."""
    kind = component.covariance.second_moment
    assert isinstance(kind, str)
    return kind


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
        if kind == "trace":
            variance = jnp.broadcast_to(variance.mean(), variance.shape)
        root = jnp.diag(jnp.sqrt(variance))
    inverse = lower_inverse(root)
    return Coordinates(centre, root, weight * einsum("de,ef,gf->dg", inverse, spread, inverse))


def part(c: Coordinates, share: Array) -> Coordinates:
    """The coordinates for a part of the rows, a share () of their weight.

    What is subtracted from a total over all rows is subtracted from the part's share of it.
    """
    return c._replace(total=c.total * share)


class _Mixture(NamedTuple):
    means: Array  # (K, D)  in the coordinates
    inverse: Array  # (K, D, D)  C⁻¹ root, for kinds with correlations; else (K, D) 1 / σ²


def _localise(kind: str, params: GMMParams, c: Coordinates) -> _Mixture:
    shape = (params.n_components, params.n_features)
    means = einsum("de,ke->kd", lower_inverse(c.root), params.means - c.centre[None, :])
    if kind in AFFINE:
        identity = jnp.broadcast_to(c.root[None], (shape[0], *c.root.shape))
        return _Mixture(means, params.covariance.whitener(params.scatter)(identity))
    precision = params.covariance.inverse_diagonal(params.scatter, shape)
    return _Mixture(means, precision * jnp.square(jnp.diagonal(c.root))[None, :])


def _pairs(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(n_features)


def _squares(kind: str, u: Array) -> Array | None:
    """Features of second degree of coordinates u, whose own are those of first degree.

    They are (F, B) of (D, B) for the affine kinds and (B, F) of (B, D) for the others. The two degrees are
    kept apart, and 1 is no feature: to put them together in memory would cost as much as their products do.
    """
    if kind == "matrix":
        i, j = _pairs(u.shape[0])
        return u[i] * u[j]
    if kind == "diagonal":
        return jnp.square(u)
    if kind == "trace":
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
    if kind == "matrix":
        i, j = _pairs(n_features)
        # A symmetric form by its triangle: off the diagonal, twice.
        twice = jnp.asarray(np.where(i == j, -0.5, -1), precision.dtype)
        second = precision[:, i, j] * twice[None, :]
    elif kind == "pooled":
        second = None
    else:
        second = -0.5 * (precision if kind == "diagonal" else precision[:, :1])
    return _Coefficients(second, linear, constant)


def _squares_of_means(kind: str, means: Array) -> tuple[Array, Array] | tuple[None, None]:
    """The features of second degree of the means (K, D), rounded, and what that left out; (K, F) each.

    Only for kinds of which the first is taken from a block's sums at once.
    """
    if kind not in ("matrix", "diagonal"):
        return None, None
    # A number's leading half has products without rounding (Dekker).
    info = jnp.finfo(means.dtype)
    half = lax.reduce_precision(means, info.nexp, info.nmant // 2)
    rest = means - half
    i, j = _pairs(means.shape[1]) if kind == "matrix" else (np.arange(means.shape[1]),) * 2
    product = means[:, i] * means[:, j]
    left = (half[:, i] * half[:, j] - product) + half[:, i] * rest[:, j] + rest[:, i] * half[:, j]
    return product, lax.stop_gradient(left + rest[:, i] * rest[:, j])


def _unfold(raw: Array, n_features: int) -> Array:
    """Sums of the products of pairs (K, F) as symmetric matrices (K, D, D)."""
    i, j = _pairs(n_features)
    back = np.zeros((n_features, n_features), np.int32)
    back[i, j] = back[j, i] = np.arange(len(i))
    return raw[:, back]


def sums(params: GMMParams, data: Data, shift: Array, c: Coordinates, block_size: int) -> Statistics:
    """`exact.sums` by the quadratic kernel; `params.means` are relative to `shift`."""
    kind = kind_of(params.component)
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
        w, row = zero_unused(w, b)
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
        log_likelihood = outlived(w * (top + jnp.log(total)), b, *terms, joint).sum() + common * w.sum()
        weight = outlived(r.sum(1), shares)
        # The bulk of the sums goes at once: rounding the totals would be the largest error of all.
        between = einsum(f"kb,{axes}->kf", r, u) - weight[:, None] * m.means  # Σ r (u − μ)
        if second is not None and bulk is not None:
            second = second - weight[:, None] * bulk
        return weight, between, second, log_likelihood, w.sum()

    weight, between, second, log_likelihood, total_weight = sum_rows(
        block, data.weight, data.x, block_size=block_size
    )
    # Σ r (u − μ)(u − μ)ᵀ: of the products of μ with itself, what is still to be subtracted.
    if bulk is not None and left is not None:
        second = second - weight[:, None] * left
    if kind in AFFINE:
        outer = m.means[:, :, None] * between[:, None, :]
        crossed = outer + outer.swapaxes(1, 2)
        if kind == "matrix":
            second = _unfold(second, params.n_features) - crossed
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
        moved = params.covariance.whitener(params.scatter)(moved[:, :, None])[:, :, 0]
    return Statistics(weight, moved, second, log_likelihood, total_weight)


def rounding(params: GMMParams, c: Coordinates) -> Array:
    """() by how many standard deviations, about, rounding alone can move a component in one step.

    A squared distance is a sum of terms P_ij u_i u_j, and a second moment a sum of products u_i u_j: in units
    of what they add up to, they are as large as aᵀ|P|a with a_i² = μ_i² + Σ_ii. That is the squared distance
    from the common centre in widths, times the condition number where a component is thin across the axes.
    """
    kind = kind_of(params.component)
    m = _localise(kind, params, c)
    if kind in AFFINE:
        identity = jnp.broadcast_to(jnp.eye(c.root.shape[0], dtype=c.root.dtype), m.inverse.shape)
        factors = einsum(
            "de,kef->kdf", lower_inverse(c.root), params.covariance.colour(params.scatter, identity)
        )
        typical = jnp.sqrt(jnp.square(m.means) + jnp.square(factors).sum(2))
        precision = jnp.abs(einsum("ked,kef->kdf", m.inverse, m.inverse))
        size = einsum("kde,kd,ke->k", precision, typical, typical)
    else:
        size = params.means.shape[1] + (m.inverse * jnp.square(m.means)).sum(1)
    return epsilon(size.dtype) * jnp.sqrt((params.weights * jnp.square(size)).sum())


def rows_for(
    component: Component, n_samples: int, n_components: int, n_features: int, n_fits: int = 1
) -> int:
    """Rows per block of a batch of n_fits mixtures."""
    # Features and responsibilities of a block, twice over: as they are and as they are multiplied.
    return block_rows(n_samples, n_features_of(kind_of(component), n_features) + n_fits * n_components, 2)


QUADRATIC = Kernel("quadratic", sums, prepare, rounding, rows_for)
