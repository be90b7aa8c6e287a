"""Gradient fits: unconstrained coordinates, optax's optimisers, and EM differentiated step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import em, priors
from jaxgmm.data import Data, summarise, total_weight
from jaxgmm.density import check_mixture, check_ungrouped, data_of, posterior, score
from jaxgmm.em import REG_COVAR
from jaxgmm.kernels import exact
from jaxgmm.kernels.blocked_sum import in_range, sum_rows
from jaxgmm.kernels.manual_axes import varying_like
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, kept, translate
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult
from jaxgmm.solvers.implicit import Evaluation
from jaxgmm.solvers.squarem import Status

if TYPE_CHECKING:
    import optax  # a second to import, and nothing else needs it


def _free_coordinates(params: GMMParams) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The structure's free coordinates of its arrays, and its arrays of these; or an error."""
    c = params.covariance
    if c.to_unconstrained is None or c.from_unconstrained is None:
        raise ValueError(f"the structure {c.name!r} has no free coordinates; fill in to_unconstrained")
    return c.to_unconstrained, c.from_unconstrained


def unconstrained(params: GMMParams) -> dict[str, Any]:
    """Free coordinates θ of a mixture: any real numbers in their place are a valid mixture again.

    Args:
      params: the mixture; its structure must have free coordinates.

    Returns:
      {"logits": (K,), "means": (K, D), "scale": the structure's free coordinates}; of components that have
      more than means and scatter matrices, such as degrees of freedom, also {"extra": …}. Softmax does not
      see a constant added to the logits; everything else is minimal. A switched-off component has logit 0. A
      model with equal or fixed weights has no logits, (0,).

    Raises:
      ValueError: for a structure without `to_unconstrained`.

    Example:
      >>> import jax, jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 4.0], "spherical")
      >>> theta = jaxgmm.gradients.unconstrained(params)
      >>> theta["scale"].round(3).tolist()
      [0.0, 0.693...]
    """
    check_mixture(params)
    c, (to_free, _) = params.component, _free_coordinates(params)
    logits = jnp.where(params.log_weights > -jnp.inf, params.log_weights, 0)
    if params.weights_rule.rule != "free":
        logits = logits[:0]
    extra = {} if c.to_free is None else {"extra": c.to_free(c, params.scale)}
    return {"logits": logits, "means": params.means, "scale": to_free(params.scatter), **extra}


def constrained(theta: dict[str, Any], params: GMMParams) -> GMMParams:
    """The mixture with free coordinates θ: the inverse of `unconstrained`.

    Equal weights are made equal, whatever they were; fixed ones, and means and covariances that are held, are
    those of `params`.

    Args:
      theta: as `unconstrained` returns it.
      params: any mixture of the same model and shape; of its values only which components are switched off
        counts, and fixed weights.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 4.0], "spherical")
      >>> theta = jaxgmm.gradients.unconstrained(params)
      >>> jaxgmm.gradients.constrained(theta, params).covariances.round(4).tolist()
      [[[1.0]], [[4.0]]]
    """
    c, (_, from_free) = params.component, _free_coordinates(params)
    if params.weights_rule.rule != "free":
        log_weights = em.admissible(params).log_weights
    else:
        logits = jnp.where(params.log_weights > -jnp.inf, theta["logits"], -jnp.inf)
        log_weights = jax.nn.log_softmax(logits)
    scale = params.scale if c.from_free is None else c.from_free(c, params.scale, theta["extra"])
    moved = GMMParams(log_weights, theta["means"], scale, *params.model)
    return kept(
        params, moved.with_scatter(from_free(theta["scale"], (params.n_components, params.n_features)))
    )


def negative_log_likelihood(
    theta: dict[str, Any], params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None
) -> Array:
    """() −Σ w_n log p(x_n) / Σ w_n in free coordinates: a smooth function without constraints.

    Args:
      theta: as `unconstrained` returns it.
      params: as in `constrained`.
      X: (N, D).
      sample_weight: (N,) or None for ones.

    Example:
      >>> import jax, jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[0.0]], [1.0], "spherical")
      >>> theta = jaxgmm.gradients.unconstrained(params)
      >>> X = jax.numpy.array([[1.0], [3.0]])
      >>> round(float(jaxgmm.gradients.negative_log_likelihood(theta, params, X)), 3)
      3.419
      >>> slope = jax.jit(jax.grad(jaxgmm.gradients.negative_log_likelihood))(theta, params, X)
      >>> slope["means"].tolist()  # the mean wants to go up
      [[-2.0]]
    """
    return -score(constrained(theta, params), X, sample_weight)


