"""`Moments`, the one statistic that EM needs of the data: additive, and small enough to send anywhere."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.covariance.base import Family
from jaxgmm.density import log_constants, shares_of
from jaxgmm.kernels import sparse
from jaxgmm.kernels.blocked_sum import block_rows, in_range, sum_own_rows, sum_rows
from jaxgmm.kernels.linalg import einsum, epsilon, outlived, transposed
from jaxgmm.mixture import GMMParams


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "first", "second", "log_likelihood", "total_weight"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over samples of responsibilities and of residuals whitened about the current parameters.

    With r_nk the responsibilities, w_n the sample weights and y_nk = C_k⁻¹(x_n − μ_k). Raw or merely centred
    sums of squares would cancel in float32; these do not, because y is of order 1 wherever r is not small.
    Records about the same parameters add with `+`: over blocks, shards, hosts or a stream.

    Attributes:
      weight: (K,) Σ w r.
      first: (K, D) Σ w r y.
      second: the covariance structure's part of Σ w r y yᵀ; for "full", (K, D, D).
      log_likelihood: () Σ w log p(x) at the current parameters, a total.
      total_weight: () Σ w.
    """

    weight: Array  # (K,)
    first: Array  # (K, D)
    second: Any
    log_likelihood: Array  # ()
    total_weight: Array  # ()

    def __add__(self, other: Moments) -> Moments:
        """The moments of two sets of samples together."""
        return jax.tree.map(jnp.add, self, other)

    def __mul__(self, by: Array | float) -> Moments:
        """The moments of samples whose weights are all multiplied."""
        return jax.tree.map(lambda a: a * by, self)

    @staticmethod
    def zero(params: GMMParams) -> Moments:
        """The moments of no samples at all: the identity of `+`."""
        shapes = jax.eval_shape(
            lambda p: _block(p, jnp.ones(1, p.means.dtype), p.means[:1], None, None, None), params
        )
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


# (responsibilities (K, B), whitened residuals y (K, D, B), their squared lengths (K, B)) -> others (K, B)
Reassign = Callable[[Array, Array, Array], Array]


def without_junk(w: Array, x: Array) -> tuple[Array, Array]:
    """Weights (B,) and rows (B, D) where a row of weight 0 may hold anything: entries out of range become 0.

    There is then no derivative with respect to such a row's weight.
    """
    usable = in_range(w, x)
    return jnp.where(usable.all(1), w, 0), jnp.where(usable, x, jnp.zeros((), x.dtype))


def _shifted(w: Array, x: Array, shift: Array | None) -> tuple[Array, Array]:
    """Weights and rows without junk, the rows relative to the shift."""
    w, x = without_junk(w, x)
    return w, x if shift is None else x - shift[None, :]


# From so many features on, a CPU does better with one component at a time: what is computed of it stays in
# its second cache from one product to the next. Of 16 components and features, 1024 rows took 0.44 ms and not
# 0.56; of 64 and 32, 4.8 and not 8.3; of 32 and 128, 512 rows 11 and not 20. Of 5 and 2 it takes longer.
_TURNS = 16


def _take_turns(family: Family, n_components: int, n_features: int) -> bool:
    """Whether the components of a block come one after the other: for families whose moments it can make."""
    pays = n_features >= _TURNS and n_components > 1 and jax.default_backend() == "cpu"
    return pays and family.quadratic in ("dense", "shared")


def rows_for(family: Family, n_samples: int, n_components: int, n_features: int, lanes: int = 1) -> int:
    """Rows per block of `accumulate`, for so many mixtures at once."""
    turns = _take_turns(family, n_components, n_features)
    return block_rows(n_samples, n_components, n_features, lanes, turns=turns)


