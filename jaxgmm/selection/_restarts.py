"""Restarts: fits from many starts, and of several numbers of components padded to the largest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm._batch import concurrency, run_many
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, summarise
from jaxgmm.em import (
    DEFAULT_OPTIONS,
    MAX_ITER,
    REG_COVAR,
    TOL,
    EMOptions,
    check_options,
    with_prior,
)
from jaxgmm.init._starts import Init, check_init, start
from jaxgmm.kernels import quadratic
from jaxgmm.kernels.base import Kernel
from jaxgmm.kernels.exact import rows_for
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, scale_like
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import best


@functools.partial(
    jit,
    static_argnames=(
        "default",
        "model",
        "n_components",
        "n_init",
        "init",
        "block_size",
        "history_size",
        "kernels",
    ),
)
def _fit_batch(
    key: Array,
    x: Array,
    w: Array | None,
    sizes: Array | None,
    tol: Array,
    max_iter: Array,
    reg_covar: Array,
    accelerate: Array,
    prior: Prior | None,
    starts: GMMParams | None,
    *,
    default: bool,
    model: Model,
    n_components: int,
    n_init: int,
    init: Init | None,
    block_size: int,
    history_size: int,
    kernels: tuple[Kernel, ...],
) -> FitResult:
    """n_init fits; or, for each of `sizes` (L,), the best of n_init fits with that many components on."""
    context = summarise(x, w, reg_covar)
    n_fits = n_init * (1 if sizes is None else sizes.shape[0])
    keys = jax.random.split(key, n_fits)
    active = None if sizes is None else jnp.repeat(sizes, n_init)

    def prior_of(index: Array) -> Prior | None:
        if not default:
            return prior
        on = jnp.asarray(n_components, jnp.int32) if active is None else active[index]
        return priors.default(x, w, on, model.covariance)

    def begin(key: Array, index: Array) -> GMMParams:
        assert init is not None
        f = with_prior(context, prior_of(index), model, (n_components, x.shape[1]))
        return start(
            key, x, w, f, model=model, n_components=n_components, block_size=block_size, init=init,
            n_active=None if active is None else active[index],
        )  # fmt: skip

    if starts is None:
        indices = jnp.arange(n_fits, dtype=jnp.int32)
        # Side by side all take as many of Lloyd's iterations as the slowest, and a CPU gains nothing by it.
        if init == "kmeans" and jax.default_backend() == "cpu":
            starts = lax.map(lambda a: begin(*a), (keys, indices))
        else:
            starts = jax.vmap(begin)(keys, indices)
    results = run_many(
        starts,
        Data(x, w),
        tol,
        max_iter,
        reg_covar,
        accelerate,
        prior_of,
        block_size=block_size,
        history_size=history_size,
        context=context,
        kernels=kernels,
    )
    if sizes is None:
        return results
    grouped = jax.tree.map(lambda a: a.reshape((sizes.shape[0], n_init, *a.shape[1:])), results)
    return jax.vmap(best)(grouped)


def _checked(starts: GMMParams, n_components: int, x: Array) -> GMMParams:
    """Starting mixtures (R, …) in the data's dtype."""
    shape = tuple(starts.means.shape)
    if len(shape) != 3 or shape[1:] != (n_components, x.shape[1]):
        raise ValueError(
            "starting mixtures as init must have a leading axis, and means of shape (n_init, "
            f"{n_components}, {x.shape[1]}) for n_components={n_components} and X {x.shape}; got {shape}"
        )
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(starts)}
    if len(lengths) > 1:
        raise ValueError(f"the arrays of starting mixtures differ in their leading axis: {sorted(lengths)}")
    return jax.tree.map(lambda a: jnp.asarray(a, x.dtype), starts)


