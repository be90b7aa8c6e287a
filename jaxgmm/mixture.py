"""Mixtures: the parameter record `GMMParams`, and building it from weights, means and covariances."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _validate as validate
from jaxgmm.components.background import background
from jaxgmm.components.base import Component
from jaxgmm.components.covariance.base import Covariance, check_record, is_from_package
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import FREE, Held, Model, Weights, is_held
from jaxgmm.kernels.programs import jit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GMMParams(display.Shown):
    """A mixture p(x) = Σ_k π_k f(x | μ_k, θ_k), Gaussian or of another component family: an immutable pytree.

    Nothing is checked when one is built, for `vmap` and `jax.tree.map` build these too: `make_params` checks.
    Under `vmap` every array carries leading batch axes.

    Attributes:
      log_weights: (K,) log π_k; -inf switches a component off.
      means: (K, D).
      scale: the covariance structure's own arrays, for "full" lower Cholesky factors (K, D, D); and what else
        the component has, such as degrees of freedom.
      component: the density of a component; static.
      weights_rule: how a fit treats the weights; static.
    """

    log_weights: Array  # (K,)
    means: Array  # (K, D)
    scale: Any
    component: Component = dataclasses.field(metadata={"static": True})
    weights_rule: Weights = dataclasses.field(default=FREE, metadata={"static": True})

    @property
    def weights(self) -> Array:
        """Mixing weights π (..., K)."""
        return jnp.exp(self.log_weights)

    @property
    def model(self) -> Model:
        """Component and rule for the weights: all that is static."""
        return Model(self.component, self.weights_rule)

    @property
    def covariance(self) -> Covariance:
        """The structure of the components' scatter matrices; of Gaussians these are the covariances."""
        return self.component.covariance

    @property
    def scatter(self) -> Any:
        """The structure's own arrays, of `scale`."""
        return self.component.scatter(self.component, self.scale)

    def with_scatter(self, scatter: Any) -> GMMParams:
        """The same mixture with other arrays of the structure."""
        return dataclasses.replace(
            self, scale=self.component.with_scatter(self.component, self.scale, scatter)
        )

    @property
    def covariances(self) -> Array:
        """Dense covariances (..., K, D, D), whatever the structure."""
        dense = self.covariance.to_covariance(self.scatter, (self.n_components, self.n_features))
        factor = self.component.variance_factor
        return dense if factor is None else dense * factor(self.component, self.scale)[..., None, None]

    @property
    def n_components(self) -> int:
        """K, switched-off components included."""
        return self.means.shape[-2]

    @property
    def n_features(self) -> int:
        """D."""
        return self.means.shape[-1]

    def __repr__(self) -> str:
        """One line: what kind of mixture it is. Printed, it is a table."""
        return f"GMMParams({kind(self)})"

    def _table(self) -> display.Table | None:
        return components(self)

    def _caption(self) -> str:
        return f"Gaussian mixture: {kind(self)}"


def kind(params: GMMParams) -> str:
    """The structure and the shapes in words; of placeholders for arrays, what is known.

    Example:
      >>> import jaxgmm
      >>> jaxgmm.make_params([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
      GMMParams(spherical, K = 2, D = 1, float32)
    """
    name = params.model.name if isinstance(params.component, Component) else params.component
    shape = getattr(params.means, "shape", None)
    if not isinstance(shape, tuple) or len(shape) < 2:
        return f"{name}, means = {shape if shape is not None else params.means!r}"
    said = f"{name}, K = {shape[-2]}, D = {shape[-1]}, {getattr(params.means, 'dtype', '?')}"
    if len(shape) > 2:
        said = f"{' × '.join(map(str, shape[:-2]))} mixtures, {said}"
    return said


def widths(params: GMMParams) -> np.ndarray[Any, Any] | None:
    """The standard deviations (K, D) of a concrete mixture; NaN where a structure cannot say."""
    if not validate.is_concrete(params):
        return None
    try:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            shape = (params.n_components, params.n_features)
            variances = np.asarray(params.covariance.diagonal(params.scatter, shape)).astype(float)
            if (factor := params.component.variance_factor) is not None:
                variances = variances * np.asarray(factor(params.component, params.scale))[:, None]
            return np.sqrt(variances)
    except Exception:  # a user's structure, or arrays that do not fit: to print a mixture must not raise
        return np.full(params.means.shape, np.nan)


