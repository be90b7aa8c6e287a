"""Data: the rows and all that is known of each; the data summary, from which centring and ridge follow."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.kernels.blocked_sum import in_range, sum_rows, zero_unused
from jaxgmm.kernels.linalg import einsum, epsilon
from jaxgmm.kernels.programs import is_concrete

MISSING = ("error", "nan")
# Patterns are of use where they are fewer than rows by this factor; otherwise every row is its own.
_SHARED = 4


class View(NamedTuple):
    """How rows, or patterns of rows, show the features; the leading axis is theirs. None: complete and exact.

    Fields:
      observed: (n, E) bool.
      noise: (n, E) variances or (n, E, E) covariances of the measurement errors.
      projection: (n, E, D), of the features to what is measured.
    """

    observed: Array | None = None
    noise: Array | None = None
    projection: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    """The rows and all that is known of each, as `observe` makes it: a frozen pytree.

    Row n is seen as x_n = R_n z_n + ε_n, ε_n ~ N(0, S_n), in its observed entries, where z_n (D,) comes from
    the mixture. Every leaf has N rows, `patterns` excepted.

    Attributes:
      x: (N, E); E = D without projections. Missing entries hold 0.
      weight: (N,) sample weights, or None for ones.
      observed: (N, E) bool, or None where all entries are.
      noise: (N, E) variances or (N, E, E) covariances S of the measurement errors, or None for none.
      projection: (N, E, D) the matrices R, or None for the identity.
      log_prior: (N, K) added to the log joint densities: soft labels, forbidden components; or None.
      label: (N,) int32 the component that a row is known to come from, −1 where none is; or None.
      group: (N,) int32 numbers from 0 to N − 1; rows of one number come from one component; or None.
      pattern: (N,) int32 which of `patterns` a row has, or None where they were not looked for.
      patterns: the different views, leading axis P, or None.
      tile: rows stand in groups of so many of one pattern; 0 where they do not. Static.
    """

    x: Array  # (N, E)
    weight: Array | None = None  # (N,)
    observed: Array | None = None  # (N, E)  bool
    noise: Array | None = None  # (N, E) or (N, E, E)
    projection: Array | None = None  # (N, E, D)
    log_prior: Array | None = None  # (N, K)
    label: Array | None = None  # (N,)  int32
    group: Array | None = None  # (N,)  int32
    pattern: Array | None = None  # (N,)  int32
    patterns: View | None = None  # of (P, …)
    tile: int = dataclasses.field(default=0, metadata={"static": True})

    def __repr__(self) -> str:
        """One line: the shape, and what is known beside the entries. No array is looked at."""
        shape = " × ".join(map(str, getattr(self.x, "shape", ("?",))))
        names = {
            "observed": "missing entries",
            "noise": "noise",
            "projection": "projections",
            "label": "labels",
            "log_prior": "log_prior",
            "group": "groups",
            "weight": "weights",
        }
        known = ", ".join(words for name, words in names.items() if getattr(self, name) is not None)
        return f"Data({shape}, {getattr(self.x, 'dtype', '?')}{f': {known}' if known else ''})"

    @property
    def view(self) -> View:
        """How each row shows the features."""
        if self.tile and self.patterns is not None:
            known: View = jax.tree.map(lambda a: a[self.pattern], self.patterns)
            return known
        return View(self.observed, self.noise, self.projection)

    @property
    def is_complete(self) -> bool:
        """Whether all entries of every row are observed, without noise or projection."""
        fields = (self.observed, self.noise, self.projection, self.pattern if self.tile else None)
        return all(field is None for field in fields)

    @property
    def is_plain(self) -> bool:
        """Whether the rows and their weights are all that is known."""
        return self.is_complete and all(a is None for a in (self.log_prior, self.label, self.group))

    @property
    def n_features(self) -> int:
        """D, of the mixture."""
        shared = self.patterns is not None and self.tile > 0
        projection = self.patterns.projection if shared and self.patterns else self.projection
        return self.x.shape[1] if projection is None else projection.shape[-1]

    def by_row(self) -> Data:
        """The same with every row's own view, for functions of single rows."""
        return dataclasses.replace(self, **self.view._asdict(), pattern=None, patterns=None, tile=0)

    def less(self, shift: Array) -> Data:
        """The same about a shift (D,) of the features; projected ones have none."""
        projected = self.view.projection is not None
        return self if projected else dataclasses.replace(self, x=self.x - shift[None, :])

    def filled(self, centre: Array) -> Array:
        """(N, D) the rows, with a centre (D,) in place of missing entries."""
        seen = self.view.observed
        return self.x if seen is None else jnp.where(seen, self.x, centre[None, :])

    @property
    def rows(self) -> Data:
        """All that has N rows but the weights: what `sum_rows` cuts into blocks beside them."""
        keep = self.pattern if self.tile else None
        return dataclasses.replace(self, weight=None, pattern=keep, patterns=None)

    def known(self, n_components: int) -> Array | None:
        """(K, N) what is added to the log joint densities, or None."""
        total = None if self.log_prior is None else self.log_prior.T
        if self.label is not None:
            each = jnp.arange(n_components, dtype=jnp.int32)[:, None]
            other = (self.label[None, :] >= 0) & (self.label[None, :] != each)
            hard = jnp.where(other, -jnp.inf, jnp.zeros((), self.x.dtype))
            total = hard if total is None else total + hard
        return total


