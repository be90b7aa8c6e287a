"""The record `Component`: the density of one component of a mixture, as EM needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.covariance.base import Covariance

Scale = Any  # a component's own pytree of arrays
Shape = tuple[int, int]  # (K, D)
Columns = tuple[int, ...]  # of some features, in an order


class Sums(NamedTuple):
    """Sums over samples that a component's M-step reads, linear in the responsibilities.

    Fields:
      first: (K, D) Σ w r u y, with y the whitened residuals and u the weight that the component itself gives
        a row, 1 for a Gaussian.
      second: the covariance structure's part of Σ w r u y yᵀ; for "full", (K, D, D).
      extra: a pytree of what else it needs; () for a Gaussian.
    """

    first: Array
    second: Any
    extra: Any = ()


class Target(NamedTuple):
    """What moves a component: its next mean, and the moments that `Covariance.update` reads.

    Fields:
      mean: (K, D) the next means, in whitened coordinates about the current ones.
      weight: (K,) the divisor of the second moments.
      centre: (K, D) the mean that is taken out of the second moments.
      second: as `Sums.second`.
    """

    mean: Array
    weight: Array
    centre: Array
    second: Any

    def about_held(self, held: Any) -> Target:
        """The same where the means of some components (K,) stay: second moments are about these."""
        stay = held[:, None]
        return self._replace(mean=jnp.where(stay, 0, self.mean), centre=jnp.where(stay, 0, self.centre))


class Seen(NamedTuple):
    """What the observed entries of a block of rows say, for a component's `marginal`.

    Fields:
      y: (K, D, B) the conditional means of the whitened residuals.
      length: (K, B) squared Mahalanobis distances δ of the observed entries.
      base: (K, B) −½ log |T| for their scatter matrices T, less what is in `offset`.
      offset: (B,) taken out of all log densities, −½ n log 2π included, for n observed entries.
      observed: (E, B) bool, or None where all are.
      n_observed: (1, B) how many entries are observed, or a number for all rows.
    """

    y: Array
    length: Array
    base: Array
    offset: Array
    observed: Array | None
    n_observed: Any


class Component(NamedTuple):
    """The density of one component: pure functions of its means (K, D) and of `scale`, a pytree of arrays.

    The density is exp(log_normaliser + exponent). Rows of data come as columns (D, B), responsibilities and
    exponents as (K, B): that is the fast layout. To add a component family, fill in the record in one file,
    of named functions, as `components/student_t.py` does. Each function takes the record itself as its first
    argument, not written below, for its `covariance` and `options`.

    Fields:
      name: what error messages and saved files call it.
      covariance: the structure of its scatter matrices Σ_k.
      prepare: (means, scale) -> what `expect` needs of them (inverse factors), computed once an iteration;
        any object.
      expect: (prepared, x (D, B)) -> exponents (K, B), finite, and what `statistics` needs of the
        block, a pytree that begins with the whitened residuals (K, D, B).
      log_normaliser: (scale, (K, D)) -> (K,), the logarithm of the density where the exponent is 0.
      log_density: (prepared, x (D, B), on (K,)) -> exponents as relative (K, B) + offset (B,), where the
        largest `relative` of those that are on is finite wherever x lies.
      statistics: (prepared, what expect gave, resp (K, B)) -> `Sums` over B, linear in resp.
      maximise: (means, scale, weight (K,), Sums, Target or None, ridge (D,)) -> (means, scale, length (K,)).
        The M-step: the parameters that maximise the expected log-likelihood, and the squared Fisher length of
        the step. A component of weight 0 stays where it is. A `Target` is given where a prior takes part;
        `extra` is () for the plain moments of a start.
      start: variances (K, D) -> the scale of components of that width.
      scatter: scale -> the arrays of `covariance`.
      with_scatter: (scale, arrays of `covariance`) -> the scale with these.
      n_parameters: (K, D) -> number of free parameters of means and scale; K may be traced.
      variance_factor: scale -> (K,), what Σ_k is multiplied by to give the covariances; None for 1.
      normal_factor: (key, scale, labels (n,)) -> (n,), what standard normal numbers are multiplied by to draw
        from the density; None for 1.
      to_free, from_free: scale -> array (K, E) of unconstrained numbers for what the scale holds besides
        `covariance`'s arrays, and (scale, array) -> scale: coordinates of extrapolation, derivatives and
        gradient fits. None where there is nothing else.
      marginal: (scale, `Seen`) -> the log density (K, B) of what is observed of each row, less the offset,
        and what `statistics` needs, as `expect` gives it. None: rows must be complete.
      accepts: of "missing", "noise" and "projection", for which of them `marginal` holds.
      outlier: (scale, `Seen`) -> (K, B), (K, B), the probability that a row of the component is an outlier of
        it, or, where the component knows of none, that a row of it lies nearer to its centre; and one minus
        it, to all its digits. None: unknown.
      part: (scale, columns, `Covariance`, its arrays, `Seen` or None) -> (component, scale) of the features
        `columns` alone, whose scatter matrices the arrays hold. With `Seen`, of one row (B = 1), those of
        these features given the others: the structure is "full", the arrays hold factors of the Schur
        complements, and what the row says of the component may multiply them. None: no marginals, no
        conditionals.
      is_gaussian: whether the exponent is −½ ‖C_k⁻¹ (x − μ_k)‖² and the sums are plain moments, so that the
        quadratic and sparse kernels, priors, and what else is known of Gaussians apply.
      options: hashable settings of the family, such as whether degrees of freedom are fixed.
    """

    name: str
    covariance: Covariance
    prepare: Callable[[Component, Array, Scale], Any]
    expect: Callable[[Component, Any, Array], tuple[Array, Any]]
    log_normaliser: Callable[[Component, Scale, Shape], Array]
    log_density: Callable[[Component, Any, Array, Array], tuple[Array, Array]]
    statistics: Callable[[Component, Any, Any, Array], Sums]
    maximise: Callable[..., tuple[Array, Scale, Array]]
    start: Callable[[Component, Array], Scale]
    scatter: Callable[[Component, Scale], Any]
    with_scatter: Callable[[Component, Scale, Any], Scale]
    n_parameters: Callable[[Component, Any, int], Any]
    variance_factor: Callable[[Component, Scale], Array] | None = None
    normal_factor: Callable[[Component, Array, Scale, Array], Array] | None = None
    to_free: Callable[[Component, Scale], Array] | None = None
    from_free: Callable[[Component, Scale, Array], Scale] | None = None
    marginal: Callable[[Component, Scale, Seen], tuple[Array, Any]] | None = None
    accepts: tuple[str, ...] = ()
    outlier: Callable[[Component, Scale, Seen], tuple[Array, Array]] | None = None
    part: Callable[..., tuple[Component, Scale]] | None = None
    is_gaussian: bool = False
    options: Any = None

    @property
    def has_background(self) -> bool:
        """Whether the last component is a uniform background beside components of another family."""
        return isinstance(self.options, Component)

    def __repr__(self) -> str:
        """Short, for the record's functions say nothing to a reader."""
        return f"Component({self.name!r})"


def scatter_of(c: Component, scale: Scale) -> Any:
    """`Component.scatter` where the scale is a dict with the structure's arrays as "scatter"."""
    return scale["scatter"]


def with_scatter(c: Component, scale: Scale, scatter: Any) -> Scale:
    """`Component.with_scatter` of such a scale."""
    return {**scale, "scatter": scatter}