def components(
    params: GMMParams,
    columns: Sequence[str] | None = None,
    counts: np.ndarray[Any, Any] | None = None,
    most: tuple[int, int] = (12, 20),
) -> display.Table | None:
    """The table of one mixture, or None where `display.look` finds no values."""
    log_weights, means = display.look(params.log_weights), display.look(params.means)
    if log_weights is None or means is None or any(display.look(a) is None for a in jax.tree.leaves(params)):
        return None
    if means.ndim != 2 or 0 in means.shape or log_weights.shape != means.shape[:1]:
        return None
    sds = widths(params)
    if sds is None or sds.shape != means.shape:
        return None
    with np.errstate(all="ignore"):
        weights = np.exp(log_weights.astype(float))
    return display.mixture_table(weights, means.astype(float), sds, columns, counts=counts, most=most)


def make_params(
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    covariance_type: ModelLike = "full",
) -> GMMParams:
    """Parameters from weights, means and covariances in scikit-learn's shapes.

    Args:
      weights: (K,), not negative, summing to 1 (to rounding: they are normalised). 0 switches off.
      means: (K, D), in the data's units.
      covariances: full (K, D, D), tied (D, D), diag (K, D) variances, spherical (K,) variances. For EII one
        variance (), EEI (D,), VEI and EVI (K, D) variances, for mclust's others (K, D, D); where these are
        not of the structure, what an M-step with equal weights makes of them.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.

    Returns:
      GMMParams, in float64 if any argument is and JAX allows it, else float32.

    Raises:
      ValueError: for a wrong shape, weights that do not sum to 1, or a covariance that is not positive
        definite. Under `jit` values cannot be seen, and such a covariance gives NaN factors.
      TypeError: for complex or non-numeric arrays.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.4, 0.6], [[0.0, 0.0], [3.0, 1.0]], [1.0, 4.0], "spherical")
      >>> params.covariances.shape
      (2, 2, 2)
    """
    model = get_model(covariance_type)
    structure = model.covariance
    w, mu = validate.mixture_parts(weights, means)
    n_components, n_features = mu.shape
    shape = structure.covariance_shape(n_components, n_features)
    # Matrices, and not variances of as many components as features.
    matrices = structure.covariance_shape(2, 3)[-2:] == (3, 3)
    given = validate.covariances(covariances, shape, structure.name, mu.dtype, matrices=matrices)
    params = _from_parts(w, mu, given, model=model)
    shared = shape == structure.covariance_shape(n_components + 1, n_features)
    validate.positive_definite(params.scatter, shared=shared)
    return params


@functools.partial(jit, static_argnames="model")
def _from_parts(weights: Array, means: Array, covariances: Array, *, model: Model) -> GMMParams:
    c, scatter = model.component, model.covariance.from_covariance(covariances)
    n_components, n_features = means.shape
    scale = c.start(c, model.covariance.diagonal(scatter, (n_components, n_features)))
    params = GMMParams(jnp.log(weights) - jnp.log(weights.sum()), means, scale, *model)
    return params.with_scatter(scatter)


def scale_like(component: Component, n_components: int, n_features: int) -> Any:
    """The shapes of a component's arrays for K of them in D dimensions; a user's record is checked once."""
    if not is_from_package(component.covariance):
        for dtype in {jnp.dtype(jnp.float32), jnp.dtype(jnp.result_type(float))}:
            check_record(component.covariance, n_components, n_features, dtype)
    return _shapes(component, n_components, n_features)


@functools.lru_cache
def _shapes(component: Component, n_components: int, n_features: int) -> Any:
    variances = jax.ShapeDtypeStruct((n_components, n_features), jnp.float32)
    return jax.eval_shape(lambda v: component.start(component, v), variances)


