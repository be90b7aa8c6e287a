"""Incremental EM: an M-step after each part of the data, on the latest moments of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.components.base import Component
from jaxgmm.data import Context
from jaxgmm.em import maximise
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from jaxgmm.outofcore._streaming_statistics import Passes
from jaxgmm.solvers import squarem
from jaxgmm.solvers.squarem import State

_GROUPS = 64  # parts of the data whose moments are kept
_BYTES = 1 << 27  # that these may take in all
_GAIN = (
    1e-3  # nats per unit of weight: a sweep that gains less is the last, for SQUAREM is quicker from there
)

Sweeping = Callable[[State, Context, Passes, int, Callable[[State], Any]], State]


def sweeps(component: Component) -> Sweeping:
    """The sweeps of a fit, for a component whose moments can be carried along; raise for another."""
    change_of_reference.check(component, "incremental=True")
    return _sweeps


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
    changed = jax.tree.map(
        lambda t, a, b: t - a + b, total, change_of_reference.rebase(old, about, params), new
    )
    # A difference of sums may round to less than nothing.
    changed = dataclasses.replace(changed, weight=jnp.maximum(changed.weight, 0))
    return _begin(params, changed, f)


@jit
def _carry(moments: Statistics, about: GMMParams, params: GMMParams) -> Statistics:
    return change_of_reference.rebase(moments, about, params)


def _finite(tree: Any) -> bool:
    # The logarithm of a weight of zero is −inf, and belongs there.
    return not any(np.isnan(np.asarray(a)).any() for a in jax.tree.leaves(tree))


class _Parts:
    """The latest moments of every part, their sum, and the parameters that this is about."""

    def __init__(self, params: GMMParams, f: Context, passes: Passes) -> None:
        self.params, self.f, self.passes = params, f, passes
        zero = exact.zero(params)
        self._structure = jax.tree.structure(zero)
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(zero))
        self._n = max(1, min(passes.n_chunks, _GROUPS, _BYTES // size))
        self._kept: list[tuple[Statistics, GMMParams]] = []  # moments, and what they are about
        self._fresh: list[tuple[Statistics, GMMParams]] = []
        self._here: list[np.ndarray] = []
        self.total: Statistics | None = None

    def sweep(self) -> float:
        """One pass; returns the mean log-likelihood of each part where it was visited."""
        self._fresh, self._here = [], []
        if self.total is not None:
            # What the replacements have rounded is not handed on.
            self.total = _sum([_carry(m, about, self.params) for m, about in self._kept])
        self.passes.each(lambda _: self.params, self.f, self._take, ahead=self.total is None)
        if self.total is None:
            # All parts about one mixture: a component whose samples come late in the data is not lost.
            whole = _sum([m for m, _ in self._fresh])
            self.params, self.total = _begin(self.params, whole, self.f)
        self._kept = self._fresh
        return sum(float(m.log_likelihood) for m, _ in self._kept) / self.passes.summary.total_weight

    def _take(self, index: int, leaves: list[np.ndarray]) -> None:
        wide = [np.asarray(a, np.float64) for a in leaves]
        self._here = [a + b for a, b in zip(self._here, wide, strict=True)] if self._here else wide
        n_chunks = self.passes.n_chunks
        part = index * self._n // n_chunks
        if index + 1 < n_chunks and (index + 1) * self._n // n_chunks == part:
            return
        new: Statistics = jax.tree.unflatten(
            self._structure, [jnp.asarray(a, self.passes.dtype) for a in self._here]
        )
        self._here = []
        self._fresh.append((new, self.params))
        if self.total is not None:
            self.params, self.total = _replace(self.params, self.total, *self._kept[part], new, self.f)


def _sum(parts: list[Statistics]) -> Statistics:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def _sweeps(state: State, f: Context, passes: Passes, max_iter: int, report: Callable[[State], Any]) -> State:
    parts = _Parts(state.point, f, passes)
    best, n_iter, before, mean = state.point, 0, -np.inf, -np.inf
    history = np.asarray(state.history).copy()
    while n_iter < max_iter:
        mean = parts.sweep()
        if not _finite((parts.params, parts.total)) or not np.isfinite(mean):
            break
        best = parts.params
        n_iter += 1
        if 2 <= n_iter <= history.size + 1:
            history[n_iter - 2] = mean
        report(_state(state, best, n_iter, history, mean))
        if mean - before < _GAIN:
            break
        before = mean
    return _state(state, best, n_iter, history, -np.inf)


def _state(state: State, params: GMMParams, n_iter: int, history: np.ndarray, report: float) -> State:
    """The state of an exact fit that begins at `params` after so many steps."""
    dtype = state.radius.dtype
    fresh = squarem.begin(params, squarem.Memory(state.radius, state.horizon), 0)
    return fresh._replace(
        n_iter=jnp.asarray(n_iter, jnp.int32),
        history=jnp.asarray(history),
        report=jnp.asarray(report, dtype),
    )
