"""The distribution function of a one-dimensional Gaussian mixture, and its inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.density import check_gaussian
from jaxgmm.distributions._operations import factors
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, cast

_FAR = 40.0  # standard deviations beyond which Φ is 0 or 1, in float64 too


class _Line(NamedTuple):
    """A mixture on the line."""

    weights: Array  # (K,) of sum 1
    means: Array  # (K,)
    sd: Array  # (K,)


def cdf(params: GMMParams, x: ArrayLike) -> Array:
    """P(X ≤ x) = Σ_k π_k Φ((x − μ_k) / σ_k), the distribution function of a one-dimensional mixture.

    Differentiable in params and x, with the density as the derivative in x; gradients are finite, also at
    infinite x and at switched-off components.

    Args:
      params: the mixture, of Gaussian components and D = 1. Its weights are normalised.
      x: of any shape; may be infinite.

    Returns:
      Probabilities in the shape of x; NaN where x is.

    Raises:
      ValueError: D is above 1 (use `marginal`), or components that are not Gaussian.
      TypeError: `params` are not GMMParams, or x is not an array of real numbers.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.distributions.cdf(params, [-1.0, 0.0]).round(4).tolist()
      [0.2614..., 0.5]

    References:
      Scrucca, Fraley, Murphy & Raftery (2023), Model-Based Clustering, Classification, and Density Estimation
      Using mclust in R, chapter 5.
    """
    return _cdf(*_checked(params, x, "x", "cdf"))


def quantile(params: GMMParams, q: ArrayLike) -> Array:
    """The inverse of `cdf`: the x at which a one-dimensional mixture has P(X ≤ x) = q.

    The root lies between the smallest and the largest of the components' own quantiles μ_k + σ_k Φ⁻¹(q). It
    is found by bisection over the floating-point numbers between them, in 32 steps in float32 and 64 in
    float64, whatever the scales. Above q = 1/2 the equation is P(X > x) = 1 − q, so that the upper tail is
    as accurate as q itself.

    Differentiable in params and q to any order by the implicit function theorem, ∂x/∂q = 1 / p(x) and
    ∂x/∂θ = −∂P(X ≤ x)/∂θ / p(x). Where the density p(x) underflows, and at q = 0 and 1, they are 0.

    Args:
      params: the mixture, of Gaussian components and D = 1. Its weights are normalised.
      q: probabilities, of any shape.

    Returns:
      Quantiles in the shape of q: −∞ at 0, ∞ at 1, NaN outside [0, 1].

    Raises:
      ValueError: D is above 1 (use `marginal`), or components that are not Gaussian.
      TypeError: `params` are not GMMParams, or q is not an array of real numbers.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> jaxgmm.distributions.quantile(params, [0.05, 0.95]).round(3).tolist()
      [-2.284..., 2.284...]

    References:
      Griewank & Walther (2008), Evaluating Derivatives, chapter 15 (derivatives of implicit functions).
    """
    return _quantile(*_checked(params, q, "q", "quantile"))


def _checked(params: GMMParams, values: ArrayLike, name: str, what: str) -> tuple[GMMParams, Array]:
    check_gaussian(params, what)
    if params.n_features > 1:
        raise ValueError(
            f"{what} needs a mixture of one feature; params have {params.n_features}: choose one by "
            "jaxgmm.distributions.marginal(params, feature)"
        )
    x = validate.floating(values, name)
    return cast(params, x.dtype), x


def _line(params: GMMParams) -> _Line:
    return _Line(jax.nn.softmax(params.log_weights), params.means[:, 0], factors(params)[:, 0, 0])


@jit
def _cdf(params: GMMParams, x: Array) -> Array:
    line = _line(params)

    def block(x: Array) -> Array:
        return jnp.where(jnp.isnan(x), jnp.nan, _tail(line, x, jnp.ones_like(x)))

    return _in_blocks(block, x, params.n_components)


@jit
def _quantile(params: GMMParams, q: Array) -> Array:
    line = _line(params)

    def block(q: Array) -> Array:
        x = _inverse(line, jnp.where((q > 0) & (q < 1), q, 0.5))
        edge = jnp.where(q == 0, -jnp.inf, jnp.where(q == 1, jnp.inf, jnp.nan)).astype(q.dtype)
        return jnp.where((q > 0) & (q < 1), x, edge)

    return _in_blocks(block, q, params.n_components)


def _in_blocks(function: Callable[[Array], Array], values: Array, n_components: int) -> Array:
    """A function of (B,) numbers, of an array of any shape."""
    flat = values.reshape(-1)
    found: Array = map_rows(function, flat, block_size=block_rows(flat.size, n_components, 1))
    return found.reshape(values.shape)


def _standardised(line: _Line, x: Array) -> tuple[Array, Array, Array]:
    """(B, K) z = (x − μ) / σ, 0 where it is beyond `_FAR`; where it is not; and the sign of x − μ."""
    gap = x[:, None] - line.means[None, :]
    sd = jnp.broadcast_to(line.sd[None, :], gap.shape)
    near = jnp.abs(gap) < _FAR * sd
    return jnp.where(near, gap, 0) / sd, near, jnp.sign(gap)


def _tail(line: _Line, x: Array, side: Array) -> Array:
    """(B,) P(X ≤ x) where the side is 1, and −P(X > x) where it is −1: either grows with x."""
    z, near, sign = _standardised(line, x)
    beyond = jnp.where(sign * side[:, None] > 0, 1, 0).astype(x.dtype)
    below = jnp.where(near, ndtr(side[:, None] * z), beyond)
    return side * (line.weights[None, :] * below).sum(1)


def _density(line: _Line, x: Array) -> Array:
    z, near, _ = _standardised(line, x)
    height = line.weights / line.sd * float(1 / np.sqrt(2 * np.pi))
    return jnp.where(near, height[None, :] * jnp.exp(-0.5 * z**2), 0).sum(1)


def _equation(q: Array) -> tuple[Array, Array]:
    """The side of `_tail` (B,) on which a probability is below 1/2, and what `_tail` is at the root."""
    side = jnp.where(q > 0.5, -1, 1).astype(q.dtype)
    return side, jnp.where(q > 0.5, q - 1, q)


@jax.custom_jvp
def _inverse(line: _Line, q: Array) -> Array:
    """(B,) the quantiles of probabilities strictly between 0 and 1."""
    side, wanted = _equation(q)
    normal = side * ndtri(jnp.abs(wanted))
    ends = line.means[None, :] + line.sd[None, :] * normal[:, None]
    on = jnp.broadcast_to(line.weights[None, :] > 0, ends.shape)
    low = _ordered(jnp.where(on, ends, jnp.inf).min(1))
    high = _ordered(jnp.where(on, ends, -jnp.inf).max(1))

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # (low + high) // 2 without overflow
        above = _tail(line, _number(middle, q.dtype), side) >= wanted
        return jnp.where(above, low, middle + 1), jnp.where(above, middle, high)

    # A bracket of one number is halved to itself, or to the next one, which `high` leaves out.
    bits = jnp.finfo(q.dtype).bits
    return _number(lax.fori_loop(0, bits, halve, (low, high))[1], q.dtype)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[_Line, Array], tangents: tuple[_Line, Array]) -> tuple[Array, Array]:
    line, q = primals
    # Called by its name, so that derivatives of higher order come here again.
    x = _inverse(line, q)
    side, _ = _equation(q)
    _, moved = jax.jvp(lambda line: _tail(line, x, side), (line,), (tangents[0],))
    density = _density(line, x)
    there = density > 0
    return x, jnp.where(there, tangents[1] - moved, 0) / jnp.where(there, density, 1)


def _ordered(x: Array) -> Array:
    """Integers in the order of floating-point numbers, neighbours next to each other."""
    bits = lax.bitcast_convert_type(x, jnp.int32 if x.dtype == jnp.float32 else jnp.int64)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _number(order: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `_ordered`."""
    return lax.bitcast_convert_type(jnp.where(order < 0, order ^ jnp.iinfo(order.dtype).max, order), dtype)
