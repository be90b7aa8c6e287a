"""Mixtures as distributions: marginals, conditionals, regression, entropy, and distances between mixtures.

Everything is computed from triangular factors by QR, never from a covariance that was squared and factored
again: in float32 that keeps twice the digits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.base import Component, Seen
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.tied import tied
from jaxgmm.components.gaussian import finite_length
from jaxgmm.components.weights import FREE
from jaxgmm.density import check_gaussian, check_mixture, log_prob, sample
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.linalg import einsum, lower_inverse, triangular_factor
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams


class Regression(NamedTuple):
    """The moments of some features given others.

    Attributes:
      mean: (N, D_rest).
      covariance: (N, D_rest, D_rest).
    """

    mean: Array
    covariance: Array


class MonteCarlo(NamedTuple):
    """An estimate from random samples.

    Attributes:
      value: ().
      standard_error: () of value.
    """

    value: Array
    standard_error: Array


def factors(params: GMMParams) -> Array:
    """(K, D, D) lower Cholesky factors of the covariances."""
    shape = (params.n_components, params.n_features, params.n_features)
    if params.covariance in (full, tied):
        return jnp.broadcast_to(jnp.tril(params.scatter), shape)
    identity = jnp.broadcast_to(jnp.eye(shape[1], dtype=params.means.dtype), shape)
    return triangular_factor(params.covariance.colour(params.scatter, identity))


def _log_density(gap: Array, lower: Array) -> Array:
    """log N(gap | 0, C Cᵀ) for gap (..., d) and lower factors C (..., d, d)."""
    y = einsum("...de,...e->...d", lower_inverse(lower), gap)
    distance = jnp.minimum(jnp.square(y).sum(-1), float(jnp.finfo(gap.dtype).max) / 8)
    log_det = jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
    return -0.5 * (distance + float(gap.shape[-1] * np.log(2 * np.pi))) - log_det


def marginal(params: GMMParams, features: Sequence[int] | int) -> GMMParams:
    """The distribution of some features alone, again a mixture: rows of μ_k, rows and columns of Σ_k.

    Args:
      params: the mixture.
      features: which columns, in the order wanted; static.

    Returns:
      GMMParams of D = len(features): of the same structure for full, tied, diag and spherical, else full. Of
      t components with their degrees of freedom, of contaminated ones with their shares and inflations.

    Raises:
      ValueError, TypeError: for features that are not different columns, or components of a family that does
        not know its marginals.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0, 2.0]], [[[4.0, 1.0], [1.0, 9.0]]])
      >>> jaxgmm.distributions.marginal(params, [1]).covariances.tolist()
      [[[9.0...]]]

    References:
      Bishop (2006), equation 2.98.
    """
    check_part(params, "marginal")
    return _marginal(params, validate.features(features, params.n_features))


@functools.partial(jit, static_argnames="features")
def _marginal(params: GMMParams, features: tuple[int, ...]) -> GMMParams:
    columns = np.asarray(features)
    means = params.means[:, columns]
    structure = params.covariance if params.covariance in (spherical, diag, tied) else full
    if structure in (spherical, diag):
        scatter = params.scatter if structure == spherical else params.scatter[:, columns]
    elif structure == tied:
        scatter = triangular_factor(jnp.tril(params.scatter)[columns])
    else:
        scatter = triangular_factor(factors(params)[:, columns])
    component, scale = part(params, features, structure, scatter, None)
    rule = FREE if structure == full else params.weights_rule
    return GMMParams(params.log_weights, means, scale, component, rule)


def check_part(params: GMMParams, what: str) -> None:
    """Raise unless it is one mixture of components that know their marginals, which `what` needs."""
    check_mixture(params)
    if params.component.part is None:
        name = params.component.name
        raise ValueError(f"{what} needs components that know their marginals; params have {name!r}")


def part(
    params: GMMParams, columns: tuple[int, ...], structure: Covariance, scatter: Any, seen: Seen | None
) -> tuple[Component, Any]:
    """`Component.part` of a mixture's components."""
    assert params.component.part is not None
    return params.component.part(params.component, params.scale, columns, structure, scatter, seen)


class _Split(NamedTuple):
    """Means and factors with the observed features first, and which the others are."""

    observed: tuple[int, ...]
    rest: tuple[int, ...]
    mean_o: Array
    mean_r: Array
    c_oo: Array
    c_ro: Array
    c_rr: Array


def _split(params: GMMParams, observed: tuple[int, ...]) -> _Split:
    n = len(observed)
    rest = tuple(j for j in range(params.n_features) if j not in observed)
    order = np.asarray([*observed, *rest])
    lower, means = triangular_factor(factors(params)[:, order]), params.means[:, order]
    parts = means[:, :n], means[:, n:], lower[:, :n, :n], lower[:, n:, :n], lower[:, n:, n:]
    return _Split(observed, rest, *parts)


