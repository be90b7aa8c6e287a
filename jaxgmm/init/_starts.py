"""Starting parameters: by k-means++, k-means, random points, random responsibilities, or a hierarchy.

All of it is jittable and vmappable, weighted, and a function of the key alone: same key, same bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import em, priors
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.registry import ModelLike
from jaxgmm.components.weights import Model
from jaxgmm.data import Context, Data
from jaxgmm.init._clusters import clusters, distinct_rows, least, mass_of, partitions, random_simplex
from jaxgmm.kernels import exact, trimmed
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.blocked_sum import in_range
from jaxgmm.kernels.linalg import einsum
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior

Init = str | Callable[..., GMMParams]

NAMES = ("kmeans++", "kmeans", "random_points", "random_resp", "hierarchical")

# A start from a hard partition widens every component by this part of the variance within clusters, so that a
# seed that took a single point does not begin, and end, as a spike on it.
WIDEN = 1e-2


def _inputs(
    key: Array, X: ArrayLike, n_components: int, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Any, int]:
    x = validate.data(X)
    w: Any = validate.weight(sample_weight, x)
    w = np.ones(x.shape[0], x.dtype) if w is None else w
    return validate.key(key), x, w, validate.n_components(n_components, x.shape[0])


_kmeans = jit(clusters, static_argnames=("n_components", "max_iter"))
_rows = jit(distinct_rows, static_argnames="n")
_simplex = jit(random_simplex, static_argnames=("shape", "dtype"))


def _centres(key: Array, x: Array, w: Array, n_components: int, max_iter: int) -> Array:
    """Centres (K, D) of checked data, found in units in which squared distances do not overflow."""
    unit = units.units_of(x, w)
    if unit is None:
        return _kmeans(key, x, w, n_components=n_components, max_iter=max_iter)
    centres = _kmeans(key, units.divide(x, unit), w, n_components=n_components, max_iter=max_iter)
    return units.multiply(centres, unit)


def kmeans_plusplus(
    key: Array, X: ArrayLike, n_components: int, sample_weight: ArrayLike | None = None
) -> Array:
    """Seeds (K, D) among the rows of X, each drawn in proportion to its squared distance from those before.

    At every seed the best of 2 + log K draws is kept (greedy k-means++). Distances are Euclidean in the
    units of X.

    Args:
      key: a JAX PRNG key.
      X: (N, D).
      n_components: K; static.
      sample_weight: (N,) or None for ones; a row of weight 0 is never a seed.

    Raises:
      ValueError, TypeError: for NaN data, weights that do not fit, K < 1 or K > N.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgmm
      >>> X = jnp.array([[0.0], [0.1], [9.0], [9.1]])
      >>> seeds = jaxgmm.init.kmeans_plusplus(jax.random.key(0), X, 2)
      >>> bool(jnp.abs(seeds[0] - seeds[1]) > 8)
      True

    References:
      Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding.
    """
    return _centres(*_inputs(key, X, n_components, sample_weight), 0)


def kmeans(
    key: Array,
    X: ArrayLike,
    n_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    max_iter: int = 100,
) -> Array:
    """Cluster centres (K, D): Lloyd's iterations from k-means++ seeds, until nothing moves.

    Args:
      key: a JAX PRNG key.
      X: (N, D).
      n_components: K; static.
      sample_weight: (N,) or None for ones.
      max_iter: limit on the iterations; static.

    Raises:
      ValueError, TypeError: as `kmeans_plusplus`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgmm
      >>> X = jnp.array([[0.0], [2.0], [8.0], [10.0]])
      >>> sorted(jaxgmm.init.kmeans(jax.random.key(0), X, 2)[:, 0].tolist())
      [1.0, 9.0]

    References:
      Lloyd (1982), Least squares quantization in PCM.
    """
    inputs = _inputs(key, X, n_components, sample_weight)
    return _centres(*inputs, validate.count(max_iter, "max_iter", 1))


def random_points(
    key: Array, X: ArrayLike, n_components: int, sample_weight: ArrayLike | None = None
) -> Array:
    """K different rows of X (K, D), drawn in proportion to their weights without replacement.

    Args:
      key: a JAX PRNG key.
      X: (N, D).
      n_components: K; static.
      sample_weight: (N,) or None for ones; a row of weight 0 is never drawn.

    Raises:
      ValueError, TypeError: as `kmeans_plusplus`.

    Example:
      >>> import jax, jaxgmm
      >>> points = jaxgmm.init.random_points(jax.random.key(0), [[1.0], [2.0], [3.0]], 2, [1.0, 0.0, 1.0])
      >>> sorted(points[:, 0].tolist())
      [1.0, 3.0]
    """
    key, x, w, n = _inputs(key, X, n_components, sample_weight)
    return _rows(key, x, w, n=n)


def random_resp(key: Array, X: ArrayLike, n_components: int, sample_weight: ArrayLike | None = None) -> Array:
    """Random responsibilities (N, K), each row uniform on the simplex.

    Args:
      key: a JAX PRNG key.
      X: (N, D); only its number of rows and its dtype count.
      n_components: K; static.
      sample_weight: checked, and otherwise of no effect: so that all starts are called alike.

    Raises:
      ValueError, TypeError: as `kmeans_plusplus`.

    Example:
      >>> import jax, jaxgmm
      >>> resp = jaxgmm.init.random_resp(jax.random.key(0), [[1.0], [2.0], [3.0]], 2)
      >>> resp.shape
      (3, 2)
    """
    key, x, _, n = _inputs(key, X, n_components, sample_weight)
    return _simplex(key, shape=(x.shape[0], n), dtype=x.dtype)


def from_responsibilities(
    resp: ArrayLike,
    X: ArrayLike,
    *,
    covariance_type: ModelLike = "full",
    sample_weight: ArrayLike | None = None,
    reg_covar: ArrayLike = em.REG_COVAR,
    prior: Prior | None = None,
) -> GMMParams:
    """Starting parameters from responsibilities or a partition: one `m_step`.

    Args:
      resp: (N, K); for a partition with labels 0 … K − 1, jax.nn.one_hot(labels, K).
      X: (N, D).
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      sample_weight: (N,) or None for ones.
      reg_covar: as in `m_step`.
      prior: as in `m_step`.

    Raises:
      ValueError, TypeError: as `m_step`.

    Example:
      >>> import jax, jaxgmm
      >>> resp = jax.nn.one_hot(jax.numpy.array([0, 0, 1, 1]), 2)
      >>> jaxgmm.init.from_responsibilities(resp, [[0.0], [2.0], [7.0], [9.0]]).means.tolist()
      [[1.0], [8.0]]
    """
    return em.m_step(
        resp, X, covariance_type=covariance_type, sample_weight=sample_weight, reg_covar=reg_covar,
        prior=prior,
    )  # fmt: skip


def check_init(init: Init) -> Init:
    """Raise unless `init` is the name of a start or a function that makes one."""
    if callable(init) or (isinstance(init, str) and init in NAMES):
        return init
    wanted = f"one of {list(NAMES)} or a function (key, X, n_components, sample_weight) -> params"
    raise ValueError(f"init must be {wanted}; got {init!r}")


def reference(model: Model, places: Array, f: Context, n_active: Array) -> GMMParams:
    """The first n_active of equal components at places (K, D), each as wide as all the data."""
    return _mask(em.reference_params(model, places, f.variance), n_active)


def _mask(params: GMMParams, n_active: Array) -> GMMParams:
    """Switch off all but the first n_active components, and normalise the rest."""
    on = jnp.arange(params.n_components, dtype=jnp.int32) < n_active
    log_weights = jax.nn.log_softmax(jnp.where(on, params.log_weights, -jnp.inf))
    return dataclasses.replace(params, log_weights=log_weights)


class ByDefault(NamedTuple):
    """In place of a `Prior`: what `default_prior` gives for each number of components. Has no arrays."""


AnyPrior = Prior | ByDefault | None


def check_prior(prior: Prior | str | None, model: Model, shape: tuple[int, int], dtype: Any) -> AnyPrior:
    """The prior, checked for a mixture of `shape` (K, D); "default" as `ByDefault`."""
    named = priors.check_name(prior, model)
    if named is None:
        return None
    return ByDefault() if isinstance(named, str) else priors.check(named, model, shape, dtype)


def prior_for(prior: AnyPrior, data: Data, covariance: Covariance, n_active: Array) -> Prior | None:
    """The prior of a mixture with n_active () components."""
    if isinstance(prior, ByDefault):
        return priors.default(data, n_active, covariance)
    return prior


def nearest(params: GMMParams, r: Array, exponent: Array, y: Array) -> Array:
    """Each row wholly to the component that is nearest in that component's own metric, (K, B)."""
    on = (params.log_weights > -jnp.inf)[:, None]
    return least(jnp.where(on, -exponent, jnp.inf))


