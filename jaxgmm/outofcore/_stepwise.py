"""Stepwise EM: parameters that follow a stream of data, each row seen once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import priors
from jaxgmm.data import Context, Data, centring, ridge
from jaxgmm.density import check_mixture, inputs
from jaxgmm.em import REG_COVAR, admissible, maximise
from jaxgmm.kernels import exact
from jaxgmm.kernels.base import Statistics
from jaxgmm.kernels.exact import rows_for
from jaxgmm.kernels.linalg import epsilon
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, translate
from jaxgmm.outofcore import _change_of_reference as change_of_reference
from jaxgmm.outofcore._open_source import once, open_source
from jaxgmm.outofcore._prefetch import ReadAhead
from jaxgmm.outofcore._streaming_statistics import check as check_rows
from jaxgmm.outofcore._streaming_statistics import refuse_known, rows_of
from jaxgmm.priors import Prior

DECAY = 0.6
DELAY = 2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepwiseState:
    """What stepwise EM knows: an immutable pytree, to be kept, handed on, or saved.

    Attributes:
      relative: the mixture, with means relative to `shift`.
      moments: running averages of `Statistics` per unit of sample weight, about `relative`.
      shift: (D,).
      ridge: (D,) what is added to the diagonals of the covariances.
      n_steps: () int32.
      log_likelihood: () running average of the mean log-likelihood of each chunk before it was learnt from,
        which is a held-out figure. −inf before the first step.
      seen: () the sum of the sample weights of the rows learnt from, against which a prior counts.
      prior: the prior as the M-step takes it, about `shift`; None without one.
    """

    relative: GMMParams
    moments: Statistics
    shift: Array  # (D,)
    ridge: Array  # (D,)
    n_steps: Array  # ()
    log_likelihood: Array  # ()
    seen: Array  # ()
    prior: priors.Pseudo | None = None

    @property
    def params(self) -> GMMParams:
        """The mixture, in the coordinates of the data."""
        return translate(self.relative, self.shift)


@jit
def _init(params: GMMParams, reg_covar: Array, prior: Prior | None) -> StepwiseState:
    params = admissible(params)
    shape = (params.n_components, params.n_features)
    weights = params.weights[:, None]
    mean = (weights * params.means).sum(0)
    within = params.covariance.diagonal(params.scatter, shape)
    variance = (weights * (within + jnp.square(params.means - mean[None, :]))).sum(0)
    shift = centring(mean, variance)
    relative = translate(params, -shift)
    zero, dtype = jnp.zeros((), jnp.int32), params.means.dtype
    return StepwiseState(
        relative, change_of_reference.expected(relative, params.weights), shift, ridge(reg_covar, variance),
        zero, jnp.full((), -jnp.inf, dtype), jnp.zeros((), dtype),
        None if prior is None else priors.pseudo(prior, params.covariance, shape, shift),
    )  # fmt: skip


def stepwise_init(
    params: GMMParams, *, reg_covar: ArrayLike = REG_COVAR, prior: Prior | None = None
) -> StepwiseState:
    """The state of stepwise EM before it has seen any data: the moments are what `params` themselves expect.

    Args:
      params: where to start, in float32 or float64.
      reg_covar: as in `m_step`, with the variances of `params` for those of the data.
      prior: as in `fit`. It stays in the state, and counts against the sample weights of all rows seen so
        far (`StepwiseState.seen`): each M-step is that of so many rows with the running averages as moments.

    Returns:
      StepwiseState, for `stepwise_step` and `fit_stepwise`.

    Raises:
      ValueError: for a structure whose second moments cannot be carried from one mixture to the next (factor
        analysers, and structures of your own with another second moment), or bad arguments.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> int(jaxgmm.outofcore.stepwise_init(params).n_steps)
      0
    """
    check_mixture(params)
    change_of_reference.check(params.component, "stepwise EM")
    dtype = params.means.dtype
    reg = validate.not_negative(reg_covar, "reg_covar", dtype)
    checked = None if prior is None else priors.check(prior, params.model, params.means.shape, dtype)
    return _init(params, reg, checked)


@functools.partial(jit, static_argnames="block_size")
def _step(state: StepwiseState, x: Array, w: Any, numbers: tuple[Any, ...], block_size: int) -> StepwiseState:
    """A step by numbers (share of a step, 0 for rows seen before else 1, decay, delay)."""
    relative, dtype = state.relative, x.dtype
    share, fresh, decay, delay = numbers
    new = exact.sums(relative, Data(x, w), state.shift, block_size=block_size)
    some = new.total_weight > 0
    mean = new * (1 / jnp.where(some, new.total_weight, 1))
    size = jnp.power(state.n_steps.astype(dtype) + delay, -decay)
    size = jnp.where(some & jnp.isfinite(new.log_likelihood), share * jnp.minimum(size, 1), 0)

    def blend(old: Array, new: Array) -> Array:
        return jnp.where(size > 0, (1 - size) * old + size * new, old)

    moments = jax.tree.map(blend, state.moments, mean)
    # A component without rows for long keeps some weight, its place and its shape: they may come again.
    least = float(jnp.finfo(dtype).tiny) / epsilon(dtype) ** 2
    on = relative.log_weights > -jnp.inf
    moments = moments + change_of_reference.expected(relative, jnp.where(on, least, jnp.zeros((), dtype)))
    seen = state.seen + fresh * new.total_weight
    one = jnp.ones_like(state.ridge)  # variances and mean of the data, which are not known, are not asked for
    context = Context(state.shift, one, state.ridge, state.shift, state.prior)
    image, _ = maximise(relative, moments if state.prior is None else moments * seen, context)
    first = ~jnp.isfinite(state.log_likelihood)
    likelihood = jnp.where(first, mean.log_likelihood, blend(state.log_likelihood, mean.log_likelihood))
    after = dataclasses.replace(
        state, relative=image, moments=change_of_reference.rebase(moments, relative, image),
        n_steps=state.n_steps + jnp.ones((), jnp.int32), log_likelihood=likelihood, seen=seen,
    )  # fmt: skip
    sound = jnp.stack([~jnp.isnan(a).any() for a in jax.tree.leaves(after)]).all() & (size > 0)
    kept: StepwiseState = jax.tree.map(lambda a, b: jnp.where(sound, a, b), after, state)
    return kept


def _schedule(decay: ArrayLike, delay: ArrayLike, dtype: Any) -> tuple[Array, Array]:
    rate, late = validate.not_negative(decay, "decay", dtype), validate.not_negative(delay, "delay", dtype)
    if validate.is_concrete(rate) and not 0.5 < float(rate) <= 1:
        raise ValueError(f"decay must be above 0.5, for steps to converge, and at most 1; got {float(rate)}")
    if validate.is_concrete(late) and not float(late) > 0:
        raise ValueError(f"delay must be positive; got {float(late)}")
    return rate, late


def stepwise_step(
    state: StepwiseState,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    decay: ArrayLike = DECAY,
    delay: ArrayLike = DELAY,
) -> StepwiseState:
    """Learn from some rows: s ← (1 − γ) s + γ s(X), then the M-step, with γ = (t + delay)^(−decay) at step t.

    It jits and scans. Rows that cannot be learnt from under `jit`, such as NaN, leave the state as it is.

    Args:
      state: from `stepwise_init`, or an earlier step.
      X: (n, D) some rows: each call of another size compiles anew. A few hundred or more make steady steps.
      sample_weight: (n,) or None for ones; weights count within X, and each X counts the same. Against a
        prior their sum counts, every time that rows are given.
      decay: above 0.5 and at most 1; near 0.5 the past is forgotten sooner.
      delay: the later the steps begin, the smaller the first.

    Returns:
      The next StepwiseState.

    Raises:
      ValueError, TypeError: for shapes that do not fit, NaN, negative weights, or a decay out of its range.

    Example:
      >>> import jaxgmm, numpy as np
      >>> state = jaxgmm.outofcore.stepwise_init(
      ...     jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical"))
      >>> X = np.random.default_rng(0).normal(size=(512, 1)).astype(np.float32)
      >>> int(jaxgmm.outofcore.stepwise_step(state, X).n_steps)
      1

    References:
      Cappé & Moulines (2009), On-line expectation–maximization algorithm for latent data models, JRSS B 71,
      equation 11; Liang & Klein (2009), Online EM for unsupervised models.
    """
    if not isinstance(state, StepwiseState):
        raise TypeError(f"state must be a StepwiseState, from stepwise_init; got {type(state).__name__}")
    dtype = state.relative.means.dtype
    _, x = inputs(state.relative, X)
    x = x.astype(dtype)
    w = validate.weight(sample_weight, x)
    one = np.ones((), dtype)
    rows = rows_for(state.relative.component, x.shape[0], *state.relative.means.shape)
    ones = np.ones(len(x), dtype)
    return _step(state, x, ones if w is None else w, (one, one, *_schedule(decay, delay, dtype)), rows)


def fit_stepwise(
    params: GMMParams | StepwiseState,
    source: Any,
    *,
    columns: Any = None,
    weight_column: Any = None,
    chunk_size: int | None = None,
    n_passes: int = 1,
    decay: ArrayLike = DECAY,
    delay: ArrayLike = DELAY,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
) -> StepwiseState:
    """Stepwise EM over a source, a chunk in each step: one pass over data too many to see twice.

    It comes near the optimum rather than to it; `fit_stream` from there is exact. The rows should come in no
    particular order: what comes late counts most.

    Args:
      params: where to start; or the state in which an earlier call ended, to go on with more data.
      source: as in `open_source`; with one pass also an iterator of arrays that can be read only once. It
        must end: of a stream without an end take steps with `stepwise_step`.
      columns: as in `open_source`.
      weight_column: as in `open_source`.
      chunk_size: rows of a step; None for a 200th of the data, from 512 up to 8 MB.
      n_passes: how often to go through the data.
      decay: as in `stepwise_step`.
      delay: as in `stepwise_step`.
      reg_covar: as in `stepwise_init`; of a state it is known.
      prior: as in `stepwise_init`; a state has its prior already. It counts against all rows of the source,
        each once, in however many passes.

    Returns:
      StepwiseState, whose `params` are the mixture.

    Raises:
      ValueError, OSError, TypeError: as in `fit_stream`, and as in `stepwise_step`; and for a prior beside a
        state.

    Example:
      >>> import jaxgmm, numpy as np
      >>> rng = np.random.default_rng(0)
      >>> X = rng.normal(rng.choice([-4.0, 4.0], (20000, 1))).astype(np.float32)
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
      >>> state = jaxgmm.outofcore.fit_stepwise(start, X)
      >>> bool(abs(state.params.means[:, 0] - np.array([-4.0, 4.0])).max() < 0.1)
      True

    References:
      Cappé & Moulines (2009).
    """
    passes = validate.count(n_passes, "n_passes", 1)
    if passes == 1 and isinstance(source, Iterator):
        source = once(source)
    data = open_source(source, columns, weight_column)
    refuse_known(data, "stepwise EM")
    if not isinstance(params, StepwiseState):
        state = stepwise_init(params, reg_covar=reg_covar, prior=prior)
    elif prior is not None:
        raise ValueError("prior must be None where params is a StepwiseState, which has a prior already")
    else:
        state = params
    dtype, shape = np.dtype(state.relative.means.dtype), state.relative.means.shape
    schedule = _schedule(decay, delay, dtype)
    rows = rows_of(data, shape[1], dtype, chunk_size)
    if chunk_size is None and data.n_samples is not None:
        rows = min(rows, max(512, data.n_samples // 200))
    block = rows_for(state.relative.component, rows, *shape)
    for i in range(passes):
        with ReadAhead(data, rows, dtype) as chunks:
            for chunk in chunks:
                check_rows(chunk, data)
                x, w = jax.device_put((chunk.x, chunk.w))
                # The last one may be short.
                share, fresh = np.asarray(chunk.n / rows, dtype), np.asarray(i == 0, dtype)
                state = jax.block_until_ready(_step(state, x, w, (share, fresh, *schedule), block))
                chunks.release(chunk)
    return state