def _responsibilities(
    params: GMMParams, w: Array, length: Array, y: Array, reassign: Reassign | None
) -> tuple[Array, Array]:
    """Weighted responsibilities (K, B) and Σ w log p(x) () from squared distances `length` (K, B)."""
    # Where every distance overflows they are all as far: finite, so that nothing becomes NaN.
    distance = jnp.minimum(length, float(jnp.finfo(length.dtype).max) / 8)
    constant, common = log_constants(params)
    joint = constant[:, None] - 0.5 * distance
    shares, total, top = shares_of(joint)
    log_likelihood = outlived((w * (top + jnp.log(total))).sum(), length, joint) + common * w.sum()
    if reassign is None:
        return shares * (w / total)[None, :], log_likelihood
    return reassign(shares / total[None, :], y, distance) * w[None, :], log_likelihood


def _block(
    params: GMMParams,
    w: Array,
    x: Array,
    resp: Array | None,
    shift: Array | None,
    reassign: Reassign | None,
    inverse: Array | None = None,
) -> Moments:
    """The moments of one block of rows x (B, D) with weights w (B,); resp (B, K) or None for the E-step's.

    With the matrices C⁻¹ (K, D, D) as `inverse`, one component at a time.
    """
    w, x = _shifted(w, x, shift)
    columns = transposed(x, params.n_components)
    if inverse is None:
        y = params.family.whitener(params.scale)(columns[None, :, :] - params.means[:, :, None])
        length = jnp.square(y).sum(1)
    else:

        def whitened(own: tuple[Array, Array]) -> tuple[Array, Array]:
            y = einsum("de,eb->db", own[0], columns - own[1][:, None])
            return y, jnp.square(y).sum(0)

        y, length = lax.map(whitened, (inverse, params.means))
    log_likelihood = jnp.zeros((), x.dtype)
    if resp is None:
        r, log_likelihood = _responsibilities(params, w, length, y, reassign)
    else:
        r = resp.T * w[None, :]
    if inverse is None:
        first, second = einsum("kdb,kb->kd", y, r), params.family.second_moment(params.scale, y, r)
    else:

        def sums(own: tuple[Array, Array]) -> tuple[Array, Array]:
            weighted = own[0] * own[1][None, :]
            return weighted.sum(1), einsum("db,eb->de", weighted, own[0])

        first, second = lax.map(sums, (y, r))
        second = _of_family(params, second)
    return Moments(r.sum(1), first, second, log_likelihood, w.sum())


def _of_family(params: GMMParams, second: Array) -> Array:
    """The family's part of second moments (K, D, D)."""
    return second.sum(0) if params.family.quadratic == "shared" else second


