"""Student-t components: Gaussians with a weight for each row, so that outliers count for less."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import digamma, gammaln

from jaxgmm.components.base import (
    Columns,
    Component,
    Scale,
    Seen,
    Shape,
    Sums,
    Target,
    scatter_of,
    with_scatter,
)
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.registry import get_covariance
from jaxgmm.components.gaussian import (
    Prepared,
    distances,
    finite_length,
    gaussian,
    log_normaliser,
    mean_of,
    moments,
    move,
    prepare,
)

_LEAST, _MOST, _FIRST = 1.0, 200.0, 20.0  # degrees of freedom: bounds, and where a fit begins
_LOG_BOUNDS = (float(np.log(_LEAST)), float(np.log(_MOST)))
_LEAST_GAP = 1e-6  # of log(ν/2) − ψ(ν/2), which is 5e-3 for ν = 200
_STEPS = 6  # of Newton's method


def _prepare(c: Component, means: Array, scale: Scale) -> tuple[Prepared, Array]:
    return prepare(c, means, scale), scale["dof"][:, None]


class _Latent(NamedTuple):
    y: Array  # (K, D, B)  whitened residuals
    length: Array  # (K, B)  squared distances δ
    n_observed: Any  # how many entries they are made of: a number, or (1, B)


def _expect(c: Component, prepared: Any, x: Array) -> tuple[Array, _Latent]:
    about, dof = prepared
    y = about.whiten(x[None, :, :] - about.means[:, :, None])
    length = finite_length(jnp.square(y).sum(1))
    return _exponent(dof, length, x.shape[0]), _Latent(y, length, x.shape[0])


def _exponent(dof: Array, length: Array, n: Any) -> Array:
    return -0.5 * (dof + n) * jnp.log1p(length / dof)


def _marginal(c: Component, scale: Scale, seen: Seen) -> tuple[Array, _Latent]:
    # Of a subset of the features it is a t with the same degrees of freedom.
    dof, n = scale["dof"][:, None], jnp.asarray(seen.n_observed, seen.length.dtype)
    ratio = _log_gamma_ratio(*jnp.broadcast_arrays(0.5 * dof, 0.5 * n))
    return seen.base + ratio + _exponent(dof, seen.length, n), _Latent(seen.y, seen.length, n)


def _log_density(c: Component, prepared: Any, x: Array, on: Array) -> tuple[Array, Array]:
    about, dof = prepared
    half, t = distances(about, x)
    # log(1 + t² δ / ν) = 2 log t + log(1/t² + δ/ν), where t² δ may overflow.
    inside = 1 / t[None, :] / t[None, :] + 2 * half / dof
    far = jnp.log(jnp.maximum(inside, float(jnp.finfo(x.dtype).tiny))) + 2 * jnp.log(t)[None, :]
    # Multiplied by ν + D, the rounding of 1 + δ/ν would be large for many degrees of freedom.
    logs = jnp.where(t[None, :] == 1, jnp.log1p(2 * half / dof), far)
    return -0.5 * (dof + x.shape[0]) * logs, jnp.zeros_like(t)


def _log_normaliser(c: Component, scale: Scale, shape: Shape) -> Array:
    # log Γ((ν + D)/2) − log Γ(ν/2) − D/2 log(ν/2), which is 0 for a Gaussian.
    return log_normaliser(c, scale, shape) + _log_gamma_ratio(0.5 * scale["dof"], 0.5 * shape[1])


def _log_gamma_ratio(a: Array, b: Any) -> Array:
    """log Γ(a + b) − log Γ(a) − b log a, without cancellation for large a: by Stirling's series from 8 on."""
    small, large = jnp.minimum(a, 8), jnp.maximum(a, 8)
    direct = gammaln(small + b) - gammaln(small) - b * jnp.log(small)
    series = (large + (b - 0.5)) * jnp.log1p(b / large) - b + _stirling(large + b) - _stirling(large)
    return jnp.where(a < 8, direct, series)


