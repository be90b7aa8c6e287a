"""Conjugate priors on weights, means and covariances, as pseudo-observations.

A normal–inverse-Wishart prior acts on the M-step as data would: `strength` observations at its mean, and rows
that add its scale to the scatter. In whitened coordinates, summed by the covariance structure's own second
moment, it needs nothing of the structure that EM does not need already. One update, `conjugate`, serves
maximum a posteriori fits and variational Bayes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.base import Target
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, covariance_of
from jaxgmm.density import get_data
from jaxgmm.kernels.linalg import embed_diagonal, epsilon, safe_cholesky
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, scale_like

STRENGTH = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prior:
    """A conjugate prior for maximum a posteriori fits: an immutable pytree, differentiable in every number.

    μ_k | Σ_k ~ N(m, Σ_k / κ), Σ_k ~ inverse Wishart(ν, Λ), π ~ Dirichlet(α). With weighted counts n_k, means
    x̄_k and scatters W_k, the M-step of "full" is

      μ_k = (n_k x̄_k + κ m) / (n_k + κ),
      Σ_k = [Λ + W_k + κ n_k / (κ + n_k) (x̄_k − m)(x̄_k − m)ᵀ] / (n_k + ν + D + 2),
      π_k ∝ n_k + α_k − 1.

    Other structures follow the conventions of Fraley and Raftery, given as what stands in place of Λ, and as
    the divisor, with ς² a scalar scale:

      diag: ς² in every variance; n_k + ν + 3.   spherical: ς² in the trace; D n_k + ν + D + 2.
      tied: Λ once for all components; N + K + ν + D + 1.
      tied diagonal: ς² once; N + K + ν + 2.     tied spherical: ς² once; D N + D K + ν + 2.

    Structures without a conjugate prior in the paper, and those that a user writes, have each Σ_k penalised
    as "full" does (or "diag", if they have no correlations), and the maximum taken within the structure:
    `Covariance.prior` says which. The counts n_k are sums of sample weights: it is against these that a prior
    is weak or strong.

    Mean and strength come together, and so do dof and scale. Without mean and strength the divisors lose the
    1 for each component that the prior of its mean brings (D for "spherical").

    Attributes:
      mean: (D,) m, or (K, D) one for each component, or None.
      strength: () κ ≥ 0, or None.
      dof: () ν ≥ 0, or None.
      scale: Λ as (D, D), or a diagonal Λ as (D,) or (); for "diag" ς² as (D,) or (); for "spherical" (); for
        structures in which each component has a matrix or variances of its own, (K, D, D) or (K, D) too; or
        None.
      weight_concentration: α as () or (K,), > 0, or None. Below 1 it empties components: one with
        n_k ≤ 1 − α_k is switched off. The objective has no upper bound then, and is comparable only
        between mixtures with the same components on.

    References:
      Fraley & Raftery (2007), Bayesian regularization for normal mixture estimation and model-based
      clustering, Journal of Classification 24, tables 1 and 2.
    """

    mean: Any = None  # (D,) or (K, D)
    strength: Any = None  # ()
    dof: Any = None  # ()
    scale: Any = None  # (), (D,), (D, D), (K, D) or (K, D, D)
    weight_concentration: Any = None  # () or (K,)


class Pseudo(NamedTuple):
    """A prior as a covariance structure takes it: everything that does not change while EM runs."""

    mean: Array | None  # (D,)  relative to the shift of the data
    strength: Array | None  # ()
    extra: Array | None  # ()  what the prior of one covariance adds to a component's divisor
    rows: Array | None  # (D, R)  columns whose squares are the scale; one will do without correlations
    concentration: Array | None  # (K,)


def _without_correlations(covariance: Covariance) -> bool:
    return covariance.prior.endswith("I")


def part(
    value: Any,
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    n_features: int,
    covariance: Covariance,
    dtype: Any,
    advice: str,
) -> Array:
    """A part of a prior, as an array of one of these shapes with finite numbers in the dtype."""
    a = validate.floating(value, f"prior.{name}", dtype)
    if a.shape not in shapes:
        raise ValueError(
            f"prior.{name} must have shape {' or '.join(map(str, shapes))} for {n_features} features and "
            f"covariance_type={covariance.name!r}; got shape {a.shape}"
        )
    validate.finite(a, f"prior.{name}", advice)
    return a


def _semidefinite(scale: np.ndarray, eps: float) -> None:
    """Raise unless the prior's scale, a matrix or the diagonal of one, is positive semi-definite."""
    diagonal = np.diagonal(scale) if scale.ndim == 2 else scale
    if (diagonal < 0).any():
        raise ValueError(f"prior.scale must not be negative; got {diagonal.min()}")
    if scale.ndim < 2:
        return
    widths = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    correlation = scale / widths[:, None] / widths[None, :]
    if (np.abs(correlation - correlation.T) > 1e-4).any():
        raise ValueError("prior.scale must be a symmetric matrix; got one that is not")
    lowest = float(np.linalg.eigvalsh(correlation).min())
    if lowest < -16 * len(widths) * eps:
        raise ValueError(
            f"prior.scale must be positive semi-definite; got a correlation of eigenvalue {lowest}"
        )


