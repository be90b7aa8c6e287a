"""What the tests of inference and of derivatives share: one shape, and so one program for each function."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from tests.conftest import start_from, x64
from tests.problems import LABELS, WEIGHT, D, K, N, X

ONES = np.ones(N)
TIGHT = {"tol": 1e-12, "max_iter": 5000, "reg_covar": 0.0}
FIELDS = ("weights", "means", "covariances")


# So far apart that the first two orders of an expansion say nearly all; of the same shape.
APART = X + 4 * np.eye(D)[LABELS]


@functools.cache
def optimum():
    """The float64 maximum of the likelihood of X with WEIGHT, "full"."""
    with x64(True):
        start = start_from(X, LABELS, "full", np.float64)
        return jaxgmm.check(jaxgmm.fit(start, X, WEIGHT, **TIGHT)).params


@functools.cache
def apart():
    """The float64 maximum of the likelihood of APART with WEIGHT, "diag"."""
    with x64(True):
        start = start_from(APART, LABELS, "diag", np.float64)
        return jaxgmm.check(jaxgmm.fit(start, APART, WEIGHT, **TIGHT)).params


def one_of_three(mean, covariance):
    """One component that is on, and two that are switched off."""
    return jaxgmm.make_params(
        np.array([1.0, 0, 0]), np.stack([mean, mean + 1, mean - 1]), np.stack([covariance] * 3)
    )


def not_identified(params):
    """Three equal components, where one would do."""
    same = jax.tree.map(lambda a: jnp.concatenate([a[:1]] * K), params)
    return dataclasses.replace(same, log_weights=jnp.log(jnp.array([0.2, 0.3, 0.5])))


def flat(entries, n=1):
    """Weights, means and covariances of n mixtures side by side: (n, P)."""
    return np.concatenate([np.asarray(getattr(entries, f)).reshape(n, -1) for f in FIELDS], axis=1)
