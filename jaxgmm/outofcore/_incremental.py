"""Incremental EM: an M-step after each part of the data, on the latest moments of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.data import Context
from jaxgmm.em import maximise
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from jaxgmm.outofcore._streaming_statistics import Passes, wide
from jaxgmm.solvers.squarem import State

_GROUPS = 64  # parts of the data whose moments are kept
_BYTES = 1 << 27  # that these may take in all
# Nats per unit of weight: a sweep that gains less is the last, for SQUAREM is quicker from there.
_GAIN = 1e-3


@jit
def _begin(params: GMMParams, total: Statistics, f: Context) -> tuple[GMMParams, Statistics]:
    new, _ = maximise(params, total, f)
    return new, change_of_reference.rebase(total, params, new)


@jit
def _replace(
    params: GMMParams, total: Statistics, old: Statistics, about: GMMParams, new: Statistics, f: Context
) -> tuple[GMMParams, Statistics]:
    """Parameters and moments of all rows about them, after a part's moments have been replaced.

    `total` and `new` are about `params`, `old` is about the parameters of the sweep before.
    """
    moved = change_of_reference.rebase(old, about, params)
    changed = jax.tree.map(lambda t, a, b: t - a + b, total, moved, new)
    # A difference of sums may round to less than nothing.
    changed = dataclasses.replace(changed, weight=jnp.maximum(changed.weight, 0))
    return _begin(params, changed, f)


_carry = jit(change_of_reference.rebase)


class _Parts:
    """The latest moments of every part, their sum, and the parameters that this is about."""

    def __init__(self, params: GMMParams, f: Context, passes: Passes) -> None:
        self.params, self.f, self.passes = params, f, passes
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(exact.zero, params)))
        self._n = max(1, min(passes.n_chunks, _GROUPS, _BYTES // size))
        self._kept: list[tuple[Statistics, GMMParams]] = []  # moments, and what they are about
        self._fresh: list[tuple[Statistics, GMMParams]] = []
        self._here: Any = None
        self.total: Statistics | None = None

    def sweep(self) -> float:
        """One pass; returns the mean log-likelihood of each part where it was visited."""
        self._fresh, self._here = [], None
        if self.total is not None:
            # What the replacements have rounded is not handed on.
            self.total = self._sum([_carry(m, about, self.params) for m, about in self._kept])
        for index, moments in enumerate(
            self.passes.each(lambda: self.params, self.f, ahead=self.total is None)
        ):
            self._take(index, moments)
        if self.total is None:
            # All parts about one mixture: a component whose samples come late in the data is not lost.
            whole = self._sum([m for m, _ in self._fresh])
            self.params, self.total = _begin(self.params, whole, self.f)
        self._kept = self._fresh
        return sum(float(m.log_likelihood) for m, _ in self._kept) / self.passes.summary.total_weight

    def _sum(self, parts: list[Statistics]) -> Statistics:
        total = wide(parts[0])
        for part in parts[1:]:
            total = jax.tree.map(np.add, total, part)
        return self.passes.narrow(total)

    def _take(self, index: int, moments: Statistics) -> None:
        self._here = wide(moments) if self._here is None else jax.tree.map(np.add, self._here, moments)
        n_chunks = self.passes.n_chunks
        part = index * self._n // n_chunks
        if index + 1 < n_chunks and (index + 1) * self._n // n_chunks == part:
            return
        new, self._here = self.passes.narrow(self._here), None
        self._fresh.append((new, self.params))
        if self.total is not None:
            self.params, self.total = _replace(self.params, self.total, *self._kept[part], new, self.f)


def sweep(state: State, f: Context, passes: Passes, max_iter: int, report: Callable[[State], Any]) -> State:
    """The state of an exact fit that begins where sweeps from a fresh one have ended."""
    parts = _Parts(state.point, f, passes)
    best, n_iter, before, mean = state.point, 0, -np.inf, -np.inf
    history = np.asarray(state.history).copy()

    def reached(mean: float) -> State:
        numbers = jnp.asarray(n_iter, jnp.int32), jnp.asarray(history), jnp.asarray(mean, history.dtype)
        there = state._replace(base=best, image=best, point=best)
        return there._replace(n_iter=numbers[0], history=numbers[1], report=numbers[2])

    while n_iter < max_iter:
        mean = parts.sweep()
        # The logarithm of a weight of zero is −inf, and belongs there.
        lost = any(np.isnan(a).any() for a in jax.tree.leaves((parts.params, parts.total)))
        if lost or not np.isfinite(mean):
            break
        best = parts.params
        n_iter += 1
        if 2 <= n_iter <= history.size + 1:
            history[n_iter - 2] = mean
        report(reached(mean))
        if mean - before < _GAIN:
            break
        before = mean
    return reached(-np.inf)