def check(prior: Prior, model: Model, shape: tuple[int, ...], dtype: Any) -> Prior:
    """The prior in the data's dtype; raise unless it fits K components in D dimensions, shape (K, D)."""
    if not isinstance(prior, Prior):
        got = f"{prior!r}; see jaxgmm.default_prior" if isinstance(prior, str) else type(prior).__name__
        raise TypeError(f"prior must be a jaxgmm.Prior or None; got {got}")
    _check_model(model)
    k, d = shape
    for pair in (("mean", "strength"), ("dof", "scale")):
        absent = [name for name in pair if getattr(prior, name) is None]
        if len(absent) == 1:
            given = next(name for name in pair if name not in absent)
            raise ValueError(f"prior.{given} needs prior.{absent[0]} beside it; got None")
    covariance = model.covariance
    scales: tuple[tuple[int, ...], ...] = ((), (d,), (d, d))
    if _without_correlations(covariance):
        scales = scales[:1] if covariance.prior.endswith("II") else scales[:2]
    if covariance.prior in ("VVV", "VVI"):  # one for each component
        scales = (*scales, (k, d, d) if covariance.prior == "VVV" else (k, d))

    def array(name: str, *shapes: tuple[int, ...]) -> Array | None:
        value = getattr(prior, name)
        advice = "A part of the prior that is not wanted is None."
        return None if value is None else part(value, name, shapes, d, covariance, dtype, advice)

    def number(name: str) -> Array | None:
        value = getattr(prior, name)
        return None if value is None else validate.not_negative(value, f"prior.{name}", dtype)

    mean, scale = array("mean", (d,), (k, d)), array("scale", *scales)
    alpha = array("weight_concentration", (), (k,))
    if alpha is not None:
        if validate.is_concrete(alpha) and not (np.asarray(alpha) > 0).all():
            raise ValueError(f"prior.weight_concentration must be positive; got {np.asarray(alpha).min()}")
        alpha = jnp.broadcast_to(alpha, (k,))  # one for all and one for each share a compilation
    if scale is not None and validate.is_concrete(scale):
        each = np.asarray(scale, np.float64)
        several = each.ndim == {"VVV": 3, "VVI": 2}.get(covariance.prior)
        for one in each if several else [each]:
            _semidefinite(one, epsilon(dtype))
    return Prior(mean, number("strength"), number("dof"), scale, alpha)


def check_name(prior: Prior | str | None, model: Model) -> Prior | str | None:
    """Raise if a prior that is given by name is not "default", or the model has none."""
    if isinstance(prior, str):
        if prior != "default":
            raise ValueError(f"prior must be 'default', a jaxgmm.Prior or None; got {prior!r}")
        _check_model(model)
    return prior


def _check_model(model: Model) -> None:
    if not model.component.is_gaussian:
        raise ValueError(
            f"prior must be None with {model.component.name!r}: it is conjugate to Gaussian components"
        )
    if model.weights.means is not False:
        raise ValueError("prior must be None where means are held: it is a prior of means and covariances")


