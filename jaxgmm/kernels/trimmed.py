"""Trimming: the rows of lowest density have weight 0 in an iteration, as in tclust.

An iteration from θ is then two passes over the rows: `kept` computes their densities at θ and takes the
weight off the lowest, and a kernel sums the rest. The M-step from these sums raises the log-likelihood of the
kept rows, and to keep the likeliest ones of its result raises it further: the trimmed log-likelihood never
falls.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.data import Data
from jaxgmm.density import posterior, shares_of
from jaxgmm.kernels import observed
from jaxgmm.kernels.blocked_sum import in_range, map_rows
from jaxgmm.kernels.kept_share import kept_shares
from jaxgmm.mixture import GMMParams


def log_densities(params: GMMParams, data: Data, shift: Array | None, block_size: int) -> Array:
    """(N,) the log-densities by which rows are trimmed, for means relative to the shift; not differentiated.

    Of incomplete rows of their observed entries, of labelled ones with their labels. Like `exact.sums`, a
    block of rows at a time.
    """
    params, data, shift = lax.stop_gradient((params, data, shift))
    zero = jnp.zeros((), data.x.dtype)
    # What a row of weight 0 holds may be out of range.
    x = data.x if data.weight is None else jnp.where(in_range(data.weight, data.x), data.x, zero)
    viewer = None if data.is_complete else observed.viewer(params, data)

    def block(rows: Data) -> Array:
        rows = rows if shift is None or rows.x.shape[1] != len(shift) else rows.less(shift)
        if viewer is None:
            return posterior(params, rows)[1]
        look = viewer.look(rows)
        _, total, top = shares_of(look.joint(params.log_weights, rows.known(params.n_components)))
        return top + jnp.log(total) + look.offset

    found: Array = map_rows(block, dataclasses.replace(data.rows, x=x), block_size=block_size)
    return found


def kept(params: GMMParams, data: Data, shift: Array | None, trim: Array | None, block_size: int) -> Data:
    """The rows with the weights that they have in an iteration from `params`; as they are without trimming.

    Args:
      params: the current parameters, with means relative to `shift`.
      data: the rows.
      shift: (D,), or None for 0.
      trim: () the weight that is trimmed, or None.
      block_size: rows per block.
    """
    if trim is None:
        return data
    share = kept_shares(log_densities(params, data, shift, block_size), data.weight, trim)
    return dataclasses.replace(data, weight=share if data.weight is None else data.weight * share)
