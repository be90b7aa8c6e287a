"""Observed information: standard errors, intervals, Takeuchi's criterion."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.density import check_ungrouped, data_of
from jaxgmm.inference import _local_coordinates as coordinates
from jaxgmm.inference._local_coordinates import Curvature, Entries, Inverse, Local, entries
from jaxgmm.kernels.linalg import einsum
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams, active

KINDS = ("observed", "sandwich")
_FAR = 1.0  # standard errors from the optimum, beyond which an eager call warns
_NOT_POSITIVE = (
    "the observed information is not positive definite, and what follows from it is NaN: the mixture is not "
    "at a maximum of the likelihood, or is not identified (twin components). Fit it to the same X and "
    "sample_weight, or use fewer components"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Information:
    """The observed information of a mixture in its free coordinates φ (P,), as `information` gives it.

    Attributes:
      observed: (P, P) −Σ w ∇² log p(x).
      opg: (P, P) Σ w² s sᵀ, the outer product of the gradients s = ∇ log p(x).
      score: (P,) Σ w s; 0 at an optimum.
      least: () the smallest eigenvalue of the observed information relative to that of the same samples with
        their labels known. It is 1 minus the rate at which EM converges; near 0 the mixture is barely
        identified, and below 0 it is no maximum.
      distance: () sqrt(scoreᵀ observed⁻¹ score): how far the optimum is, in standard errors.
      valid: () bool: the observed information is positive definite beyond rounding.
    """

    observed: Array  # (P, P)
    opg: Array  # (P, P)
    score: Array  # (P,)
    least: Array  # ()
    distance: Array  # ()
    valid: Array  # ()  bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class StandardErrors(display.Shown, Entries):
    """Standard errors of a mixture's entries, as `standard_errors` gives them.

    Prints as a table of weights, means and variances.

    Attributes:
      weights: (K,); 0 where the structure holds them equal.
      means: (K, D).
      covariances: (K, D, D), dense; 0 where the structure holds an entry fixed.
      estimate: `Entries`, the mixture's own.
      distance: () how far the likelihood's optimum is, in standard errors; see `Information`.
      valid: () bool: the information is positive definite. Where it is not, the errors are NaN.
      columns: names of the features, or None; static.
    """

    estimate: Entries
    distance: Array  # ()
    valid: Array  # ()  bool
    columns: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def _table(self) -> display.Table | None:
        columns = {"estimate": parts(self.estimate), "std. error": parts(self)}
        return display.parameter_table(columns, self.columns)

    def __repr__(self) -> str:
        """One line: how far the maximum is. Printed, it is a table."""
        distance = display.look(self.distance)
        one = distance is not None and distance.ndim == 0
        return f"StandardErrors({f'{distance:.2g} standard errors from the maximum' if one else ''})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ConfidenceIntervals(display.Shown):
    """Confidence intervals of a mixture's entries, as `confidence_intervals` gives them.

    Prints as a table of weights, means and variances.

    Attributes:
      lower: `Entries`, the lower ends: weights (K,), means (K, D), covariances (K, D, D).
      upper: `Entries`, the upper ends.
      valid: () bool, as in `StandardErrors`; where it is False the ends are NaN.
      estimate: `Entries`, the mixture's own.
      errors: `Entries`, the standard errors.
      level: () the probability that each interval should cover.
      columns: names of the features, or None; static.
    """

    lower: Entries
    upper: Entries
    valid: Array  # ()  bool
    estimate: Entries
    errors: Entries
    level: Array  # ()
    columns: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def _table(self) -> display.Table | None:
        level = display.look(self.level)
        if level is None or level.ndim:
            return None
        tail = 50 * (1 - float(level))
        ends = {f"{tail:.3g} %": parts(self.lower), f"{100 - tail:.4g} %": parts(self.upper)}
        columns = {"estimate": parts(self.estimate), "std. error": parts(self.errors)}
        return display.parameter_table(columns | ends, self.columns)

    def __repr__(self) -> str:
        """One line: the level. Printed, it is a table."""
        level = display.look(self.level)
        return f"ConfidenceIntervals({'' if level is None or level.ndim else f'{100 * float(level):.3g} %'})"


def parts(e: Entries) -> tuple[Array, Array, Array]:
    """Weights, means and covariances."""
    return e.weights, e.means, e.covariances


def names_of(X: Any) -> tuple[str, ...] | None:
    """The columns' names of a data frame."""
    columns = getattr(X, "columns", None)
    return None if columns is None else tuple(map(str, columns))


def examine(params: GMMParams, data: Data) -> tuple[Local, Curvature, Inverse]:
    """Coordinates at a mixture, the curvature in them and its inverse."""
    local = coordinates.localise(params, data)
    c = coordinates.curvature(local, data, params.n_components)
    return local, c, coordinates.invert(local, c)