def factor_of(scale: Array) -> Array:
    """A factor (D, D) of a positive semi-definite matrix, zero where its diagonal is, finite in any units."""
    diagonal = jnp.diagonal(scale)
    some = diagonal > 0
    width = jnp.sqrt(jnp.where(some, diagonal, 1))
    both = some[:, None] & some[None, :]
    identity = jnp.eye(width.size, dtype=scale.dtype)
    correlation = jnp.where(both, scale / width[:, None] / width[None, :], identity)
    # A singular scale is a limit that is met: the data's covariance, where features are collinear.
    jitter = jnp.full(width.shape, 8 * width.size * epsilon(scale.dtype), scale.dtype)
    return jnp.where(some, width, 0)[:, None] * safe_cholesky(correlation, jitter)


def pseudo(prior: Prior, covariance: Covariance, shape: tuple[int, ...], shift: Array) -> Pseudo:
    """What of a checked prior EM can compute beforehand."""
    d = shape[1]
    extra, rows = None, None
    if prior.dof is not None:
        scale, spherical = prior.scale, covariance.prior.endswith("II")
        extra = (prior.dof + 2) / d if spherical else prior.dof + 2
        if not _without_correlations(covariance):
            extra = prior.dof + (d + 1)
            widths = jnp.broadcast_to(jnp.sqrt(scale), (d,)) if scale.ndim < 2 else None
            factor = factor_of if scale.ndim < 3 else jax.vmap(factor_of)
            rows = factor(scale) if widths is None else embed_diagonal(widths)
        else:
            variances = scale / d if spherical else scale
            rows = jnp.sqrt(jnp.broadcast_to(variances, (*scale.shape[:-1], d)))[..., None]
    mean = prior.mean
    if mean is not None:
        mean = mean - (shift if mean.ndim == 1 else shift[None, :])
    return Pseudo(mean, prior.strength, extra, rows, prior.weight_concentration)


def _parts(params: GMMParams, prior: Pseudo) -> tuple[Array, Array, Array, Array, Array]:
    """For every component: strength (K,), divisor (K,), gap (K, D, 1), share (K,) and rows (K, D, R).

    The last three are whitened: the prior's mean from the component's, and the rows of the scale, each of
    which counts `share` times. All are 0 for a component that is off: no prior revives it.
    """
    k, d = params.means.shape
    dtype = params.means.dtype
    on = params.log_weights > -jnp.inf
    one = jnp.where(on, jnp.ones((), dtype), 0)
    whiten = params.covariance.whitener(params.scatter)
    # A scale that all components share has one prior; each component brings its part of it.
    share = one / jnp.maximum(one.sum(), 1) if params.covariance.prior.startswith("E") else one
    strength = divisor = jnp.zeros(k, dtype)
    gap = rows = jnp.zeros((k, d, 1), dtype)
    if prior.mean is not None and prior.strength is not None:
        strength, divisor = one * prior.strength, one
        place = prior.mean if prior.mean.ndim == 2 else prior.mean[None, :]
        gap = whiten((place - params.means)[:, :, None])
        gap = jnp.where(on[:, None, None], gap, 0)
    if prior.extra is not None and prior.rows is not None:
        divisor = divisor + share * prior.extra
        rows = whiten(jnp.broadcast_to(prior.rows, (k, *prior.rows.shape[-2:])))
        rows = jnp.where(on[:, None, None], rows, 0)
    return strength, divisor, gap, share, rows


def _over(numerator: Array, denominator: Array) -> Array:
    """The quotient (K, ...), 0 where the denominator (K,) is 0."""
    some = (denominator > 0).reshape((-1,) + (1,) * (numerator.ndim - 1))
    safe = jnp.where(some, denominator.reshape(some.shape), 1)
    return jnp.where(some, numerator / safe, 0)


