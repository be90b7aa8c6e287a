"""Influence of single samples on a fit: influence functions, leave-one-out without refitting."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.density import check_gaussian, data_of, joint, posterior
from jaxgmm.inference._information import checked, examine
from jaxgmm.inference._local_coordinates import Inverse, Local, entries, jacobian, scores, tangent_rows
from jaxgmm.kernels import observed
from jaxgmm.kernels.blocked_sum import block_rows, map_rows
from jaxgmm.kernels.linalg import PRECISION, einsum
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, log_normaliser, translate

# Of conjugate gradients for (H − w h)⁻¹, in which h mixes as many directions as components share x.
_ROUNDS = 6
_STRAIGHTENINGS = 4  # each multiplies what is left by the length of the move


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """What the fits without one sample each would say, as `leave_one_out` gives it.

    Attributes:
      log_prob: (N,) log p(x_i) under the fit without sample i.
      leverage: (N,) w_i s_iᵀ H⁻¹ s_i, sample i's share of the fit. They sum to about the number of free
        parameters; where one is not small beside 1, the approximation for that sample is not to be relied on.
      params: the fits without each of the chosen rows, with a leading axis; None if no rows were asked for.
      valid: () bool: the information is positive definite. Where it is not, all else is NaN.
    """

    log_prob: Array  # (N,)
    leverage: Array  # (N,)
    params: GMMParams | None
    valid: Array  # ()  bool


@functools.partial(jit, static_argnames="function")
def _influence(
    params: GMMParams, data: Data, *, function: Callable[[GMMParams], Any]
) -> tuple[Any, Array, Array]:
    local, _, inverse = examine(params, data)
    j, unravel = jacobian(local, function)
    size = local.free.size
    directions = inverse.solve(j.T)  # (P, q): the influence is each row's score in these directions
    n_directions = min(directions.shape[1], size)

    def block(rows: Data) -> Array:
        b = rows.less(local.shift)
        if n_directions == size:
            return jnp.matmul(scores(local, b)[1], directions, precision=PRECISION)

        def along(direction: Array) -> Array:
            origin = jnp.zeros(size, b.x.dtype)
            return jax.jvp(lambda t: posterior(local.at(t), b)[1], (origin,), (direction,))[1]

        return jax.vmap(along, in_axes=1, out_axes=1)(directions)

    rows = block_rows(data.x.shape[0], params.n_components, data.n_features, max(1, n_directions))
    found = map_rows(block, data.rows, block_size=rows)
    return jax.vmap(unravel)(found), inverse.valid, inverse.distance


def influence(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    function: Callable[[GMMParams], Any] | None = None,
) -> Any:
    """How each sample's weight moves the fit: d function(θ̂) / dw_i = ∇functionᵀ H⁻¹ s_i, for all i at once.

    With H the observed information and s_i = ∇ log p(x_i) at θ̂: the infinitesimal jackknife. To first order,
    leaving sample i out changes function(θ̂) by −w_i times this, and seeing it once more by +1 times.

    Args:
      params: the mixture, a fit to X.
      X: (N, D), or `Data`.
      sample_weight: (N,) or None for ones.
      function: GMMParams -> pytree of real arrays; None for weights, means and covariances. A function of few
        numbers costs less time and memory than all of the parameters do. Pass the same function object again
        to use its compilation again.

    Returns:
      What `function` returns, each array with a leading axis N. For None, an `Entries` with weights (N, K),
      means (N, K, D), covariances (N, K, D, D). NaN, with a warning outside `jit`, where the information is
      not positive definite.

    Raises:
      ValueError: for arrays that do not fit, NaN, or a structure without free coordinates.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[2.0]], [1.0], "spherical")
      >>> X = [[1.0], [1.0], [3.0], [3.0]]
      >>> jaxgmm.inference.influence(params, X).means[:, 0, 0].tolist()  # (x − μ) / n
      [-0.25, -0.25, 0.25, 0.25]

    References:
      Hampel (1974), The influence curve and its role in robust estimation; Giordano, Stephenson, Liu, Jordan
      & Broderick (2019), A Swiss Army infinitesimal jackknife.
    """
    if function is not None and not callable(function):
        raise TypeError(f"function must take GMMParams; got {type(function).__name__}")
    return checked(_influence, params, X, sample_weight, function=function or entries)


def _one(row: Data) -> Data:
    """A single row (D,) as a block of one."""
    block: Data = jax.tree.map(lambda a: a[None], row)
    return block


def _hidden(params: GMMParams, row: Data) -> tuple[Array, Array, Array]:
    """An E-step's resp (K,), means (K, D) and covariances (K, D, D) of z for one incomplete row."""
    one = _one(row)
    colour, residuals = observed.factors(params), observed.residuals_of(params.means, one)
    found = observed.regress(colour, one.view, residuals[:, :, None])
    mean = params.means + einsum("kde,ke->kd", colour, found.y[:, :, 0, 0])
    spread = einsum("kde,kef,kgf->kdg", colour, found.spread[:, :, :, 0], colour)
    return jax.nn.softmax(joint(params, one)[0][:, 0]), mean, spread


