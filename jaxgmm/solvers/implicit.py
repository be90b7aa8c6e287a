"""Implicit differentiation of a fixed point: a solve with the map's Jacobian."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.kernels.linalg import epsilon
from jaxgmm.solvers.krylov import Answer, gmres

PyTree = Any

_ROUGH = 6e-6  # relative residual of a solve that only has to be a good start


class Evaluation(NamedTuple):
    """What is known of a map at one point θ."""

    image: PyTree  # F(θ)
    objective: Array  # ()  at θ; must not fall along the iteration. −inf: θ lies outside the domain
    report: Array  # ()  at θ; goes into the solution and its history
    step: Array  # ()  length of F(θ) − θ in a metric of the map's own
    noise: Array  # ()  the length of step that rounding alone can make
    slack: Array  # ()  a fall of the objective as small as this is rounding
    valid: Array  # ()  bool: F(θ) is finite and in the domain


class Chart(NamedTuple):
    """Coordinates about a reference point, in which extrapolation makes sense and lengths are comparable."""

    to: Callable[[PyTree, PyTree], PyTree]  # (reference, θ) -> coordinates
    back: Callable[[PyTree, PyTree], PyTree]  # (reference, coordinates) -> θ; NaN outside the domain


class Derivative(NamedTuple):
    """How a solution is differentiated; static."""

    coordinates: Chart | None  # for the linear solve; a Krylov method wants unknowns of one scale
    unconverged: str  # "nan", "warn" or "ignore": what becomes of a derivative that cannot be trusted
    symmetric: bool = False  # whether the Jacobian in these coordinates is all but symmetric


RAW = Derivative(None, "ignore")


class Jacobian(NamedTuple):
    """J = ∂F/∂θ at a point, in coordinates; see `jacobian`."""

    matvec: Callable[[Array], Array]  # (n,) -> (n,), J v
    encode: Callable[[PyTree], Array]  # tangent of the point -> (n,)
    decode: Callable[[Array], PyTree]  # (n,) -> tangent of the point
    size: int  # n


def jacobian(image: Callable[[PyTree], PyTree], point: PyTree, chart: Chart | None) -> Jacobian:
    """The Jacobian of F at a point, in a chart's coordinates about it as one vector.

    With T the derivative of the chart's `to` and T⁺ that of its `back`, J becomes T J T⁺. T⁺T is the identity
    on the tangents that F can make, and TT⁺ a projection, so that redundant coordinates have eigenvalue 0.
    """
    if chart is None:
        flat, unravel = ravel_pytree(point)

        def product(v: Array) -> Array:
            return ravel_pytree(jax.jvp(image, (point,), (unravel(v),))[1])[0]

        return Jacobian(product, lambda t: ravel_pytree(t)[0], unravel, flat.size)

    # The linear algebra is the same in any fixed coordinates: their own origin is not differentiated.
    origin = lax.stop_gradient(point)
    to, back = functools.partial(chart.to, origin), functools.partial(chart.back, origin)
    here = to(point)
    flat, unravel = ravel_pytree(here)

    def encode(tangent: PyTree) -> Array:
        return ravel_pytree(jax.jvp(to, (point,), (tangent,))[1])[0]

    def decode(v: Array) -> PyTree:
        return jax.jvp(back, (here,), (unravel(v),))[1]

    def matvec(v: Array) -> Array:
        return encode(jax.jvp(image, (point,), (decode(v),))[1])

    return Jacobian(matvec, encode, decode, flat.size)


def krylov(
    matvec: Callable[[Array], Array], b: Array, twin: Callable[[Array], Array] | None = None
) -> Answer:
    """The linear solve of a derivative, to the precision that the dtype allows.

    `twin` is a cheaper operator that is all but equal to `matvec`, if there is one: its solution is where the
    iteration starts, and in float32 often where it ends.
    """
    tol = epsilon(b.dtype) ** 0.75
    guess = None if twin is None else gmres(twin, b, tol=max(tol, _ROUGH), restarts=1).x
    return gmres(matvec, b, tol=tol, guess=guess)


def trusted(answer: Answer) -> Array:
    """() bool: whether a linear solve ended with a small residual."""
    return answer.residual <= epsilon(answer.residual.dtype) ** 0.5


def _warn(converged: Any, residual: Any) -> None:
    if not np.all(converged):
        warnings.warn(
            "a fit that has not converged was differentiated: the implicit derivative holds only at a fixed "
            "point. Raise max_iter, or use fit_unrolled.",
            RuntimeWarning,
            stacklevel=2,
        )
    elif not np.all(residual <= np.sqrt(np.finfo(residual.dtype).eps)):
        warnings.warn(
            "the linear solve of a fit's derivative ended with a relative residual of "
            f"{np.max(residual):.1e}: the mixture is all but unidentified (empty or equal components). "
            "See fit_diagnostics.",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def with_derivative(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    how: Derivative,
    point: PyTree,
    report: Array,
    converged: Array,
    data: PyTree,
) -> tuple[PyTree, Array]:
    """The point and its report as they are, with the derivative that the implicit function theorem gives.

    At θ = F(θ, data), dθ = (I − ∂F/∂θ)⁻¹ ∂F/∂data. Nothing is computed unless somebody differentiates.
    """
    return point, report


@with_derivative.defjvp
def _implicit(
    evaluate: Callable[[PyTree, PyTree], Evaluation],
    how: Derivative,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Any, Any]:
    # Through itself, so that a second derivative sees that the point depends on the data.
    point, report = with_derivative(evaluate, how, *primals)
    converged, data, data_dot = primals[2], primals[3], tangents[3]

    def image(p: PyTree, d: PyTree) -> PyTree:
        return evaluate(p, d).image

    j = jacobian(lambda p: image(p, data), point, how.coordinates)

    def operator(v: Array) -> Array:
        return v - j.matvec(v)

    # A forward product costs half of a transposed one, which computes each block of rows again.
    twin = operator if how.symmetric else None

    def transposed(matvec: Callable[[Array], Array], b: Array) -> Array:
        return trusted_or_nan(krylov(matvec, b, twin), b)

    def forward(matvec: Callable[[Array], Array], b: Array) -> Array:
        return trusted_or_nan(krylov(matvec, b), b)

    def trusted_or_nan(answer: Answer, b: Array) -> Array:
        # Nothing asked, nothing wrong: an unconverged fit that does not enter a loss must not spoil it. Here
        # rather than outside, for a mask of NaN is not linear, and its transpose would be zero.
        asked = (b != 0).any()
        if how.unconverged == "warn":
            residual = jnp.where(asked, answer.residual, 0)
            jax.debug.callback(_warn, converged | ~asked, residual)
        if how.unconverged != "nan":
            return answer.x
        return jnp.where(~asked | (converged & trusted(answer)), answer.x, jnp.nan)

    pushed = j.encode(jax.jvp(lambda d: image(point, d), (data,), (data_dot,))[1])
    solved = lax.custom_linear_solve(operator, pushed, forward, transposed)
    point_dot = j.decode(solved)
    report_dot = jax.jvp(lambda p, d: evaluate(p, d).report, (point, data), (point_dot, data_dot))[1]
    return (point, report), (point_dot, report_dot)
