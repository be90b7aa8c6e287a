"""Rounding and validity of an EM step: rounding in its length; covariances that have collapsed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm import priors
from jaxgmm.data import Context
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.linalg import epsilon
from jaxgmm.mixture import GMMParams
from jaxgmm.solvers.implicit import Evaluation


def assess(
    params: GMMParams,
    image: GMMParams,
    length: Array,
    statistics: Statistics,
    context: Context,
    kernel_rounding: Array,
) -> Evaluation:
    """What the solver must know of the step from `params` to `image`, of squared Fisher length `length`.

    What must not fall is the likelihood, plus the prior per unit of sample weight, less the ridge's own
    penalty, ½ Σ_k π_k tr(ridge Σ_k⁻¹). EM with a ridge climbs it only up to changes of that penalty, which
    the slack therefore includes.
    """
    dtype, shape = params.means.dtype, (params.n_components, params.n_features)
    eps = epsilon(dtype)
    log_likelihood = statistics.log_likelihood / statistics.total_weight

    weights, prior_weights = params.weights, jnp.zeros_like(params.weights)
    value = terms = jnp.zeros((), dtype)
    incomparable = jnp.asarray(False)
    ridged = params.covariance.inverse_diagonal(params.scatter, shape) * context.ridge[None, :]
    if context.prior is not None:
        incomparable = priors.emptying(params, context.prior)
        of_prior = priors.log_density(params, context.prior)
        value, terms, prior_weights = (a / statistics.total_weight for a in of_prior)
    penalty = 0.5 * ((weights + prior_weights) * ridged.sum(-1)).sum()

    # Rounding of the factors as they are stored shows in a vector that is coloured and whitened again; that
    # of the means, in their last digit measured in widths; that of the sums, in D.
    whiten = params.covariance.whitener(params.scatter)
    signs = np.where(np.arange(shape[1]) % 2 == 0, 1, -1).astype(dtype)
    probe = jnp.broadcast_to(signs[None, :, None], (*shape, 1))
    coloured = params.covariance.colour(params.scatter, probe)
    columns = jnp.concatenate([coloured, eps * params.means[:, :, None]], 2)
    apart = whiten(columns) - jnp.concatenate([probe, jnp.zeros_like(probe)], 2)
    noise = 2 * jnp.sqrt((weights * jnp.square(apart).sum((1, 2))).sum()) + 2 * eps * shape[1]
    noise = noise + kernel_rounding
    # The likelihood is a sum of the same terms as the kernel's, with their rounding.
    rounded = jnp.where(kernel_rounding > 0, noise, 0)

    # A component whose width in some direction is below the rounding of its mean and of its largest width is
    # a point or a plane: its likelihood has no bound.
    digits = image.covariance.diagonal(image.scatter, shape) + jnp.square(image.means)
    floor = (8 * eps) ** 2 * digits + (8 * eps * eps) ** 2 * context.variance[None, :]
    narrow = image.covariance.inverse_diagonal(image.scatter, shape) * floor >= 1
    resolved = ~(narrow & (image.weights > 0)[:, None]).any()
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves((image.means, image.scale))]).all()
    # −inf says that the covariances of `params` have no inverse, as a start on fewer samples than features;
    # NaN, that the sums are not finite, as those of data beyond the range of the dtype.
    sum_of_terms = log_likelihood + value - penalty
    singular = ~jnp.isfinite(apart[:, :, 0]).all(1) & (params.log_weights > -jnp.inf)
    objective = jnp.where(jnp.isfinite(sum_of_terms), sum_of_terms, jnp.nan)
    objective = jnp.where(singular.any(), -jnp.inf, objective)
    slack = 64 * eps * (jnp.maximum(1, jnp.abs(objective)) + terms) + penalty + jnp.square(noise) + rounded
    return Evaluation(
        image=image,
        objective=objective,
        report=log_likelihood,
        step=jnp.sqrt(length),
        noise=noise,
        slack=jnp.where(incomparable, jnp.inf, slack),
        valid=resolved & finite & (image.log_weights > -jnp.inf).any(),
    )