def metric(covariance: Covariance, variance: Any) -> Any:
    """(D,) the features' standard deviations as the structure has them: one for all where it is isotropic.

    From the data's variances (D,), of NumPy on the host or of JAX.
    """
    xp = np if validate.is_concrete(variance) else jnp
    return xp.sqrt(xp.full_like(variance, variance.mean()) if covariance.is_isotropic else variance)


def _usable(data: Data, f: Context) -> tuple[Array, Array]:
    """The rows and their weights, with the features' means in place of missing entries.

    A row that does not count may hold anything, NaN too.
    """
    w = jnp.ones(data.x.shape[0], data.x.dtype) if data.weight is None else data.weight
    return jnp.where(in_range(w, data.x), data.filled(f.mean), f.shift[None, :]), w


def seeds(key: Array, data: Data, f: Context, unit: Array, *, n_components: int, init: Init) -> Array:
    """(K, D) seeds relative to the shift, by k-means++ or k-means on features in `unit` (D,).

    Distances are those of the observed entries. Components of which labels are known are at their means.
    """
    x, w = _usable(data, f)
    scaled = (x - f.shift[None, :]) / unit[None, :]
    max_iter = 100 if init == "kmeans" else 0
    places = clusters(key, scaled, w, n_components, max_iter, data.view.observed, f.trim) * unit[None, :]
    return _labelled(places, data, x - f.shift[None, :], w)