def has_component_axis(component: Component, n_components: int, n_features: int) -> Any:
    """Which of the component's arrays have a row for each of K: it shows in how their shapes follow K."""
    one, other = (scale_like(component, k, n_features) for k in (n_components, n_components + 1))
    return jax.tree.map(lambda a, b: a.shape != b.shape, one, other)


def cast(tree: Any, dtype: Any) -> Any:
    """Parameters in one dtype; arrays of NumPy's are converted by it, for which nothing is compiled."""

    def one(a: Any) -> Array:
        return jax.device_put(a.astype(dtype)) if isinstance(a, np.ndarray) else jnp.asarray(a, dtype)

    return jax.tree.map(one, tree)


def log_normaliser(params: GMMParams) -> Array:
    """(K,) the logarithm of each component's density where its exponent is 0."""
    shape = (params.n_components, params.n_features)
    return params.component.log_normaliser(params.component, params.scale, shape)


def translate(params: GMMParams, by: Array) -> GMMParams:
    """The same mixture with every mean moved by `by` (D,)."""
    return dataclasses.replace(params, means=params.means + by[None, :])


def take(params: GMMParams, index: Array | np.ndarray) -> GMMParams:
    """The mixture of the components `index` (M,), in that order; their weights are kept as they are."""
    own = has_component_axis(params.component, params.n_components, params.n_features)
    scale = jax.tree.map(lambda a, rows: a[index] if rows else a, params.scale, own)
    return dataclasses.replace(
        params, log_weights=params.log_weights[index], means=params.means[index], scale=scale
    )


def active(params: GMMParams) -> GMMParams:
    """The same mixture without its switched-off components; for one concrete mixture, outside `jit`.

    Example:
      >>> import jax.numpy as jnp, jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.0, 0.5], [[0.0], [1.0], [2.0]], [1.0, 1.0, 1.0], "spherical")
      >>> jaxgmm.mixture.active(params).n_components
      2
    """
    validate.single_mixture(params.log_weights, params.means, params.scale)
    on = np.asarray(params.log_weights) > -np.inf
    if on.all():
        return params
    return take(params, np.flatnonzero(on))


