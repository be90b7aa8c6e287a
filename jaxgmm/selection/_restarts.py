"""Restarts: fits from many starts, and of several numbers of components padded to the largest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _units as units
from jaxgmm import _validate as validate
from jaxgmm._batch import concurrency, run_many
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, summarise
from jaxgmm.density import check_accepts, check_labels, check_sizes, get_data
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions, check_options
from jaxgmm.init._starts import AnyPrior, Init, check_init, check_prior, prior_for, start
from jaxgmm.kernels import kept_share, quadratic
from jaxgmm.kernels.base import Kernel
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.observed import in_tiles
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, scale_like
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import best


class _Static(NamedTuple):
    """What of several fits is static."""

    model: Model
    n_components: int
    n_init: int
    init: Init
    several: bool  # sizes, of each of which only the best fit is kept
    block_size: int
    history_size: int
    kernels: tuple[Kernel, ...]


def _work(key: Array, data: Data, sizes: Array, *_: Any, c: _Static) -> float:
    return quadratic.work(c.kernels, data.x.shape[0], c.n_components, data.n_features, len(sizes) * c.n_init)


@functools.partial(jit, static_argnames="c", work=_work)
def _fit_batch(
    key: Array, data: Data, sizes: Array, numbers: tuple[Array, Array, Array, Array], prior: AnyPrior,
    starts: GMMParams | None, trim: Array | None, *, c: _Static,
) -> FitResult:  # fmt: skip
    """n_init fits with each of `sizes` (L,) components on; of several sizes the best for each.

    What is trimmed may be the same for all () or for each of the sizes (L,).
    """
    context = summarise(data, numbers[2])
    active = jnp.repeat(sizes, c.n_init)
    amounts = None if trim is None else jnp.repeat(jnp.broadcast_to(trim, sizes.shape), c.n_init)
    keys = jax.random.split(key, active.shape[0])

    def prior_of(index: Array) -> Prior | None:
        return prior_for(prior, data, c.model.covariance, active[index])

    def begin(inputs: tuple[Array, Array, Array | None]) -> GMMParams:
        key, n_active, own = inputs
        return start(
            key, n_active, data, context._replace(trim=own), prior, model=c.model,
            n_components=c.n_components, block_size=c.block_size, init=c.init,
        )  # fmt: skip

    if starts is None:
        # Side by side all take as many of Lloyd's iterations as the slowest, and a CPU gains nothing by it.
        one_by_one = c.init == "kmeans" and jax.default_backend() == "cpu"
        each = (keys, active, amounts)
        starts = lax.map(begin, each) if one_by_one else jax.vmap(begin)(each)
    results = run_many(
        starts, data, *numbers, prior_of, amounts, block_size=c.block_size, history_size=c.history_size,
        context=context, kernels=c.kernels,
    )  # fmt: skip
    if not c.several:
        return results
    return jax.vmap(best)(jax.tree.map(lambda a: a.reshape((-1, c.n_init, *a.shape[1:])), results))


def _checked(starts: GMMParams, n_components: int, n_features: int, dtype: Any) -> GMMParams:
    """Starting mixtures (R, …) in the data's dtype."""
    shape = tuple(starts.means.shape)
    if len(shape) != 3 or shape[1:] != (n_components, n_features):
        raise ValueError(
            "starting mixtures as init must have a leading axis, and means of shape (n_init, "
            f"{n_components}, {n_features}) for n_components={n_components} and {n_features} features; "
            f"got {shape}"
        )
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(starts)}
    if len(lengths) > 1:
        raise ValueError(f"the arrays of starting mixtures differ in their leading axis: {sorted(lengths)}")
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), starts)


