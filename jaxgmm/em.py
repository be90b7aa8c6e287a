"""Expectation–maximisation: its two steps, their composition, and the fit that is its fixed point."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.components.covariance.base import Family
from jaxgmm.components.covariance.registry import get_family
from jaxgmm.density import e_step as e_step
from jaxgmm.density import inputs
from jaxgmm.em_map import frame, maximise, weighted_m_step, with_prior
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.blocked_sum import AxisName, rows_over
from jaxgmm.kernels.exact import Moments, accumulate, rows_for
from jaxgmm.kernels.programs import jit
from jaxgmm.loop import (
    DEFAULT_OPTIONS,
    MAX_ITER,
    REG_COVAR,
    TOL,
    EMOptions,
    check_options,
    run,
)
from jaxgmm.mixture import GMMParams, scale_like, translate
from jaxgmm.parallel import _sharded as sharded
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult


def _checked(prior: Prior | None, family: Family, shape: tuple[int, ...], x: Array) -> Prior | None:
    return None if prior is None else priors.check(prior, family, shape, x.dtype)


@functools.partial(jit, static_argnames=("family", "block_size"))
def _m_step(
    r: Array,
    x: Array,
    w: Array | None,
    reg_covar: Array,
    prior: Prior | None,
    *,
    family: Family,
    block_size: int,
) -> GMMParams:
    f = with_prior(frame(x, w, reg_covar), prior, family, (r.shape[1], x.shape[1]))
    return translate(weighted_m_step(r, x, w, f, family, block_size), f.shift)


def m_step(
    resp: ArrayLike,
    X: ArrayLike,
    *,
    covariance_type: str | Family = "full",
    sample_weight: ArrayLike | None = None,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
) -> GMMParams:
    """The M-step: the mixture that maximises the expected complete-data log-likelihood under `resp`.

    π_k = n_k / Σ n, μ_k = Σ_n w r x / n_k, Σ_k = Σ_n w r (x − μ_k)(x − μ_k)ᵀ / n_k + ridge, with
    n_k = Σ_n w_n r_nk, and Σ_k restricted to the covariance structure.

    Args:
      resp: (N, K), rows summing to 1.
      X: (N, D).
      covariance_type: a name or a `Family`.
      sample_weight: (N,) or None for ones.
      reg_covar: ridge on the diagonals, in units of X squared; reg_covar · Var x_j for a feature whose
        variance is below 1.
      prior: None, or a `Prior` that takes part in the maximum: its equations stand there.

    Returns:
      GMMParams. A component without responsibility is switched off and lies at the mean of the data.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN, negative weights or an unknown name.

    Example:
      >>> import jaxgmm
      >>> resp = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
      >>> params = jaxgmm.m_step(resp, [[0.0], [2.0], [7.0], [9.0]])
      >>> params.means.tolist()
      [[1.0], [8.0]]

    References:
      Bishop (2006), equations 9.24–9.26.
    """
    x = validate.data(X)
    w = validate.weight(sample_weight, x)
    r = validate.responsibilities(resp, x, w)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    family = get_family(covariance_type)
    scale_like(family, r.shape[1], x.shape[1])
    checked = _checked(prior, family, (r.shape[1], x.shape[1]), x)
    options: dict[str, Any] = {
        "family": family,
        "block_size": rows_for(family, x.shape[0], r.shape[1], x.shape[1]),
    }
    if prior is None and (unit := units.units_of(x, w, family)) is not None:
        ridge = units.ridge_in_units(reg, unit)
        return units.rescale(_m_step(r, units.divide(x, unit), w, ridge, None, **options), unit)
    return _m_step(r, x, w, reg, checked, **options)


@functools.partial(jit, static_argnames=("block_size", "axis_name"))
def _em_step(
    params: GMMParams,
    x: Array,
    w: Array | None,
    reg_covar: Array,
    prior: Prior | None,
    *,
    block_size: int,
    axis_name: AxisName,
) -> tuple[GMMParams, Moments]:
    with rows_over(axis_name):
        f = with_prior(frame(x, w, reg_covar), prior, params.family, params.means.shape)
        relative = translate(params, -f.shift)
        moments = accumulate(relative, x, w, shift=f.shift, block_size=block_size)
    new, _ = maximise(relative, moments, f.ridge, f.prior)
    return translate(new, f.shift), moments


def _prepare(
    params: GMMParams, X: ArrayLike, sample_weight: ArrayLike | None, block_size: int | None
) -> tuple[GMMParams, Array, Array | None, int]:
    params, x = inputs(params, X)
    w = validate.weight(sample_weight, x)
    if block_size is None:
        rows = rows_for(params.family, x.shape[0], *params.means.shape)
    else:
        rows = min(validate.count(block_size, "block_size", 1), x.shape[0])
    return params, x, w, rows


def em_step(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    block_size: int | None = None,
    axis_name: AxisName = None,
) -> tuple[GMMParams, Moments]:
    """One EM iteration, m_step ∘ e_step, by row blocks: nothing of size (N, K) is ever stored.

    Args:
      params: the mixture.
      X: (N, D).
      sample_weight: (N,) or None for ones.
      reg_covar: as in `m_step`.
      prior: as in `m_step`.
      block_size: rows per block; None chooses from the shapes.
      axis_name: inside `shard_map`, `pmap` or `vmap`, the name of a mapped axis of which X holds one part of
        the rows: the step is then that of all of them, and the same in every part. Static.

    Returns:
      The next params, and the `Moments` about `params`; moments.log_likelihood is the total at `params`.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN or negative weights.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> params, moments = jaxgmm.em_step(params, [[-2.0], [-1.0], [1.0], [2.0]])
      >>> params.weights.tolist()
      [0.5, 0.5]
    """
    params, x, w, rows = _prepare(params, X, sample_weight, block_size)
    reg = validate.not_negative(reg_covar, "reg_covar", x.dtype)
    checked = _checked(prior, params.family, params.means.shape, x)
    if prior is None and axis_name is None and (unit := units.units_of(x, w, params.family)) is not None:
        new, moments = _em_step(
            units.rescale(params, 1 / unit), units.divide(x, unit), w, units.ridge_in_units(reg, unit), None,
            block_size=rows, axis_name=None,
        )  # fmt: skip
        log_unit = jnp.asarray(np.log(unit).sum(), x.dtype)
        total = moments.log_likelihood - moments.total_weight * log_unit
        return units.rescale(new, unit), dataclasses.replace(moments, log_likelihood=total)
    return _em_step(params, x, w, reg, checked, block_size=rows, axis_name=axis_name)


_fit = jit(
    run,
    static_argnames=("block_size", "history_size", "unconverged", "kernel"),
)


def fit(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool | Array = True,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Fit a mixture by EM from starting parameters: one jitted `while_loop`, to its fixed point.

    Args:
      params: where to start; its family and number of components are kept.
      X: (N, D); float32 or, where JAX allows it, float64. Other types are promoted.
      sample_weight: (N,) or None for ones; a weight of 0 leaves the row out exactly.
      tol: stop when the estimated distance to the fixed point is below it. The distance is the Fisher length
        of `maximise`: about the mixture's own standard deviations, per sample; the log-likelihood is then
        short of its optimum by about tol²/2 per sample. In float32 a fit also stops when its steps are down
        to rounding. 0 takes max_iter steps.
      max_iter: limit on EM steps.
      reg_covar: as in `m_step`.
      prior: None, or a `Prior`: the fit then maximises the posterior, total log-likelihood + `log_prior`. A
        component that is on stays on without data, where the prior puts it; one that is off stays off.
      accelerate: SQUAREM extrapolation; False for plain EM. For a family without natural coordinates,
        always plain.
      options: `EMOptions`: the kernel, block size, history, and what becomes of untrusted derivatives.

    On a CPU whose cores JAX shows as devices (`use_cores`), a large fit is divided among them.

    Of these only the options are static: other values compile
    nothing anew.

    Derivatives of the result with respect to X, sample_weight, reg_covar and prior, forward and reverse, are
    those of the fixed point, by the implicit function theorem; params, the start, have none. At a sample
    weight of 0 they are one-sided. `fit_diagnostics` says how well conditioned they are.

    Returns:
      FitResult. Nothing raises when a fit goes wrong: `status` tells, and `params` are the last good ones.
      `check(result)` raises.

    Raises:
      ValueError, TypeError: for arguments that do not fit together, NaN data, negative tol.

    Example:
      >>> import jax, jaxgmm
      >>> truth = jaxgmm.make_params([0.3, 0.7], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> X, _ = jaxgmm.sample(jax.random.key(0), truth, 2000)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> result = jaxgmm.fit(start, X)
      >>> jaxgmm.Status(int(result.status)).name
      'CONVERGED'

    References:
      Dempster, Laird & Rubin (1977); Varadhan & Roland (2008) for the extrapolation.
    """
    block_size = check_options(options).block_size
    params, x, w, rows = _prepare(params, X, sample_weight, block_size)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype)
    checked = _checked(prior, params.family, params.means.shape, x)
    static: dict[str, Any] = {
        "block_size": rows,
        "history_size": options.history_size,
        "unconverged": options.unconverged_gradient,
        "kernel": quadratic.choose(options.kernel, params.family, x.shape[0], *params.means.shape),
    }
    if prior is None and (unit := units.units_of(x, w, params.family)) is not None:
        tol_, limit, reg, plain = numbers
        result = _fit(
            units.rescale(params, 1 / unit), units.divide(x, unit), w, tol_, limit,
            units.ridge_in_units(reg, unit), plain, None, **static
        )  # fmt: skip
        return units.multiply_back(result, unit)
    if (mesh := sharded.over_cores(params, x, w, numbers, checked)) is not None:
        result = sharded.fit_divided(params, x, w, numbers, checked, mesh=mesh, **static)
        return jax.device_put(result, x.sharding)
    return _fit(params, x, w, *numbers, checked, **static)
