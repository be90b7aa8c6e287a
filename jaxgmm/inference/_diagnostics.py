"""Diagnostics of a fit's derivative: the EM map's rate, and the residual of the linear solve."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _coordinates as coordinates
from jaxgmm import _validate as validate
from jaxgmm import em, priors
from jaxgmm.data import Data, summarise
from jaxgmm.density import data_of
from jaxgmm.em import REG_COVAR
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.exact import WHITENED, rows_of
from jaxgmm.kernels.linalg import epsilon
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.priors import Prior
from jaxgmm.solvers import implicit
from jaxgmm.solvers.krylov import spectral_radius


class FitDiagnostics(NamedTuple):
    """What the EM map looks like at a fit, and how well its linear systems are solved there.

    Attributes:
      rate: () ρ, the spectral radius of the map's Jacobian. Plain EM's error shrinks by ρ per step, and a
        fit's derivatives amplify by up to 1/(1 − ρ). Near 1: overlapping, empty or equal components.
        Above 1: a saddle point, which EM would leave at the slightest push.
      identified: () bool, whether 1 − ρ is above rounding; else some parameters are not determined by the
        data, and their derivatives mean nothing.
      residual: () relative residual of the derivative's linear solve for a random right-hand side.
      n_products: () int32, products with the Jacobian that the solve took.
      step: () Fisher length of one more EM step; at a fixed point, 0 up to the fit's tol.
      distance: () step · ρ/(1 − ρ), an estimate of how far the fixed point still is.
    """

    rate: Array
    identified: Array
    residual: Array
    n_products: Array
    step: Array
    distance: Array


@functools.partial(jit, static_argnames=("block_size", "rate_only"))
def _diagnose(
    params: GMMParams,
    data: Data,
    reg_covar: Array,
    prior: Prior | None,
    *,
    block_size: int,
    rate_only: bool,
) -> FitDiagnostics | Array:
    f = em.with_prior(summarise(data, reg_covar), prior, params.model, params.means.shape)
    point = translate(params, -f.shift)

    def evaluate(p: GMMParams) -> implicit.Evaluation:
        return em.evaluate(WHITENED, block_size, None, p, em.Problem(data, f))

    j = implicit.jacobian(lambda p: evaluate(p).image, point, coordinates.isometric(params.model))
    probe = j.encode(j.decode(jax.random.normal(jax.random.key(0), (j.size,), data.x.dtype)))
    rate = spectral_radius(j.matvec, probe)
    if rate_only:
        return rate
    step = evaluate(point).step
    answer = implicit.krylov(lambda v: v - j.matvec(v), probe)
    left = 1 - rate
    identified = left > epsilon(data.x.dtype) ** 0.5
    distance = jnp.where(identified, step * rate / jnp.where(identified, left, 1), jnp.inf)
    return FitDiagnostics(rate, identified, answer.residual, answer.n_products, step, distance)


def _call(
    rate_only: bool, params: GMMParams, X: Any, sample_weight: Any, reg: ArrayLike, prior: Prior | None
) -> Any:
    params, data = data_of(params, X, sample_weight)
    data, x = data.by_row(), data.x
    reg_covar = validate.not_negative(reg, "reg_covar", x.dtype)
    if prior is not None:
        prior = priors.check(prior, params.model, params.means.shape, x.dtype)
    rows = block_rows(x.shape[0], *params.means.shape)
    if not data.is_complete:
        rows = rows_of(data, params.component, params.n_components)
    return _diagnose(params, data, reg_covar, prior, block_size=rows, rate_only=rate_only)


def convergence_rate(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
) -> Array:
    """() ρ, the spectral radius of the EM map's Jacobian at a fit: plain EM converges at this rate.

    At a maximum of the likelihood the Jacobian is I − I_c⁻¹ I_o, with the Fisher information of complete and
    of observed data: ρ is the largest fraction of information that is missing. In coordinates where I_c is
    the identity it is symmetric, and 40 steps of Arnoldi's iteration find its largest eigenvalue.

    Args:
      params: a converged fit; elsewhere the number has no meaning.
      X: (N, D), the data of the fit.
      sample_weight: (N,) or None for ones, as in the fit.
      reg_covar: as in the fit.
      prior: as in the fit.

    Raises:
      ValueError, TypeError: as `fit`.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> X = [[-5.0], [-3.0], [3.0], [5.0]]
      >>> bool(jaxgmm.inference.convergence_rate(params, X) < 0.1)  # well separated: EM is quick
      True

    References:
      Dempster, Laird & Rubin (1977), theorem 4 and equation 3.16; Meng & Rubin (1991).
    """
    return _call(True, params, X, sample_weight, reg_covar, prior)


def fit_diagnostics(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
) -> FitDiagnostics:
    """How well determined a fit is, and how well its derivatives are computed; jittable.

    It costs about as much as a gradient of the fit.

    Args:
      params: a fit.
      X: (N, D), the data of the fit.
      sample_weight: (N,) or None for ones, as in the fit.
      reg_covar: as in the fit.
      prior: as in the fit.

    Returns:
      FitDiagnostics.

    Raises:
      ValueError, TypeError: as `fit`.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> report = jaxgmm.inference.fit_diagnostics(params, [[-5.0], [-3.0], [3.0], [5.0]])
      >>> bool(report.identified), bool(report.residual < 1e-3)
      (True, True)

    References:
      Meng & Rubin (1991), Using EM to obtain asymptotic variance-covariance matrices: the SEM algorithm.
    """
    return _call(False, params, X, sample_weight, reg_covar, prior)