def _labelled(places: Array, data: Data, x: Array, w: Array) -> Array:
    """Places (K, D); that of a component of which labels are known is the mean of their rows."""
    known = data.known(places.shape[0])
    if known is None:
        return places
    # What a row's label says beyond nothing: 1 where it is known for sure.
    share = jnp.maximum(jax.nn.softmax(known, axis=0) - 1 / known.shape[0], 0) * w[None, :]
    seen = data.view.observed
    total = einsum("kn,nd->kd", share, x if seen is None else jnp.where(seen, x, 0))
    mass = mass_of(share, seen)
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1), places)


def ward(n_active: Array, data: Data, f: Context, unit: Array, *, n_components: int) -> tuple[Array, Array]:
    """Ward's partition (N, K) into n_active clusters, and their means (K, D) relative to the shift."""
    x, w = _usable(data, f)
    shifted = x - f.shift[None, :]
    # Under `vmap` over starts computed once: a start decides only which partition it takes.
    labels = partitions(shifted / unit[None, :], w, n_components)[n_active - 1]
    member = jax.nn.one_hot(labels, n_components, dtype=shifted.dtype)
    share = member * w[:, None]
    size = share.sum(0)
    return member, einsum("nk,nd->kd", share / jnp.where(size > 0, size, 1)[None, :], shifted)


def widened(params: GMMParams, moments: Statistics, f: Context, share: Array | float = WIDEN) -> GMMParams:
    """The M-step from a partition's moments, every component wider by a share of the variance within them."""
    before = em.without_empty(params, moments)
    shape = (params.n_components, params.n_features)

    def step(carry: tuple[GMMParams, Array], _: None) -> tuple[tuple[GMMParams, Array], None]:
        after, _length = em.maximise(before, moments, f._replace(ridge=f.ridge + share * carry[1]))
        variances = after.covariance.diagonal(after.scatter, shape)
        return (after, (after.weights[:, None] * variances).sum(0)), None

    # First as it is, to see how wide that makes them. A scan compiles it once.
    start = varying_like((before, jnp.zeros_like(f.ridge)), moments, f, share)
    return lax.scan(step, start, None, length=2)[0][0]


def start(
    key: Array, n_active: Array, data: Data, context: Context, prior: AnyPrior, *,
    model: Model, n_components: int, block_size: int, init: Init,
) -> GMMParams:  # fmt: skip
    """Starting parameters (means in the coordinates of the data), for code inside `jit` or `vmap`.

    Seeds are found by the distance that the covariance structure itself would use for the whole data:
    features in units of their standard deviations, or all in one unit for "spherical"; then every sample goes
    to the nearest of them, and one M-step follows; with trimming, of the samples nearest to the seeds.
    Components beyond `n_active` () are switched off.
    """
    # A fit does not depend on where it began, as far as derivatives go; some of what follows has none.
    data, context, prior = lax.stop_gradient((data, context, prior))
    x, w = _usable(data, context)
    if callable(init):
        seen = data.view.observed
        given = x if seen is None else jnp.where(seen, x, jnp.nan)
        params = init(key, given, n_components, data.weight)
        if params.n_components != n_components:
            got = params.n_components
            raise ValueError(f"init must give a mixture of {n_components} components; it gave {got}")
        return _mask(params, n_active)
    prior = prior_for(prior, data, model.covariance, n_active)
    f = em.with_prior(context, prior, model, (n_components, data.n_features))
    resp = None
    if init == "random_resp":
        resp = random_simplex(key, (x.shape[0], n_components), x.dtype)
        resp = jnp.where(jnp.arange(n_components, dtype=jnp.int32)[None, :] < n_active, resp, 0)
        params = em.weighted_m_step(resp / resp.sum(1, keepdims=True), data, f, model, block_size)
        return translate(params, f.shift)
    if init == "random_points":
        shifted = x - f.shift[None, :]
        places = _labelled(distinct_rows(key, shifted, w, n_components), data, shifted, w)
    elif init == "hierarchical":
        resp, places = ward(
            n_active, data, f, metric(model.covariance, f.variance), n_components=n_components
        )
    else:
        places = seeds(
            key, data, f, metric(model.covariance, f.variance), n_components=n_components, init=init
        )
    params = reference(model, places, f, n_active)
    if init != "random_points":
        whole = functools.partial(nearest, params)
        rows = trimmed.kept(params, data, f.shift, f.trim, block_size)
        moments = exact.sums(params, rows, f.shift, block_size=block_size, resp=resp, reassign=whole)
        params = widened(params, moments, f)
    return translate(params, f.shift)