def _complete(params: GMMParams, resp: Array, mean: Array, spread: Array) -> Array:
    """() Σ_k r_k E[log π_k N(z | μ_k, Σ_k)], the expected log-likelihood of a complete row."""
    whiten = params.covariance.whitener(params.scatter)
    y = whiten((mean - params.means)[:, :, None])[:, :, 0]
    around = jnp.trace(whiten(whiten(spread).swapaxes(1, 2)), axis1=1, axis2=2)
    log_weights = jnp.where(params.log_weights > -jnp.inf, params.log_weights, 0)
    each = log_weights + log_normaliser(params) - 0.5 * (jnp.square(y).sum(1) + around)
    return (resp * each).sum()


def _steps(local: Local, inverse: Inverse, w: Array, rows: Data) -> tuple[Array, Array, Array]:
    """For B rows less the shift: log p(x), leverage w s H⁻¹ s (B,) and the moves of t (B, P).

    A Newton step towards the fixed point of EM without the row, −(H − w h)⁻¹ w s, in the moments that an
    M-step reads: for one component it is exact. There h is the information of a labelled complete
    observation, which is I in t, less what the row does not say of these moments: the derivative of their
    expectation given the row, which for complete rows is the covariance of the components' scores under its
    responsibilities.
    """
    values, s = scores(local, rows)
    origin = jnp.zeros(local.free.size, s.dtype)

    def joined(t: Array, row: Data) -> Array:
        return joint(local.at(t), _one(row))[0][:, 0]

    def held(row: Data, move: Array) -> Array:
        if not rows.is_complete:
            said, turned = jax.jvp(lambda t: _hidden(local.at(t), row), (origin,), (move,))

            def change(t: Array) -> Array:
                """Of the expected log-likelihood of the complete row at t, as what is said of it turns."""
                return jax.jvp(lambda *said: _complete(local.at(t), *said), said, turned)[1]

            return move - jax.grad(change)(origin)
        pull = jax.vjp(lambda t: joined(t, row), origin)[1]
        turned = jax.jvp(lambda t: jax.nn.softmax(joined(t, row)), (origin,), (move,))[1]
        return move - pull(turned)[0]

    # In the coordinates y = Lᵀ t, with H = L Lᵀ, most directions have the eigenvalue 1, or nearly.
    def operator(y: Array) -> Array:
        bent = jax.vmap(held)(rows, inverse.other_half(y.T).T)
        return y - w[:, None] * inverse.half(bent.T).T

    def improve(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, residual, direction = state
        image = operator(direction)
        size, curved = (residual * residual).sum(1), (direction * image).sum(1)
        # Where there is no curvature there is nothing to step to; where nothing is left, nowhere to go.
        pace = jnp.where(curved > 0, size / jnp.where(curved > 0, curved, 1), 0)[:, None]
        y, residual = y + pace * direction, residual - pace * image
        again = (residual * residual).sum(1) / jnp.where(size > 0, size, 1)
        return y, residual, residual + again[:, None] * direction

    first = inverse.half(s.T).T * w[:, None]
    y = jax.lax.fori_loop(0, _ROUNDS, improve, (jnp.zeros_like(first), first, first))[0]
    moves = -inverse.other_half(y.T).T
    leverage = w * jnp.square(inverse.half(s.T)).sum(0)
    return values, leverage, jax.vmap(lambda move: _straight(local, move))(moves)


def _straight(local: Local, move: Array) -> Array:
    """The t (P,) whose moments are as near as can be to where `move` leads in a straight line.

    The logarithms in t bend the line, by more than the rest of a Newton step is off.
    """

    def charted(t: Array) -> Array:
        return local.chart(local.at(t))

    start, pull = jax.vjp(charted, jnp.zeros_like(move))
    goal = start + jax.jvp(charted, (jnp.zeros_like(move),), (move,))[1]

    def improve(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        t, gap = state
        nearer = t + pull(gap)[0]
        left = goal - charted(nearer)
        better = (left * left).sum() < (gap * gap).sum()
        return jnp.where(better, nearer, t), jnp.where(better, left, gap)

    return jax.lax.fori_loop(0, _STRAIGHTENINGS, improve, (move, goal - charted(move)))[0]


@jit
def _leave_one_out(params: GMMParams, data: Data, *, rows: Array | None) -> tuple[LeaveOneOut, Array, Array]:
    local, _, inverse = examine(params, data)
    ones = jnp.ones(data.x.shape[0], data.x.dtype) if data.weight is None else data.weight

    def block(wb: Array, b: Data) -> tuple[Array, Array]:
        b = b.less(local.shift)
        _, leverage, moves = _steps(local, inverse, wb, b)
        values = jax.vmap(lambda t, row: posterior(local.at(t), _one(row))[1][0])(moves, b)
        return values, leverage

    size = tangent_rows(local, data, params.n_components)
    values, leverage = map_rows(block, ones, data.rows, block_size=size)
    chosen = None
    if rows is not None:
        some: Data = jax.tree.map(lambda a: a[rows], data.rows)
        moves = _steps(local, inverse, ones[rows], some.less(local.shift))[2]
        chosen = jax.vmap(lambda t: translate(local.at(t), local.shift))(moves)
    return LeaveOneOut(values, leverage, chosen, inverse.valid), inverse.valid, inverse.distance


def leave_one_out(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    rows: Sequence[int] | ArrayLike | None = None,
) -> LeaveOneOut:
    """Leave-one-out cross-validation without refitting: each fit without one sample by one Newton step.

    θ̂₋ᵢ ≈ θ̂ − (H − w_i h_i)⁻¹ w_i s_i, with s_i the gradient of log p(x_i) and h_i the information of a
    labelled, complete observation less what x_i's own label and its missing entries would add. The step is
    one of Newton's for the fixed point of EM without the sample, and it is taken in the moments that an
    M-step reads, so that for one component and complete rows it is exact. `log_prob.sum()` estimates what the
    fit would say of N new samples.

    Args:
      params: the mixture, a fit to X.
      X: (N, D), or `Data`; for rows with gaps, noise or projections the components must be Gaussian.
      sample_weight: (N,) or None for ones; leaving a sample out takes all of its weight.
      rows: row indices (M,) whose leave-one-out parameters are wanted too, or None.

    Returns:
      LeaveOneOut. NaN, with a warning outside `jit`, where the information is not positive definite.

    Raises:
      ValueError: for arrays that do not fit, NaN, rows out of range, or a structure without free coordinates.
      TypeError: for rows that are not integers.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[2.0]], [1.0], "spherical")
      >>> X = [[1.0], [1.0], [3.0], [3.0]]
      >>> loo = jaxgmm.inference.leave_one_out(params, X, rows=[0])
      >>> round(float(loo.params.means[0, 0, 0]), 3)  # 7/3 is the mean of the other three
      2.333
      >>> bool((loo.log_prob < jaxgmm.log_prob(params, X)).all())
      True

    References:
      Beirami, Razaviyayn, Shahrampour & Tarokh (2017), On optimal generalizability in parametric learning;
      Rad & Maleki (2020), A scalable estimate of the out-of-sample prediction error via
      approximate leave-one-out cross-validation.
    """
    params, data = data_of(params, X, sample_weight)
    if not data.is_complete:
        check_gaussian(params, "leave_one_out of incomplete or noisy rows")
    chosen = None if rows is None else validate.rows(rows, data.x.shape[0])
    return checked(_leave_one_out, params, data, None, rows=chosen)
