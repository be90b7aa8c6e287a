"""Starting parameters: by k-means++, k-means, random points, random responsibilities, or a hierarchy.

All of it is jittable and vmappable, weighted, and a function of the key alone: same key, same bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.registry import ModelLike
from jaxgmm.components.weights import Model
from jaxgmm.data import Context, Data
from jaxgmm.em import REG_COVAR, m_step, maximise, reference_params, weighted_m_step, without_empty
from jaxgmm.init._kmeans import distinct_rows, least, lloyd, plusplus, random_simplex
from jaxgmm.init._ward import partitions
from jaxgmm.kernels import exact
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
) -> tuple[Array, Array, Array, int]:
    x = validate.data(X)
    w = validate.weight(sample_weight, x)
    ones = jnp.ones(x.shape[0], x.dtype) if w is None else w
    return validate.key(key), x, ones, validate.n_components(n_components, x.shape[0])


_jit_plusplus = jit(plusplus, static_argnames="n_components")
_jit_rows = jit(distinct_rows, static_argnames="n")
_jit_resp = jit(random_simplex, static_argnames=("shape", "dtype"))


@functools.partial(jit, static_argnames=("n_components", "max_iter"))
def _jit_kmeans(key: Array, x: Array, w: Array, n_components: int, max_iter: int) -> Array:
    return lloyd(plusplus(key, x, w, n_components), x, w, max_iter)


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
    key, x, w, n = _inputs(key, X, n_components, sample_weight)
    unit = units.units_of(x, w)
    seeds = _jit_plusplus(key, x if unit is None else units.divide(x, unit), w, n_components=n)
    return seeds if unit is None else units.multiply(seeds, unit)


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
    key, x, w, n = _inputs(key, X, n_components, sample_weight)
    limit = validate.count(max_iter, "max_iter", 1)
    unit = units.units_of(x, w)
    centres = _jit_kmeans(
        key, x if unit is None else units.divide(x, unit), w, n_components=n, max_iter=limit
    )
    return centres if unit is None else units.multiply(centres, unit)


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
    return x[_jit_rows(key, w, n=n)]


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
    return _jit_resp(key, shape=(x.shape[0], n), dtype=x.dtype)


def from_responsibilities(
    resp: ArrayLike,
    X: ArrayLike,
    *,
    covariance_type: ModelLike = "full",
    sample_weight: ArrayLike | None = None,
    reg_covar: ArrayLike = REG_COVAR,
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
    return m_step(
        resp,
        X,
        covariance_type=covariance_type,
        sample_weight=sample_weight,
        reg_covar=reg_covar,
        prior=prior,
    )


def check_init(init: Init) -> Init:
    """Raise unless `init` is the name of a start or a function that makes one."""
    if callable(init) or (isinstance(init, str) and init in NAMES):
        return init
    raise ValueError(
        f"init must be one of {list(NAMES)} or a function (key, X, n_components, sample_weight) -> params; "
        f"got {init!r}"
    )


def _mask(params: GMMParams, n_active: Array | None) -> GMMParams:
    """Switch off all but the first n_active components, and normalise the rest."""
    if n_active is None:
        return params
    on = jnp.arange(params.n_components, dtype=jnp.int32) < n_active
    log_weights = jax.nn.log_softmax(jnp.where(on, params.log_weights, -jnp.inf))
    return dataclasses.replace(params, log_weights=log_weights)


def nearest(params: GMMParams, r: Array, exponent: Array, y: Array) -> Array:
    """Each row wholly to the component that is nearest in that component's own metric, (K, B)."""
    on = (params.log_weights > -jnp.inf)[:, None]
    return least(jnp.where(on, -exponent, jnp.inf))


def metric(covariance: Covariance, f: Context) -> Array:
    """(D,) the features' standard deviations as the structure has them: one for all where it is isotropic."""
    one = covariance.from_variances(f.variance[None, :])
    return jnp.sqrt(covariance.diagonal(one, (1, f.variance.shape[0]))[0])


def seeds(
    key: Array, x: Array, w: Array | None, f: Context, unit: Array, *, n_components: int, init: Init
) -> Array:
    """(K, D) seeds relative to the shift, by k-means++ or k-means on features in `unit` (D,)."""
    ones = jnp.ones(x.shape[0], x.dtype) if w is None else w
    # A row that does not count may hold anything, NaN too.
    x = jnp.where(in_range(ones, x), x, f.shift[None, :])
    scaled = (x - f.shift[None, :]) / unit[None, :]
    places = plusplus(key, scaled, ones, n_components)
    if init == "kmeans":
        places = lloyd(places, scaled, ones, 100)
    return places * unit[None, :]


