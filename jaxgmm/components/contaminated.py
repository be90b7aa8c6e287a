"""Contaminated normal components: Gaussians, a share of whose rows are spread wider about the same mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.base import (
    Columns,
    Component,
    Scale,
    Seen,
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
    mean_of,
    moments,
    move,
    plain_target,
    prepare,
)
from jaxgmm.kernels.linalg import epsilon

# A share of good rows of one half or less would turn good and bad round; beyond the other bounds nothing can
# be told of the bad rows.
_LEAST_GOOD, _MOST_GOOD = 0.5, 0.999
_LEAST_INFLATION, _MOST_INFLATION = 1.001, 1e4
_GOOD, _INFLATION = 0.9, 10.0  # where a fit begins


class _Both(NamedTuple):
    """The logarithms of the densities of good and of bad rows, (K, B), less the normaliser of the good."""

    good: Array
    bad: Array

    @property
    def total(self) -> Array:
        return jnp.logaddexp(self.good, self.bad)


class _Latent(NamedTuple):
    y: Array  # (K, D, B)  whitened residuals
    length: Array  # (K, B)  squared distances δ
    good: Array  # (K, B)  the probability v that a row of the component is a good one
    n_observed: Any  # how many entries the distances are made of: a number, or (1, B)


def _both(scale: Scale, length: Array, n: Any) -> _Both:
    good, inflation = scale["good"][:, None], scale["inflation"][:, None]
    spread = jnp.log1p(-good) - 0.5 * n * jnp.log(inflation)
    return _Both(jnp.log(good) - 0.5 * length, spread - 0.5 * length / inflation)


def _prepare(c: Component, means: Array, scale: Scale) -> tuple[Prepared, Scale]:
    return prepare(c, means, scale), {name: scale[name] for name in ("good", "inflation")}


def _expect(c: Component, prepared: Any, x: Array) -> tuple[Array, _Latent]:
    about, scale = prepared
    y = about.whiten(x[None, :, :] - about.means[:, :, None])
    length = finite_length(jnp.square(y).sum(1))
    both = _both(scale, length, float(x.shape[0]))
    return both.total, _Latent(y, length, jnp.exp(both.good - both.total), float(x.shape[0]))


def _marginal(c: Component, scale: Scale, seen: Seen) -> tuple[Array, _Latent]:
    both = _both(scale, seen.length, seen.n_observed)
    good = jnp.exp(both.good - both.total)
    return seen.base + both.total, _Latent(seen.y, seen.length, good, seen.n_observed)


def _outlier(c: Component, scale: Scale, seen: Seen) -> tuple[Array, Array]:
    both = _both(scale, seen.length, seen.n_observed)
    return jnp.exp(both.bad - both.total), jnp.exp(both.good - both.total)


def _log_density(c: Component, prepared: Any, x: Array, on: Array) -> tuple[Array, Array]:
    about, scale = prepared
    q, t = distances(about, x)
    # Far away only bad rows are left: what the nearest component says of them is taken out of all.
    far = q / scale["inflation"][:, None]
    nearest = lax.stop_gradient(jnp.where(on[:, None], far, jnp.inf).min(0))
    zero = _both(scale, jnp.zeros_like(q), float(x.shape[0]))
    good = zero.good - t[None, :] * (t[None, :] * (q - nearest[None, :]))
    # A quotient that is computed twice may be rounded in two ways; what that makes of 0 would be enormous.
    beyond = far - nearest[None, :]
    beyond = jnp.where(beyond <= 8 * epsilon(x.dtype) * nearest[None, :], 0, beyond)
    bad = zero.bad - t[None, :] * (t[None, :] * beyond)
    return _Both(good, bad).total, -t * (t * nearest)


def _statistics(c: Component, prepared: Any, latent: Any, resp: Array) -> Sums:
    good, bad = resp * latent.good, resp * (1 - latent.good)
    sums = moments(c, prepared[0], latent.y, good)
    # Each component's own, also where a structure pools them: the inflations are not known yet.
    wide = moments(_apart(c), prepared[0], latent.y, bad)
    extra = {
        "good": good.sum(1),
        "bad": bad.sum(1),
        "first": wide.first,
        "second": wide.second,
        "length": (bad * latent.length).sum(1),
        "entries": (bad * latent.n_observed).sum(1),
    }
    return sums._replace(extra=extra)


def _apart(c: Component) -> Component:
    """The component with second moments that are not pooled."""
    pools = c.covariance.second_moment == "pooled"
    return c._replace(covariance=c.covariance._replace(second_moment="matrix")) if pools else c


def _maximise(
    c: Component, means: Array, scale: Scale, weight: Array, sums: Sums, target: Target | None, ridge: Array
) -> tuple[Array, Scale, Array]:
    del target  # a prior has been refused: it is conjugate to a Gaussian
    if not sums.extra:  # plain moments, of a start or a move between optima
        return move(c, means, scale, plain_target(weight, sums), ridge)
    on, extra = weight > 0, sums.extra
    safe = jnp.where(on, weight, 1)
    good = jnp.where(on, jnp.clip(extra["good"] / safe, _LEAST_GOOD, _MOST_GOOD), scale["good"])
    # The inflation first, with means and covariances as they are; then these, with the new inflation.
    some = extra["entries"] > 0
    ratio = extra["length"] / jnp.where(some, extra["entries"], 1)
    inflation = jnp.where(some, jnp.clip(ratio, _LEAST_INFLATION, _MOST_INFLATION), scale["inflation"])
    own = extra["good"] + extra["bad"] / inflation
    mean = mean_of(sums.first + extra["first"] / inflation[:, None], own)

    def together(a: Array, b: Array) -> Array:
        return a + b / inflation.reshape((-1,) + (1,) * (b.ndim - 1))

    if c.covariance.second_moment == "pooled":
        second = sums.second + (extra["second"] / inflation[:, None, None]).sum(0)
    else:
        second = jax.tree.map(together, sums.second, extra["second"])
    centre = mean * jnp.sqrt(own / safe)[:, None]
    means, new, length = move(c, means, scale, Target(mean, weight, centre, second), ridge)
    old = scale["good"]
    length = length + jnp.square(good - old) / (old * (1 - old))
    length = length + 0.5 * (1 - old) * jnp.square(jnp.log(inflation / scale["inflation"]))
    return means, {**new, "good": good, "inflation": inflation}, length


def _part(
    c: Component, scale: Scale, columns: Columns, covariance: Covariance, scatter: Any, seen: Seen | None
) -> tuple[Component, Scale]:
    new = {**scale, "scatter": scatter}
    if seen is not None:
        # Given some entries a row is a good one with another probability; below ½ too, if they lie far out.
        both = _both(scale, seen.length, seen.n_observed)
        good, limits = jnp.exp(both.good - both.total)[:, 0], jnp.finfo(seen.length.dtype)
        new["good"] = jnp.clip(good, float(limits.tiny), 1 - float(limits.epsneg))
    return contaminated(covariance), new


def _start(c: Component, variances: Array) -> Scale:
    each = (variances.shape[0],)
    return {
        "scatter": c.covariance.from_variances(variances),
        "good": jnp.full(each, _GOOD, variances.dtype),
        "inflation": jnp.full(each, _INFLATION, variances.dtype),
    }


def _n_parameters(c: Component, n_components: Any, n_features: int) -> Any:
    own = c.covariance.n_parameters(n_components, n_features)
    return n_components * n_features + own + 2 * n_components


def _variance_factor(c: Component, scale: Scale) -> Array:
    return scale["good"] + (1 - scale["good"]) * scale["inflation"]


def _normal_factor(c: Component, key: Array, scale: Scale, labels: Array) -> Array:
    bad = jax.random.uniform(key, labels.shape, scale["good"].dtype) > scale["good"][labels]
    return jnp.where(bad, jnp.sqrt(scale["inflation"][labels]), 1)


def _to_free(c: Component, scale: Scale) -> Array:
    share = (scale["good"] - _LEAST_GOOD) / (1 - _LEAST_GOOD)
    return jnp.stack([jnp.log(share) - jnp.log1p(-share), jnp.log(scale["inflation"] - 1)], axis=1)


def _from_free(c: Component, scale: Scale, free: Array) -> Scale:
    # Within the bounds of the M-step, which would otherwise lower the likelihood of an extrapolation.
    good = _LEAST_GOOD + (1 - _LEAST_GOOD) * jax.nn.sigmoid(free[:, 0])
    inflation = 1 + jnp.exp(free[:, 1])
    return {
        **scale,
        "good": jnp.minimum(good, _MOST_GOOD),
        "inflation": jnp.clip(inflation, _LEAST_INFLATION, _MOST_INFLATION),
    }


_CONTAMINATED = gaussian()._replace(
    prepare=_prepare,
    expect=_expect,
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
    accepts=("missing", "projection"),
    outlier=_outlier,
    part=_part,
    is_gaussian=False,
)


def contaminated(covariance: str | Covariance = "full") -> Component:
    """Contaminated normal components: of each a share of outliers, with an inflated covariance.

    p(x) = α N(x | μ, Σ) + (1 − α) N(x | μ, η Σ), with α ≥ ½ the share of good rows and η > 1 the inflation,
    both of each component and estimated. Every row has a probability of being an outlier: see `outliers`.
    Fits are by ECM.

    Args:
      covariance: the structure of the matrices Σ_k, a name or a `Covariance`. A component's covariance is
        (α + (1 − α) η) Σ.

    Returns:
      A `Component` whose scale is {"scatter": the structure's arrays, "good": (K,), "inflation": (K,)}; its
      name, such as "contaminated(VVE)", can be passed as covariance_type too.

    Raises:
      ValueError, TypeError: for an unknown structure.

    Example:
      >>> import jaxgmm, numpy as np
      >>> from jaxgmm.components import contaminated
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(size=(2000, 1)) * np.where(rng.random((2000, 1)) < 0.1, 5.0, 1.0)
      >>> start = jaxgmm.make_params([1.0], [[0.0]], [1.0], contaminated("spherical"))
      >>> scale = jaxgmm.fit(start, X).params.scale
      >>> bool(0.85 < scale["good"][0] < 0.95), bool(15 < scale["inflation"][0] < 35)
      (True, True)

    References:
      Tukey (1960), A survey of sampling from contaminated distributions; Punzo & McNicholas (2016),
      Parsimonious mixtures of multivariate contaminated normal distributions, Biometrical Journal 58.
    """
    structure = get_covariance(covariance)
    return _CONTAMINATED._replace(name=f"contaminated({structure.name})", covariance=structure)