def _fit_many(
    key: Array,
    x: Array,
    sizes: tuple[int, ...] | None,
    n_components: int,
    sample_weight: ArrayLike | None,
    covariance_type: ModelLike,
    n_init: int,
    init: Init | GMMParams,
    tol: ArrayLike,
    max_iter: Any,
    reg_covar: ArrayLike,
    prior: Prior | str | None,
    accelerate: Any,
    options: EMOptions,
) -> FitResult:
    check_options(options).only("a fit from several starts", "block_size", "history_size", "kernel")
    w = validate.weight(sample_weight, x)
    n_init = validate.count(n_init, "n_init", 1)
    model, starts = get_model(covariance_type), None
    scale_like(model.component, n_components, x.shape[1])
    if isinstance(init, GMMParams):
        if sizes is not None:
            raise TypeError("init of fit_components cannot be starting mixtures; give them to fit_restarts")
        starts = _checked(init, n_components, x)
        model, n_init, init = init.model, starts.means.shape[0], "kmeans"
    n_fits = n_init * (1 if sizes is None else len(sizes))
    width = concurrency(n_fits, x.shape[0], n_components * x.shape[1])
    rows = (
        rows_for(model.component, x.shape[0], n_components, x.shape[1], width)
        if options.block_size is None
        else min(options.block_size, x.shape[0])
    )
    given = None
    named = priors.check_name(prior, model.component)
    if named is not None and not isinstance(named, str):
        given = priors.check(named, model.component, (n_components, x.shape[1]), x.dtype)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype)
    # A prior is stated, and a start of the user's made, in the units of X.
    unit = units.units_of(x, w, model) if given is None and not callable(init) else None
    if unit is not None:
        x = units.divide(x, unit)
        numbers = (*numbers[:2], units.ridge_in_units(numbers[2], unit), numbers[3])
        starts = None if starts is None else jax.vmap(lambda p: units.rescale(p, 1 / unit))(starts)
    results = _fit_batch(
        validate.key(key),
        x,
        w,
        None if sizes is None else jnp.asarray(sizes, jnp.int32),
        *numbers,
        given,
        starts,
        default=isinstance(prior, str),
        model=model,
        n_components=n_components,
        n_init=n_init,
        init=check_init(init),
        block_size=rows,
        history_size=options.history_size,
        kernels=quadratic.choose(
            options.kernel, model.component, x.shape[0], n_fits * n_components, x.shape[1]
        ),
    )
    return results if unit is None else units.multiply_back(results, unit)


def fit_restarts(
    key: Array,
    X: ArrayLike,
    n_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    n_init: int = 10,
    init: Init | GMMParams = "kmeans++",
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Fit from n_init different starts at once, in one compiled program over one X.

    Args:
      key: a JAX PRNG key; same key, same starts.
      X: (N, D).
      n_components: K; static.
      sample_weight: (N,) or None for ones.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      n_init: number of starts; static.
      init: "kmeans++" (seeds, hard assignment, one M-step), "kmeans", "random_points" (K rows, every
        component as wide as the data), "random_resp", "hierarchical" (Ward's clusters; every start is the
        same, so n_init=1 says all), a function (key, X, n_components, sample_weight)
        -> GMMParams, or the starting mixtures themselves: GMMParams with a leading axis, whose own length and
        structure then count.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`.
      prior: None, a `Prior`, or "default" for what `default_prior` gives.
      accelerate: as in `fit`.
      options: the kernel, block size and history, as in `fit`.

    Returns:
      FitResult with a leading axis n_init. A fit that fails says so in its status and leaves the others
      alone; `best(results)` picks the winner.

    Raises:
      ValueError, TypeError: as `fit`, and for K < 1, K > N, or an unknown name.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_restarts(jax.random.key(1), X, 2, covariance_type="spherical", n_init=4)
      >>> results.log_likelihood.shape
      (4,)
      >>> params = jaxgmm.best(results).params
    """
    x = validate.data(X)
    n = validate.n_components(n_components, x.shape[0])
    return _fit_many(
        key, x, None, n, sample_weight, covariance_type, n_init, init,
        tol, max_iter, reg_covar, prior, accelerate, options,
    )  # fmt: skip


def fit_components(
    key: Array,
    X: ArrayLike,
    n_components: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9),
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    n_init: int = 10,
    init: Init = "kmeans++",
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """Fit mixtures with several numbers of components at once, one compilation for all of them.

    Every mixture has the arrays of the largest; components beyond its own number are switched off
    (log_weights = -inf), cost nothing in the criteria and stay off.

    Args:
      key: a JAX PRNG key.
      X: (N, D).
      n_components: the numbers of components, such as range(1, 10). Which they are does not matter to the
        compilation; how many, and the largest, do.
      sample_weight: (N,) or None for ones.
      covariance_type: a name, a `Covariance`, a `Component` or a `Model`.
      n_init: starts for each number; the best is kept. Static.
      init: as in `fit_restarts`.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`.
      prior: None, a `Prior`, or "default" for what `default_prior` gives for each number of components.
      accelerate: as in `fit`.
      options: the kernel, block size and history, as in `fit`.

    Returns:
      FitResult with a leading axis, one fit for each entry of n_components.

    Raises:
      ValueError, TypeError: as `fit_restarts`.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_components(jax.random.key(1), X, (1, 2), covariance_type="spherical", n_init=2)
      >>> bics = jax.vmap(lambda params: jaxgmm.bic(params, X))(results.params)
      >>> int(bics.argmin()) + 1
      1
    """
    x = validate.data(X)
    sizes = validate.sizes(n_components, x.shape[0])
    return _fit_many(
        key, x, sizes, max(sizes), sample_weight, covariance_type, n_init, init,
        tol, max_iter, reg_covar, prior, accelerate, options,
    )  # fmt: skip