def conjugate(
    covariance: Covariance,
    scatter: Any,
    moments: tuple[Array, Array, Any],
    prior_mean: tuple[Array, Array],
    divisor: Array,
    columns: Array,
    times: Array,
) -> Target:
    """The normal–inverse-Wishart update, in whitened coordinates about the current parameters.

    With y the whitened samples, ȳ their mean, d the prior's mean and Λ its scale, whitened, the scatter about
    the posterior mean is Σ y yᵀ − n ȳ ȳᵀ + κn/(κ+n) (ȳ − d)(ȳ − d)ᵀ + Λ. All is added but the second term,
    which `Covariance.update` subtracts as weight · centre centreᵀ: hence centre = √(n / weight) ȳ. Nothing
    cancels that does not cancel without a prior, however strong that is and however small n.

    Args:
      covariance: the structure.
      scatter: its arrays.
      moments: n (K,), Σ y (K, D) and the second moments about the current parameters.
      prior_mean: κ (K,) and d (K, D).
      divisor: (K,) what the prior adds to n.
      columns: (K, D, R) whose squares are Λ.
      times: (K, R) how often each column counts.

    References:
      Bishop (2006), equations 10.58–10.63; Fraley & Raftery (2007), §3.
    """
    (n, first, second), (strength, gap) = moments, prior_mean
    weight = n + divisor
    some = n > 0
    mean = _over(first + strength[:, None] * gap, n + strength)
    root = jnp.sqrt(jnp.where(some, n, 1)) * jnp.sqrt(jnp.where(some, weight, 1))
    centre = _over(first, jnp.where(some, root, 0))
    between = _over(first, n)[:, :, None] - gap[:, :, None]
    y = jnp.concatenate([between, columns], axis=2)
    counted = jnp.concatenate([_over(n * strength, n + strength)[:, None], times], axis=1)
    added = covariance.moments(scatter, y, counted)
    return Target(mean, weight, centre, jax.tree.map(jnp.add, second, added))


def posterior(params: GMMParams, n: Array, first: Array, second: Any, prior: Pseudo) -> tuple[Array, Target]:
    """Counts (K,) in proportion to the next weights, and the `Target` of moments with the prior's added.

    The moments n (K,), first (K, D) and second are about `params`.
    """
    strength, divisor, gap, share, rows = _parts(params, prior)
    on = params.log_weights > -jnp.inf
    times = jnp.broadcast_to(share[:, None], (share.shape[0], rows.shape[2]))
    target = conjugate(
        params.covariance, params.scatter, (n, first, second), (strength, gap[:, :, 0]), divisor, rows, times
    )
    counts = n
    if prior.concentration is not None:
        counts = jnp.where(on, jnp.maximum(n + (prior.concentration - 1), 0), n)
    if prior.strength is not None or prior.extra is not None:
        # Its place and shape are part of the objective, so that it may fade but not vanish by underflow.
        least = float(jnp.finfo(n.dtype).tiny) * jnp.maximum(n.sum(), 1)
        emptied = jnp.zeros_like(on)
        if prior.concentration is not None:
            emptied = (prior.concentration < 1) & (counts == 0)
        counts = jnp.where(on & ~emptied, jnp.maximum(counts, least), counts)
    return counts, target


def log_density(params: GMMParams, prior: Pseudo) -> tuple[Array, Array, Array]:
    """log_prior (); the sizes of its terms, summed (), for what rounding does; what divisors gain (K,)."""
    strength, divisor, gap, share, rows = _parts(params, prior)
    on = params.log_weights > -jnp.inf
    shape = (params.n_components, params.n_features)
    log_det = jnp.where(on, params.covariance.log_det(params.scatter, shape), 0)
    terms = [
        -0.5 * divisor * log_det,
        -0.5 * strength * jnp.square(gap[:, :, 0]).sum(-1),
        -0.5 * share * jnp.square(rows).sum((1, 2)),
    ]
    if prior.concentration is not None:
        terms.append(jnp.where(on, (prior.concentration - 1) * jnp.where(on, params.log_weights, 0), 0))
    together = jnp.stack(terms)
    return together.sum(), jnp.abs(together).sum(), divisor


def emptying(params: GMMParams, prior: Pseudo) -> Array:
    """() bool: a component that is off may have been emptied by a concentration below 1.

    The objective, without bound as such a weight goes to 0, is another one once the component is off.
    """
    if prior.concentration is None:
        return jnp.asarray(False)
    return ((prior.concentration < 1) & ~(params.log_weights > -jnp.inf)).any()