def ward(
    x: Array, w: Array | None, f: Context, unit: Array, *, n_components: int, n_active: Array | None
) -> tuple[Array, Array]:
    """Ward's partition (N,) into n_active clusters, and their means (K, D) relative to the shift."""
    ones = jnp.ones(x.shape[0], x.dtype) if w is None else w
    shifted = jnp.where(in_range(ones, x), x, f.shift[None, :]) - f.shift[None, :]
    # Under `vmap` over starts computed once: a start decides only which partition it takes.
    table = partitions(shifted / unit[None, :], ones, n_components)
    labels = table[n_components - 1 if n_active is None else n_active - 1]
    share = jax.nn.one_hot(labels, n_components, dtype=x.dtype) * ones[:, None]
    size = share.sum(0)
    return labels, einsum("nk,nd->kd", share / jnp.where(size > 0, size, 1)[None, :], shifted)


def widened(params: GMMParams, moments: Statistics, f: Context, share: Array | float = WIDEN) -> GMMParams:
    """The M-step from a partition's moments, every component wider by a share of the variance within them."""
    before = without_empty(params, moments)
    shape = (params.n_components, params.n_features)

    def step(carry: tuple[GMMParams, Array], _: None) -> tuple[tuple[GMMParams, Array], None]:
        after, _length = maximise(before, moments, f._replace(ridge=f.ridge + share * carry[1]))
        variances = after.covariance.diagonal(after.scatter, shape)
        return (after, (after.weights[:, None] * variances).sum(0)), None

    # First as it is, to see how wide that makes them. A scan compiles it once.
    start = varying_like((before, jnp.zeros_like(f.ridge)), moments, f, share)
    return lax.scan(step, start, None, length=2)[0][0]


def from_seeds(
    places: Array,
    x: Array,
    w: Array | None,
    f: Context,
    *,
    model: Model,
    block_size: int,
    n_active: Array | None = None,
    resp: Array | None = None,
) -> GMMParams:
    """Every sample to the nearest of the seeds (K, D) that are on, and one M-step from that partition.

    Or from the partition `resp` (N, K) of which the seeds are the means.
    """
    params = _mask(reference_params(model, places, f.variance), n_active)
    moments = exact.sums(
        params, Data(x, w), f.shift, block_size=block_size, resp=resp,
        reassign=functools.partial(nearest, params),
    )  # fmt: skip
    return translate(widened(params, moments, f), f.shift)


def start(
    key: Array,
    x: Array,
    w: Array | None,
    f: Context,
    *,
    model: Model,
    n_components: int,
    block_size: int,
    init: Init,
    n_active: Array | None = None,
) -> GMMParams:
    """Starting parameters (means in the coordinates of the data), for code inside `jit` or `vmap`.

    Seeds are found by the distance that the covariance structure itself would use for the whole data:
    features in units of their standard deviations, or all in one unit for "spherical". Components beyond
    `n_active` are switched off.
    """
    # A fit does not depend on where it began, as far as derivatives go; some of what follows has none.
    x, w, f = lax.stop_gradient((x, w, f))
    if w is not None:
        # A row that does not count may hold anything, NaN too.
        x = jnp.where(in_range(w, x), x, f.shift[None, :])
    if callable(init):
        return _mask(init(key, x, n_components, w), n_active)
    shifted = x - f.shift[None, :]
    if init == "random_resp":
        r = random_simplex(key, (x.shape[0], n_components), x.dtype)
        if n_active is not None:
            r = jnp.where(jnp.arange(n_components, dtype=jnp.int32)[None, :] < n_active, r, 0)
            r = r / r.sum(1, keepdims=True)
        params = weighted_m_step(r, Data(x, w), f, model, block_size)
        return translate(params, f.shift)

    if init == "random_points":
        rows = distinct_rows(key, jnp.ones(x.shape[0], x.dtype) if w is None else w, n_components)
        params = _mask(reference_params(model, shifted[rows], f.variance), n_active)
    else:
        resp = None
        if init == "hierarchical":
            labels, places = ward(
                x, w, f, metric(model.covariance, f), n_components=n_components, n_active=n_active
            )
            resp = jax.nn.one_hot(labels, n_components, dtype=x.dtype)
        else:
            places = seeds(key, x, w, f, metric(model.covariance, f), n_components=n_components, init=init)
        return from_seeds(places, x, w, f, model=model, block_size=block_size, n_active=n_active, resp=resp)
    return translate(params, f.shift)
