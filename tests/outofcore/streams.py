"""The rows of tests/problems.py in parts, and the one fit of them that the tests out of core share."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm.components import gaussian
from tests.closed import build
from tests.conftest import soft_labels, x64
from tests.problems import LABELS, WEIGHT, D, K, N, X

BOUNDS = (0, 70, 71, 150, 200)  # of the parts; no chunk ends there
CHUNK = 64  # rows of a chunk, everywhere: one program for a structure and precision


def own_moments(params):
    """The same mixture with a structure whose second moments are a function of its own."""
    own = params.covariance._replace(
        name="mine", second_moment=lambda scale, y, resp: jnp.einsum("kdb,kb->kd", y * y, resp)
    )
    return dataclasses.replace(params, component=gaussian(own))


STRUCTURE = "diag"  # which is only passed on here, and quick to compile


def parts(dtype="float32", shift=0.0):
    """The rows in arrays of different lengths."""
    return [(X[i:j] + shift).astype(dtype) for i, j in itertools.pairwise(BOUNDS)]


def weighted_parts(dtype="float32", shift=0.0):
    """Pairs of rows and their weights."""
    weights = [WEIGHT[i:j].astype(dtype) for i, j in itertools.pairwise(BOUNDS)]
    return list(zip(parts(dtype, shift), weights, strict=True))


class Passes:
    """A source of arrays that counts its passes and does something at the beginning of one of them.

    Opening a source looks at its first array: that is pass 0. Pass 1 is the survey; a step is a pass.
    """

    def __init__(self, at=-1, action=None, rows=None):
        self.at, self.action, self.passes = at, action, -1
        self.rows = parts() if rows is None else rows

    def __call__(self):
        self.passes += 1
        if self.passes == self.at:
            self.action()
        yield from self.rows


@functools.cache
def start(dtype="float32"):
    """Where the fits begin, in one precision: the moments of soft labels."""
    resp = soft_labels(LABELS, K)
    count = resp.sum(0)
    means = resp.T @ X / count[:, None]
    variances = resp.T @ np.square(X) / count[:, None] - np.square(means)
    params = build(STRUCTURE, count / N, means, variances[:, :, None] * np.eye(D), dtype)
    with x64(dtype == "float64"):
        return jax.tree.map(jnp.asarray, params)


def stream(source, **options):
    """`fit_stream` in float32 with the programs that all tests share."""
    return jaxgmm.fit_stream(
        options.pop("start", None) or start(), source, **{"chunk_size": CHUNK, **options}
    )


@functools.cache
def streamed():
    """The fit that nothing happens to."""
    return jax.block_until_ready(stream(parts()))


def assert_same_bits(a, b):
    """Two trees hold the same numbers."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def gap(a, b, floor=1e-3):
    """The largest relative difference between two results, of numbers below `floor` in units of it.

    The history is −inf where there is none, in both at the same places.
    """
    largest = 0.0
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y))
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        largest = max(largest, float((np.abs(x - y) / (floor + np.abs(x))).max(initial=0)))
    return largest