def checked(
    program: Callable[..., tuple[Any, Array, Array]],
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None,
    **options: Any,
) -> Any:
    """What a program makes of checked arguments, with a warning of an eager call where it means little.

    The program gives (params, data, **options) -> a value, and the `valid` and `distance` of an `Inverse`.
    """
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "standard errors and influences")
    value, valid, distance = program(params, data.by_row(), **options)
    if not validate.is_concrete(valid, distance):
        return value
    if not bool(valid):
        warnings.warn(_NOT_POSITIVE, RuntimeWarning, stacklevel=3)
    elif float(distance) > _FAR:
        warnings.warn(
            f"the maximum of the likelihood is {float(distance):.3g} standard errors away: these params are "
            "not a fit to this X and sample_weight, or reg_covar is large",
            RuntimeWarning,
            stacklevel=3,
        )
    return value


@jit
def _information(params: GMMParams, data: Data) -> tuple[Information, Array]:
    """The information, and Takeuchi's criterion."""
    local, c, inverse = examine(params, data)
    r = local.inverse_basis
    observed, opg = (einsum("pi,pq,qj->ij", r, m, r) for m in (c.information, c.opg))
    score = einsum("pi,p->i", r, c.score)
    criterion = -2 * c.log_likelihood + 2 * jnp.trace(inverse.solve(c.opg))
    return Information(observed, opg, score, inverse.least, inverse.distance, inverse.valid), criterion


def information(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None
) -> Information:
    """The observed information, −∇² of the total log-likelihood, by exact automatic differentiation.

    The coordinates φ are, in this order: log π_k − log π_K for k < K (K the last component that is switched
    on; none where the structure holds the weights equal), the means row by row, and the covariance
    structure's own (`Covariance.to_unconstrained`); P = n_parameters(params) in all. Rows are read in blocks:
    memory does not grow with N P². All is computed in coordinates where a labelled observation's information
    is I, and only then brought to φ. float64 is recommended: in float32 the inverse of `observed` can lose
    digits that `standard_errors`, which does not leave those coordinates, keeps.

    Args:
      params: the mixture, a fit to X. Components that are switched off have no coordinates; inside `jit`,
        where they cannot be told, they have rows and columns of zeros.
      X: (N, D).
      sample_weight: (N,) or None for ones; a weight of 2 counts as the sample twice in `observed`.

    Returns:
      Information. Nothing is raised where it is not positive definite: `valid` tells.

    Raises:
      ValueError: for arrays that do not fit, NaN, or a structure without free coordinates.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> info = jaxgmm.inference.information(params, [[0.0], [2.0]])
      >>> info.observed.round(4).tolist()  # of the mean n/σ², of log σ 2n
      [[2.0, 0.0], [0.0, 4.0]]

    References:
      Efron & Hinkley (1978), Assessing the accuracy of the maximum likelihood estimator: observed versus
      expected Fisher information; McLachlan & Peel (2000), Finite Mixture Models, §2.15.
    """
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "the information")
    if validate.is_concrete(params):
        params = active(params)
    return _information(params, data.by_row())[0]


@jit
def _standard_errors(params: GMMParams, data: Data) -> tuple[Any, Array, Array]:
    """The `StandardErrors` of every kind: what they have in common takes nearly all of the time."""
    local, c, inverse = examine(params, data)
    j, unravel = coordinates.jacobian(local, entries)
    pulled = inverse.solve(j.T)
    variances = {
        "observed": jnp.square(inverse.half(j.T)).sum(0),
        "sandwich": (pulled * einsum("pq,qr->pr", c.opg, pulled)).sum(0),
    }
    errors = {}
    for kind, variance in variances.items():
        e = coordinates.without_off(params, unravel(coordinates.root(variance)))
        errors[kind] = StandardErrors(
            e.weights, e.means, e.covariances, entries(params), inverse.distance, inverse.valid
        )
    return errors, inverse.valid, inverse.distance


def standard_errors(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None, *, kind: str = "observed"
) -> StandardErrors:
    """Asymptotic standard errors of weights, means and covariances at a maximum of the likelihood.

    With H the observed information and B = Σ w² s sᵀ in free coordinates, the covariance of the estimates is
    H⁻¹ ("observed") or H⁻¹ B H⁻¹ ("sandwich", right also where the data are no Gaussian mixture, and where
    sample_weight are not counts), carried to natural coordinates by the delta method.

    Args:
      params: the mixture, a fit to X. A component that is switched off has NaN for its mean and covariance.
      X: (N, D). float64 is recommended; float32 gives about three digits for well-identified mixtures.
      sample_weight: (N,) or None for ones. "observed" takes them as counts, "sandwich" as given.
      kind: "observed" or "sandwich".

    Returns:
      StandardErrors. Where the information is not positive definite (the mixture is not at a maximum, or is
      not identified) they are NaN and `valid` is False; outside `jit` that warns too, and so does a
      `distance` to the maximum of more than one standard error.

    Raises:
      ValueError: for arrays that do not fit, NaN, an unknown kind, or a structure without free coordinates.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> errors = jaxgmm.inference.standard_errors(params, [[0.0], [2.0]])
      >>> errors.means.round(4).tolist(), errors.covariances.round(4).tolist()  # σ/√n, σ² √(2/n)
      ([[0.7071]], [[[1.0]]])

    References:
      McLachlan & Peel (2000), Finite Mixture Models, §2.15–2.16; White (1982), Maximum likelihood estimation
      of misspecified models, theorem 3.2.
    """
    kind = validate.choice(kind, "kind", KINDS)
    found: StandardErrors = checked(_standard_errors, params, X, sample_weight)[kind]
    return dataclasses.replace(found, columns=names_of(X))


