"""Uniform background: the last component of a mixture, beside those of another family."""

from __future__ import annotations

from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.base import Columns, Component, Scale, Seen, Shape, Sums, Target
from jaxgmm.components.covariance.base import Covariance, Partial


def _is_last(n_components: int) -> Array:
    return jnp.arange(n_components, dtype=jnp.int32) == n_components - 1


def _prepare(c: Component, means: Array, scale: Scale) -> Any:
    return c.options.prepare(c.options, means, scale["inner"])


def _expect(c: Component, prepared: Any, x: Array) -> tuple[Array, Any]:
    exponent, latent = c.options.expect(c.options, prepared, x)
    return jnp.where(_is_last(exponent.shape[0])[:, None], 0, exponent), latent


def _log_normaliser(c: Component, scale: Scale, shape: Shape) -> Array:
    inner = c.options.log_normaliser(c.options, scale["inner"], shape)
    return jnp.where(_is_last(shape[0]), scale["log_density"].sum(), inner)


def _log_density(c: Component, prepared: Any, x: Array, on: Array) -> tuple[Array, Array]:
    last = _is_last(on.shape[0])
    relative, offset = c.options.log_density(c.options, prepared, x, on & ~last)
    # Far from every component the background is all there is: it takes the offset out again.
    background = on[-1]
    both = jnp.where(background, relative + offset[None, :], relative)
    return jnp.where(last[:, None], 0, both), jnp.where(background, 0, offset)


def _marginal(c: Component, scale: Scale, seen: Seen) -> tuple[Array, Any]:
    inner, latent = c.options.marginal(c.options, scale["inner"], seen)
    each = scale["log_density"]
    total = each.sum() if seen.observed is None else jnp.where(seen.observed, each[:, None], 0).sum(0)
    return jnp.where(_is_last(inner.shape[0])[:, None], total - seen.offset, inner), latent


def _outlier(c: Component, scale: Scale, seen: Seen) -> tuple[Array, Array]:
    last = _is_last(seen.length.shape[0])[:, None]
    whole = jnp.broadcast_to(last, seen.length.shape).astype(seen.length.dtype)
    return whole, 1 - whole


def _part(
    c: Component, scale: Scale, columns: Columns, covariance: Covariance, scatter: Any, seen: Seen | None
) -> tuple[Component, Scale]:
    inner, new = c.options.part(c.options, scale["inner"], columns, covariance, scatter, seen)
    return background(inner), {"inner": new, "log_density": scale["log_density"][np.asarray(columns)]}


def _statistics(c: Component, prepared: Any, latent: Any, resp: Array) -> Sums:
    inner = jnp.where(_is_last(resp.shape[0])[:, None], 0, resp)
    return cast(Sums, c.options.statistics(c.options, prepared, latent, inner))


def _maximise(
    c: Component, means: Array, scale: Scale, weight: Array, sums: Sums, target: Target | None, ridge: Array
) -> tuple[Array, Scale, Array]:
    inner = jnp.where(_is_last(weight.shape[0]), 0, weight)
    means, new, length = c.options.maximise(c.options, means, scale["inner"], inner, sums, target, ridge)
    return means, {**scale, "inner": new}, length


def _start(c: Component, variances: Array) -> Scale:
    # The box that has the variances of all the data, uniform: its sides are √12 standard deviations.
    log_density = -0.5 * jnp.log(12 * variances[-1])
    return {"inner": c.options.start(c.options, variances), "log_density": log_density}


def _get(field: str, c: Component, scale: Scale) -> Any:
    """What the function `field` of the other components' family gives for their scale."""
    return getattr(c.options, field)(c.options, scale["inner"])


def _put(field: str, c: Component, scale: Scale, value: Any) -> Scale:
    """The scale in which the other components' is what the function `field` makes of it and a value."""
    return {**scale, "inner": getattr(c.options, field)(c.options, scale["inner"], value)}


def _n_parameters(c: Component, n_components: Any, n_features: int) -> Any:
    return c.options.n_parameters(c.options, n_components - 1, n_features)


def _normal_factor(c: Component, key: Array, scale: Scale, labels: Array) -> Array:
    raise ValueError("a uniform background has a density but no extent: a mixture with one cannot be sampled")


def background(component: Component) -> Component:
    """Components of a family, and a last one that is uniform: rows that belong to none of the others.

    Of K components the first K − 1 are those of `component`. The last is uniform over a box, with the density
    exp(Σ_j scale["log_density"]_j), a factor for each feature, so that rows with missing entries have a
    density too. A start takes the box that has the data's variances. Its share is estimated, and nothing else
    of it. It has a mean and a covariance in the arrays, without use. Errors of measurement leave it as it is.
    A mixture with a background has no samples and no standard errors.

    Args:
      component: a `Component`, such as gaussian("full").

    Returns:
      A `Component` whose scale is {"inner": that of the components, "log_density": (D,)}; its name, such as
      "background(full)", can be passed as covariance_type too.

    Example:
      >>> from jaxgmm.components import background, gaussian
      >>> background(gaussian("diag"))
      Component('background(diag)')

    References:
      Banfield & Raftery (1993), Model-based Gaussian and non-Gaussian clustering, Biometrics 49.
    """
    accepts = tuple(what for what in component.accepts if what != "projection")
    optional: dict[str, Any] = {"variance_factor": _get, "to_free": _get, "from_free": _put}
    record = Component(
        name=f"background({component.name})",
        covariance=component.covariance,
        prepare=_prepare,
        expect=_expect,
        log_normaliser=_log_normaliser,
        log_density=_log_density,
        statistics=_statistics,
        maximise=_maximise,
        start=_start,
        scatter=Partial(_get, "scatter"),
        with_scatter=Partial(_put, "with_scatter"),
        n_parameters=_n_parameters,
        normal_factor=_normal_factor,
        marginal=_marginal if accepts else None,
        accepts=accepts,
        outlier=_outlier,
        part=_part if component.part is not None else None,
        options=component,
    )
    own: dict[str, Any] = {
        name: Partial(f, name) for name, f in optional.items() if getattr(component, name) is not None
    }
    return record._replace(**own)
