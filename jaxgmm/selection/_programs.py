"""Compiled programs of a search, each over a few mixtures and one data set.

Those that know the covariance structure are compiled for each structure anew, and so are few and small; the
others serve all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.weights import Model
from jaxgmm.data import Context, Data, summarise
from jaxgmm.density import posterior
from jaxgmm.em import reference_params, run, with_prior
from jaxgmm.init._starts import Init, metric, nearest, seeds, start, ward, widened
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.blocked_sum import block_rows, in_range, sum_rows
from jaxgmm.kernels.linalg import einsum
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection._dense_view import Factors, as_seen_by, factors
from jaxgmm.selection._split_merge import Move, draw_exchange, overlap, split_merge
from jaxgmm.selection._spurious import Limits, spurious, total_factor

DENSE = 64  # features up to which mixtures of any structure are compared as full ones


class Settings(NamedTuple):
    """What the compiled programs share; all of it traced."""

    x: Array
    w: Array | None
    tol: Array
    max_iter: Array
    reg_covar: Array
    accelerate: Array
    max_ratio: Array
    n_effective: Array  # () the sum of the weights
    context: Context
    total: Array  # (D, D) factor of the covariance of all the data
    prior: Prior | None
    limits: Limits | None = None  # of the structure; None before it is known, and for that of "full"


def prior_for(s: Settings, default: bool, covariance: Covariance, n_active: Array) -> Prior | None:
    """The prior of a mixture with n_active () components: the one that was given, or the default one."""
    return priors.default(s.x, s.w, n_active, covariance) if default else s.prior


def _context_of(s: Settings, default: bool, model: Model, n_components: int, n_active: Array) -> Context:
    prior = prior_for(s, default, model.covariance, n_active)
    return with_prior(s.context, prior, model, (n_components, s.x.shape[1]))


def settings_of(
    X: ArrayLike, sample_weight: ArrayLike | None, tol: ArrayLike, max_iter: Any, reg_covar: ArrayLike,
    accelerate: Any, max_ratio: ArrayLike | None, models: Sequence[Model], in_units_of_x: bool,
) -> tuple[Settings, np.ndarray[Any, Any] | None]:  # fmt: skip
    """The arguments of a search, checked; and the units of its data where these are not 1.

    Units are common to the models; none where some argument is stated `in_units_of_x`.
    """
    x = validate.data(X)
    w = validate.weight(sample_weight, x)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    unit = None
    if not in_units_of_x and all(units.rescales(model) for model in models):
        unit = units.units_of(x, w, models[0] if len(models) == 1 else None)
    if unit is not None:
        x, reg = units.divide(x, unit), units.ridge_in_units(reg, unit)
    n, context, total = summarise_data(x, w, reg, block_size=block_rows(x.shape[0], 1, x.shape[1]))
    ratio = jnp.asarray(jnp.inf, x.dtype) if max_ratio is None else validate.ratio(max_ratio, x.dtype)
    settings = Settings(
        x,
        w,
        validate.not_negative(tol, "tol", x.dtype),
        validate.step_limit(max_iter),
        reg,
        validate.flag(accelerate, "accelerate"),
        ratio,
        n,
        context,
        total,
        None,
    )
    return settings, unit


@functools.partial(jit, static_argnames="block_size")
def summarise_data(
    x: Array, w: Array | None, reg_covar: Array, *, block_size: int
) -> tuple[Array, Context, Array]:
    """Σ of the weights, the data summary, and the factor of their covariance."""
    n = jnp.asarray(x.shape[0], x.dtype) if w is None else w.sum()
    return n, summarise(x, w, reg_covar), total_factor(x, w, block_size)


@functools.partial(jit, static_argnames=("model", "n_components"))
def reference(context: Context, *, model: Model, n_components: int) -> tuple[Array, GMMParams]:
    """(D,) `metric` of a structure, and its K equal components as wide as all the data."""
    means = jnp.broadcast_to(context.shift[None, :], (n_components, context.shift.shape[0]))
    return metric(model.covariance, context), reference_params(model, means, context.variance)


@functools.partial(jit, static_argnames=("n_components", "init"))
def seed(keys: Array, unit: Array, s: Settings, *, n_components: int, init: Init) -> Array:
    """Seeds (B, K, D), one set for each key."""

    def one(key: Array) -> Array:
        return seeds(key, s.x, s.w, s.context, unit, n_components=n_components, init=init)

    return jax.vmap(one)(keys)


@functools.partial(jit, static_argnames="n_components")
def ward_places(sizes: Array, unit: Array, s: Settings, *, n_components: int) -> Array:
    """(L, K, D) the means of Ward's clusters, for each of the sizes (L,)."""

    def one(size: Array) -> Array:
        return ward(s.x, s.w, s.context, unit, n_components=n_components, n_active=size)[1]

    return jax.vmap(one)(sizes)