def _given(params: GMMParams, s: _Split, values: Array) -> GMMParams:
    """The mixture of the remaining features where the observed ones have some values."""
    n, c = len(s.observed), params.component
    y = einsum("kde,ke->kd", lower_inverse(s.c_oo), values[None, :] - s.mean_o)
    base = -jnp.log(jnp.diagonal(s.c_oo, axis1=-2, axis2=-1)).sum(-1)
    seen = Seen(
        y=jnp.zeros((*params.means.shape, 1), y.dtype),  # which are for the M-step
        length=finite_length(jnp.square(y).sum(-1))[:, None],
        base=base[:, None],
        offset=jnp.full(1, -0.5 * n * np.log(2 * np.pi), y.dtype),
        observed=jnp.asarray(np.isin(np.arange(params.n_features), s.observed)[:, None]),
        n_observed=float(n),
    )
    assert c.marginal is not None
    posterior = jax.nn.log_softmax(params.log_weights + c.marginal(c, params.scale, seen)[0][:, 0])
    component, scale = part(params, s.rest, full, s.c_rr, seen)
    return GMMParams(posterior, s.mean_r + einsum("kro,ko->kr", s.c_ro, y), scale, component)


def _observed(params: GMMParams, features: Sequence[int] | int) -> tuple[int, ...]:
    observed = validate.features(features, params.n_features)
    if len(observed) == params.n_features:
        raise ValueError("features must leave at least one feature that is not observed")
    return observed


def condition(params: GMMParams, features: Sequence[int] | int, values: ArrayLike) -> GMMParams:
    """The distribution of the other features once some are known: p(x_r | x_o = values), again a mixture.

    Weights ∝ π_k N(x_o | μ_o, Σ_oo), means μ_r + Σ_ro Σ_oo⁻¹ (x_o − μ_o), covariances the Schur complements
    Σ_rr − Σ_ro Σ_oo⁻¹ Σ_or, which are read off the factor of the reordered Σ without a subtraction.

    Of t components the weights have the t density of D_obs features, and the conditional of a t is a t: with
    ν + D_obs degrees of freedom, and scatter matrices multiplied by (ν + δ) / (ν + D_obs), where δ is the
    squared Mahalanobis distance of the values. Of contaminated components the share of good rows becomes the
    probability that a row with these values is one, also below ½.

    Args:
      params: the mixture.
      features: which columns are known; static.
      values: (D_obs,) their values, in the same order. For many, `jax.vmap` over values, or `regress`.

    Returns:
      GMMParams over the remaining features, in their order; structure full.

    Raises:
      ValueError, TypeError: for features or values that do not fit, if no feature remains, or for components
        of a family that does not know its marginals.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
      >>> jaxgmm.distributions.condition(params, [0], [2.0]).means.tolist()
      [[1.0...]]

    References:
      Bishop (2006), equations 2.81 and 2.82; Ding (2016), On the conditional distribution of the multivariate
      t distribution, The American Statistician 70.
    """
    check_part(params, "condition")
    observed = _observed(params, features)
    v = validate.floating(values, "values", params.means.dtype)
    if v.shape != (len(observed),):
        wanted = f"({len(observed)},), one for each of features"
        raise ValueError(f"values must have shape {wanted}; got shape {v.shape}. Use jax.vmap for many")
    validate.finite(v, "values", "A feature that was not observed is left out of features.")
    return _condition(params, v, observed)


@functools.partial(jit, static_argnames="observed")
def _condition(params: GMMParams, v: Array, observed: tuple[int, ...]) -> GMMParams:
    return _given(params, _split(params, observed), v)


@functools.partial(jit, static_argnames="observed")
def _regress(params: GMMParams, x: Array, observed: tuple[int, ...]) -> Regression:
    s = _split(params, observed)

    def row(values: Array) -> Regression:
        given = _given(params, s, values)
        resp = given.weights
        mean = einsum("k,kd->d", resp, given.means)
        gaps = given.means - mean[None, :]
        between = einsum("kd,ke->de", resp[:, None] * gaps, gaps)
        # Of Gaussians they are the same in every row, and computed once.
        within = einsum("kde,kfe->kdf", given.scatter, given.scatter)
        if (factor := given.component.variance_factor) is not None:
            # One that is off, with few degrees of freedom, may have none.
            resp = jnp.where(resp > 0, resp * factor(given.component, given.scale), 0)
        return Regression(mean, einsum("k,kde->de", resp, within) + between)

    k, d = params.means.shape
    held = d if params.component.is_gaussian else d * len(s.rest)
    return map_rows(jax.vmap(row), x, block_size=block_rows(x.shape[0], k, held))


