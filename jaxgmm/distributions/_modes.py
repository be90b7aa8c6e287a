"""Modes of a mixture's density, and the ridgeline between two components."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.base import Seen
from jaxgmm.density import check_mixture, component_log_prob
from jaxgmm.distributions._operations import factors
from jaxgmm.kernels.linalg import einsum, epsilon, lower_inverse, safe_cholesky, triangular_factor
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.solvers.implicit import Derivative, Evaluation
from jaxgmm.solvers.squarem import Status, solve

_SAME = 0.1  # two ends of ascents that are nearer than this, in widths of the components there, are one mode
_ASIDE = 1e-3  # how far beside its mean an ascent begins, in widths: a mean may lie on a saddle


class Modes(NamedTuple):
    """Where the ascents from the components' means end.

    Attributes:
      points: (K, D) the mode that the ascent from each component's mean reaches.
      log_prob: (K,) the log density there, in nats.
      labels: (K,) int32 the number of that mode, from 0, in the order of the first component that reaches it;
        −1 for components that are switched off and for a uniform background.
      n_modes: () int32 how many different modes there are.
      converged: (K,) whether the ascent converged within max_iter steps.
    """

    points: Array
    log_prob: Array
    labels: Array
    n_modes: Array
    converged: Array


class _Mixture(NamedTuple):
    """What an ascent needs, with the components' precisions Wᵀ W."""

    params: GMMParams
    inverse: Array  # (K, D, D) W = C⁻¹
    mean: Array  # (D,) of the component that the ascent begins at
    lower: Array  # (D, D) its factor C


def has_place(params: GMMParams) -> Array:
    """(K,) which components are on and have a place: all but a uniform background, which is the last."""
    on = params.log_weights > -jnp.inf
    return on.at[-1].set(False) if params.component.has_background else on


def _joint(params: GMMParams, length: Array) -> Array:
    """(K,) log π_k f_k at squared Mahalanobis distances (K,)."""
    c, (k, d) = params.component, params.means.shape
    constant = jnp.full((1,), float(-0.5 * d * np.log(2 * np.pi)), length.dtype)
    base = -0.5 * params.covariance.log_det(params.scatter, (k, d))[:, None]
    seen = Seen(jnp.zeros((k, d, 1), length.dtype), length[:, None], base, constant, None, float(d))
    assert c.marginal is not None
    return params.log_weights + c.marginal(c, params.scale, seen)[0][:, 0] + constant


def _shares(params: GMMParams, y: Array) -> tuple[Array, Array]:
    """log p (), and the weights of the components in the step (K,), of sum 1, at whitened residuals y (K, D).

    ∇ log p = −Σ_k r_k u_k Σ_k⁻¹ (x − μ_k), with u = 1 for Gaussians and −2 ∂ log f_k / ∂δ_k for any component
    whose density falls with the squared distance δ_k.
    """
    length = jnp.square(y).sum(-1)
    joint, slope = jax.jvp(functools.partial(_joint, params), (length,), (jnp.ones_like(length),))
    place = has_place(params)
    pull = jax.nn.softmax(jnp.where(place, joint, -jnp.inf)) * jnp.where(place, -2 * slope, 0)
    return jax.nn.logsumexp(joint), pull / pull.sum()


def _evaluate(z: Array, m: _Mixture) -> Evaluation:
    """One step from x = μ + C z, in the coordinates of the component it begins at."""
    params, eps = m.params, epsilon(z.dtype)
    gaps = params.means - m.mean[None, :]
    y = einsum("kde,ke->kd", m.inverse, einsum("de,e->d", m.lower, z)[None, :] - gaps)
    objective, shares = _shares(params, y)
    turned = einsum("kde,ef->kdf", m.inverse, m.lower)
    gradient = -einsum("k,kd,kdf->f", shares, y, turned)
    curvature = einsum("k,kde,kdf->ef", shares, turned, turned)
    width = 1 / jnp.sqrt(jnp.diagonal(curvature))
    scaled = curvature * width[:, None] * width[None, :]
    inverse = lower_inverse(safe_cholesky(scaled, jnp.full_like(width, 4 * eps)))
    moved = einsum("de,e->d", inverse, width * gradient)
    image = z + width * einsum("ed,e->d", inverse, moved)
    step = jnp.sqrt(jnp.square(moved).sum())
    # Rounding of the residuals, each a difference of places.
    places = jnp.square(y).sum(-1) + jnp.square(einsum("kde,ke->kd", m.inverse, gaps)).sum(-1)
    noise = 4 * eps * (1 + jnp.sqrt((shares * places).sum()))
    slack = 8 * eps * (1 + jnp.abs(objective))
    return Evaluation(image, objective, objective, step, noise, slack, jnp.isfinite(image).all())