def kept(before: GMMParams, after: GMMParams) -> GMMParams:
    """The mixture `after` with the means and covariances that its rule holds, as they are in `before`."""
    rule, k = after.weights_rule, after.n_components
    if rule.means is not False:
        stay = is_held(rule.means, k)[:, None]
        after = dataclasses.replace(after, means=jnp.where(stay, before.means, after.means))
    if rule.covariances is True:
        after = after.with_scatter(before.scatter)
    elif rule.covariances is not False:
        held = is_held(rule.covariances, k)

        def one(a: Array, b: Array) -> Array:
            return jnp.where(held.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        after = after.with_scatter(jax.tree.map(one, before.scatter, after.scatter))
    return after


def hold(
    params: GMMParams, *, weights: bool = False, means: Held = False, covariances: Held = False
) -> GMMParams:
    """The same mixture, of which a fit keeps some parameters as they are.

    So is a mixture adapted to new data in part: `fit(hold(params, means=True, covariances=True), X)` finds
    new weights alone. What is held is counted by no criterion, and has a standard error of 0.

    Args:
      params: one mixture of Gaussian components.
      weights: whether the weights are held.
      means: False for none, True for all, or the numbers of the components whose means are held.
      covariances: the same of covariances. Where the structure shares parts of them, all or none.

    Returns:
      GMMParams whose `weights_rule` says so; a call without arguments sets all free.

    Raises:
      ValueError, TypeError: for numbers that are no components', covariances that cannot be held one by one,
        or components that are not Gaussian.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> held = jaxgmm.mixture.hold(params, means=[0])
      >>> jaxgmm.fit(held, [[-3.0], [-2.0], [4.0], [5.0]]).params.means.round(3).tolist()
      [[-1.0], [4.5]]

    References:
      Reynolds, Quatieri & Dunn (2000), Speaker verification using adapted Gaussian mixture models, for
      adaptation in part.
    """
    validate.single_mixture(params.log_weights, params.means, params.scale)
    k, component = params.n_components, params.component
    if not component.is_gaussian:
        raise ValueError(f"hold needs Gaussian components; params have {component.name!r}")
    if not isinstance(weights, bool):
        raise TypeError(f"weights must be True or False; got {weights!r}")

    def checked(value: Any, name: str) -> Held:
        if isinstance(value, bool):
            return value
        numbers = [value] if isinstance(value, int | np.integer) else list(value)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise TypeError(f"{name} must be True, False or numbers of components; got {value!r}")
            if not 0 <= number < k:
                raise ValueError(f"{name} must be numbers of components from 0 to {k - 1}; got {number}")
        found = tuple(sorted({int(number) for number in numbers}))
        return True if len(found) == k else found or False

    those = checked(covariances, "covariances")
    own = has_component_axis(component, k, params.n_features)
    if not isinstance(those, bool) and not all(jax.tree.leaves(own)):
        raise ValueError(
            f"covariances must be True or False for {component.name!r}, whose components share parts of them"
        )
    rule = Weights("fixed" if weights else "free", checked(means, "means"), those)
    return dataclasses.replace(params, weights_rule=rule)


def with_background(params: GMMParams, extent: ArrayLike, weight: float = 0.05) -> GMMParams:
    """The same mixture with a uniform background as one component more, the last.

    Args:
      params: one mixture, without a background.
      extent: rows X (n, D), whose box the background fills; or the lengths of a box's sides (D,); or a volume
        (), as the volume of a cube.
      weight: its share, between 0 and 1; a fit estimates it.

    Returns:
      GMMParams of K + 1 components; `predict` gives K for rows that belong to the background, and
      `outliers` the probability of that.

    Raises:
      ValueError, TypeError: for a mixture that has a background, rows or sides that do not fit, a volume or a
        side that is not positive, or a weight outside (0, 1).

    Example:
      >>> import jaxgmm, numpy as np
      >>> X = np.r_[np.random.default_rng(0).normal(size=(95, 2)), np.full((5, 2), 9.0)].astype(np.float32)
      >>> one = jaxgmm.make_params([1.0], [[0.0, 0.0]], [1.0], "spherical")
      >>> result = jaxgmm.fit(jaxgmm.mixture.with_background(one, X), X)
      >>> result.params.weights.round(2).tolist()
      [0.94, 0.06]

    References:
      Banfield & Raftery (1993), Model-based Gaussian and non-Gaussian clustering, Biometrics 49; Fraley &
      Raftery (1998), How many clusters? Which clustering method?, for the box.
    """
    validate.single_mixture(params.log_weights, params.means, params.scale)
    dtype, d, k = params.means.dtype, params.n_features, params.n_components
    if params.component.has_background:
        raise ValueError(f"params have a background already: {params.component.name!r}")
    if params.weights_rule.holds:
        raise ValueError("means and covariances cannot be held beside a background; use hold(params)")
    share = validate.fraction(weight, "weight", dtype)
    given = validate.floating(extent, "extent", dtype)
    if given.ndim == 2 and given.shape[1] == d:
        sides = given.max(0) - given.min(0)
    elif given.shape == (d,):
        sides = given
    elif given.shape == ():
        sides = jnp.full(d, jnp.exp(jnp.log(given) / d), dtype)
    else:
        raise ValueError(
            f"extent must be rows (n, {d}), the sides of a box ({d},) or a volume (); got shape {given.shape}"
        )
    if validate.is_concrete(sides) and not bool((sides > 0).all() & jnp.isfinite(sides).all()):
        raise ValueError(
            f"extent must be positive and finite in every feature; got sides {np.asarray(sides)}"
        )
    more = take(params, np.append(np.arange(k), k - 1))
    component = background(params.component)
    log_weights = jnp.append(params.log_weights + jnp.log1p(-share), jnp.log(share))
    means = more.means.at[-1].set((params.weights[:, None] * params.means).sum(0))
    scale = {"inner": more.scale, "log_density": -jnp.log(sides)}
    return GMMParams(log_weights, means, scale, component, params.weights_rule)
