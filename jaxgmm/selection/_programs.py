"""Compiled programs of a search, each over a few mixtures and one data set.

Those that know the covariance structure are compiled for each structure anew, and so are few and small; the
others serve all of them. Split–merge moves merge two components and split a third, to leave a local optimum.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Collapse, Covariance
from jaxgmm.components.weights import Model
from jaxgmm.data import Context, Data, summarise
from jaxgmm.density import check_accepts, get_data, groups, log_prob, posterior
from jaxgmm.em import run, with_prior
from jaxgmm.init import _starts as starts
from jaxgmm.init._starts import AnyPrior, prior_for
from jaxgmm.kernels import exact, kept_share, trimmed
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.blocked_sum import block_rows, in_range, sum_rows
from jaxgmm.kernels.linalg import einsum
from jaxgmm.kernels.programs import ITERATED, jit, work_by_size
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.result import FitResult
from jaxgmm.selection._dense import Factors, factors
from jaxgmm.selection._dense import start as start_one_of
from jaxgmm.selection._spurious import spurious, total_factor

DENSE = 64  # features up to which mixtures of any structure are compared as full ones
R = TypeVar("R")


class Settings(NamedTuple):
    """What the compiled programs share; all of it traced."""

    data: Data
    tol: Any
    max_iter: Any
    reg_covar: Array
    accelerate: Array
    max_ratio: Array
    n_effective: Array  # () the sum of the weights, less what is trimmed
    context: Context
    total: Array  # (D, D) factor of the covariance of all the data
    prior: AnyPrior = None
    collapse: Collapse | None = None  # of the structure; None before it is known, and for that of "full"
    bounded: Any = np.False_  # whether a prior keeps covariances from being singular


def settings_of(
    X: ArrayLike | Data, sample_weight: ArrayLike | None, tol: ArrayLike | None, max_iter: Any,
    reg_covar: ArrayLike, accelerate: Any, max_ratio: ArrayLike | None, models: Sequence[Model],
    in_units_of_x: bool, trim: ArrayLike | None = None,
) -> tuple[Settings, np.ndarray[Any, Any] | None]:  # fmt: skip
    """The arguments of a search, checked; and the units of its data where these are not 1.

    Units are common to the models; none where some argument is stated `in_units_of_x`.
    """
    data = get_data(X, sample_weight)
    for model in models:
        check_accepts(data, model.component)
    x, w, n = data.x, data.weight, data.x.shape[0]
    amount = kept_share.amount(trim, data)
    tol, limit, reg, fast = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype, n)
    ratio = validate.ratio(np.inf if max_ratio is None else max_ratio, x.dtype)
    unit = None
    if not in_units_of_x and all(units.rescales(model) for model in models) and data.is_plain:
        unit = units.units_of(x, w, models[0] if len(models) == 1 else None)
    if unit is not None:
        data, reg = Data(units.divide(x, unit), w), units.ridge_in_units(reg, unit)
    summary = summarise_data(data, reg, amount, block_size=block_rows(n, 1, data.n_features))
    return Settings(data, tol, limit, reg, fast, ratio, *summary), unit


@functools.partial(jit, static_argnames="block_size")
def summarise_data(
    data: Data, reg_covar: Array, trim: Array | None, *, block_size: int
) -> tuple[Array, Context, Array]:
    """Σ of the weights that are kept, the data summary, and the factor of their covariance."""
    x, w = data.x, data.weight
    n = jnp.asarray(x.shape[0], x.dtype) if w is None else w.sum()
    n = n if trim is None else n - trim
    return n, summarise(data, reg_covar)._replace(trim=trim), total_factor(data, block_size)


def program(n: int, *static: str, small: bool = False) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Compile a function of one mixture for several: its first n arguments get a leading axis (B,).

    A `small` one does not go through the rows: compiling it is what takes time.
    """

    def compiled(one: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(one)
        def several(*args: Any, **options: Any) -> R:
            axes = (0,) * n + (None,) * (len(args) - n)
            found: R = jax.vmap(functools.partial(one, **options), axes)(*args)
            return found

        name = f"{one.__module__}.{one.__qualname__} of {n}"
        return jit(several, static_argnames=static, work=work_by_size(1 if small else ITERATED), name=name)

    return compiled


@functools.partial(jit, static_argnames=("half", "shape"))
def key_data(key: Array, number: ArrayLike | None, *, half: int | None, shape: tuple[int, ...]) -> Array:
    """The data of many keys: split from a key or from half of it, with a number folded in."""
    key = key if half is None else jax.random.split(key)[half]
    key = key if number is None else jax.random.fold_in(key, number)
    return jax.random.key_data(jax.random.split(key, shape))


seed = program(1, "n_components", "init")(starts.seeds)
start = program(2, "model", "n_components", "block_size", "init")(starts.start)


@program(1, "n_components")
def ward(n_active: Array, data: Data, context: Context, unit: Array, *, n_components: int) -> Array:
    """(K, D) the means of Ward's clusters, relative to the shift."""
    return starts.ward(n_active, data, context, unit, n_components=n_components)[1]


@program(2, "model", "structures", small=True)
def begin(
    places: Array, n_active: Array, context: Context, which: Array | None, *,
    model: Model, structures: tuple[Covariance, ...],
) -> tuple[GMMParams, Factors | None]:  # fmt: skip
    """A structure's mixture at places (K, D), of components as wide as the data; and its dense factors.

    With `structures`, of the one with the index `which`.
    """
    params = translate(starts.reference(model, places, context, n_active), context.shift)
    if which is not None:
        variances = jnp.broadcast_to(context.variance[None, :], places.shape)
        params = params.with_scatter(start_one_of(structures, which, variances))
    return params, None if params.n_features > DENSE else factors(params)


@program(1, "block_size")
def partition(m: GMMParams, s: Settings, *, block_size: int) -> Statistics:
    """Statistics about a mixture of its samples, by hard assignment to the nearest component."""
    return _sums(m, s, block_size, functools.partial(starts.nearest, m))


def _sums(p: GMMParams, s: Settings, block_size: int, reassign: exact.Reassign) -> Statistics:
    """Statistics about a mixture of the samples that it keeps, with other responsibilities."""
    shift = s.context.shift
    relative = translate(p, -shift)
    rows = trimmed.kept(relative, s.data, shift, s.context.trim, block_size)
    return exact.sums(relative, rows, shift, block_size=block_size, reassign=reassign)


@program(4, small=True)
def widen(
    p: GMMParams, scale: Factors | None, moments: Statistics, n_active: Array, share: Array, s: Settings
) -> GMMParams:
    """A structure's mixture from moments about `p`, full ones where it has a dense `scale`; see `widened`."""
    prior = prior_for(s.prior, s.data, p.covariance, n_active)
    f = with_prior(s.context, prior, p.model, p.means.shape)
    relative = translate(p, -f.shift)
    if scale is not None:
        moments = dataclasses.replace(moments, second=p.covariance.part_of(p.scatter, moments.second))
    return translate(starts.widened(relative, moments, f, share), f.shift)


@program(2, "block_size", "history_size")
def advance(
    p: GMMParams, n_active: Array, s: Settings, *, block_size: int, history_size: int
) -> tuple[FitResult, Factors | None]:
    """A mixture up to max_iter EM steps further, and its dense factors where they are not large."""
    result = run(
        p, s.data, s.tol, s.max_iter, s.reg_covar, s.accelerate,
        prior_for(s.prior, s.data, p.covariance, n_active),
        block_size=block_size, history_size=history_size, context=s.context,
    )  # fmt: skip
    return result, None if p.n_features > DENSE else factors(jax.lax.stop_gradient(result.params))


@program(3, small=True)
def flags_of(log_weights: Array, means: Array, scale: Factors | None, s: Settings) -> Array:
    """`Spurious` flags of a mixture with dense factors; without them, only of its weights."""
    dense, log_det = None, None
    if scale is not None:
        dense, log_det = einsum("kde,kfe->kdf", scale.colour, scale.colour), scale.log_det
    return spurious(
        log_weights, means, dense, s.n_effective, s.total, s.max_ratio, s.collapse, s.bounded, log_det
    )


def _posterior_sum(p: GMMParams, data: Data, block_size: int, of: Callable[[Array, Array], Array]) -> Array:
    """The sum of `of`(weights, responsibilities) over blocks of the samples."""
    if data.group is not None:
        weight = jnp.ones_like(data.x[:, 0]) if data.weight is None else data.weight
        return of(weight, groups(p, data)[0][data.group])
    data = data.by_row()
    instead = p.means[:1] if data.is_complete else jnp.zeros((), data.x.dtype)

    def block(wb: Array, rows: Data) -> Array:
        b = dataclasses.replace(rows, x=jnp.where(in_range(wb, rows.x), rows.x, instead))
        return of(wb, posterior(p, b)[0])

    total: Array = sum_rows(block, data.weight, data.rows, block_size=block_size)
    return total


@program(1, "block_size")
def certainty(p: GMMParams, data: Data, trim: Array | None, *, block_size: int) -> Array:
    """() Σ w log max_k r_k over the samples that are kept: what `icl` takes from `bic`."""
    data = trimmed.kept(p, data, None, trim, block_size)
    return _posterior_sum(p, data, block_size, lambda w, resp: (w * jnp.log(resp.max(1))).sum())


@program(2, "block_size")
def refit(p: GMMParams, size: Array, kept: Array, out: Array, s: Settings, *, block_size: int) -> Array:
    """() Σ out log p(x) over the samples, of a mixture fitted again with weights `kept`; both (N,)."""
    data = dataclasses.replace(s.data, weight=kept)
    prior = prior_for(s.prior, data, p.covariance, size)
    result = run(
        p, data, s.tol, s.max_iter, s.reg_covar, s.accelerate, prior, block_size=block_size, history_size=0
    )
    return jnp.where(out > 0, out * log_prob(result.params, data.by_row()), 0).sum()


@program(1, "block_size")
def overlaps(params: GMMParams, data: Data, *, block_size: int) -> Array:
    """(K, K) cosine of the angle between the components' responsibilities, as vectors over the samples."""
    gram = _posterior_sum(params, data, block_size, lambda w, resp: (resp * w[:, None]).T @ resp)
    length = jnp.sqrt(jnp.diagonal(gram))
    scale = jnp.where(length > 0, length, 1)
    return gram / (scale[:, None] * scale[None, :])


class Move(NamedTuple):
    """Merge the components `first` and `second`; split `third` by the hyperplane across `direction`."""

    first: Array  # ()  int32
    second: Array  # ()  int32
    third: Array  # ()  int32
    direction: Array  # (D,)  in the metric of `third`
    possible: Array  # ()  bool: there are as many components as it needs


@program(4, "n_features", small=True)
def draw_moves(key: Array, log_weights: Array, closeness: Array, change: Array, *, n_features: int) -> Move:
    """A pair in proportion to its `overlaps` (K, K), a third by its weight (K,), a direction at random.

    For a mixture of another size only a part of it: `change` () is −1 to merge a pair, 1 to split, 0 to do
    both. Merging with a component that is off does nothing, and so does splitting across no direction.
    """
    key_pair, key_split, key_side = jax.random.split(key, 3)
    n_components = log_weights.shape[0]
    on = log_weights > -jnp.inf
    index = jnp.arange(n_components, dtype=jnp.int32)
    allowed = on[:, None] & on[None, :] & (index[:, None] < index[None, :])
    # A little everywhere, so that a pair without overlap can be drawn where there is no other.
    chances = jnp.where(allowed, jnp.log(closeness + 1e-6), -jnp.inf)
    pair = jax.random.categorical(key_pair, chances.reshape(-1)).astype(jnp.int32)
    first, second = pair // n_components, pair % n_components
    others = on & (index != first) & (index != second)
    # With a share for the light ones.
    mass = jnp.log(jnp.exp(log_weights) + 1.0 / n_components)
    third, alone = (
        jax.random.categorical(k, jnp.where(some, mass, -jnp.inf)).astype(jnp.int32)
        for k, some in ((key_split, others), (jax.random.fold_in(key, 1), on))
    )
    direction = jax.random.normal(key_side, (n_features,), closeness.dtype)
    splits = change > 0
    return Move(
        first=jnp.where(splits, alone, first),
        second=jnp.where(splits, jnp.argmin(on).astype(jnp.int32), second),
        third=jnp.where(splits, alone, third),
        direction=jnp.where(change < 0, 0, direction),
        possible=jnp.where(splits, ~on.all(), others.any()),
    )


@program(2, "block_size")
def rearrange(move: Move, params: GMMParams, s: Settings, *, block_size: int) -> Statistics:
    """Statistics about the mixture with the responsibilities of a merged pair and a split component.

    The pair's responsibilities go to its first member, and the third component's are shared between it and
    the second by a hyperplane through its mean, in its own metric. So the move works for every covariance
    structure: an M-step takes these moments. Of a move that is not possible these are the mixture's own.

    References:
      Ueda, Nakano, Ghahramani & Hinton (2000), SMEM algorithm for mixture models, Neural Computation 12.
    """
    first, second, third = move.first, move.second, move.third

    def reassign(r: Array, exponent: Array, y: Array) -> Array:
        side = (move.direction[:, None] * y[third]).sum(0) > 0
        merged, split = r[first] + r[second], r[third]
        moved = r.at[first].set(merged).at[second].set(jnp.where(side, split, 0))
        return jnp.where(move.possible, moved.at[third].set(jnp.where(side, 0, split)), r)

    return _sums(params, s, block_size, reassign)