@jit
def _modes(params: GMMParams, tol: Array, max_iter: Array) -> Modes:
    d = params.n_features
    lower = factors(params)
    inverse = lower_inverse(lower)
    start = jnp.full((d,), float(_ASIDE / d**0.5), params.means.dtype)

    def ascend(mean: Array, own: Array) -> tuple[Array, Array, Array]:
        found = solve(
            _evaluate,
            start,
            _Mixture(params, inverse, mean, own),
            chart=None,  # an extrapolation could lead to another mode
            tol=tol,
            max_iter=max_iter,
            accelerate=jnp.asarray(False),
            history_size=0,
            derivative=Derivative(None, "nan"),
        )
        point = mean + einsum("de,e->d", own, found.point)
        return point, found.report, found.status == Status.CONVERGED

    points, log_prob, converged = jax.vmap(ascend)(params.means, lower)
    place = has_place(params)
    labels, n_modes = _numbered(*lax.stop_gradient((params, inverse, points)))
    return Modes(points, log_prob, labels, n_modes, converged & place)


def _numbered(params: GMMParams, inverse: Array, points: Array) -> tuple[Array, Array]:
    """Numbers (K,) of the different points, −1 for components without a place; and how many there are."""
    k, place = params.n_components, has_place(params)

    def precision(x: Array) -> Array:
        y = einsum("kde,ke->kd", inverse, x[None, :] - params.means)
        return einsum("k,kde,kdf->ef", _shares(params, y)[1], inverse, inverse)

    gaps = points[:, None, :] - points[None, :, :]
    length = einsum("knd,kde,kne->kn", gaps, lax.map(precision, points), gaps)
    near = (jnp.maximum(length, length.T) < _SAME**2) & place[:, None] & place[None, :]
    first = jnp.argmax(near, axis=1).astype(jnp.int32)  # the first component that ends near
    # Ends may be near one another in a chain.
    halvings = jnp.asarray(k.bit_length(), jnp.int32)
    first = lax.fori_loop(jnp.asarray(0, jnp.int32), halvings, lambda _, f: f[f], first)
    is_first = (first == jnp.arange(k, dtype=jnp.int32)) & place
    number = jnp.cumsum(is_first).astype(jnp.int32) - 1
    return jnp.where(place, number[first], -1), is_first.sum().astype(jnp.int32)


def modes(params: GMMParams, *, tol: ArrayLike = 1e-4, max_iter: int = 10_000) -> Modes:
    """The modes of the density, by an ascent from the mean of every component.

    x ← (Σ_k r_k Σ_k⁻¹)⁻¹ Σ_k r_k Σ_k⁻¹ μ_k, with r_k the responsibilities at x; the ascents are one batch.
    Each step raises the density. Components of other families, whose density falls with the Mahalanobis
    distance, have their own weight u_k of a point beside r_k: (ν + D)/(ν + δ_k) for a t. A uniform background
    has no mode of its own. Components whose ascents reach one mode make one cluster. A Gaussian mixture can
    have more modes than components; those that no ascent reaches are not found.

    Works under `jit` and `vmap`. Points and log densities have derivatives, by the implicit function theorem;
    NaN where an ascent has not converged.

    Args:
      params: the mixture.
      tol: when an ascent ends: its estimated distance to the mode, in widths of the components there.
      max_iter: how many steps it may take. Where two modes are about to become one, ascents are slow.

    Returns:
      `Modes`. Points that are within a tenth of a width of one another count as one.

    Raises:
      ValueError, TypeError: for a component of one's own without `marginal`, or tol and max_iter that are no
        such numbers.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.4, 0.3, 0.3], [[0.0], [1.0], [9.0]], [1.0, 1.0, 1.0], "spherical")
      >>> found = jaxgmm.distributions.modes(params)
      >>> found.points.round(2).ravel().tolist(), found.labels.tolist(), int(found.n_modes)
      ([0.41, 0.41, 9.0], [0, 0, 1], 2)

    References:
      Carreira-Perpiñán (2000), Mode-finding for mixtures of Gaussian distributions, IEEE Transactions on
      Pattern Analysis and Machine Intelligence 22.
    """
    check_mixture(params)
    if params.component.marginal is None:
        name = params.component.name
        raise ValueError(f"modes needs components with a function `marginal`; {name!r} have none")
    limit = validate.step_limit(max_iter)
    return _modes(params, validate.not_negative(tol, "tol", params.means.dtype), limit)


