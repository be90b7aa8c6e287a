"""The EM map: its M-step on moments, and the map with step length and coordinates, as the solver wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm import priors
from jaxgmm.components.covariance.base import Family
from jaxgmm.data import Context
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.blocked_sum import AxisName, rows_over
from jaxgmm.kernels.exact import Moments, accumulate, location_and_variance
from jaxgmm.kernels.linalg import epsilon, inverted_once
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.mixture import GMMParams, has_component_axis
from jaxgmm.solvers import implicit


def equal_log_weights(on: Array, dtype: Any) -> Array:
    """(K,) the same weight for every component that is on (K,), and none for the others."""
    return jnp.where(on, -jnp.log(jnp.maximum(on.sum(), 1).astype(dtype)), -jnp.inf)


def admissible(params: GMMParams) -> GMMParams:
    """The mixture with its weights made equal, if its family says that they are: where a fit may begin."""
    if not params.family.equal_weights:
        return params
    on = params.log_weights > -jnp.inf
    equal = equal_log_weights(on, params.means.dtype)
    # A weight that is not a number is for the fit's status to tell.
    return dataclasses.replace(params, log_weights=jnp.where(jnp.isnan(params.log_weights), jnp.nan, equal))


def maximise(
    params: GMMParams, moments: Moments, ridge: Array, prior: priors.Pseudo | None = None
) -> tuple[GMMParams, Array]:
    """The M-step: parameters from moments about `params`; and the squared Fisher length of the step.

    The length is Δ² = Σ_k π_k ((Δ log π_k)² + ‖C_k⁻¹ Δμ_k‖² + ½ ‖C_k⁻¹ ΔΣ_k C_k⁻ᵀ‖²_F), the metric of a
    complete observation (x, k). A component without weight is switched off and keeps its place and shape.
    With a prior, one that is on may do without data: its place and shape are then the prior's.
    """
    n = moments.weight
    on = n > 0
    mean = moments.first / jnp.where(on, n, 1)[:, None]
    mean = jnp.where(on[:, None], mean, 0)
    weight, centre, second = n, mean, moments.second
    if prior is not None:
        n, mean, weight, centre, second = priors.posterior(params, n, moments.first, second, prior)
        on = n > 0
    moved = params.family.colour(params.scale, mean[:, :, None])[:, :, 0]
    scale, change = params.family.update(params.scale, weight, centre, second, ridge)
    log_weights = jnp.where(on, jnp.log(jnp.where(on, n, 1)) - jnp.log(n.sum()), -jnp.inf)
    if params.family.equal_weights:
        log_weights = equal_log_weights(on, n.dtype)
    was_on = on & (params.log_weights > -jnp.inf)
    log_change = jnp.where(was_on, log_weights - jnp.where(was_on, params.log_weights, 0), 0)
    lengths = jnp.square(log_change) + jnp.square(mean).sum(-1) + 0.5 * change
    new = GMMParams(log_weights, params.means + moved, scale, params.family)
    return new, (jnp.where(was_on, jnp.exp(params.log_weights), 0) * lengths).sum()


def with_prior(f: Context, prior: priors.Prior | None, family: Family, shape: tuple[int, ...]) -> Context:
    """The context with a checked prior for K components in D dimensions, shape (K, D), in it."""
    return f if prior is None else f._replace(prior=priors.pseudo(prior, family, shape, f.shift))


def reference_params(family: Family, means: Array, variance: Array) -> GMMParams:
    """Equal weights at `means` (K, D), every component as wide as the features' `variance` (D,)."""
    n_components = means.shape[0]
    log_weights = jnp.full(n_components, -jnp.log(n_components), means.dtype)
    return GMMParams(
        log_weights, means, family.from_variances(jnp.broadcast_to(variance[None, :], means.shape)), family
    )


def without_empty(params: GMMParams, moments: Moments) -> GMMParams:
    """The same mixture, with components that were given no sample switched off: no prior revives them."""
    log_weights = jnp.where(moments.weight > 0, params.log_weights, -jnp.inf)
    return dataclasses.replace(params, log_weights=log_weights)


def weighted_m_step(
    r: Array, x: Array, w: Array | None, f: Context, family: Family, block_size: int
) -> GMMParams:
    """The M-step from given responsibilities (N, K), with means relative to the shift of the context."""
    location, _ = location_and_variance(x, w)
    means = jnp.broadcast_to((location - f.shift)[None, :], (r.shape[1], x.shape[1]))
    params = reference_params(family, means, f.variance)

    def measured(params: GMMParams, _: None) -> tuple[GMMParams, None]:
        moments = accumulate(params, x, w, resp=r, shift=f.shift, block_size=block_size)
        new = maximise(without_empty(params, moments), moments, f.ridge, f.prior)[0]
        return varying_like(new, r, x, w, f), None

    # Twice: the second pass measures about the first one's result, where nothing cancels. Compiled once.
    return jax.lax.scan(measured, varying_like(params, r, x, w, f), None, length=2)[0]


