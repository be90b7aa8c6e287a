"""The problems and fits that the tests share.

XLA compiles a program for every shape, precision, structure and static option; compiling is nearly all of the
tests' time. So a test takes its data from here, its fit from `fitted`, and its own options only where they
are what it tests.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import STRUCTURES as RECORDS
from tests.conftest import overlapping, start_from, x64
from tests.quick import quick_jit

N, D, K = 200, 3, 3  # the shape of nearly every test
STRUCTURES = tuple(RECORDS)
# One for each shape of the second moment, and one with a rotation: what holds for these holds for all, where
# the structure is only passed on.
FEW = ("full", "diag", "VVE")

X, LABELS = overlapping(N, D, K)  # float64 (N, D), int (N,)
WEIGHT = np.random.default_rng(1).uniform(0.5, 1.5, N)  # (N,)


class Fitted(NamedTuple):
    """One fit to its fixed point."""

    x: np.ndarray  # (N, D)
    start: jaxgmm.GMMParams
    result: jaxgmm.FitResult

    @property
    def params(self) -> jaxgmm.GMMParams:
        """The mixture."""
        return self.result.params


@functools.cache
def fitted(name: str = "full", precision: str = "float32") -> Fitted:
    """`fit` with its defaults, from soft labels, in one precision; computed once in a process."""
    with x64(precision == "float64"):
        x = X.astype(precision)
        start = start_from(X, LABELS, name, precision)
        return Fitted(x, start, jax.block_until_ready(jaxgmm.fit(start, x)))


_fit = quick_jit(jaxgmm.fit, static_argnames=("options",))


def quick_fit(params, x, sample_weight=None, **options):
    """`fit` as one program for every tolerance and limit, with acceleration and without."""
    n = getattr(x, "x", x).shape[0]
    settings = {"tol": 0.01 / n**0.5, "max_iter": 1000, "reg_covar": 1e-6, "accelerate": True}
    return _fit(params, x, sample_weight, **settings | options)


@quick_jit
def largest_slope(params, rows, sample_weight=None):
    """The largest derivative of the likelihood by the free coordinates, 0 at its maximum."""
    theta = jaxgmm.gradients.unconstrained(params)
    slope = jax.grad(jaxgmm.gradients.negative_log_likelihood)(theta, params, rows, sample_weight)
    return jnp.stack([jnp.abs(a).max(initial=0) for a in jax.tree.leaves(slope)]).max()


# For a property of structures: all of them in one precision, and one in the other.
every_structure = pytest.mark.parametrize("name", STRUCTURES)
few_structures = pytest.mark.parametrize("name", FEW)
every_structure_and_precision = pytest.mark.parametrize(
    ("name", "dtype"), [(n, "float32") for n in STRUCTURES] + [("full", "float64")], indirect=["dtype"]
)