def status_of(evaluation: Evaluation, stopped: Array, tol: Array) -> Array:
    """() int32, the Status of parameters that were reached by other means than `fit`."""
    e = evaluation
    near = (e.step <= tol) | (e.step <= e.noise)
    code = jnp.where(near & ~stopped, int(Status.CONVERGED), int(Status.MAX_ITER))
    code = jnp.where(e.valid, code, int(Status.DEGENERATE))
    return jnp.where(jnp.isfinite(e.objective), code, int(Status.NONFINITE)).astype(jnp.int32)


def checked(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None, tol: ArrayLike | None,
    reg_covar: ArrayLike, block_size: int | None,
) -> tuple[GMMParams, Data, Array, Array, int]:  # fmt: skip
    """A mixture, its data, tol, reg_covar, and the rows per block."""
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "fits by gradient, nor unrolled ones")
    data, x = data.by_row(), data.x
    rows = exact.rows_of(data, params.component, params.n_components)
    if block_size is not None:
        rows = min(validate.count(block_size, "block_size", 1), x.shape[0])
    near, reg = (
        validate.tolerance(tol, x.shape[0], x.dtype),
        validate.not_negative(reg_covar, "reg_covar", x.dtype),
    )
    return params, data, near, reg, rows


@functools.partial(jit, static_argnames=("optimizer", "n_steps", "batch_size", "block_size"))
def _descend(
    params: GMMParams, data: Data, key: Array, tol: Array, reg_covar: Array, *,
    optimizer: optax.GradientTransformation, n_steps: int, batch_size: int | None, block_size: int,
) -> FitResult:  # fmt: skip
    import optax

    f = summarise(data, reg_covar)
    n_samples, total, width = data.x.shape[0], total_weight(data), jnp.sqrt(f.variance)
    update = optax.with_extra_args_support(optimizer).update

    def decode(theta: dict[str, Any]) -> GMMParams:
        p = constrained(theta, params)
        return dataclasses.replace(p, means=p.means * width[None, :])

    def loss(theta: dict[str, Any], rows: Array | None) -> Array:
        p = decode(theta)
        some = data if rows is None else jax.tree.map(lambda a: a[rows], data)
        n = some.x.shape[0]

        def block(weight: Array, rows: Data) -> Array:
            b = dataclasses.replace(rows, x=jnp.where(in_range(weight, rows.x), rows.x, 0))
            values = posterior(p, b.less(f.shift))[1]
            return (weight * jnp.where(weight > 0, values, 0)).sum()

        likelihood = sum_rows(block, some.weight, some.rows, block_size=min(block_size, n))
        fitted = likelihood * (n_samples / n) / total
        # What EM's ridge is the gradient of: its fixed points are the stationary points of this.
        inverse = p.covariance.inverse_diagonal(p.scatter, (p.n_components, p.n_features))
        ridged = (inverse * f.ridge[None, :]).sum(-1)
        return 0.5 * (lax.stop_gradient(p.weights) * ridged).sum() - fitted

    def iterate(carry: tuple[Any, Any, Any, Array, Array], key: Array) -> tuple[Any, Array]:
        theta, safe, state, good, n = carry
        rows = None if batch_size is None else jax.random.randint(key, (batch_size,), 0, n_samples, jnp.int32)
        value, slope = jax.value_and_grad(loss)(theta, rows)
        # What is returned is the last point where both were finite: a step may leave the domain unseen.
        good = good & jnp.stack([jnp.isfinite(a).all() for a in (value, *jax.tree.leaves(slope))]).all()
        safe = jax.tree.map(lambda a, b: jnp.where(good, a, b), theta, safe)
        change, next_state = update(
            slope, state, theta, value=value, grad=slope, value_fn=lambda t: loss(t, rows)
        )
        moved = optax.apply_updates(theta, change)
        theta, state = jax.tree.map(lambda a, b: jnp.where(good, a, b), (moved, next_state), (safe, state))
        return (theta, safe, state, good, n + good.astype(jnp.int32)), -value

    relative = translate(params, -f.shift)
    theta = unconstrained(dataclasses.replace(relative, means=relative.means / width[None, :]))
    start = (theta, theta, optimizer.init(theta), jnp.asarray(True), jnp.full((), -1, jnp.int32))
    # One iteration more than there are steps, to see what the last step has led to.
    (_, safe, _, good, n), values = lax.scan(
        iterate, varying_like(start, data, f), jax.random.split(key, n_steps + 1)
    )
    point, n_iter = decode(safe), jnp.maximum(n, 0)
    end = em.evaluate(exact.WHITENED, block_size, None, point, em.Problem(data, f))
    status = jnp.where(good, status_of(end, ~good, tol), int(Status.NONFINITE)).astype(jnp.int32)
    history = values[1:].at[-1].set(end.report)
    history = jnp.where(jnp.arange(n_steps, dtype=jnp.int32) < n_iter, history, -jnp.inf)
    return FitResult(translate(point, f.shift), end.report, end.report, n_iter, status, history)


