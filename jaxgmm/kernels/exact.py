"""Whitened kernel (`WHITENED`): statistics about the current parameters, exact to rounding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.base import Component
from jaxgmm.components.gaussian import finite_length
from jaxgmm.data import Context, Data
from jaxgmm.density import groups, log_constants, shares_of
from jaxgmm.kernels import observed, sparse
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.blocked_sum import block_rows, sum_own_rows, sum_rows, zero_unused
from jaxgmm.kernels.linalg import einsum, eye, outlived, transposed
from jaxgmm.mixture import GMMParams

# (responsibilities (K, B), exponents of the densities (K, B), whitened residuals (K, D, B)) -> others (K, B)
Reassign = Callable[[Array, Array, Array], Array]


def _shifted(w: Array, x: Array, shift: Array | None) -> tuple[Array, Array]:
    """Weights and rows relative to the shift, with 0 for unused entries that are out of range."""
    w, x = zero_unused(w, x)
    return w, x if shift is None else x - shift[None, :]


# With this many features or more, a CPU is faster on one component at a time: its intermediates stay in the
# L2 cache between products. (K, D, rows) = (16, 16, 1024): 0.44 ms instead of 0.56; (64, 32, 1024): 4.8
# instead of 8.3; (32, 128, 512): 11 instead of 20. At (5, 2) it is slower.
_ONE_AT_A_TIME = 16


def _one_at_a_time(component: Component, n_components: int, n_features: int) -> bool:
    """Whether the components of a block come one after the other: Gaussians with matrices."""
    pays = n_features >= _ONE_AT_A_TIME and n_components > 1 and jax.default_backend() == "cpu"
    return pays and component.is_gaussian and component.covariance.second_moment in ("matrix", "pooled")


def rows_for(
    component: Component, n_samples: int, n_components: int, n_features: int, n_fits: int = 1
) -> int:
    """Rows per block of a batch of n_fits mixtures."""
    alone = _one_at_a_time(component, n_components, n_features)
    return block_rows(n_samples, n_components, n_features, n_fits, one_at_a_time=alone)


def rows_of(data: Data, component: Component, n_components: int, n_fits: int = 1) -> int:
    """Rows per block for these rows, of a batch of n_fits mixtures."""
    if data.is_complete:
        return rows_for(component, data.x.shape[0], n_components, data.n_features, n_fits)
    return observed.rows_for(data, component.covariance, n_components, n_fits)


def _responsibilities(
    joint: Array, w: Array, used: Array, exponent: Array, y: Any = None, reassign: Reassign | None = None
) -> tuple[Array, Array]:
    """Weighted responsibilities (K, B) and Σ w log p(x) () from log joint densities (K, B).

    `used` are the numbers that these were computed from.
    """
    shares, total, top = shares_of(joint)
    log_likelihood = outlived(w * (top + jnp.log(total)), used, joint).sum()
    if reassign is None:
        return shares * (w / total)[None, :], log_likelihood
    return reassign(shares / total[None, :], exponent, y) * w[None, :], log_likelihood


def _take(
    params: GMMParams,
    w: Array,
    exponent: Array,
    latent: Any,
    resp: Array | None,
    reassign: Reassign | None,
    known: Array | None = None,
) -> tuple[Array, Array]:
    """Weighted responsibilities (K, B), those given as (B, K) or the E-step's, and Σ w log p(x) ().

    From the exponents of the densities (K, B) of complete rows, and what is known of their labels (K, B).
    """
    if resp is not None:
        return resp.T * w[None, :], jnp.zeros((), w.dtype)
    constant, common = log_constants(params)
    joint, y = constant[:, None] + exponent, jax.tree.leaves(latent)[0]
    if known is not None:
        joint, exponent = joint + known, exponent + known
    r, log_likelihood = _responsibilities(joint, w, exponent, exponent, y, reassign)
    return r, log_likelihood + common * w.sum()


def _gaussian_block(
    params: GMMParams,
    inverse: Array,
    w: Array,
    x: Array,
    resp: Array | None = None,
    reassign: Reassign | None = None,
    known: Array | None = None,
) -> Statistics:
    """The statistics of a block of Gaussians, one component at a time, with the matrices C⁻¹ (K, D, D)."""
    columns = transposed(x, params.n_components)

    def whitened(one: tuple[Array, Array]) -> tuple[Array, Array]:
        y = einsum("de,eb->db", one[0], columns - one[1][:, None])
        return y, jnp.square(y).sum(0)

    y, length = lax.map(whitened, (inverse, params.means))
    r, log_likelihood = _take(params, w, -0.5 * finite_length(length), y, resp, reassign, known)

    def moments(one: tuple[Array, Array]) -> tuple[Array, Array]:
        weighted = one[0] * one[1][None, :]
        return weighted.sum(1), einsum("db,eb->de", weighted, one[0])

    first, second = lax.map(moments, (y, r))
    return Statistics(r.sum(1), first, _kept(params, second), log_likelihood, w.sum())


def _kept(params: GMMParams, second: Array) -> Array:
    """The structure's part of second moments (K, D, D)."""
    return second.sum(0) if params.covariance.second_moment == "pooled" else second


