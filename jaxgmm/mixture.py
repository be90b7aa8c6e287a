"""The parameters of a mixture, and building them from weights, means and covariances."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Family, check_record, is_from_package
from jaxgmm.components.covariance.registry import get_family


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_weights", "means", "scale"],
    meta_fields=["family"],
)
@dataclasses.dataclass(frozen=True)
class GMMParams:
    """A Gaussian mixture p(x) = Σ_k π_k N(x | μ_k, Σ_k): an immutable pytree.

    Nothing is checked when one is built, for `vmap` and `jax.tree.map` build these too: `make_params` checks.
    Under `vmap` every array carries leading batch axes.

    Attributes:
      log_weights: (K,) log π_k; -inf switches a component off.
      means: (K, D).
      scale: the covariance structure's own arrays; for "full", lower Cholesky factors (K, D, D).
      family: the covariance structure; static.
    """

    log_weights: Array  # (K,)
    means: Array  # (K, D)
    scale: Any
    family: Family

    @property
    def weights(self) -> Array:
        """Mixing weights π (..., K)."""
        return jnp.exp(self.log_weights)

    @property
    def covariances(self) -> Array:
        """Dense covariances (..., K, D, D), whatever the structure."""
        return self.family.to_covariance(self.scale, (self.n_components, self.n_features))

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

    def __str__(self) -> str:
        """Weights and means ± standard deviations, where they can be looked at."""
        table = components(self)
        return repr(self) if table is None else f"{self!r}\n{display.as_text(table)}"

    def _repr_html_(self) -> str:
        table = components(self)
        return (
            f"<pre>{html.escape(repr(self))}</pre>"
            if table is None
            else display.as_html(table, f"Gaussian mixture: {kind(self)}")
        )


def kind(params: GMMParams) -> str:
    """The structure and the shapes in words; of placeholders for arrays, what is known.

    Example:
      >>> import jaxgmm
      >>> jaxgmm.make_params([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
      GMMParams(spherical, K = 2, D = 1, float32)
    """
    family = getattr(params.family, "name", params.family)
    shape = getattr(params.means, "shape", None)
    if not isinstance(shape, tuple) or len(shape) < 2:
        return f"{family}, means = {shape if shape is not None else params.means!r}"
    said = f"{family}, K = {shape[-2]}, D = {shape[-1]}, {getattr(params.means, 'dtype', '?')}"
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
            return np.sqrt(np.asarray(params.family.diagonal(params.scale, shape)).astype(float))
    except Exception:  # a user's structure, or arrays that do not fit: to print a mixture must not raise
        return np.full(params.means.shape, np.nan)


def components(
    params: GMMParams,
    columns: Sequence[str] | None = None,
    counts: np.ndarray[Any, Any] | None = None,
    most: tuple[int, int] = (12, 20),
) -> display.Table | None:
    """The table of one mixture, or None where its numbers cannot be had at once."""
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
    covariance_type: str | Family = "full",
) -> GMMParams:
    """Parameters from weights, means and covariances in scikit-learn's shapes.

    Args:
      weights: (K,), not negative, summing to 1 (to rounding: they are normalised). 0 switches off.
      means: (K, D), in the data's units.
      covariances: full (K, D, D), tied (D, D), diag (K, D) variances, spherical (K,) variances. For EII one
        variance (), EEI (D,), VEI and EVI (K, D) variances, for mclust's others (K, D, D); where these are
        not of the structure, what an M-step with equal weights makes of them.
      covariance_type: a name or a `Family`.

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
    family = get_family(covariance_type)
    w, mu = validate.mixture_parts(weights, means)
    n_components, n_features = mu.shape
    shape = family.covariance_shape(n_components, n_features)
    # Matrices, and not variances of as many components as features.
    matrices = family.covariance_shape(2, 3)[-2:] == (3, 3)
    given = validate.covariances(covariances, shape, family.name, mu.dtype, matrices=matrices)
    scale = family.from_covariance(given)
    shared = shape == family.covariance_shape(n_components + 1, n_features)
    validate.positive_definite(scale, shared=shared)
    return GMMParams(jnp.log(w) - jnp.log(w.sum()), mu, scale, family)


def scale_like(family: Family, n_components: int, n_features: int) -> Any:
    """The shapes of the family's arrays for K components in D dimensions; a user's record is checked once."""
    if not is_from_package(family):
        for dtype in {jnp.dtype(jnp.float32), jnp.dtype(jnp.result_type(float))}:
            check_record(family, n_components, n_features, dtype)
    return _shapes(family, n_components, n_features)


@functools.lru_cache
def _shapes(family: Family, n_components: int, n_features: int) -> Any:
    return jax.eval_shape(
        family.from_variances, jax.ShapeDtypeStruct((n_components, n_features), jnp.float32)
    )


def has_component_axis(family: Family, n_components: int, n_features: int) -> Any:
    """Which of the family's arrays have a row for each component: it shows in how their shapes follow K."""
    one, other = (scale_like(family, k, n_features) for k in (n_components, n_components + 1))
    return jax.tree.map(lambda a, b: a.shape != b.shape, one, other)


def translate(params: GMMParams, by: Array) -> GMMParams:
    """The same mixture with every mean moved by `by` (D,)."""
    return dataclasses.replace(params, means=params.means + by[None, :])


def take(params: GMMParams, index: Array | np.ndarray) -> GMMParams:
    """The mixture of the components `index` (M,), in that order; their weights are kept as they are."""
    own = has_component_axis(params.family, params.n_components, params.n_features)
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