@jit
def _log_prior(params: GMMParams, prior: Prior) -> Array:
    shift = jnp.zeros(params.n_features, params.means.dtype)
    return log_density(params, pseudo(prior, params.covariance, params.means.shape, shift))[0]


def log_prior(params: GMMParams, prior: Prior) -> Array:
    """() the logarithm of the prior's density at `params`, but for a constant of the prior and of K.

    Over the components that are on, Σ_k [(α_k − 1) log π_k − ½ a log |Σ_k| − ½ tr(Λ Σ_k⁻¹)
    − ½ κ (μ_k − m)ᵀ Σ_k⁻¹ (μ_k − m)], where a is what the prior adds to n_k in the divisor: ν + D + 2 for
    "full". A covariance that all components share has its own part once. A fit maximises the total
    log-likelihood plus this. It is a density of weights, means and covariances; the constants left out are
    those of the normal, inverse Wishart (or inverse gamma) and Dirichlet distributions.

    Args:
      params: the mixture.
      prior: a Prior that fits its shape and structure.

    Raises:
      ValueError, TypeError: if prior is not a Prior, or does not fit params.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> prior = jaxgmm.Prior(mean=[0.0], strength=2.0, dof=3.0, scale=4.0)
      >>> float(jaxgmm.log_prior(params, prior))  # −½ · 4 − ½ · 2
      -3.0

    References:
      Fraley & Raftery (2007), equations 9–12.
    """
    if not isinstance(params, GMMParams):
        raise TypeError(f"params must be GMMParams; got {type(params).__name__}")
    like = scale_like(params.component, *params.means.shape) if params.means.ndim == 2 else None
    validate.single_mixture(params.log_weights, params.means, params.scale, like)
    return _log_prior(params, check(prior, params.model, params.means.shape, params.means.dtype))


def default(data: Data, n_components: Array, covariance: Covariance) -> Prior:
    """`default_prior` without its checks, for a number of components that may be traced."""
    x, d, dense = data.x, data.n_features, not _without_correlations(covariance)
    mean, variance, matrix = covariance_of(data)
    spread = matrix if dense else variance
    share = jnp.power(n_components.astype(x.dtype), float(-2 / d))
    return Prior(
        mean=mean,
        strength=jnp.full((), STRENGTH, x.dtype),
        dof=jnp.full((), d + 2, x.dtype),
        scale=(spread if dense else spread.mean()) * share,
    )


_default = jit(default, static_argnames="covariance")


def default_prior(
    X: ArrayLike | Data,
    n_components: int,
    covariance_type: ModelLike = "full",
    sample_weight: ArrayLike | None = None,
    **overrides: Any,
) -> Prior:
    """Fraley and Raftery's weak prior for data: it takes away most singularities and moves little else.

    κ = 0.01, ν = D + 2, m the mean of X, Λ = cov(X) / K^(2/D): K components of that width fill the volume of
    the data. Structures without correlations take the scalar ς² = tr cov(X) / (D K^(2/D)). The covariance is
    a weighted mean, over Σ w; mclust's is over N − 1.

    Args:
      X: (N, D).
      n_components: K.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      sample_weight: (N,) or None for ones.
      **overrides: any of `Prior`'s fields: mean, strength, dof, scale, weight_concentration.

    Raises:
      ValueError, TypeError: for data that do not fit, or a field that `Prior` has not.

    Example:
      >>> import jaxgmm
      >>> X = [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]
      >>> prior = jaxgmm.default_prior(X, 4, "diag", strength=0.1)
      >>> prior.mean.tolist(), float(prior.dof), float(prior.scale)
      ([1.0, 1.0], 4.0, 0.25)

    References:
      Fraley & Raftery (2007), §3.2.
    """
    data = get_data(X, sample_weight)
    model = get_model(covariance_type)
    k = validate.n_components(n_components)
    fields = [f.name for f in dataclasses.fields(Prior)]
    if unknown := sorted(set(overrides) - set(fields)):
        raise TypeError(f"default_prior takes {fields}; got {unknown}")
    prior = _default(data, jnp.asarray(k, jnp.int32), covariance=model.covariance)
    shape = (k, data.n_features)
    return check(dataclasses.replace(prior, **overrides), model, shape, data.x.dtype)