@functools.partial(jit, static_argnames="block_size")
def partition(mixtures: GMMParams, s: Settings, *, block_size: int) -> Statistics:
    """Statistics about mixtures (B,) of their samples, by hard assignment to the nearest component."""
    shift = s.context.shift

    def one(m: GMMParams) -> Statistics:
        whole = functools.partial(nearest, m)
        return exact.sums(translate(m, -shift), Data(s.x, s.w), shift, block_size=block_size, reassign=whole)

    return jax.vmap(one)(mixtures)


@functools.partial(jit, static_argnames="default")
def widen(
    params: GMMParams,
    scale: Factors | None,
    moments: Statistics,
    n_active: Array,
    share: Array,
    s: Settings,
    *,
    default: bool,
) -> GMMParams:
    """One structure's mixtures (B,) from moments about `params`, in the metric of `scale`; see `widened`."""

    def one(p: GMMParams, c: Factors | None, m: Statistics, size: Array) -> GMMParams:
        f = _context_of(s, default, p.model, p.n_components, size)
        relative = translate(p, -f.shift)
        return translate(widened(relative, as_seen_by(p, c, m), f, share), f.shift)

    return jax.vmap(one)(params, scale, moments, n_active)


@functools.partial(jit, static_argnames=("default", "model", "n_components", "init", "block_size"))
def start_anyhow(
    keys: Array,
    n_active: Array,
    s: Settings,
    *,
    default: bool,
    model: Model,
    n_components: int,
    init: Init,
    block_size: int,
) -> GMMParams:
    """Starts (B,) of any other kind."""

    def one(key: Array, size: Array) -> GMMParams:
        f = _context_of(s, default, model, n_components, size)
        return start(
            key, s.x, s.w, f, model=model, n_components=n_components, block_size=block_size,
            init=init, n_active=size,
        )  # fmt: skip

    return jax.vmap(one)(keys, n_active)


@functools.partial(jit, static_argnames=("default", "block_size", "history_size"))
def advance(
    params: GMMParams,
    n_active: Array,
    s: Settings,
    tol: Array,
    max_iter: Array,
    *,
    default: bool,
    block_size: int,
    history_size: int,
) -> tuple[FitResult, Factors | None]:
    """Every mixture up to max_iter EM steps further, and its dense factors where they are not large."""

    def one(p: GMMParams, size: Array) -> tuple[FitResult, Factors | None]:
        prior = prior_for(s, default, p.covariance, size)
        result = run(
            p, Data(s.x, s.w), tol, max_iter, s.reg_covar, s.accelerate, prior,
            block_size=block_size, history_size=history_size, context=s.context,
        )  # fmt: skip
        if p.n_features > DENSE:
            return result, None
        return result, factors(jax.lax.stop_gradient(result.params))

    return jax.vmap(one)(params, n_active)


@jit
def flags_of(log_weights: Array, means: Array, scale: Factors | None, s: Settings) -> Array:
    """(B,) `Spurious` flags of mixtures with dense factors; without them, only of their weights."""

    def one(lw: Array, m: Array, c: Factors | None) -> Array:
        dense = None if c is None else einsum("kde,kfe->kdf", c.colour, c.colour)
        log_det = None if c is None else c.log_det
        return spurious(lw, m, dense, s.n_effective, s.total, s.max_ratio, s.limits, log_det)

    return jax.vmap(one)(log_weights, means, scale)


@functools.partial(jit, static_argnames="block_size")
def overlaps(mixtures: GMMParams, s: Settings, *, block_size: int) -> Array:
    """(B, K, K) `overlap` of each mixture."""
    return jax.vmap(lambda m: overlap(m, s.x, s.w, block_size))(mixtures)


@functools.partial(jit, static_argnames="block_size")
def certainty(mixtures: GMMParams, s: Settings, *, block_size: int) -> Array:
    """(L,) Σ w log max_k r_k over the samples, for a batch of mixtures: what `icl` takes from `bic`."""

    def one(p: GMMParams) -> Array:
        def block(wb: Array, b: Array) -> Array:
            b = jnp.where(in_range(wb, b), b, p.means[:1])
            return (wb * jnp.log(posterior(p, b)[0].max(1))).sum()

        return sum_rows(block, s.w, s.x, block_size=block_size)

    return jax.vmap(one)(mixtures)


@functools.partial(jit, static_argnames="n_features")
def draw_moves(keys: Array, log_weights: Array, closeness: Array, change: Array, *, n_features: int) -> Move:
    """A `Move` for each key, mixture and change of its number of components (B,)."""
    return jax.vmap(lambda k, lw, c, by: draw_exchange(k, lw, c, by, n_features))(
        keys, log_weights, closeness, change
    )


@functools.partial(jit, static_argnames="block_size")
def rearrange(moves: Move, mixtures: GMMParams, s: Settings, *, block_size: int) -> Statistics:
    """Statistics about mixtures (B,) after one `Move` each."""

    def one(m: Move, p: GMMParams) -> Statistics:
        return split_merge(m, p, s.x, s.w, s.context.shift, block_size)

    return jax.vmap(one)(moves, mixtures)