def fit_gradient(
    params: GMMParams,
    X: ArrayLike | Data,
    optimizer: optax.GradientTransformation,
    sample_weight: ArrayLike | None = None,
    *,
    n_steps: int,
    batch_size: int | None = None,
    key: Array | None = None,
    tol: ArrayLike | None = None,
    reg_covar: ArrayLike = REG_COVAR,
    block_size: int | None = None,
) -> FitResult:
    """Fit a mixture with an optax optimiser, on all of the data or on random batches: one jitted scan.

    It minimises `negative_log_likelihood` plus the ridge's penalty ½ Σ_k π_k tr(ridge Σ_k⁻¹), so that what
    it converges to is a fixed point of EM. Means are in units of the features' standard deviations and about
    the data's mean, covariances in the structure's free coordinates, so that one learning rate serves them
    all. EM is the better choice for a mixture alone; this is for what EM cannot do.

    Args:
      params: where to start.
      X: (N, D).
      optimizer: such as optax.adam(1e-2) or optax.lbfgs(). Static, and equal only to itself: build it once.
      sample_weight: (N,) or None for ones.
      n_steps: updates; static.
      batch_size: rows drawn at random, with replacement, for each update; None takes all. Static.
      key: a JAX PRNG key; needed with batch_size.
      tol: the status is CONVERGED if an EM step from the result would be no longer than this (see `fit`).
      reg_covar: as in `m_step`.
      block_size: as in `fit`.

    Returns:
      FitResult with history (n_steps,), of the objective's negative after 1, 2, … updates; with batches,
      their estimates of it. The last entry is the log-likelihood. If an update leads to a loss or a slope
      that is not finite, the parameters before it are returned, and the status is NONFINITE.

    Raises:
      ValueError, TypeError: as `fit`; for a structure without free coordinates; for batches without a key.

    Example:
      >>> import jax, jaxgmm, optax
      >>> X = jax.random.normal(jax.random.key(0), (200, 1)) + 3
      >>> start = jaxgmm.make_params([1.0], [[0.0]], [9.0], "spherical")
      >>> result = jaxgmm.fit_gradient(start, X, optax.adam(0.1), n_steps=300)
      >>> bool(abs(result.params.means[0, 0] - X.mean()) < 1e-2)
      True
    """
    import optax

    params, data, tol, reg, rows = checked(params, X, sample_weight, tol, reg_covar, block_size)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax GradientTransformation; got {type(optimizer).__name__}")
    n_steps = validate.count(n_steps, "n_steps", 1)
    if batch_size is not None:
        batch_size = validate.count(batch_size, "batch_size", 1)
        if key is None:
            raise ValueError("key must be given with batch_size: batches are drawn at random")
    _free_coordinates(params)
    if params.weights_rule.holds:
        raise ValueError("fit_gradient does not hold means or covariances; use fit")
    key = validate.key(jax.random.key(0) if key is None else key)
    static = {"optimizer": optimizer, "n_steps": n_steps, "batch_size": batch_size, "block_size": rows}
    # Optax relies on JAX's implicit promotions, which a user may have switched off.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return _descend(params, data, key, tol, reg, **static)


