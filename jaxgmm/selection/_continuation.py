"""Continuation of a search that has found only spurious optima, for another budget."""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgmm import _validate as validate
from jaxgmm.selection._candidates import Field, best_of
from jaxgmm.selection._criteria import has_failed

MORE = 3  # times that a search goes on


def go_on(search: Any, key: Array, field: Field, budget: int, width: int) -> Field:
    """The finalists of a `Tournament` that goes on for sizes of which all are spurious.

    At most `MORE` times and for `budget` EM steps in all, but two for each start, and not counting those
    to convergence: new starts, of which the best `width` that are still sound are brought to convergence. The
    first sound optimum ends it. All mixtures of a program go to the sizes in question: nothing is compiled
    anew.
    """
    if not validate.is_concrete(field, search.settings):
        return field
    for i in range(MORE):
        top = jax.tree.map(lambda a: np.asarray(a)[:, 0], (field.flags, field.results.status))
        # A single component has one optimum.
        flawed = np.flatnonzero((top[0] != 0) & ~np.asarray(has_failed(top[1])) & (search.sizes > 1))
        if flawed.size == 0:
            break
        more = copy.copy(search)
        more.sizes = np.resize(search.sizes[flawed], len(search.sizes))
        more.n_steps, more.with_ward = np.zeros(len(search.sizes), np.int32), False
        often = -(-len(search.sizes) // len(flawed))  # mixtures that the first of them has
        n_starts = width * max(1, round(3 / often))
        steps = max(2, budget // (MORE * n_starts * often))
        # Apart from the keys of `play`, which are two halves of the key.
        started = more.starts(jax.random.fold_in(jax.random.fold_in(key, budget), i), n_starts)
        tried = best_of(more.advance(started, steps), width)
        found = more.advance(tried.results.params, None)
        for j, at in enumerate(flawed):
            lanes_of = slice(j, None, len(flawed))
            both = jax.tree.map(
                lambda old, new, at=at, those=lanes_of: np.concatenate(
                    [old[at : at + 1], np.concatenate(list(new[those]))[None]], 1
                ),
                field, found,
            )  # fmt: skip
            field = jax.tree.map(
                lambda old, new, at=at: np.concatenate([old[:at], new, old[at + 1 :]]),
                field, best_of(both, width),
            )  # fmt: skip
            search.n_steps[at] += more.n_steps[lanes_of].sum()
    return field