def observe(
    X: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    missing: str = "error",
    noise: ArrayLike | None = None,
    projection: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    log_prior: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> Data:
    """Rows with all that is known of each: gaps, errors of measurement, projections, labels, groups.

    Row n is x_n = R_n z_n + ε_n, ε_n ~ N(0, S_n), in its observed entries, with z_n from the mixture. Checked
    once, here; every function that takes `Data` then fits or evaluates the mixture of the z. Equal views of
    the features (patterns of missing entries, equal noise) are found where the arrays are concrete, and what
    depends on them is computed once for all rows that share one.

    Args:
      X: (N, D), or (N, E) with projections. An array, a masked array or a data frame.
      sample_weight: (N,) or None for ones.
      missing: "error" refuses NaN; "nan" takes NaN, masked entries and a data frame's missing values for
        missing at random. A row may have no observed entry at all.
      noise: variances of the errors of measurement, () or (E,) for all rows or (N, E); or covariances
        (N, E, E). In units of X squared. An infinite variance is a missing entry.
      projection: (N, E, D), or (E, D) for all rows, the matrices R.
      labels: (N,) integers, the component that a row comes from, or −1 where that is not known.
      log_prior: (N, K) added to the log joint densities log π_k f_k(x_n): for soft labels the logarithms of
        their probabilities, −inf for a component that is ruled out.
      groups: (N,) integers; rows with the same one come from the same component, whichever that is (must-link
        constraints), and −1 for rows on their own. A group g is drawn as a whole: its likelihood is
        Σ_k π_k Π_{n ∈ g} f_k(x_n), in which π_k is the share of the groups. What is said of one of its rows,
        as by `log_prob`, is an equal part of what is said of the group. Takes memory for (N, K), and no
        sample_weight.

    Returns:
      `Data`. What turns out to say nothing (no NaN, no noise, no labels) is left out.

    Raises:
      ValueError, TypeError: for shapes that do not fit, infinite entries, negative noise, a covariance that
        is not symmetric and positive definite, or a row for which every component is ruled out.

    Example:
      >>> import jaxgmm
      >>> data = jaxgmm.observe([[0.0, 1.0], [float("nan"), 2.0]], missing="nan")
      >>> data.observed.tolist()
      [[True, True], [False, True]]
      >>> params = jaxgmm.make_params([1.0], [[0.0, 2.0]], [1.0], "spherical")
      >>> jaxgmm.log_prob(params, data).round(3).tolist()  # of two entries, and of one
      [-2.338, -0.919]

    References:
      Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach; Bovy, Hogg &
      Roweis (2011), Extreme deconvolution, Annals of Applied Statistics 5; Shental, Bar-Hillel, Hertz &
      Weinshall (2003), Computing Gaussian mixture models with EM using equivalence constraints.
    """
    gaps = validate.choice(missing, "missing", MISSING) == "nan"
    x = validate.data(X, missing=gaps)
    observed = validate.observed(x) if gaps else None
    errors = validate.noise(noise, x)
    if errors is not None and errors.ndim == 2:
        errors, observed = _without_infinite(errors, observed)
    x = x if observed is None else _where(observed, x, 0)
    r = validate.projection(projection, x)
    label, prior = validate.labels(labels, x), validate.log_prior(log_prior, x)
    view = View(observed, errors, r)
    group = validate.groups(groups, x)
    if group is not None and sample_weight is not None:
        raise ValueError("sample_weight must be None with groups: a group counts once")
    data = Data(x, validate.weight(sample_weight, x), *view, log_prior=prior, label=label, group=group)
    if not data.is_complete and is_concrete(view):
        pattern, patterns = find_patterns(view)
        data = dataclasses.replace(data, pattern=pattern, patterns=patterns)
    return data


def _where(condition: Array, x: Array, other: Any) -> Array:
    """`where`, on the host for concrete arrays, so that nothing is compiled."""
    if is_concrete(condition, x):
        return jax.device_put(np.where(condition, x, np.asarray(other, x.dtype)))
    return jnp.where(condition, x, other)


def _without_infinite(noise: Array, observed: Array | None) -> tuple[Array, Array | None]:
    """Variances (N, E) without the infinite ones, whose entries become missing ones."""
    xp: Any = np if is_concrete(noise, observed) else jnp
    finite = xp.isfinite(xp.asarray(noise))
    if xp is np and finite.all():
        return noise, observed
    both = finite if observed is None else finite & xp.asarray(observed)
    return _where(finite, noise, 1), jax.device_put(both) if xp is np else both


def find_patterns(view: View) -> tuple[Array | None, View | None]:
    """Which of the different views (P, …) each row has, (N,), and these; None where hardly any are equal."""
    arrays = [np.asarray(a) for a in view if a is not None]
    n = len(arrays[0])
    flat = np.concatenate(
        [np.ascontiguousarray(a).reshape(n, -1).view(np.uint8).reshape(n, -1) for a in arrays], axis=1
    )
    keys = np.ascontiguousarray(flat).view(np.dtype((np.void, flat.shape[1])))[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) * _SHARED > n:
        return None, None
    pattern = inverse.reshape(-1).astype(np.int32)
    table: View = jax.tree.map(lambda a: np.asarray(a)[first], view)
    placed: tuple[Array, View] = jax.device_put((pattern, table))
    return placed


def total_weight(data: Data) -> Array:
    """() the sum of the weights."""
    return jnp.asarray(data.x.shape[0], data.x.dtype) if data.weight is None else data.weight.sum()


class Context(NamedTuple):
    """What EM knows beside the rows: the data summary, the prior, and how much is trimmed."""

    shift: Array  # (D,)  the centring: subtracted from the data, against rounding at a large offset
    variance: Array  # (D,)  of the features; 1 for a constant feature
    ridge: Array  # (D,)  what is added to the diagonals of the covariances
    mean: Array  # (D,)  of the features
    prior: Any = None  # `priors.Pseudo` about the shift, or None
    trim: Any = None  # ()  the weight of the rows that do not count in an iteration, or None


def centring(mean: Any, variance: Any) -> Any:
    """(D,) the shift taken off the data: a feature's mean, or 0 where it is below the standard deviation.

    Where the offset is small beside the spread, a shift would only add its own rounding to the data. Of NumPy
    arrays it is one; of JAX arrays too.
    """
    where = np.where if isinstance(mean, np.ndarray) else jnp.where
    return where(mean * mean > variance, mean, 0)


def ridge(reg_covar: Array, variance: Any) -> Array:
    """(D,) what is added to the variances: reg_covar · min(1, Var x_j).

    Absolute for features as wide as 1 or wider, and relative below, so that a feature in small units is not
    swamped.
    """
    minimum = np.minimum if isinstance(variance, np.ndarray) else jnp.minimum
    return reg_covar * minimum(variance, 1)


def constant(mean: Any, dtype: Any) -> Any:
    """(D,) the variance of a feature that is constant to rounding at that mean, or less."""
    return (8 * epsilon(dtype) * abs(mean)) ** 2


def summarise(data: Data, reg_covar: Array) -> Context:
    """The data summary, from the means and variances of the rows. A constant feature counts as width 1.

    Of what is observed: noise is part of the variances. Where the features are seen through projections,
    there is no centring, and their variances count as 1.
    """
    x = data.x
    if data.view.projection is not None:
        one = jnp.ones(data.n_features, x.dtype)
        return Context(jnp.zeros_like(one), one, ridge(reg_covar, one), jnp.zeros_like(one))
    mean, variance = location_and_variance(x, data.weight, observed=data.view.observed)
    # NaN, of squares out of range, stays: the fit then ends as NONFINITE.
    variance = jnp.where(variance <= constant(mean, x.dtype), 1, variance)
    shift = lax.stop_gradient(centring(mean, variance))
    return Context(shift, variance, ridge(reg_covar, variance), mean)


def location_and_variance(
    x: Array, sample_weight: Array | None, block_size: int = 2048, observed: Array | None = None
) -> tuple[Array, Array]:
    """Weighted mean (D,) and variance (D,) of the features, the variance about the mean.

    Of the entries that are `observed` (N, D); of a feature that never is, 0 and 0. Where squares leave the
    range of the dtype, the variance is NaN; or the least that can be told from zero, of a feature whose
    squares underflow beside those of another one.
    """

    def of_block(w: Array, b: Array, seen: Array | None) -> tuple[Array, Array]:
        """The entries (B, D), and their weights (B, 1 or D)."""
        weights = w[:, None] if seen is None else jnp.where(seen, w[:, None], 0)
        return jnp.where(in_range(w, b), b, jnp.zeros((), b.dtype)), weights

    def first_moments(w: Array, b: Array, seen: Array | None) -> tuple[Array, Array]:
        entries, weights = of_block(w, b, seen)
        return weights.sum(0), (weights * entries).sum(0)

    total, first = sum_rows(first_moments, sample_weight, x, observed, block_size=block_size)
    if observed is not None:
        total = jnp.where(total > 0, total, 1)
    mean = first / total

    def deviations(w: Array, b: Array, seen: Array | None) -> tuple[Array, Array, Array]:
        entries, weights = of_block(w, b, seen)
        d = entries - mean[None, :]
        absolute = lax.stop_gradient(
            (weights * jnp.abs(d)).sum(0) if observed is not None else w @ jnp.abs(d)
        )
        return (weights * d).sum(0), (weights * d * d).sum(0), absolute

    rest, squares, absolute = sum_rows(deviations, sample_weight, x, observed, block_size=block_size)
    variance = squares / total - jnp.square(rest / total)
    # A variance is at least the square of the mean absolute deviation. A constant feature has neither.
    info = jnp.finfo(x.dtype)
    least = float(info.tiny / info.eps)
    varies = absolute / total > 8 * epsilon(x.dtype) * jnp.abs(mean)
    variance = jnp.where(jnp.isfinite(variance), variance, jnp.nan)
    lost = varies & (jnp.square(absolute / total) < least)
    instead = jnp.where((varies & ~lost).any(), least, jnp.nan)
    return mean + rest / total, jnp.where(lost, instead, variance)


def covariance_of(data: Data, block_size: int = 2048) -> tuple[Array, Array, Array]:
    """The features' mean (D,), variances (D,) and covariance matrix (D, D).

    With missing entries a correlation is that of the rows that have both features, times the share of them:
    less than it is, and the matrix positive semi-definite. Of projected features 0, 1 and I.
    """
    x, d = data.x, data.n_features
    if data.view.projection is not None:
        return jnp.zeros(d, x.dtype), jnp.ones(d, x.dtype), jnp.eye(d, dtype=x.dtype)
    mean, variance = location_and_variance(x, data.weight, observed=data.view.observed)
    total, products = scatter(data.filled(mean), data.weight, mean, block_size)
    covariance = products / total
    if data.view.observed is not None:
        # A missing entry, filled with the mean, adds nothing to the products.
        seen = jnp.diagonal(covariance)
        wider = jnp.sqrt(variance / jnp.where(seen > 0, seen, 1))
        covariance = wider[:, None] * covariance * wider[None, :]
    return mean, variance, covariance


def scatter(
    x: Array,
    sample_weight: Array | None,
    centre: Array,
    block_size: int = 2048,
) -> tuple[Array, Array]:
    """Σ w () and Σ w (x − c)(x − c)ᵀ (D, D) about a centre c (D,)."""

    def products(w: Array, b: Array) -> tuple[Array, Array]:
        w, b = zero_unused(w, b)
        b = b - centre[None, :]
        return w.sum(), einsum("bd,be->de", b * w[:, None], b)

    total: tuple[Array, Array] = sum_rows(products, sample_weight, x, block_size=block_size)
    return total
