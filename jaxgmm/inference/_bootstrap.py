"""Bootstrap: refits to resampled data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm import _display as display
from jaxgmm import _validate as validate
from jaxgmm.data import Data
from jaxgmm.density import check_drawable, check_ungrouped, data_of, sample_as
from jaxgmm.em import MAX_ITER, REG_COVAR, run
from jaxgmm.inference._information import ConfidenceIntervals, names_of
from jaxgmm.inference._local_coordinates import entries, without_off
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.exact import rows_of
from jaxgmm.kernels.linalg import cholesky, einsum, lower_inverse
from jaxgmm.kernels.programs import jit, work_of_fits
from jaxgmm.mixture import GMMParams, take
from jaxgmm.selection._criteria import has_failed

KINDS = ("nonparametric", "parametric", "weighted")
_UNLIKE = 1e9  # what it costs to match a component with one that is switched off, or whose place is unknown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Bootstrap(display.Shown):
    """Refitted mixtures, as `bootstrap` gives them; component k of each is the one most like component k.

    A refit that failed is kept, and its status says so; the methods leave it out. Prints as a table of
    estimates, standard errors and 95 % intervals.

    Attributes:
      params: the refitted mixtures, with a leading axis n_replicates.
      log_likelihood: (n_replicates,) mean per unit of weight, of each refit on its own data.
      n_iter: (n_replicates,) int32, EM steps.
      status: (n_replicates,) int32, a `Status` for each.
      reference: the mixture that was refitted.
      columns: names of the features, or None; static.
    """

    params: GMMParams
    log_likelihood: Array  # (n_replicates,)
    n_iter: Array  # (n_replicates,)
    status: Array  # (n_replicates,)
    reference: GMMParams
    columns: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def _table(self) -> display.Table | None:
        small = validate.is_concrete(self) and self.status.ndim == 1
        return self.intervals()._table() if small else None

    def __repr__(self) -> str:
        """One line: how many refits, and how many of them failed. Printed, it is a table."""
        status = display.look(self.status)
        if status is None or status.ndim != 1:
            return "Bootstrap()"
        n_failed = int((~np.asarray(self.usable)).sum())
        return f"Bootstrap({len(status)} refits{f', {n_failed} failed' if n_failed else ''})"

    @property
    def usable(self) -> Array:
        """(n_replicates,) bool, False where the refit failed."""
        return jnp.isfinite(self.log_likelihood) & ~has_failed(self.status)

    def values(self, function: Callable[[GMMParams], Any] = entries) -> Any:
        """function(params) of every refit, a pytree with a leading axis; NaN where the refit failed.

        Without a function, an `Entries` of weights, means and covariances; the mean and the covariance of a
        component that is switched off are NaN too.
        """
        usable = self.usable

        def one(p: GMMParams) -> Any:
            return without_off(p, entries(p)) if function is entries else function(p)

        def blank(a: Array) -> Array:
            return jnp.where(usable.reshape(-1, *(1,) * (a.ndim - 1)), a, jnp.nan)

        return jax.tree.map(blank, jax.vmap(one)(self.params))

    def standard_errors(self, function: Callable[[GMMParams], Any] = entries) -> Any:
        """Standard deviations of function(params) over the refits; without a function, an `Entries`."""
        return jax.tree.map(lambda a: jnp.nanstd(a, axis=0, ddof=1), self.values(function))

    def intervals(self, level: ArrayLike = 0.95) -> ConfidenceIntervals:
        """Percentile intervals of weights, means and covariances."""
        return _intervals(self, validate.fraction(level, "level", self.log_likelihood.dtype))


@jit
def _intervals(refits: Bootstrap, level: Array) -> ConfidenceIntervals:
    tail = (1 - level) / 2
    ends = jnp.stack([tail, 1 - tail])
    both = jax.tree.map(lambda a: jnp.nanquantile(a, ends, axis=0), refits.values())
    lower, upper = (jax.tree.map(lambda a, i=i: a[i], both) for i in (0, 1))
    valid, estimate = refits.usable.sum() > 1, entries(refits.reference)
    return ConfidenceIntervals(lower, upper, valid, estimate, refits.standard_errors(), level, refits.columns)


def divergences(one: GMMParams, other: GMMParams) -> Array:
    """(K, K) Jeffreys divergences KL(p‖q) + KL(q‖p) of each component of one mixture from each of another."""
    cov_p, cov_q = one.covariances, other.covariances
    inverse_p, inverse_q = lower_inverse(cholesky(jnp.stack([cov_p, cov_q])))
    precision_p, precision_q = (einsum("ked,kef->kdf", i, i) for i in (inverse_p, inverse_q))
    gaps = one.means[:, None, :] - other.means[None, :, :]
    distances = jnp.square(einsum("ide,ije->ijd", inverse_p, gaps)).sum(-1)
    distances = distances + jnp.square(einsum("jde,ije->ijd", inverse_q, gaps)).sum(-1)
    traces = einsum("ide,jde->ij", precision_p, cov_q) + einsum("ide,jde->ij", cov_p, precision_q)
    return 0.5 * (traces + distances) - one.n_features


def match(params: GMMParams, reference: GMMParams) -> GMMParams:
    """The same mixture with its components in the order of those of `reference` that they are most like.

    The order is the assignment of least total divergence; switched-off components go together.
    """
    # Here, because importing jaxgmm should not load optax.
    from optax import assignment

    if params.n_components == 1:
        return params
    on, like = reference.log_weights > -jnp.inf, params.log_weights > -jnp.inf
    cost = divergences(reference, params)
    cost = jnp.where(jnp.isfinite(cost), jnp.minimum(cost, _UNLIKE), _UNLIKE)
    cost = jnp.where(on[:, None] & like[None, :], cost, jnp.where(on[:, None] != like[None, :], _UNLIKE, 0))
    rows, columns = assignment.hungarian_algorithm(cost)
    return take(params, jnp.zeros(params.n_components, jnp.int32).at[rows].set(columns.astype(jnp.int32)))


def batched_map(function: Callable[[Array], Any], keys: Array, batch_size: int) -> Any:
    """function(key) for every key, `batch_size` of them at once under `vmap`."""
    if batch_size >= keys.shape[0]:
        return jax.vmap(function)(keys)
    # A loop that is not under `vmap` stops when its own fit has converged.
    return lax.map(function, keys, batch_size=None if batch_size == 1 else batch_size)


def lanes_at_once(batch_size: Any, n_lanes: int) -> int:
    """batch_size checked; None means one by one on a CPU, and as many as 128 at once elsewhere."""
    if batch_size is None:
        return min(n_lanes, 1 if jax.default_backend() == "cpu" else 128)
    return min(validate.count(batch_size, "batch_size", 1), n_lanes)


def _work(key: Array, params: GMMParams, data: Data, *_: Any, n_replicates: int, **__: Any) -> float:
    k, d = params.means.shape
    return work_of_fits(len(data.x), k, d, n_replicates)


@functools.partial(jit, static_argnames=("kind", "n_replicates", "batch_size"), work=_work)
def _bootstrap(
    key: Array,
    params: GMMParams,
    data: Data,
    numbers: tuple[Array, Array, Array, Array],
    *,
    kind: str,
    n_replicates: int,
    batch_size: int,
) -> tuple[GMMParams, Array, Array, Array]:
    x, w, n_samples = data.x, data.weight, data.x.shape[0]
    rows = block_rows(n_samples, params.n_components, params.n_features, batch_size)
    if not data.is_complete:
        rows = rows_of(data, params.component, params.n_components, batch_size)

    def resampled(key: Array) -> Data:
        if kind == "parametric":
            return sample_as(key, params, data)
        if kind == "weighted":
            drawn = jax.random.exponential(key, (n_samples,), x.dtype)
            drawn = drawn / drawn.mean()
        else:
            picked = jax.random.randint(key, (n_samples,), 0, n_samples, jnp.int32)
            drawn = jnp.zeros(n_samples, x.dtype).at[picked].add(jnp.ones(n_samples, x.dtype))
        return dataclasses.replace(data, weight=drawn if w is None else w * drawn)

    def replicate(key: Array) -> tuple[GMMParams, Array, Array, Array]:
        r = run(params, resampled(key), *numbers, block_size=rows, history_size=1)
        return match(r.params, params), r.log_likelihood, r.n_iter, r.status

    found: tuple[GMMParams, Array, Array, Array]
    found = batched_map(replicate, jax.random.split(key, n_replicates), batch_size)
    return found


def bootstrap(
    key: Array,
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    n_replicates: int = 400,
    kind: str = "nonparametric",
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    accelerate: bool | Array = True,
    batch_size: int | None = None,
) -> Bootstrap:
    """Refit the mixture to resampled data, from where it is: n_replicates times, in one program.

    Rows are not copied: a resampled data set is one X with other weights. Refits start at `params`, and the
    components of each are brought into the order of those they are most like, by the assignment with the
    least total Jeffreys divergence.

    Args:
      key: a JAX PRNG key; same key, same replicates.
      params: the mixture, a fit to X.
      X: (N, D), or `Data`.
      sample_weight: (N,) or None for ones. A row is resampled together with its weight.
      n_replicates: number of refits; static.
      kind: "nonparametric" draws N rows with replacement; "weighted" gives the rows weights from N times a
        flat Dirichlet distribution (the Bayesian bootstrap, in which no row is ever left out); "parametric"
        draws N new samples from the mixture itself, and sees them as the rows of `Data` are: with the same
        missing entries, noise and projections, and the labels of the same rows.
      tol: as in `fit`.
      max_iter: as in `fit`.
      reg_covar: as in `m_step`; the one of the fit.
      accelerate: as in `fit`.
      batch_size: refits done at once under `vmap`; static. None: on a CPU one by one, which is faster there
        (each stops when it has converged), elsewhere 128. Memory grows with it.

    Returns:
      Bootstrap: mixtures with a leading axis n_replicates, with standard errors and percentile intervals as
      methods. A refit that failed says so in its status, and they leave it out.

    Raises:
      ValueError, TypeError: as `fit`, for an unknown kind, and for sample_weight, log_prior or groups with
        "parametric".

    Example:
      >>> import jax, jaxgmm
      >>> params = jaxgmm.make_params([1.0], [[2.0]], [1.0], "spherical")
      >>> X = [[1.0], [1.0], [3.0], [3.0]] * 25
      >>> refits = jaxgmm.inference.bootstrap(jax.random.key(0), params, X, n_replicates=100)
      >>> bool(abs(refits.standard_errors().means[0, 0] / 0.1 - 1) < 0.25)  # σ/√n
      True

    References:
      Efron (1979), Bootstrap methods: another look at the jackknife; Rubin (1981), The Bayesian bootstrap;
      O'Hagan, Murphy, Scrucca & Gormley (2019), Investigation of parameter uncertainty in clustering using a
      Gaussian mixture model via jackknife, bootstrap and weighted likelihood bootstrap.
    """
    kind = validate.choice(kind, "kind", KINDS)
    params, data = data_of(params, X, sample_weight)
    check_ungrouped(data, "bootstrap")
    x = data.x
    if kind == "parametric":
        check_drawable(data, "kind='parametric'")
    n = validate.count(n_replicates, "n_replicates", 1)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype, x.shape[0])
    options = {"kind": kind, "n_replicates": n, "batch_size": lanes_at_once(batch_size, n)}
    found = _bootstrap(validate.key(key), params, data.by_row(), numbers, **options)
    return Bootstrap(*found, params, names_of(X))
