"""Information criteria, the best of several fits, and the check that raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.density import score
from jaxgmm.em import e_step
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.result import FitResult
from jaxgmm.solvers.squarem import Status

REMEDIES = {
    Status.MAX_ITER: "did not converge within max_iter steps. Raise max_iter, or loosen tol",
    Status.NONFINITE: "met a likelihood that is not finite. Scale the data, or look for NaN and huge values",
    Status.DECREASED: "met a step that lowered the likelihood. Check the update of your own structure, or "
    "raise reg_covar",
    Status.DEGENERATE: "has a component whose covariance is singular: it has too few distinct points for its "
    "features. Use fewer components, a covariance_type with fewer parameters ('diag', 'tied', factor(q)), "
    "prior=default_prior(X, ...), or a larger reg_covar",
}


def n_parameters(params: GMMParams) -> int | Array:
    """Free parameters of the mixture: weights, means and covariances of the components that are on.

    An int for a concrete mixture; an int32 () inside `jit` or `vmap`, where the number that are on is traced.

    Raises:
      ValueError: for a batch of mixtures; use jax.vmap.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], "tied")
      >>> jaxgmm.n_parameters(params)
      8
    """
    on = params.log_weights > -jnp.inf
    if on.ndim != 1:
        raise ValueError(f"params must hold one mixture; got {on.shape}. Use jax.vmap(n_parameters)")
    k: Any = int(np.asarray(on).sum()) if validate.is_concrete(on) else on.sum().astype(jnp.int32)
    free: int | Array = params.model.n_parameters(k, params.n_features)
    return free


def _terms(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None) -> tuple[Array, Any, Any]:
    """−2 log L (), the number of free parameters (), and that of samples () or the sum of their weights."""
    mean = score(params, X, sample_weight)
    rows: Any = X.x if isinstance(X, Data) else X
    sample_weight = X.weight if isinstance(X, Data) else sample_weight
    n: Any = np.asarray(np.shape(rows)[0], mean.dtype)
    if sample_weight is not None:
        xp: Any = jnp if isinstance(sample_weight, Array) else np
        n = xp.asarray(sample_weight, mean.dtype).sum()
    return -2 * mean * n, jnp.asarray(n_parameters(params), mean.dtype), n


def aic(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None) -> Array:
    """() Akaike's criterion, −2 log L + 2 p; smaller is better.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) counts of the samples, or None for ones.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.aic(params, [[0.0], [0.0]])), 3)  # −2 · 2 · log N(0 | 0, 1) + 2 · 2
      7.676

    References:
      Akaike (1974), A new look at the statistical model identification.
    """
    deviance, free, _ = _terms(params, X, sample_weight)
    return deviance + 2 * free


def bic(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None) -> Array:
    """() Schwarz's criterion, −2 log L + p log n; smaller is better (the negative of mclust's).

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) counts of the samples, or None for ones; n is their sum.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.bic(params, [[0.0], [0.0]])), 3)  # −2 · 2 · log N(0 | 0, 1) + 2 log 2
      5.062

    References:
      Schwarz (1978), Estimating the dimension of a model.
    """
    deviance, free, n = _terms(params, X, sample_weight)
    return deviance + free * jnp.log(n)


def icl(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None) -> Array:
    """() the integrated completed likelihood, bic − 2 Σ_n log max_k r_nk; smaller is better.

    It adds to `bic` what is uncertain about the samples' labels, and so asks for clusters that are apart.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) counts of the samples, or None for ones.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-9.0], [9.0]], [1.0, 1.0], "spherical")
      >>> X = [[-9.0], [9.0]]
      >>> bool(abs(jaxgmm.icl(params, X) - jaxgmm.bic(params, X)) < 1e-5)
      True

    References:
      Biernacki, Celeux & Govaert (2000), Assessing a mixture model for clustering with the integrated
      completed likelihood, equation 2 with the labels of highest posterior probability.
    """
    value = bic(params, X, sample_weight)
    certainty = jnp.log(e_step(params, X)[0].max(1))
    if isinstance(X, Data):
        sample_weight = X.weight
    weights = jnp.ones_like(certainty) if sample_weight is None else jnp.asarray(sample_weight, value.dtype)
    return value - 2 * (weights * certainty).sum()


def failed(results: FitResult) -> Array:
    """Which fits (...,) ended as NONFINITE, DEGENERATE or DECREASED."""
    return has_failed(results.status) | ~jnp.isfinite(results.log_likelihood)


def has_failed(status: Array) -> Array:
    """Whether a status is NONFINITE, DEGENERATE or DECREASED."""
    return (status == Status.NONFINITE) | (status == Status.DEGENERATE) | (status == Status.DECREASED)


def best(results: FitResult, criterion: Callable[[GMMParams], Array] | ArrayLike | None = None) -> FitResult:
    """The best of several fits: the highest objective, or the smallest criterion. Failed fits are skipped.

    Jittable. If every fit has failed, a failed one is returned, and its status says so.

    Args:
      results: a FitResult with one leading axis, as `fit_restarts`, `fit_components` or `vmap` give it.
      criterion: None for the highest objective, which without a prior is the log_likelihood; or what
        should be smallest: an array with a value for each fit, or a function of one mixture, such as
        `lambda params: jaxgmm.bic(params, X)`.

    Returns:
      FitResult without the leading axis.

    Raises:
      ValueError: if results has no leading axis or criterion does not fit it.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_restarts(jax.random.key(1), X, 2, covariance_type="spherical", n_init=4)
      >>> one = jaxgmm.best(results, lambda params: jaxgmm.bic(params, X))
      >>> one.status.shape
      ()
    """
    leading = jnp.shape(results.status)
    if len(leading) != 1:
        raise ValueError(f"results must have one leading axis, of fits; got status of shape {leading}")
    if criterion is None:
        value = -results.objective
    elif callable(criterion):
        value = jax.vmap(criterion)(results.params)
    else:
        value = jnp.asarray(criterion, results.log_likelihood.dtype)
    if value.shape != leading:
        raise ValueError(f"criterion must give a value for each fit, {leading}; got shape {value.shape}")
    return _least(results, value)


@jit
def _least(results: FitResult, value: Array) -> FitResult:
    usable = ~failed(results) & jnp.isfinite(value)
    chosen = jnp.argmin(jnp.where(usable, value, jnp.inf))
    return jax.tree.map(lambda a: a[chosen], results)


def check(result: FitResult) -> FitResult:
    """Raise if a fit, or any of several, did not converge, saying what can be done; else return it.

    For concrete results, outside `jit`.

    Raises:
      RuntimeError: naming the status, the index and the remedy.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_restarts(jax.random.key(1), X, 2, covariance_type="spherical", n_init=4)
      >>> result = jaxgmm.check(jaxgmm.best(results))
    """
    if not validate.is_concrete(result.status):
        raise TypeError("check needs a concrete result; inside jit look at result.status instead")
    statuses = np.atleast_1d(np.asarray(result.status))
    bad = np.argwhere(statuses != Status.CONVERGED)
    if not len(bad):
        return result
    status = Status(int(statuses[tuple(bad[0])]))
    where = "the fit" if np.ndim(result.status) == 0 else f"fit {', '.join(str(i) for i in bad[0])}"
    more = f" ({len(bad)} of {statuses.size} fits did not converge.)" if statuses.size > 1 else ""
    raise RuntimeError(f"{status.name}: {where} {REMEDIES[status]}.{more}")