class Ridgeline(NamedTuple):
    """The ridgeline between two components.

    Attributes:
      alpha: (n_points,) from 0, the mean of the first component, to 1, that of the second.
      points: (n_points, D) x*(α).
      log_prob: (n_points,) the elevation: the log density of the two components there, without the others,
        in nats.
      depth: () by how many nats the valley lies below the lower one of the two summits beside it; 0 where
        there is no valley. exp(−depth) is Hennig's ridgeline ratio.
      valley: () the α of the lowest point of the deepest valley; NaN where there is none.
    """

    alpha: Array
    points: Array
    log_prob: Array
    depth: Array
    valley: Array


@functools.partial(jit, static_argnames="n_points")
def _ridgeline(params: GMMParams, pair: Array, *, n_points: int) -> Ridgeline:
    d, dtype = params.n_features, params.means.dtype
    lower, means = factors(params)[pair], params.means[pair]
    inverse = lower_inverse(lower)
    # With covariances of one size α runs evenly; otherwise it would hurry through the wider one.
    sizes = jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).mean(-1)
    even = jnp.linspace(0, 1, n_points, dtype=dtype)
    ratio = jnp.exp(2 * (sizes[1] - sizes[0]))
    alpha = jnp.where(even < 1, even * ratio / (1 - even + even * ratio), 1)

    def point(a: Array) -> Array:
        # Of (1 − α) Σ_i⁻¹ + α Σ_j⁻¹ a factor L, from those of its two parts.
        roots = jnp.sqrt(jnp.stack([1 - a, a]))[:, None, None] * inverse
        both = lower_inverse(triangular_factor(roots.reshape(2 * d, d).T))
        pull = einsum("ed,e->d", roots[1], einsum("de,e->d", roots[1], means[1] - means[0]))
        return means[0] + einsum("ed,ef,f->d", both, both, pull)

    points = jax.vmap(point)(alpha)
    each = (component_log_prob(params, points) + params.log_weights[None, :])[:, pair]
    height = jax.nn.logsumexp(each, axis=1)
    low = lax.stop_gradient(height)
    before, after = lax.cummax(low), lax.cummax(low, reverse=True)
    at = jnp.argmax(jnp.minimum(before, after) - low).astype(jnp.int32)
    # The summits themselves, so that the depth has a derivative.
    index = jnp.arange(n_points, dtype=jnp.int32)
    left, right = (jnp.where(side, height, -jnp.inf).max() for side in (index <= at, index >= at))
    depth = jnp.minimum(left, right) - height[at]
    is_valley = depth > 8 * epsilon(dtype) * (1 + jnp.abs(height[at]))
    return Ridgeline(
        alpha, points, height, jnp.where(is_valley, depth, 0), jnp.where(is_valley, alpha[at], jnp.nan)
    )


def ridgeline(params: GMMParams, i: int | Array, j: int | Array, *, n_points: int = 201) -> Ridgeline:
    """The curve between two components on which all modes and saddles of the two together lie.

    x*(α) = ((1 − α) Σ_i⁻¹ + α Σ_j⁻¹)⁻¹ ((1 − α) Σ_i⁻¹ μ_i + α Σ_j⁻¹ μ_j): the mixture of the two has as many
    modes as its density along the curve has maxima. Where that has a valley, two hills are apart.

    Args:
      params: a mixture of components whose densities fall with the Mahalanobis distance, such as Gaussians.
      i: the component at α = 0.
      j: the component at α = 1.
      n_points: how many points; static.

    Returns:
      `Ridgeline`, with the depth of its valley.

    Raises:
      ValueError, TypeError: for numbers that are not two components' with a place, or fewer than 3 points.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
      >>> found = jaxgmm.distributions.ridgeline(params, 0, 1)
      >>> round(float(found.valley), 2), round(float(found.depth), 2)  # ½ 2² − log 2, all but
      (0.5, 1.31)

    References:
      Ray & Lindsay (2005), The topography of multivariate normal mixtures, Annals of Statistics 33; Hennig
      (2010), Methods for merging Gaussian mixture components, Advances in Data Analysis and Classification 4,
      for the ratio.
    """
    check_mixture(params)
    n = validate.count(n_points, "n_points", 3)
    if validate.is_concrete(i, j):
        first, second = validate.count(i, "i", 0), validate.count(j, "j", 0)
        last = params.n_components - params.component.has_background
        if first == second or max(first, second) >= last:
            raise ValueError(f"i and j must be two components of 0 to {last - 1}; got {first} and {second}")
        pair = jax.device_put(np.asarray([first, second], np.int32))
    else:
        pair = jnp.stack([jnp.asarray(number, jnp.int32) for number in (i, j)])
    return _ridgeline(params, pair, n_points=n)