def regress(params: GMMParams, X_observed: ArrayLike, features: Sequence[int] | int) -> Regression:
    """Mixture regression: mean and covariance of the other features given some, for every row.

    E[x_r | x_o] = Σ_k r_k m_k with r_k and m_k the weights and means of `condition`, and the covariance
    Σ_k r_k (S_k + (m_k − m)(m_k − m)ᵀ), with S_k the covariances of `condition`: of t and contaminated
    components these are wider for values that lie far from the centre.

    Args:
      params: the mixture.
      X_observed: (N, D_obs), the known features, in the order of `features`.
      features: which columns they are; static.

    Returns:
      Regression: mean (N, D_rest) and covariance (N, D_rest, D_rest), of the remaining features in order.

    Raises:
      ValueError, TypeError: for shapes that do not fit, components of a family that does not know its
        marginals, or a uniform background, which has no moments.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
      >>> jaxgmm.distributions.regress(params, [[2.0], [-2.0]], [0]).mean.round(3).tolist()
      [[1.0], [-1.0]]

    References:
      Sung (2004), Gaussian Mixture Regression and Classification, equations 2.3 and 2.5.
    """
    check_part(params, "regress")
    if params.component.has_background:
        raise ValueError("a uniform background has no moments; regress on the other components")
    observed = _observed(params, features)
    x = validate.data(X_observed, name="X_observed")
    if x.shape[1] != len(observed):
        raise ValueError(f"X_observed must have {len(observed)} columns, as features; got shape {x.shape}")
    return _regress(jax.tree.map(lambda a: jnp.asarray(a, x.dtype), params), x, observed)


def _log_products(p: GMMParams, q: GMMParams) -> Array:
    """(K_p, K_q) log ∫ N(x | μ_i, Σ_i) N(x | μ_j, Σ_j) dx = log N(μ_i | μ_j, Σ_i + Σ_j)."""
    a, b = factors(p), factors(q)
    shape = (a.shape[0], b.shape[0], *a.shape[1:])
    both = jnp.concatenate([jnp.broadcast_to(t, shape) for t in (a[:, None], b[None, :])], axis=-1)
    return _log_density(p.means[:, None, :] - q.means[None, :, :], triangular_factor(both))


def entropy_bounds(params: GMMParams) -> tuple[Array, Array]:
    """Bounds of the differential entropy −∫ p log p, in nats, where a mixture has no closed form.

    Below −Σ_i π_i log Σ_j π_j N(μ_i | μ_j, Σ_i + Σ_j), from Jensen's inequality; above
    Σ_i π_i (H_i − log π_i), with H_i the entropies of the components.

    Returns:
      lower (), upper ().

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> [round(float(b), 3) for b in jaxgmm.distributions.entropy_bounds(params)]  # the entropy is 1.419
      [1.266, 1.419]

    References:
      Huber, Bailey, Durrant-Whyte & Hanebeck (2008), On entropy approximation for Gaussian mixture random
      vectors, theorems 2 and 3.
    """
    check_gaussian(params, "entropy_bounds")
    return _entropy_bounds(params)


@jit
def _entropy_bounds(params: GMMParams) -> tuple[Array, Array]:
    on = params.log_weights > -jnp.inf
    overlap = jax.nn.logsumexp(params.log_weights[None, :] + _log_products(params, params), axis=1)
    lower = -jnp.where(on, params.weights * overlap, 0).sum()
    log_det = params.covariance.log_det(params.scatter, (params.n_components, params.n_features))
    entropy = 0.5 * (params.n_features * float(1 + np.log(2 * np.pi)) + log_det)
    upper = jnp.where(on, params.weights * (entropy - jnp.where(on, params.log_weights, 0)), 0).sum()
    return lower, upper


def check_pair(p: GMMParams, q: GMMParams) -> tuple[GMMParams, GMMParams]:
    """Two mixtures of the same features, in one dtype."""
    for mixture in (p, q):
        check_gaussian(mixture, "a distance of mixtures")
    if p.n_features != q.n_features:
        shapes = f"{p.means.shape} and {q.means.shape}"
        raise ValueError(f"p and q must have the same features; got means of shapes {shapes}")
    dtype = jnp.promote_types(p.means.dtype, q.means.dtype)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (p, q))


def safe_sqrt(square: Array) -> Array:
    """√ of a number that rounding may have made negative; with derivative 0 at 0."""
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


