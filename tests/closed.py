"""Mixtures of the four structures in closed form, in NumPy: nothing of theirs is compiled."""

from __future__ import annotations

import numpy as np

import jaxgmm
from jaxgmm.components import STRUCTURES, gaussian

CLOSED = ("full", "tied", "diag", "spherical")


def build(name, weights, means, covariances, dtype=np.float64):
    """A mixture from covariances (K, D, D); a structure takes from them what it keeps."""
    variances = np.einsum("kdd->kd", covariances)
    scale = {
        "full": np.linalg.cholesky(covariances),
        "tied": np.linalg.cholesky(covariances[0]),
        "diag": np.sqrt(variances),
        "spherical": np.sqrt(variances.mean(1)),
    }[name]
    arrays = (np.asarray(a, dtype) for a in (np.log(weights), means, scale))
    return jaxgmm.GMMParams(*arrays, gaussian(STRUCTURES[name]))


def dense(params):
    """weights, means and covariances in float64."""
    arrays = (params.log_weights, params.means, params.scale)
    log_weights, means, scale = (np.asarray(a, np.float64) for a in arrays)
    k, d = means.shape
    if params.covariance.name in ("diag", "spherical"):
        scale = np.broadcast_to(scale.reshape(k, -1), (k, d))[:, :, None] * np.eye(d)
    factors = np.broadcast_to(scale, (k, d, d))
    return np.exp(log_weights), means, factors @ factors.transpose(0, 2, 1)
