"""What the tests of inference and of derivatives share: one shape, and so one program for each function."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm.components import gaussian, get_covariance
from tests.conftest import soft_labels, x64
from tests.problems import LABELS, WEIGHT, D, K, N, X

ONES = np.ones(N)
TIGHT = {"tol": 1e-12, "max_iter": 5000, "reg_covar": 0.0}
FIELDS = ("weights", "means", "covariances")


# So far apart that the first two orders of an expansion say nearly all; of the same shape.
APART = X + 4 * np.eye(D)[LABELS]


def mixture(weights, means, covariances, name="full"):
    """Parameters by NumPy, which compiles nothing; "full" or "diag"."""
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    scale = np.linalg.cholesky(covariances) if name == "full" else np.sqrt(np.einsum("kdd->kd", covariances))
    return jaxgmm.GMMParams(log_weights, np.asarray(means), scale, gaussian(get_covariance(name)))


def log_joint(params, x):
    """(N, K) log π_k N(x | μ_k, Σ_k), by NumPy."""
    factors = np.asarray(params.scale)
    if factors.ndim == 2:
        factors = np.eye(D) * factors[:, None]
    gaps = np.linalg.solve(factors, (x[None] - np.asarray(params.means)[:, None]).swapaxes(1, 2))
    widths = np.log(np.einsum("kdd->kd", factors)).sum(1) + 0.5 * D * np.log(2 * np.pi)
    return (np.asarray(params.log_weights)[:, None] - widths[:, None] - 0.5 * np.square(gaps).sum(1)).T


def log_prob(params, x):
    """(N,) log p(x), by NumPy."""
    return np.logaddexp.reduce(log_joint(params, x), axis=1)


def moments(x, resp, name):
    """The M-step, by NumPy."""
    sums = resp.sum(0)
    means = resp.T @ x / sums[:, None]
    gaps = x[None] - means[:, None]
    covariances = np.einsum("nk,knd,kne->kde", resp, gaps, gaps, optimize=True) / sums[:, None, None]
    return mixture(sums / sums.sum(), means, covariances, name)


def start_from(x, name):
    """Where a fit begins: the moments of x under soft labels."""
    return moments(x, soft_labels(LABELS, K), name)


def maximum(x, w, name, start=None):
    """The maximum of the likelihood, to rounding, by NumPy's EM: a fit that compiles nothing."""
    params = start_from(x, name) if start is None else start
    for _ in range(5000):
        joint = log_joint(params, x)
        resp = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        new = moments(x, w[:, None] * resp, name)
        moved = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (new, params)), strict=True))
        params = new
        if moved < 1e-14:
            break
    return params


@functools.cache
def optimum():
    """The float64 maximum of the likelihood of X with WEIGHT, "full"."""
    with x64(True):
        return jax.tree.map(jnp.asarray, maximum(X, WEIGHT, "full"))


@functools.cache
def apart():
    """The float64 maximum of the likelihood of APART with WEIGHT, "diag"."""
    with x64(True):
        return jax.tree.map(jnp.asarray, maximum(APART, WEIGHT, "diag"))


def one_of_three(mean, covariance):
    """One component that is on, and two that are switched off."""
    return mixture([1.0, 0, 0], [mean, mean + 1, mean - 1], np.stack([covariance] * 3))


def not_identified(params):
    """Three equal components, where one would do."""
    same = jax.tree.map(lambda a: np.concatenate([np.asarray(a)[:1]] * K), params)
    return dataclasses.replace(same, log_weights=np.log([0.2, 0.3, 0.5]))


def natural(params):
    """Weights, means and covariances of mixtures, by NumPy."""
    scale = np.asarray(params.scale)
    dense = (
        scale[..., None] ** 2 * np.eye(D)
        if params.covariance.name == "diag"
        else scale @ scale.swapaxes(-1, -2)
    )
    return np.exp(params.log_weights), np.asarray(params.means), dense


def flat(entries, n=1):
    """Weights, means and covariances of n mixtures, or of entries, side by side: (n, P)."""
    parts = natural(entries) if hasattr(entries, "scale") else [getattr(entries, f) for f in FIELDS]
    return np.concatenate([np.asarray(a).reshape(n, -1) for a in parts], axis=1)