def _survey(params: GMMParams, w: Array, x: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """The E-step of rows: weighted responsibilities (K, B), which of them count, and Σ w log p(x) ()."""
    length = sparse.squared_lengths(inverse, params.means, x)
    r, log_likelihood = _take(params, w, -0.5 * finite_length(length), length, None, None)
    return r, sparse.counting(r, params.log_weights, w), log_likelihood


Rows = tuple[Array | None, Array, Array | None]  # weights, X, shift


def _all_pairs(block_size: int, params: GMMParams, inverse: Array, rows: Rows) -> Statistics:
    def block(w: Array, b: Array) -> Statistics:
        return _gaussian_block(params, inverse, *_shifted(w, b, rows[2]))

    return sum_rows(block, rows[0], rows[1], block_size=block_size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _some_pairs(block_size: int, params: GMMParams, inverse: Array, rows: Rows) -> Statistics:
    """The statistics of all rows from the pairs of rows and components that count.

    From all pairs, of blocks in which many count. The loops over pairs have no derivative: it is that of
    the sums over all pairs.
    """
    w, x, shift = rows
    some = x[:: x.shape[0] // block_size][:block_size]
    ones = jnp.ones(block_size, x.dtype)
    likely = sparse.likely(_survey(params, *_shifted(ones, some, shift), inverse)[1])

    def statistics(likely: Array, params: GMMParams, inverse: Array, w: Array, x: Array) -> Statistics:
        def survey() -> tuple[Array, Array, Array]:
            return _survey(params, w, x, inverse)

        def from_pairs(r: Array, counts: Array, log_likelihood: Array) -> Statistics:
            first, second = sparse.sums(inverse, params.means, x, r, counts)
            return Statistics(r.sum(1), first, _kept(params, second), log_likelihood, w.sum())

        def from_all(*_: Array) -> Statistics:
            def block(w: Array, x: Array) -> Statistics:
                return _gaussian_block(params, inverse, w, x)

            return sum_own_rows(block, w, x, block_size=block_size)

        shapes = jax.eval_shape(survey)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        found = lax.cond(likely, survey, lambda: nothing)
        return lax.cond(likely & sparse.few(found[1]), from_pairs, from_all, *found)

    # Under `vmap`, the fits run one after the other: a batched `lax.cond` would compute both branches.
    in_sequence: Callable[..., Statistics] = jax.custom_batching.sequential_vmap(statistics)

    def block(w: Array, x: Array) -> Statistics:
        return in_sequence(likely, params, inverse, *_shifted(w, x, shift))

    return sum_rows(block, w, x, block_size=sparse.BLOCKS * block_size)


@_some_pairs.defjvp
def _some_pairs_jvp(
    block_size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Statistics, Statistics]:
    return jax.jvp(functools.partial(_all_pairs, block_size), primals, tangents)


def sums(
    params: GMMParams,
    data: Data,
    shift: Array | None = None,
    prepared: Any = None,
    block_size: int = 2048,
    *,
    resp: Array | None = None,
    reassign: Reassign | None = None,
) -> Statistics:
    """Statistics of the rows less a shift, a block at a time; nothing of size (N, K) is stored.

    Args:
      params: the current parameters, whose means are relative to `shift`.
      data: the rows, their weights, and what else is known of them.
      shift: (D,) subtracted from each block as it is read, or None.
      prepared: None.
      block_size: rows per block.
      resp: (N, K), or None for the E-step's own at `params`.
      reassign: without resp, what to make of the E-step's responsibilities, a block at a time.
    """
    if data.group is not None:
        return _grouped(params, data, shift, block_size, resp, reassign)
    c, x, rows = params.component, data.x, (data.rows,) if resp is None else (data.rows, resp)
    k, d = params.means.shape
    if not data.is_complete:
        viewer = observed.viewer(params, data)
        incomplete = _incomplete_block(params, viewer, shift, reassign)
        found, hidden = sum_rows(incomplete, data.weight, *rows, block_size=block_size)
        # The second moments of what is not known of the residuals.
        rest = params.covariance.part_of(params.scatter, viewer.spread(hidden))
        return dataclasses.replace(found, second=jax.tree.map(jnp.add, found.second, rest))
    if not _one_at_a_time(c, k, d):
        prepared = c.prepare(c, params.means, params.scale)

        def block(w: Array, b: Data, r: Array | None = None) -> Statistics:
            w, entries = _shifted(w, b.x, shift)
            exponent, latent = c.expect(c, prepared, transposed(entries, k))
            r, log_likelihood = _take(params, w, exponent, latent, r, reassign, b.known(k))
            first, second, extra = c.statistics(c, prepared, latent, r)
            return Statistics(r.sum(1), first, second, log_likelihood, w.sum(), extra)

        return sum_rows(block, data.weight, *rows, block_size=block_size)

    unit = jnp.broadcast_to(eye(d, x.dtype, 3), (k, d, d))
    inverse = params.covariance.whitener(params.scatter)(unit)
    plain = data.is_plain and resp is None and reassign is None
    if plain and sparse.applies(x.shape[0], block_size, k, d):
        return _some_pairs(block_size, params, inverse, (data.weight, x, shift))

    def gaussian_block(w: Array, b: Data, r: Array | None = None) -> Statistics:
        return _gaussian_block(params, inverse, *_shifted(w, b.x, shift), r, reassign, b.known(k))

    return sum_rows(gaussian_block, data.weight, *rows, block_size=block_size)


def _grouped(
    params: GMMParams,
    data: Data,
    shift: Array | None,
    block_size: int,
    resp: Array | None,
    reassign: Reassign | None,
) -> Statistics:
    """The statistics of rows in groups: responsibilities of the groups first, then the sums of their rows.

    Starts and moves between optima, which give responsibilities or change them, look at rows alone.
    """
    alone = dataclasses.replace(data, group=None)
    if resp is not None or reassign is not None:
        return sums(params, alone, shift, None, block_size, resp=resp, reassign=reassign)
    of_group, log_likelihood, exists = groups(params, data if shift is None else data.less(shift))
    found = sums(params, alone, shift, None, block_size, resp=of_group[data.group])
    share = jnp.where(exists[:, None], of_group, 0).sum(0)
    return dataclasses.replace(found, log_likelihood=log_likelihood.sum(), share=share)


def _incomplete_block(
    params: GMMParams, viewer: observed.Viewer, shift: Array | None, reassign: Reassign | None
) -> Callable[..., tuple[Statistics, Array]]:
    """The statistics of a block of rows with missing entries, noise or projections, as a function of it.

    Without the part of the second moments that `observed.Look.hidden` counts.
    """
    c, (k, d) = params.component, params.means.shape
    prepared = c.prepare(c, params.means, params.scale)

    def block(w: Array, rows: Data, resp: Array | None = None) -> tuple[Statistics, Array]:
        # Projected features are not shifted: the data summary has no shift for them.
        w, entries = _shifted(w, rows.x, shift if rows.x.shape[1] == d else None)
        seen = viewer.look(dataclasses.replace(rows, x=entries))
        if resp is None:
            joint = seen.joint(params.log_weights, rows.known(k))
            y = jax.tree.leaves(seen.latent)[0]
            r, log_likelihood = _responsibilities(joint, w, seen.relative, seen.exponent, y, reassign)
            log_likelihood = log_likelihood + (w * seen.offset).sum()
        else:
            r, log_likelihood = resp.T * w[None, :], jnp.zeros((), w.dtype)
        first, second, extra = c.statistics(c, prepared, seen.latent, r)
        return Statistics(r.sum(1), first, second, log_likelihood, w.sum(), extra), seen.hidden(r)

    return block


def zero(params: GMMParams) -> Statistics:
    """The statistics of no rows at all: the identity of `+`."""
    shapes = jax.eval_shape(lambda p: sums(p, Data(p.means[:1])), params)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _nothing(component: Component, data: Data, context: Context) -> None:
    return None


def _no_rounding(params: GMMParams, prepared: Any) -> Array:
    return jnp.zeros((), params.means.dtype)


WHITENED = Kernel("whitened", sums, _nothing, _no_rounding, rows_for)