def _stirling(z: Array) -> Array:
    """The terms of log Γ(z) in 1/z; right to 1e-14 from 8 on (Abramowitz & Stegun 1964, equation 6.1.41)."""
    inverse, total = 1 / z, jnp.zeros_like(z)
    for coefficient in (-691 / 360_360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        total = total * inverse * inverse + coefficient
    return total * inverse


def _statistics(c: Component, prepared: Any, latent: Any, resp: Array) -> Sums:
    (about, dof), (y, length, n) = prepared, latent
    # The E-step's expected precision of a row, relative to Σ_k⁻¹.
    u = (dof + n) / (dof + length)
    sums = moments(c, about, y, resp * u)
    # E[log u] − E[u]: log u − u + ψ((ν + n)/2) − log((ν + n)/2) of n observed entries.
    half = 0.5 * (dof + n)
    logs = jnp.log(u) - u + (digamma(half) - jnp.log(half))
    return sums._replace(extra={"weight": (resp * u).sum(1), "log": (resp * logs).sum(1)})


def _maximise(
    c: Component, means: Array, scale: Scale, weight: Array, sums: Sums, target: Target | None, ridge: Array
) -> tuple[Array, Scale, Array]:
    del target  # a prior has been refused: it is conjugate to a Gaussian
    if not sums.extra:  # plain moments, of a start or a move between optima
        mean = mean_of(sums.first, weight)
        return move(c, means, scale, Target(mean, weight, mean, sums.second), ridge)
    on = weight > 0
    own, safe = sums.extra["weight"], jnp.where(on, weight, 1)
    mean = mean_of(sums.first, own)
    # PX-EM (Kent, Tyler & Vardi 1994): scatter matrices over Σ r u instead of Σ r, as far as the structure
    # leaves the volumes free; it has one volume for all otherwise.
    factor = jnp.where(on, safe / jnp.where(on, own, 1), 1)
    if callable(c.covariance.second_moment):
        factor = jnp.ones_like(factor)  # an EM step of its own, which begins at the current matrices
    elif not c.covariance.free_volumes:
        factor = jnp.broadcast_to(weight.sum() / own.sum(), factor.shape)
    centre = mean * jnp.sqrt(factor * own / safe)[:, None]
    # Of all components together it is one, and the factors are then the same.
    by = factor[:1] if c.covariance.second_moment == "pooled" else factor
    second = jax.tree.map(lambda a: a * by.reshape((-1,) + (1,) * (a.ndim - 1)), sums.second)
    means, new, length = move(c, means, scale, Target(mean, weight, centre, second), ridge)
    dof = scale["dof"]
    if not isinstance(c.options, float):
        # ψ(ν'/2) − log(ν'/2) = 1 + Σ r (E[log u] − E[u]) / Σ r, for the next ν'.
        right = jnp.where(on, sums.extra["log"] / safe, -1)
        if c.options == "common":
            right = jnp.broadcast_to((weight * right).sum() / weight.sum(), dof.shape)
        found = _degrees(1 + right)
        dof = jnp.where(on, found, dof)
        length = length + 0.5 * jnp.square(jnp.log(dof / scale["dof"]))
    return means, {**new, "dof": dof}, length


def _degrees(right: Array) -> Array:
    """(K,) the ν within the bounds that solves ψ(ν/2) − log(ν/2) = right, whose left side rises with ν.

    By Newton's method for the logarithms of both sides' negatives as a function of log ν, which is nearly a
    straight line. Each step renews the derivative, so that those of the last steps are exact.
    """
    wanted = jnp.log(jnp.maximum(-right, _LEAST_GAP))

    def excess(log_dof: Array) -> Array:
        half = 0.5 * jnp.exp(log_dof)
        return jnp.log(jnp.maximum(jnp.log(half) - digamma(half), _LEAST_GAP)) - wanted

    def step(at: Array, _: None) -> tuple[Array, None]:
        value, slope = jax.jvp(excess, (at,), (jnp.ones_like(at),))
        return jnp.clip(at - value / lax.stop_gradient(slope), *_LOG_BOUNDS), None

    start = jnp.clip(-wanted, *_LOG_BOUNDS)
    return jnp.exp(lax.scan(step, lax.stop_gradient(start), None, length=_STEPS)[0])


def _part(
    c: Component, scale: Scale, columns: Columns, covariance: Covariance, scatter: Any, seen: Seen | None
) -> tuple[Component, Scale]:
    if seen is None:
        return student_t(covariance, c.options), {"scatter": scatter, "dof": scale["dof"]}
    # Given n entries it is a t with ν + n degrees of freedom, and wider the farther they lie from the centre.
    dof = scale["dof"] + seen.n_observed
    width = jnp.sqrt((scale["dof"] + seen.length[:, 0]) / dof)
    options = c.options + seen.n_observed if isinstance(c.options, float) else c.options
    return student_t(covariance, options), {"scatter": scatter * width[:, None, None], "dof": dof}


def _start(c: Component, variances: Array) -> Scale:
    first = c.options if isinstance(c.options, float) else _FIRST
    return {
        "scatter": c.covariance.from_variances(variances),
        "dof": jnp.full(variances.shape[0], first, variances.dtype),
    }


def _n_parameters(c: Component, n_components: Any, n_features: int) -> Any:
    own = {None: n_components, "common": 1}.get(c.options, 0)
    return n_components * n_features + c.covariance.n_parameters(n_components, n_features) + own


def _variance_factor(c: Component, scale: Scale) -> Array:
    dof = scale["dof"]
    return jnp.where(dof > 2, dof / jnp.where(dof > 2, dof - 2, 1), jnp.inf)


def _normal_factor(c: Component, key: Array, scale: Scale, labels: Array) -> Array:
    half = 0.5 * scale["dof"][labels]
    return jnp.sqrt(half / jax.random.gamma(key, half))


def _to_free(c: Component, scale: Scale) -> Array:
    logs = jnp.log(scale["dof"])
    return logs[:1] if c.options == "common" else logs


def _from_free(c: Component, scale: Scale, free: Array) -> Scale:
    # Within the bounds of the M-step, which would otherwise lower the likelihood of an extrapolation.
    dof = jnp.exp(jnp.clip(free, *_LOG_BOUNDS))
    return {**scale, "dof": jnp.broadcast_to(dof, scale["dof"].shape)}


_STUDENT_T = gaussian()._replace(
    prepare=_prepare,
    expect=_expect,
    log_normaliser=_log_normaliser,
    log_density=_log_density,
    statistics=_statistics,
    maximise=_maximise,
    start=_start,
    scatter=scatter_of,
    with_scatter=with_scatter,
    n_parameters=_n_parameters,
    variance_factor=_variance_factor,
    normal_factor=_normal_factor,
    to_free=_to_free,
    from_free=_from_free,
    marginal=_marginal,
    part=_part,
    accepts=("missing", "projection"),  # a t with Gaussian noise is no t
    is_gaussian=False,
)


def student_t(covariance: str | Covariance = "full", dof: float | str | None = None) -> Component:
    """Multivariate t components: heavy tails, so that outliers move means and covariances little.

    p(x) = Γ((ν+D)/2) / (Γ(ν/2) (νπ)^(D/2) |Σ|^½) (1 + δ/ν)^(−(ν+D)/2), δ = (x − μ)ᵀ Σ⁻¹ (x − μ). Fits are by
    PX-EM, and keep ν between 1 and 200.

    Args:
      covariance: the structure of the scatter matrices Σ_k, a name or a `Covariance`. A component's
        covariance is ν/(ν − 2) Σ.
      dof: None for degrees of freedom ν_k of each component, "common" for one ν, or a number ν that is fixed.

    Returns:
      A `Component` whose scale is {"scatter": the structure's arrays, "dof": (K,)}; its name, such as
      "student_t(VVE)" or "student_t(VVE, 5)", can be passed as covariance_type too.

    Raises:
      ValueError, TypeError: for an unknown structure, or a dof that is not positive.

    Example:
      >>> import jaxgmm, numpy as np
      >>> from jaxgmm.components import student_t
      >>> X = np.random.default_rng(0).standard_t(3.0, (2000, 1))
      >>> start = jaxgmm.make_params([1.0], [[0.0]], [1.0], student_t("spherical"))
      >>> bool(2 < jaxgmm.fit(start, X).params.scale["dof"][0] < 5)
      True

    References:
      Peel & McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10;
      Kent, Tyler & Vardi (1994), A curious likelihood identity for the multivariate t-distribution.
    """
    structure = get_covariance(covariance)
    changes: dict[str, Any] = {"covariance": structure, "options": dof}
    label = "" if dof is None else ", common"
    if dof is not None and dof != "common":
        try:
            number = float(dof)
        except (TypeError, ValueError):
            raise TypeError(f"dof must be None, 'common' or a positive number; got {dof!r}") from None
        if not 0 < number < float("inf"):
            raise ValueError(f"dof must be None, 'common' or a positive number; got {dof!r}")
        label = f", {number:g}"
        changes |= {"options": number, "to_free": None, "from_free": None}
    return _STUDENT_T._replace(name=f"student_t({structure.name}{label})", **changes)