def l2_distance(p: GMMParams, q: GMMParams) -> Array:
    """() the L² distance of two densities, (∫ (p(x) − q(x))² dx)^½, in closed form.

    ∫ p q = Σ_ij π_i ρ_j N(μ_i | ν_j, Σ_i + T_j), summed relative to its largest term. A distance below
    √ε of the densities' own length is rounding (ε = 1e-7 in float32).

    Args:
      p: a mixture.
      q: a mixture of as many features; any structure, any number of components.

    Raises:
      ValueError: if the features differ.

    Example:
      >>> import jaxgmm
      >>> p = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> float(jaxgmm.distributions.l2_distance(p, p))
      0.0

    References:
      Jian & Vemuri (2011), Robust point set registration using Gaussian mixture models, equation 4.
    """
    return _l2_distance(*check_pair(p, q))


@jit
def _l2_distance(p: GMMParams, q: GMMParams) -> Array:
    terms = [
        a.log_weights[:, None] + b.log_weights[None, :] + _log_products(a, b)
        for a, b in ((p, p), (p, q), (q, q))
    ]
    top = lax.stop_gradient(jnp.stack([t.max() for t in terms]).max())
    pp, pq, qq = (jnp.exp(t - top).sum() for t in terms)
    return jnp.exp(0.5 * top) * safe_sqrt((pp - pq) + (qq - pq))


# The share of the points that is drawn from q. Where q is the larger density the terms of `_kl_divergence`
# are at most its inverse; of mixtures far apart the variance is 4/3 of that of log(p/q) over points of p.
_FROM_Q = 0.25


def kl_divergence(key: Array, p: GMMParams, q: GMMParams, n_samples: int = 10_000) -> MonteCarlo:
    """The Kullback–Leibler divergence ∫ p log(p/q), by Monte Carlo, with its standard error.

    The mean of (p log(p/q) − p + q) / m over points of the mixture m = ¾ p + ¼ q, of which ¾ are drawn from p
    and ¼ from q. ∫ (q − p) is 0; with it no term is negative, and all are small where p is near q. The
    variance is finite for any pair: where q is larger than p, as in heavier tails, a term is at most 4. The
    value and its derivatives with respect to both mixtures are unbiased. As everywhere, the derivative with
    respect to log_weights is that of the formula, without normalising them again.

    Args:
      key: a JAX PRNG key.
      p: a mixture.
      q: a mixture of as many features.
      n_samples: how many points are drawn, at least 4; static.

    Returns:
      MonteCarlo: value and standard_error, in nats.

    Raises:
      ValueError: if the features differ, or for fewer than 4 points.

    Example:
      >>> import jax, jaxgmm
      >>> p = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> q = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> estimate = jaxgmm.distributions.kl_divergence(jax.random.key(0), p, q)  # exactly ½
      >>> bool(abs(estimate.value - 0.5) < 5 * estimate.standard_error)
      True

    References:
      Hershey & Olsen (2007), Approximating the Kullback Leibler divergence between Gaussian mixture models,
      §2; Owen & Zhou (2000), Safe and effective importance sampling, JASA 95, for sampling from a mixture of
      which each density is a control variate.
    """
    p, q = check_pair(p, q)
    return _kl_divergence(validate.key(key), p, q, validate.count(n_samples, "n_samples", 4))


@functools.partial(jit, static_argnames="n_samples")
def _kl_divergence(key: Array, p: GMMParams, q: GMMParams, n_samples: int) -> MonteCarlo:
    n_q = max(2, round(n_samples * _FROM_Q))  # two at least, or they have no variance
    n_p = n_samples - n_q
    key_p, key_q = jax.random.split(key)
    drawn = sample(key_p, p, n_p)[0], sample(key_q, q, n_q)[0]
    x = lax.stop_gradient(jnp.concatenate(drawn))
    log_p, log_q = log_prob(p, x), log_prob(q, x)
    share = n_q / n_samples
    # The points do not move with p and q, and the density they were drawn from does not change.
    log_m = lax.stop_gradient(jnp.logaddexp(log_p + float(np.log1p(-share)), log_q + float(np.log(share))))
    # p (q/p − 1 − log(q/p)) where p is the larger, q (1 − p/q − p/q log(q/p)) where q is: nothing overflows.
    log_ratio = log_q - log_p
    larger = log_ratio <= 0
    below, above = jnp.where(larger, log_ratio, 0), jnp.where(larger, 0, log_ratio)
    terms = jnp.where(
        larger,
        jnp.exp(log_p - log_m) * (jnp.expm1(below) - below),
        jnp.exp(log_q - log_m) * (-jnp.expm1(-above) - above * jnp.exp(-above)),
    )
    # ∫ (q − p) is 0, but its derivatives by weights that are not normalised again are not.
    mass = p.weights.sum() - q.weights.sum()
    known = lax.stop_gradient(terms)
    variance = (1 - share) ** 2 * known[:n_p].var(ddof=1) / n_p + share**2 * known[n_p:].var(ddof=1) / n_q
    return MonteCarlo(terms.mean() + (mass - lax.stop_gradient(mass)), jnp.sqrt(variance))