def fit_many(
    key: Array, data: Data, sizes: tuple[int, ...], several: bool,
    covariance_type: ModelLike, n_init: int, init: Init | GMMParams, tol: ArrayLike | None, max_iter: Any,
    reg_covar: ArrayLike, prior: Prior | str | None, accelerate: Any, options: EMOptions,
    trim: ArrayLike | None, shape: tuple[int, ...] = (),
) -> FitResult:  # fmt: skip
    """What `fit_restarts` or, of several sizes, `fit_components` gives; trim has the shape () or (L,)."""
    check_options(options).only("a fit from several starts", "block_size", "history_size", "kernel")
    n_init = validate.count(n_init, "n_init", 1)
    model, starts = get_model(covariance_type), None
    x, k, n, d = data.x, max(sizes), data.x.shape[0], data.n_features
    scale_like(model.component, k, d)
    check_accepts(data, model.component)
    if isinstance(init, GMMParams):
        if several:
            raise TypeError("init of fit_components cannot be starting mixtures; give them to fit_restarts")
        starts = _checked(init, k, d, x.dtype)
        model, n_init, init = init.model, starts.means.shape[0], "kmeans"
        check_labels(data, k)
    else:
        if model.weights.holds:
            raise ValueError(
                "held means and covariances are those of a start: give starts of your own as init"
            )
        check_sizes(data, sizes)
        if check_init(init) == "hierarchical" and not data.is_complete:
            raise ValueError("init='hierarchical' needs complete rows without noise; use 'kmeans++'")
    n_fits = n_init * len(sizes)
    amount = kept_share.amount(trim, data, shape)
    data = in_tiles(data, model.covariance)
    rows = rows_of(data, model.component, k, concurrency(n_fits, n, k * d))
    if options.block_size is not None:
        rows = max(options.block_size - options.block_size % max(data.tile, 1), data.tile)
    c = _Static(
        model, k, n_init, check_init(init), several, min(rows, data.x.shape[0]), options.history_size,
        quadratic.choose_for(data, options.kernel, model.component, k, n_fits, trim is not None),
    )  # fmt: skip
    given = check_prior(prior, model, (k, d), x.dtype)
    tol, limit, reg, fast = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype, x.shape[0])
    # A prior is stated, and a start of the user's made, in the units of X.
    in_units_of_x = isinstance(given, Prior) or callable(init)
    unit = None if in_units_of_x else units.of_data(data, model)
    if unit is not None:
        data, reg = Data(units.divide(x, unit), data.weight), units.ridge_in_units(reg, unit)
        starts = None if starts is None else jax.vmap(lambda p: units.rescale(p, 1 / unit))(starts)
    active, numbers = np.asarray(sizes, np.int32), (tol, limit, reg, fast)
    results = _fit_batch(validate.key(key), data, active, numbers, given, starts, amount, c=c)
    return results if unit is None else units.multiply_back(results, unit)


def fit_restarts(
    key: Array,
    X: ArrayLike | Data,
    n_components: int,
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    n_init: int = 10,
    init: Init | GMMParams = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
    trim: ArrayLike | None = None,
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
      trim: as in `fit`.
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
    data = get_data(X, sample_weight)
    sizes = (validate.n_components(n_components, data.x.shape[0]),)
    return fit_many(
        key, data, sizes, False, covariance_type, n_init, init,
        tol, max_iter, reg_covar, prior, accelerate, options, trim,
    )  # fmt: skip


def fit_components(
    key: Array,
    X: ArrayLike | Data,
    n_components: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9),
    sample_weight: ArrayLike | None = None,
    *,
    covariance_type: ModelLike = "full",
    n_init: int = 10,
    init: Init = "kmeans++",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | str | None = None,
    accelerate: bool | Array = True,
    trim: ArrayLike | None = None,
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
      trim: as in `fit`.
      options: the kernel, block size and history, as in `fit`.

    Returns:
      FitResult with a leading axis, one fit for each entry of n_components.

    Raises:
      ValueError, TypeError: as `fit_restarts`.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (200, 2))
      >>> results = jaxgmm.fit_components(jax.random.key(1), X, (1, 2), covariance_type="spherical", n_init=2)
      >>> bics = jax.jit(jax.vmap(lambda params: jaxgmm.bic(params, X)))(results.params)
      >>> int(bics.argmin()) + 1
      1
    """
    data = get_data(X, sample_weight)
    sizes = validate.sizes(n_components, data.x.shape[0])
    return fit_many(
        key, data, sizes, True, covariance_type, n_init, init,
        tol, max_iter, reg_covar, prior, accelerate, options, trim,
    )  # fmt: skip
