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
from jaxgmm.data import Context, Data, location_and_variance, summarise
from jaxgmm.em import weighted_m_step, with_prior
from jaxgmm.init._starts import start
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.priors import Prior
from jaxgmm.sklearn._conversion import FULL, SHAPED, SPHERICAL, TIED, CollapsedError, cholesky, host
from jaxgmm.sklearn._data import Host, Rows, padded

_BLOCK = 16384  # rows summed at a time
# Theirs, and the library's own starts, which take missing entries.
_OWN = {
    "kmeans": "kmeans",
    "k-means++": "kmeans++",
    "random": "random_resp",
    "random_from_data": "random_points",
}
INIT_PARAMS = tuple(_OWN)


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
    if init_params == "kmeans":
        means = KMeans(n_clusters=n_components, n_init=1, random_state=random_state)
        return np.eye(n_components)[means.fit(X, sample_weight=sample_weight).labels_]
    if init_params == "random_from_data":
        p = None if sample_weight is None else sample_weight / sample_weight.sum()
        seeds = random_state.choice(n, size=n_components, replace=False, p=p)
    else:
        _, seeds = kmeans_plusplus(X, n_components, sample_weight=sample_weight, random_state=random_state)
    resp = np.zeros((n, n_components))
    resp[seeds, np.arange(n_components)] = 1
    return resp


def m_step(resp: Host, rows: Rows, model: Model, reg_covar: float, prior: Prior | None = None) -> Start:
    """One M-step from responsibilities (N, K), with `reg_covar` added to the variances as it is.

    For scikit-learn's four structures without a prior in float64 on the host, which compiles nothing.

    Raises:
      CollapsedError: where a covariance is not positive definite.
    """
    if model not in SHAPED or prior is not None:
        return _compiled(resp, rows, model, reg_covar, prior)
    x, dense = rows.host, model in (FULL, TIED)
    weight = np.ones(len(x)) if rows.sample_weight is None else rows.sample_weight
    shares = resp if rows.sample_weight is None else resp * weight[:, None]
    # scikit-learn's guard against empty components, in units of the weights: only their ratios matter.
    counts = shares.sum(0) + 10 * np.finfo(np.float64).eps * weight.mean()
    means = _sum(shares, x) / counts[:, None]
    if model == TIED and not (resp.sum(1) > 0).all():
        # As in scikit-learn every sample counts once, though only the seeds have responsibilities.
        centre = _sum(weight, x) / weight.sum()
        away = means - centre
        scatters = (_scatter(x, weight, centre, dense) - (counts[:, None] * away).T @ away)[None]
    else:
        # About its own mean nothing cancels, however far apart the means are.
        parts = [_scatter(x, share, mean, dense) for share, mean in zip(shares.T, means, strict=True)]
        scatters = np.stack(parts)
    if dense:
        tied = scatters.sum(0) / counts.sum()
        covariances = tied if model == TIED else scatters / counts[:, None, None]
        scale = cholesky(covariances + reg_covar * np.eye(x.shape[1]))
    else:
        variances = scatters / counts[:, None] + reg_covar
        variances = variances.mean(1) if model == SPHERICAL else variances
        if not (variances > 0).all():
            raise CollapsedError
        scale = np.sqrt(variances)
    return Start(counts / counts.sum(), means, scale)


def _sum(shares: Host, x: Host) -> Any:
    """Σ shareₙ xₙ in float64, (D,) or (K, D), without a copy of all rows."""
    firsts = range(0, len(x), _BLOCK)
    return sum(shares[i : i + _BLOCK].T @ x[i : i + _BLOCK].astype(np.float64) for i in firsts)


def _scatter(x: Host, weight: Host, centre: Host, dense: bool) -> Any:
    """Σ w (x − c)(x − c)ᵀ (D, D) in float64, or its diagonal (D,)."""
    total: Any = 0.0
    for first in range(0, len(x), _BLOCK):
        some = first + np.flatnonzero(weight[first : first + _BLOCK])
        residuals = x[some] - centre
        total = total + (
            (weight[some, None] * residuals).T @ residuals if dense else weight[some] @ np.square(residuals)
        )
    return total


@functools.partial(jit, static_argnames=("model", "block_size"))
def _device_m_step(
    r: Array, x: Array, w: Array, reg_covar: Array, prior: Prior | None, *, model: Model, block_size: int
) -> GMMParams:
    w = jnp.where(r.sum(1) > 0, w, 0)  # a row that no seed took does not count at all
    _, variance = location_and_variance(x, w)
    zero, ridge = jnp.zeros(x.shape[1], x.dtype), jnp.broadcast_to(reg_covar, x.shape[1:])
    f = Context(zero, jnp.where(variance > 0, variance, 1), ridge, zero)
    f = with_prior(f, prior, model, (r.shape[1], x.shape[1]))
    return weighted_m_step(r, Data(x, w), f, model, block_size)


def _compiled(resp: Host, rows: Rows, model: Model, reg_covar: float, prior: Prior | None) -> Start:
    dtype, block_size = rows.x.dtype, rows.block_size(resp.shape[1])
    params = _device_m_step(
        padded(resp, dtype), rows.x, rows.weight, np.asarray(reg_covar, dtype), prior,
        model=model, block_size=block_size,
    )  # fmt: skip
    return _on_host(params)


def _on_host(params: GMMParams) -> Start:
    log_weights, means, scale = host((params.log_weights, params.means, params.scale))
    if not all(np.isfinite(leaf).all() for leaf in (means, *jax.tree.leaves(scale))):
        raise CollapsedError
    return Start(np.exp(log_weights), means, scale)


@functools.partial(jit, static_argnames=("model", "n_components", "block_size", "init"))
def _own_start(
    key: Array, data: Data, reg_covar: Array, prior: Prior | None,
    *, model: Model, n_components: int, block_size: int, init: str,
) -> GMMParams:  # fmt: skip
    context = summarise(data, reg_covar)
    context = context._replace(ridge=jnp.full_like(context.ridge, reg_covar))
    n_active = jnp.asarray(n_components, jnp.int32)
    return start(
        key, n_active, data, context, prior, model=model, n_components=n_components, block_size=block_size,
        init=init,
    )  # fmt: skip


def of_known(
    init_params: str, rows: Rows, model: Model, n_components: int, reg_covar: float, prior: Prior | None,
    random_state: Any,
) -> Start:  # fmt: skip
    """A start of the library's own, from rows with missing entries or labels.

    Raises:
      CollapsedError: where it is not finite.
    """
    key = jax.random.key(int(random_state.randint(np.iinfo(np.int32).max)))
    data, block_size = rows.for_sums(model, n_components)
    params = _own_start(
        key, data, np.asarray(reg_covar, rows.x.dtype), prior,
        model=model, n_components=n_components, block_size=block_size, init=_OWN[init_params],
    )  # fmt: skip
    return _on_host(params)