def _survey(params: GMMParams, w: Array, x: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """The E-step of rows: weighted responsibilities (K, B), which of them count, and Σ w log p(x) ()."""
    length = sparse.squared_lengths(inverse, params.means, x)
    r, log_likelihood = _responsibilities(params, w, length, length, None)
    return r, sparse.counting(r, params.log_weights, w), log_likelihood


def _by_pairs(
    params: GMMParams, w: Array | None, x: Array, shift: Array | None, inverse: Array, block_size: int
) -> Moments:
    """The moments of all rows from the pairs that count, or of blocks where those are many as from all."""
    some = x[:: x.shape[0] // block_size][:block_size]
    ones = jnp.ones(block_size, x.dtype)
    likely = sparse.likely(_survey(params, *_shifted(ones, some, shift), inverse)[1])

    def moments(likely: Array, params: GMMParams, inverse: Array, w: Array, x: Array) -> Moments:
        def survey() -> tuple[Array, Array, Array]:
            return _survey(params, w, x, inverse)

        def from_pairs(r: Array, counts: Array, log_likelihood: Array) -> Moments:
            first, second = sparse.sums(inverse, params.means, x, r, counts)
            return Moments(r.sum(1), first, _of_family(params, second), log_likelihood, w.sum())

        def from_all(*_: Array) -> Moments:
            def block(w: Array, x: Array) -> Moments:
                return _block(params, w, x, None, None, None, inverse)

            return sum_own_rows(block, w, x, block_size=block_size)

        shapes = jax.eval_shape(survey)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        surveyed = lax.cond(likely, survey, lambda: nothing)
        return lax.cond(likely & sparse.few(surveyed[1]), from_pairs, from_all, *surveyed)

    # Of fits under `vmap` one after the other: where conditions differ, both sides would be computed.
    in_turn: Callable[..., Moments] = jax.custom_batching.sequential_vmap(moments)

    def block(w: Array, x: Array) -> Moments:
        return in_turn(likely, params, inverse, *_shifted(w, x, shift))

    return sum_rows(block, w, x, block_size=sparse.BLOCKS * block_size)


def accumulate(
    params: GMMParams,
    x: Array,
    sample_weight: Array | None,
    *,
    resp: Array | None = None,
    reassign: Reassign | None = None,
    shift: Array | None = None,
    by_pairs: bool = False,
    block_size: int,
) -> Moments:
    """Moments of the rows of x − shift about `params`, a block at a time; nothing of size (N, K) is stored.

    Args:
      params: the current parameters, whose means are relative to `shift`.
      x: (N, D).
      sample_weight: (N,) or None for ones.
      resp: (N, K), or None for the E-step's own at `params`.
      reassign: without resp, what to make of the E-step's responsibilities, a block at a time.
      shift: (D,) subtracted from each block as it is read, or None.
      by_pairs: whether large sums may leave out pairs that do not count; they have no reverse derivative.
      block_size: rows per block.
    """
    inverse = None
    if _take_turns(params.family, *params.means.shape):
        identity = jnp.eye(params.n_features, dtype=x.dtype)
        identity = jnp.broadcast_to(identity, (params.n_components, *identity.shape))
        inverse = params.family.whitener(params.scale)(identity)
        by_pairs = by_pairs and sparse.applies(x.shape[0], block_size, *params.means.shape)
        if by_pairs and resp is None and reassign is None:
            return _by_pairs(params, sample_weight, x, shift, inverse, block_size)

    def block(w: Array, b: Array, r: Array | None = None) -> Moments:
        return _block(params, w, b, r, shift, reassign, inverse)

    rows = (x,) if resp is None else (x, resp)
    return sum_rows(block, sample_weight, *rows, block_size=block_size)


def location_and_variance(
    x: Array, sample_weight: Array | None, block_size: int = 2048
) -> tuple[Array, Array]:
    """Weighted mean (D,) and variance (D,) of the features, the variance about the mean.

    Where squares leave the range of the dtype, the variance is NaN; or the least that can be told from zero,
    of a feature whose squares underflow beside those of another one.
    """

    def safe(w: Array, b: Array) -> Array:
        return jnp.where(in_range(w, b), b, jnp.zeros((), b.dtype))

    total, first = sum_rows(
        lambda w, b: (w.sum(), (w[:, None] * safe(w, b)).sum(0)), sample_weight, x, block_size=block_size
    )
    mean = first / total

    def deviations(w: Array, b: Array) -> tuple[Array, Array, Array]:
        d = safe(w, b) - mean[None, :]
        return (w[:, None] * d).sum(0), (w[:, None] * d * d).sum(0), lax.stop_gradient(w @ jnp.abs(d))

    rest, squares, absolute = sum_rows(deviations, sample_weight, x, block_size=block_size)
    variance = squares / total - jnp.square(rest / total)
    # A variance is at least the square of the mean absolute deviation. A constant feature has neither.
    info = jnp.finfo(x.dtype)
    least = float(info.tiny / info.eps)
    varies = absolute / total > 8 * epsilon(x.dtype) * jnp.abs(mean)
    variance = jnp.where(jnp.isfinite(variance), variance, jnp.nan)
    lost = varies & (jnp.square(absolute / total) < least)
    instead = jnp.where((varies & ~lost).any(), least, jnp.nan)
    return mean + rest / total, jnp.where(lost, instead, variance)


def scatter(
    x: Array,
    sample_weight: Array | None,
    centre: Array,
    block_size: int = 2048,
) -> tuple[Array, Array]:
    """Σ w () and Σ w (x − c)(x − c)ᵀ (D, D) about a centre c (D,)."""

    def products(w: Array, b: Array) -> tuple[Array, Array]:
        w, b = without_junk(w, b)
        b = b - centre[None, :]
        return w.sum(), einsum("bd,be->de", b * w[:, None], b)

    total: tuple[Array, Array] = sum_rows(products, sample_weight, x, block_size=block_size)
    return total