def _hold(image: GMMParams) -> GMMParams:
    """The same, where a switched-off component has no derivative: it stays where the start put it."""
    off = image.log_weights == -jnp.inf
    own = has_component_axis(image.family, image.n_components, image.n_features)

    def held(a: Array) -> Array:
        return jnp.where(off.reshape(-1, *(1,) * (a.ndim - 1)), jax.lax.stop_gradient(a), a)

    scale = jax.tree.map(lambda a, rows: held(a) if rows else a, image.scale, own)
    return GMMParams(image.log_weights, held(image.means), scale, image.family)


def evaluate(
    block_size: int,
    params: GMMParams,
    data: tuple[Array, Array | None, Context],
    *,
    hold: bool = True,
    axis_name: AxisName = None,
    quadratic_rows: int | None = None,
    by_pairs: bool = False,
) -> implicit.Evaluation:
    """One EM step on the data (X, weights, context) as the solver wants it; see `assess`.

    The quadratic kernel's blocks have `quadratic_rows` rows; None for the same as the other's. With
    `by_pairs` nobody asks for the step's derivative; see `exact.accumulate`.
    """
    x, w, f = data

    def exact() -> Moments:
        return accumulate(params, x, w, shift=f.shift, by_pairs=by_pairs, block_size=block_size)

    def rough(c: quadratic.Coordinates) -> Moments:
        rows = block_size if quadratic_rows is None else quadratic_rows
        return quadratic.accumulate(params, x, w, c, shift=f.shift, block_size=rows)

    with rows_over(axis_name), inverted_once(_factors(params)):
        if f.quadratic is None:
            moments = exact()
        elif f.rough is None:
            moments = rough(f.quadratic)
        else:
            moments = jax.lax.cond(f.rough, rough, lambda _: exact(), f.quadratic)
        return assess(params, moments, f, hold=hold)


def _factors(params: GMMParams) -> Any:
    """What holds the triangular factors that are inverted; of other matrices XLA drops what nobody uses."""
    return params.scale if params.family.quadratic in quadratic.AFFINE else ()


def assess(params: GMMParams, moments: Moments, f: Context, *, hold: bool = True) -> implicit.Evaluation:
    """The EM step from moments about `params`, with what rounding can do to it.

    What must not fall is the likelihood, plus the prior per unit of sample weight, less the ridge's own
    penalty, ½ Σ_k π_k tr(ridge Σ_k⁻¹). EM with a ridge climbs it only up to changes of that penalty, which
    the slack therefore includes.
    """
    dtype = params.means.dtype
    eps = epsilon(dtype)
    shape = (params.n_components, params.n_features)
    image, length = maximise(params, moments, f.ridge, f.prior)
    image = _hold(image) if hold else image
    log_likelihood = moments.log_likelihood / moments.total_weight

    weights, prior_weights = params.weights, jnp.zeros_like(params.weights)
    value = terms = jnp.zeros((), dtype)
    unlike = jnp.asarray(False)
    ridged = params.family.inverse_diagonal(params.scale, shape) * f.ridge[None, :]
    if f.prior is not None:
        unlike = priors.emptying(params, f.prior)
        value, terms, prior_weights = (a / moments.total_weight for a in priors.log_density(params, f.prior))
    penalty = 0.5 * ((weights + prior_weights) * ridged.sum(-1)).sum()
    # Rounding of the factors as they are stored shows in a vector that is coloured and whitened again; that
    # of the means, in their last digit measured in widths; that of the sums, in D.
    whiten = params.family.whitener(params.scale)
    signs = jnp.where(jnp.arange(shape[1]) % 2 == 0, 1, -1).astype(dtype)
    probe = jnp.broadcast_to(signs[None, :, None], (*shape, 1))
    columns = jnp.concatenate([params.family.colour(params.scale, probe), eps * params.means[:, :, None]], 2)
    apart = whiten(columns) - jnp.concatenate([probe, jnp.zeros_like(probe)], 2)
    noise = 2 * jnp.sqrt((weights * jnp.square(apart).sum((1, 2))).sum()) + 2 * eps * shape[1]
    rounded = jnp.zeros((), dtype)
    if f.quadratic is not None:
        rounding = quadratic.rounding(params, f.quadratic)
        used = jnp.asarray(True) if f.rough is None else f.rough
        noise = noise + jnp.where(used, rounding, 0)
        rounded = jnp.where(used, noise, 0)  # the likelihood is a sum of the same terms, with their rounding

    # A component that is narrower, in some direction, than the last digits of its own place and width is a
    # point or a plane, and its likelihood has no bound.
    digits = image.family.diagonal(image.scale, shape) + jnp.square(image.means)
    floor = (8 * eps) ** 2 * digits + (8 * eps * eps) ** 2 * f.variance[None, :]
    narrow = image.family.inverse_diagonal(image.scale, shape) * floor >= 1
    resolved = ~(narrow & (image.weights > 0)[:, None]).any()
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves((image.means, image.scale))]).all()
    # −inf says that the covariances of `params` have no inverse, as a start on fewer samples than features;
    # NaN, that the sums are not finite, as those of data beyond the range of the dtype.
    sum_of_terms = log_likelihood + value - penalty
    singular = ~jnp.isfinite(apart[:, :, 0]).all(1) & (params.log_weights > -jnp.inf)
    objective = jnp.where(jnp.isfinite(sum_of_terms), sum_of_terms, jnp.nan)
    objective = jnp.where(singular.any(), -jnp.inf, objective)
    slack = 64 * eps * (jnp.maximum(1, jnp.abs(objective)) + terms) + penalty + jnp.square(noise) + rounded
    return implicit.Evaluation(
        image=image,
        objective=objective,
        report=log_likelihood,
        step=jnp.sqrt(length),
        noise=noise,
        slack=jnp.where(unlike, jnp.inf, slack),
        valid=resolved & finite & (image.log_weights > -jnp.inf).any(),
    )