@functools.partial(jit, static_argnames=("n_steps", "block_size"))
def _unrolled(
    params: GMMParams, data: Data, tol: Array, reg_covar: Array, prior: Prior | None,
    *, n_steps: int, block_size: int,
) -> FitResult:  # fmt: skip
    f = summarise(data, reg_covar)
    f = em.with_prior(f, prior, params.model, params.means.shape)
    problem = em.Problem(data, f)
    evaluate = functools.partial(em.evaluate, exact.WHITENED, block_size, None)

    # Reverse mode keeps the parameters of each step and computes the rest of it again.
    @jax.checkpoint
    def step(p: GMMParams) -> tuple[GMMParams, Array, Array]:
        e = evaluate(p, problem, hold=False)
        return e.image, e.report, jnp.isfinite(e.objective) & e.valid

    def iterate(carry: tuple[GMMParams, Array, Array], _: None) -> tuple[Any, Array]:
        p, good, n = carry
        image, report, fine = step(p)
        good = good & fine
        p = jax.tree.map(lambda a, b: jnp.where(good, a, b), image, p)
        return (p, good, n + good.astype(jnp.int32)), report

    start = (translate(em.admissible(params), -f.shift), jnp.asarray(True), jnp.zeros((), jnp.int32))
    (point, good, n_iter), reports = lax.scan(iterate, varying_like(start, problem), length=n_steps)
    end = evaluate(lax.stop_gradient(point), lax.stop_gradient(problem))
    fitted, total = translate(point, f.shift), total_weight(data)
    log_likelihood = exact.sums(fitted, data, block_size=block_size).log_likelihood / total
    objective = log_likelihood
    if f.prior is not None:
        objective = log_likelihood + priors.log_density(point, f.prior)[0] / total
    history = jnp.concatenate([reports[1:], log_likelihood[None]])
    history = jnp.where(jnp.arange(n_steps, dtype=jnp.int32) < n_iter, history, -jnp.inf)
    return FitResult(fitted, log_likelihood, objective, n_iter, status_of(end, ~good, tol), history)


def fit_unrolled(
    params: GMMParams,
    X: ArrayLike | Data,
    n_steps: int,
    sample_weight: ArrayLike | None = None,
    *,
    tol: ArrayLike | None = None,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    block_size: int | None = None,
) -> FitResult:
    """Take n_steps plain EM steps, differentiable through each of them: also in the start and in a prior.

    For a fixed small number of steps, where what is wanted is the derivative of those steps and not of the
    fixed point: learning a start, forward mode through a few steps, or a fit that is not to converge. Reverse
    mode keeps the parameters of every step and computes each step again; time grows with n_steps. For the
    derivative of a converged fit, `fit` is cheaper and exact.

    Args:
      params: where to start.
      X: (N, D).
      n_steps: how many steps; static.
      sample_weight: (N,) or None for ones.
      tol: the status is CONVERGED if one more step would be no longer than this (see `fit`); nothing stops
        sooner.
      reg_covar: as in `m_step`.
      prior: as in `fit`.
      block_size: as in `fit`.

    Returns:
      FitResult with history (n_steps,). If a step fails, the parameters before it are kept, and `status`
      says why.

    Raises:
      ValueError, TypeError: as `fit`, and for n_steps < 1.

    Example:
      >>> import jax, jaxgmm
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> X = jax.numpy.array([[-2.0], [-1.5], [1.0], [2.0]])
      >>> gradient = jax.jit(jax.grad(lambda p: jaxgmm.gradients.fit_unrolled(p, X, 5).log_likelihood))
      >>> gradient(start).means.shape
      (2, 1)
    """
    params, data, tol, reg, rows = checked(params, X, sample_weight, tol, reg_covar, block_size)
    if prior is not None:
        prior = priors.check(prior, params.model, params.means.shape, data.x.dtype)
    n = validate.count(n_steps, "n_steps", 1)
    return _unrolled(params, data, tol, reg, prior, n_steps=n, block_size=rows)
