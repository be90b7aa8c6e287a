"""The records `Kernel`, how sums over rows are computed, and `Statistics`, what every kernel gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.components.base import Component, Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sufficient statistics: sums of responsibilities and of residuals whitened about the current parameters.

    With r_nk the responsibilities, w_n the sample weights, y_nk = C_k⁻¹(x_n − μ_k) and u_nk the weight that
    the component gives a row, 1 for a Gaussian. Raw or merely centred sums of squares would cancel in
    float32; these do not, because y is of order 1 wherever r is not small. Statistics about the same
    parameters add with `+`: over blocks, shards, hosts or a stream.

    Attributes:
      weight: (K,) Σ w r.
      first: (K, D) Σ w r u y.
      second: the covariance structure's part of Σ w r u y yᵀ; for "full", (K, D, D).
      log_likelihood: () Σ w log p(x) at the current parameters, a total.
      total_weight: () Σ w.
      extra: what else the component needs; () for a Gaussian.
      share: (K,) what the next mixing weights are in proportion to; None for `weight`.
    """

    weight: Array  # (K,)
    first: Array  # (K, D)
    second: Any
    log_likelihood: Array  # ()
    total_weight: Array  # ()
    extra: Any = ()
    share: Array | None = None  # (K,)

    @property
    def sums(self) -> Sums:
        """What the component's M-step reads."""
        return Sums(self.first, self.second, self.extra)

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of two sets of samples together."""
        return jax.tree.map(jnp.add, self, other)

    def __mul__(self, by: Array | float) -> Statistics:
        """The statistics of samples whose weights are all multiplied."""
        return jax.tree.map(lambda a: a * by, self)


class Kernel(NamedTuple):
    """How sums over rows are computed: rows -> `Statistics`. All functions are static and pure.

    Fields:
      name: "whitened" or "quadratic".
      sums: (params, `Data`, shift (D,), prepared, block_size) -> `Statistics` of the rows less the shift,
        about params whose means are relative to it.
      prepare: (component, `Data`, `Context`) -> what `sums` needs to know of the data, computed once; None
        for nothing.
      rounding: (params, prepared) -> () by how many standard deviations the sums' rounding can move a
        component in one step, beyond what rounding of the parameters themselves can.
      rows: (component, n_samples, K, D, n_fits) -> rows per block of a batch of n_fits fits.
    """

    name: str
    sums: Callable[..., Statistics]
    prepare: Callable[..., Any]
    rounding: Callable[..., Array]
    rows: Callable[[Component, int, int, int, int], int]