def chart(family: Family) -> implicit.Chart | None:
    """Centred logits, and the family's natural parameters in coordinates where the reference is white."""
    if family.to_natural is None or family.from_natural is None:
        return None
    return _chart(family.to_natural, family.from_natural)


def coordinates(family: Family) -> implicit.Chart:
    """Coordinates for linear solves with the map's Jacobian: `chart`, with the logits centred by weight.

    They are then an isometry of the Fisher metric of a complete observation, in which the Jacobian at a
    maximum of the likelihood is symmetric. A family without natural parameters is described by its free
    coordinates instead, or by its arrays as they are.
    """
    if family.to_natural is not None and family.from_natural is not None:
        return _chart(family.to_natural, family.from_natural, isometric=True)
    to_free, from_free = family.to_unconstrained, family.from_unconstrained

    def to(reference: Any, weights: Array, scale: Any, shift: Array) -> Any:
        return (scale if to_free is None else to_free(scale)), jnp.sqrt(weights)[:, None] * shift

    def back(reference: Any, weights: Array, free: Any) -> tuple[Any, Array]:
        shift = free[1] / jnp.sqrt(weights)[:, None]
        return (free[0] if from_free is None else from_free(free[0], shift.shape)), shift

    return _chart(to, back, isometric=True)


def _chart(
    to_natural: Callable[..., Any], from_natural: Callable[..., tuple[Any, Array]], *, isometric: bool = False
) -> implicit.Chart:
    def floor(reference: GMMParams) -> Array:
        return jnp.maximum(reference.weights, 1e-6)

    def to(reference: GMMParams, params: GMMParams) -> Any:
        on = params.log_weights > -jnp.inf
        logits = jnp.where(on, params.log_weights, 0)
        centre = (reference.weights * logits).sum() if isometric else logits.mean(where=on)
        logits = jnp.where(on, logits - centre, 0)
        gap = (params.means - reference.means)[:, :, None]
        shift = params.family.whitener(reference.scale)(gap)[:, :, 0]
        natural = to_natural(reference.scale, floor(reference), params.scale, shift)
        return jnp.sqrt(floor(reference)) * logits, natural

    def back(reference: GMMParams, coordinates: Any) -> GMMParams:
        logits, natural = coordinates
        on = reference.log_weights > -jnp.inf
        scale, shift = from_natural(reference.scale, floor(reference), natural)
        means = reference.means + reference.family.colour(reference.scale, shift[:, :, None])[:, :, 0]
        # A switched-off component has no information, and extrapolating it none either: it stays.
        if reference.family.equal_weights:
            logits = jnp.zeros_like(logits)
        logits = jnp.where(on, logits / jnp.sqrt(floor(reference)), -jnp.inf)
        means = jnp.where(on[:, None], means, reference.means)
        return GMMParams(jax.nn.log_softmax(logits), means, scale, reference.family)

    return implicit.Chart(to, back)
