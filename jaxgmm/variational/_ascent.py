"""Variational EM: a compiled loop that climbs the evidence bound."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.tied import tied
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import ModelLike
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, centring, location_and_variance
from jaxgmm.density import check_labels, check_ungrouped, get_data
from jaxgmm.em import reference_params
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.linalg import epsilon
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.kernels.programs import jit
from jaxgmm.priors import conjugate
from jaxgmm.solvers.squarem import Status
from jaxgmm.variational import _model as model
from jaxgmm.variational._bound import evidence_bound, expected
from jaxgmm.variational._model import VariationalPosterior, VariationalPrior, root

TOL = 1e-3
MAX_ITER = 1000
HISTORY_SIZE = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VariationalFit:
    """A variational posterior and how its fit ended; under `vmap` every array has leading batch axes.

    Attributes:
      posterior: the posterior.
      bound: () the evidence bound, a total in nats with every constant: never above the log-evidence
        log p(X), so that models can be compared by it.
      n_iter: () int32.
      status: () int32, a `Status`.
      history: (history_size,) the bound after 1, 2, … iterations; −inf past n_iter.
    """

    posterior: VariationalPosterior
    bound: Array  # ()
    n_iter: Array  # ()
    status: Array  # ()
    history: Array  # (history_size,)


def settled(value: Array, before: Array, tol: Array) -> Array:
    """() bool: a bound changed by less than `tol`, or by no more than its rounding if tol > 0.

    In float32 a bound need never come to rest below its last digits, and tol may lie below those.
    """
    rounding = jnp.where(tol > 0, 4 * epsilon(value.dtype) * jnp.abs(value), 0)
    return jnp.abs(value - before) < jnp.maximum(tol, rounding)


def maximise(
    q: VariationalPosterior, moments: Statistics, prior: VariationalPrior, reg_covar: Array
) -> VariationalPosterior:
    """The posterior that is best for responsibilities, from their moments about the means and scale of q.

    With n_k, x̄_k and W_k the weighted counts, means and scatters: β_k = β + n_k, ν_k = ν + n_k,
    m_k = (β m + n_k x̄_k) / β_k, and ν_k E[Λ_k]⁻¹ = S + W_k + n_k reg_covar I
    + β n_k / β_k (x̄_k − m)(x̄_k − m)ᵀ. All of it is added up in coordinates where E[Λ_k] of q is I.

    References:
      Bishop (2006), equations 10.58–10.63.
    """
    structure, n = q.structure, moments.weight
    k, d = q.means.shape
    whiten = structure.whitener(q.scale)
    gap = whiten((prior.mean[None, :] - q.means)[:, :, None])
    # Columns whose squares are the prior's covariance, counted once, and the ridge, counted n times.
    own = root(prior, structure).reshape(d, -1)
    ridge = jnp.sqrt(reg_covar) * (jnp.eye(d) if structure in (full, tied) else jnp.ones((d, 1))).astype(
        n.dtype
    )
    columns = whiten(jnp.broadcast_to(jnp.concatenate([own, ridge], axis=1)[None], (k, d, 2 * own.shape[1])))
    times = jnp.repeat(jnp.stack([jnp.ones_like(n), n], axis=1), own.shape[1], axis=1)
    strength = jnp.broadcast_to(prior.mean_precision, n.shape)
    target = conjugate(
        structure, q.scale, (n, moments.first, moments.second), (strength, gap[:, :, 0]),
        jnp.broadcast_to(prior.dof, n.shape), columns, times,
    )  # fmt: skip
    dof = target.weight
    scale, _ = structure.update(q.scale, dof, target.centre, target.second, jnp.zeros_like(prior.mean))
    if structure == tied:
        dof = jnp.broadcast_to(dof.mean(), dof.shape)
    means = q.means + structure.colour(q.scale, target.mean[:, :, None])[:, :, 0]
    return VariationalPosterior(*model.counted(prior, n), means, strength + n, dof, scale, structure)


@functools.partial(jit, static_argnames=("structure", "block_size"))
def start(
    r: Array,
    data: Data,
    prior: VariationalPrior,
    reg_covar: Array,
    *,
    structure: Covariance,
    block_size: int,
) -> VariationalPosterior:
    """The posterior of given responsibilities (N, K); rows of zeros count for nothing."""
    location, variance = _location(data)
    means = jnp.broadcast_to(location, (r.shape[1], location.shape[0]))
    about = reference_params(Model(gaussian(structure)), means, jnp.where(variance > 0, variance, 1))
    q = dataclasses.replace(
        model.without_data(prior, structure, r.shape[1]), means=about.means, scale=about.scale
    )

    def again(_: int, q: VariationalPosterior) -> VariationalPosterior:
        params = dataclasses.replace(about, means=q.means, scale=q.scale)
        new = maximise(q, exact.sums(params, data, block_size=block_size, resp=r), prior, reg_covar)
        return varying_like(new, r, data)

    # Twice: the second pass measures about the first one's result, where nothing cancels.
    return lax.fori_loop(0, 2, again, varying_like(q, r, data))


@functools.partial(jit, static_argnames=("block_size", "history_size"))
def ascend(
    q: VariationalPosterior,
    data: Data,
    bound: Array,
    tol: Array,
    limit: Array,
    reg_covar: Array,
    prior: VariationalPrior,
    *,
    block_size: int,
    history_size: int,
) -> VariationalFit:
    """At most `limit` iterations from q, whose bound () was `bound`; −inf where it is not known."""

    def going(fit: VariationalFit) -> Array:
        return (fit.status == Status.MAX_ITER) & (fit.n_iter < limit)

    def iterate(fit: VariationalFit) -> VariationalFit:
        params = expected(fit.posterior, reg_covar)
        moments = exact.sums(params, data, block_size=block_size)
        image = maximise(fit.posterior, moments, prior, reg_covar)
        value = evidence_bound(params, moments, image, prior)
        finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves((image, value))]).all()
        ended = jnp.where(settled(value, fit.bound, tol), Status.CONVERGED, Status.MAX_ITER)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), image, fit.posterior)
        after = VariationalFit(
            posterior=kept,
            bound=jnp.where(finite, value, fit.bound),
            n_iter=fit.n_iter + 1,
            status=jnp.where(finite, ended, Status.NONFINITE).astype(jnp.int32),
            history=fit.history.at[fit.n_iter].set(value, mode="drop"),
        )
        return varying_like(after, q, data)

    none = jnp.full(history_size, -jnp.inf, data.x.dtype)
    begun = VariationalFit(q, bound, jnp.zeros((), jnp.int32), jnp.full((), Status.MAX_ITER, jnp.int32), none)
    return lax.while_loop(going, iterate, varying_like(begun, data))


def _location(data: Data) -> tuple[Array, Array]:
    """Mean (D,) and variance (D,) of the features; 0 and 1 where they are seen through projections."""
    if data.view.projection is not None:
        return jnp.zeros(data.n_features, data.x.dtype), jnp.ones(data.n_features, data.x.dtype)
    return location_and_variance(data.x, data.weight, observed=data.view.observed)


@jit
def _centred(data: Data) -> tuple[Data, Array]:
    """The data less a shift (D,): their mean, where it is far enough from 0 for that to keep digits."""
    shift = centring(*_location(data))
    return data.less(shift), shift


def fit_variational(
    resp: ArrayLike,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    prior: VariationalPrior | None = None,
    covariance_type: ModelLike = "full",
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = 0.0,
    history_size: int = HISTORY_SIZE,
) -> VariationalFit:
    """The Bayesian mixture by variational EM, from starting responsibilities: one jitted `while_loop`.

    The posterior is factorised between labels and parameters, q(z) q(π, μ, Λ), and each factor is made the
    best by turns. Components that are not needed lose their samples, and go back to the prior.

    Args:
      resp: (N, K), rows summing to 1, such as jax.nn.one_hot(labels, K); where to start.
      X: (N, D), or `Data`. What is missing, or hidden by noise or projections, is a part of the posterior:
        given the labels, each row has a normal distribution of its own, with the precision E[Λ_k].
      sample_weight: (N,) or None for ones.
      prior: a `VariationalPrior`, or None for `variational_prior`'s.
      covariance_type: "full", "tied", "diag" or "spherical".
      tol: stop when the bound, a total, changes by less; in float32 also when it changes by no more than its
        rounding. 0 takes max_iter iterations.
      max_iter: limit on the iterations.
      reg_covar: variance by which the samples themselves are uncertain.
      history_size: how many entries `history` has; static.

    Returns:
      VariationalFit, whose `bound` is the complete evidence bound.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN, or a prior that is not proper.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> resp = jaxgmm.init.random_resp(jax.random.key(1), X, 2)
      >>> fit = jaxgmm.fit_variational(resp, X, covariance_type="spherical")
      >>> jaxgmm.Status(int(fit.status)).name
      'CONVERGED'

    References:
      Bishop (2006), §10.2; Blei & Jordan (2006), Variational inference for Dirichlet process mixtures.
    """
    data = get_data(X, sample_weight)
    check_ungrouped(data, "fit_variational")
    x = data.x
    r = validate.responsibilities(resp, x, data.weight)
    check_labels(data, r.shape[1])
    structure = model.structure_of(covariance_type)
    if prior is None:
        prior = model.variational_prior(data, r.shape[1], structure)
    checked = model.check(prior, structure, data.n_features, x.dtype)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    if data.weight is None:
        data = dataclasses.replace(data, weight=jnp.ones(x.shape[0], x.dtype))
    # Means are not rounded at a large offset: the fit is about the mean of the data.
    centred, shift = _centred(data.by_row())
    about = dataclasses.replace(checked, mean=checked.mean - shift)
    component, k = gaussian(structure), r.shape[1]
    q = start(r, centred, about, reg, structure=structure, block_size=exact.rows_of(centred, component, k))
    known = (
        jnp.asarray(-np.inf, x.dtype),
        validate.not_negative(tol, "tol", x.dtype),
        validate.step_limit(max_iter),
    )
    size = validate.count(history_size, "history_size", 0)
    if not data.is_complete:
        centred = in_tiles(
            dataclasses.replace(centred, pattern=data.pattern, patterns=data.patterns), structure
        )
    rows = exact.rows_of(centred, component, k)
    fit = ascend(q, centred, *known, reg, about, block_size=rows, history_size=size)
    moved = dataclasses.replace(fit.posterior, means=fit.posterior.means + shift[None, :])
    return dataclasses.replace(fit, posterior=moved)