@jit
def _around(params: GMMParams, errors: StandardErrors, level: Array) -> tuple[Entries, Entries]:
    """Lower and upper ends of intervals about a mixture: see `confidence_intervals` for the scales."""
    dtype = errors.means.dtype
    centre = jax.tree.map(lambda a: a.astype(dtype), entries(params))
    z = ndtri((1 + level.astype(dtype)) / 2)
    w = centre.weights
    inside = (w > 0) & (w < 1)
    odds = jnp.where(inside, w, 0.5) / jnp.where(inside, 1 - w, 0.5)
    slope = jnp.where(inside, w * (1 - w), 1)
    is_variance = jnp.eye(centre.means.shape[-1], dtype=bool)[None]
    variance = jnp.where(is_variance, centre.covariances, 1)

    def end(sign: float) -> Entries:
        step = sign * z
        weights = jax.nn.sigmoid(jnp.log(odds) + step * errors.weights / slope)
        scaled = variance * jnp.exp(step * errors.covariances / variance)
        return Entries(
            # A weight that is not free has no error: that of the only component, and equal ones.
            jnp.where((inside & (errors.weights != 0)) | jnp.isnan(errors.weights), weights, w),
            centre.means + step * errors.means,
            jnp.where(is_variance, scaled, centre.covariances + step * errors.covariances),
        )

    return end(-1.0), end(1.0)


def confidence_intervals(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    level: ArrayLike = 0.95,
    kind: str = "observed",
) -> ConfidenceIntervals:
    """Confidence intervals of weights, means and covariances, each from its own standard error.

    Means and covariances between features: estimate ± z·SE. Weights: the same on the logit scale; variances:
    on the logarithmic scale. So the ends stay in their ranges, and follow the skewness of these estimates.
    Each interval is for one entry by itself.

    Args:
      params: the mixture, a fit to X.
      X: (N, D).
      sample_weight: (N,) or None for ones.
      level: the probability that an interval should cover, between 0 and 1.
      kind: as in `standard_errors`.

    Returns:
      ConfidenceIntervals, with NaN ends where there are no standard errors.

    Raises:
      ValueError, TypeError: as `standard_errors`, and for a level outside (0, 1).

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> intervals = jaxgmm.inference.confidence_intervals(params, [[0.0], [2.0]])
      >>> round(float(intervals.lower.means[0, 0]), 3), round(float(intervals.upper.means[0, 0]), 3)
      (-0.386, 2.386)

    References:
      McLachlan & Peel (2000), Finite Mixture Models, §2.15.
    """
    kind = validate.choice(kind, "kind", KINDS)
    level = validate.fraction(level, "level", None)
    errors = checked(_standard_errors, params, X, sample_weight)[kind]
    ends = _around(params, errors, level)
    return ConfidenceIntervals(*ends, errors.valid, errors.estimate, errors, level, names_of(X))


def _takeuchi(params: GMMParams, data: Data) -> tuple[Array, Array, Array]:
    info, criterion = _information(params, data)
    return criterion, info.valid, info.distance


def takeuchi(params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None = None) -> Array:
    """() Takeuchi's criterion, −2 log L + 2 tr(H⁻¹ B); smaller is better.

    With H the observed information and B = Σ w² s sᵀ. tr(H⁻¹ B) is about the number of free parameters where
    the model is right, and then the criterion is about `aic`; it does not assume that it is.

    Args:
      params: the mixture, a fit to X.
      X: (N, D).
      sample_weight: (N,) or None for ones.

    Returns:
      A scalar; NaN, with a warning outside `jit`, where the information is not positive definite.

    Raises:
      ValueError: for arrays that do not fit, NaN, or a structure without free coordinates.

    Example:
      >>> import jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[1.0]], [1.0], "spherical")
      >>> round(float(jaxgmm.inference.takeuchi(params, [[0.0], [2.0]])), 3)  # aic less 2
      7.676

    References:
      Takeuchi (1976), Distribution of informational statistics and a criterion of model fitting; Burnham &
      Anderson (2002), Model Selection and Multimodel Inference, chapter 7.
    """
    return checked(_takeuchi, params, X, sample_weight)
