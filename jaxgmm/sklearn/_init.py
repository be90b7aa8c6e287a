"""Starts of the estimators: scikit-learn's own responsibilities from a seed, and one M-step on the host."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.cluster import KMeans, kmeans_plusplus

from jaxgmm.components.weights import Model
from jaxgmm.data import Context, Data, location_and_variance
from jaxgmm.em import weighted_m_step, with_prior
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.priors import Prior
from jaxgmm.sklearn._conversion import DIAG, FULL, SHAPED, SPHERICAL, TIED, CollapsedError, cholesky, host
from jaxgmm.sklearn._data import Host, Rows

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")


class Start(NamedTuple):
    """A mixture in float64, its means relative to the rows' offset."""

    weights: Host  # (K,)
    means: Host  # (K, D)
    scale: Any


def responsibilities(
    init_params: str, X: Host, sample_weight: Host | None, n_components: int, random_state: Any
) -> Host:
    """(N, K) what scikit-learn starts from, drawn as it draws: the same seed gives the same start.

    Of "k-means++" and "random_from_data" only the seeds' own rows are not zero.
    """
    n = len(X)
    if init_params == "random":
        resp: Host = random_state.uniform(size=(n, n_components))
        return resp / resp.sum(axis=1)[:, None]
    resp = np.zeros((n, n_components))
    if init_params == "kmeans":
        means = KMeans(n_clusters=n_components, n_init=1, random_state=random_state)
        resp[np.arange(n), means.fit(X, sample_weight=sample_weight).labels_] = 1
        return resp
    if init_params == "random_from_data":
        p = None if sample_weight is None else sample_weight / sample_weight.sum()
        seeds = random_state.choice(n, size=n_components, replace=False, p=p)
    else:
        _, seeds = kmeans_plusplus(X, n_components, sample_weight=sample_weight, random_state=random_state)
    resp[seeds, np.arange(n_components)] = 1
    return resp


def m_step(resp: Host, rows: Rows, model: Model, reg_covar: float, prior: Prior | None = None) -> Start:
    """One M-step from responsibilities (N, K), with `reg_covar` added to the variances as it is.

    For scikit-learn's four structures without a prior in float64 on the host, which compiles nothing.

    Raises:
      CollapsedError: where a covariance is not positive definite.
    """
    shares = resp if rows.sample_weight is None else resp * rows.sample_weight[:, None]
    if model not in SHAPED or prior is not None:
        return _compiled(resp, rows, model, reg_covar, prior)
    # scikit-learn's guard against empty components, in units of the weights: only their ratios matter.
    unit = 1.0 if rows.sample_weight is None else rows.sample_weight.mean()
    counts = shares.sum(0) + 10 * np.finfo(np.float64).eps * unit
    blocks = [slice(first, first + 16384) for first in range(0, len(shares), 16384)]
    x = rows.host
    means = sum(shares[b].T @ x[b].astype(np.float64) for b in blocks) / counts[:, None]
    if model == FULL:
        spread = np.stack([_scatter(x, shares[:, k], means[k], blocks) for k in range(len(means))])
        covariances = spread / counts[:, None, None]
        covariances[:, np.arange(x.shape[1]), np.arange(x.shape[1])] += reg_covar
        return Start(counts / counts.sum(), means, cholesky(covariances))
    if model == TIED:
        if (resp.sum(1) > 0).all():
            # Nothing cancels, however far apart the means are.
            within = sum(_scatter(x, shares[:, k], mean, blocks) for k, mean in enumerate(means))
        else:
            # As in scikit-learn every sample counts once, though only the seeds have responsibilities.
            weight = np.ones(len(x)) if rows.sample_weight is None else rows.sample_weight
            centre = np.average(x, axis=0, weights=weight).astype(np.float64)
            away = means - centre
            within = _scatter(x, weight, centre, blocks) - (counts[:, None] * away).T @ away
        covariance = within / counts.sum()
        covariance[np.diag_indices_from(covariance)] += reg_covar
        return Start(counts / counts.sum(), means, cholesky(covariance))
    variances = np.zeros_like(means)
    for b in blocks:
        for k, mean in enumerate(means):
            variances[k] += shares[b, k] @ np.square(x[b] - mean)
    variances = variances / counts[:, None] + reg_covar
    if model == SPHERICAL:
        variances = variances.mean(1)
    if not (variances > 0).all():
        raise CollapsedError
    assert model in (DIAG, SPHERICAL)
    return Start(counts / counts.sum(), means, np.sqrt(variances))


def _scatter(x: Host, weight: Host, centre: Host, blocks: list[slice]) -> Host:
    """Σ w (x − c)(x − c)ᵀ (D, D) in float64."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for b in blocks:
        some = np.flatnonzero(weight[b])
        residuals = x[b][some] - centre
        total += (weight[b][some, None] * residuals).T @ residuals
    return total


@functools.partial(jit, static_argnames=("model", "block_size"))
def _device_m_step(
    r: Array, x: Array, w: Array, reg_covar: Array, prior: Prior | None, *, model: Model, block_size: int
) -> GMMParams:
    _, variance = location_and_variance(x, w)
    zero, ridge = jnp.zeros(x.shape[1], x.dtype), jnp.broadcast_to(reg_covar, x.shape[1:])
    f = Context(zero, jnp.where(variance > 0, variance, 1), ridge, zero)
    f = with_prior(f, prior, model, (r.shape[1], x.shape[1]))
    return weighted_m_step(r, Data(x, w), f, model, block_size)


def _compiled(resp: Host, rows: Rows, model: Model, reg_covar: float, prior: Prior | None) -> Start:
    padded = np.zeros((rows.x.shape[0], resp.shape[1]), rows.x.dtype)
    padded[: len(resp)] = resp
    # A row that no seed took does not count at all.
    weight = rows.weight * jnp.asarray((padded.sum(1) > 0).astype(rows.x.dtype))
    n_rows = block_rows(rows.x.shape[0], resp.shape[1], rows.x.shape[1])
    params = _device_m_step(
        jnp.asarray(padded), rows.x, weight, jnp.asarray(reg_covar, rows.x.dtype), prior,
        model=model, block_size=n_rows,
    )  # fmt: skip
    start = Start(*host((params.weights, params.means, params.scale)))
    if not all(np.isfinite(leaf).all() for leaf in (start.means, *jax.tree.leaves(start.scale))):
        raise CollapsedError
    return start
