"""`BayesianGaussianMixture`: scikit-learn's estimator, fitted by compiled variational inference."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import betaln
from sklearn.utils.validation import check_is_fitted

from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.weights import Model
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _init as init
from jaxgmm.sklearn._base import BaseMixture, Trial
from jaxgmm.sklearn._conversion import DIAG, SPHERICAL, TIED, log, scale_from_cholesky, to_device
from jaxgmm.sklearn._data import Host, Rows, compute_dtype
from jaxgmm.sklearn._em_loop import CHUNK
from jaxgmm.solvers.squarem import Status
from jaxgmm.variational._ascent import ascend, start
from jaxgmm.variational._bound import expected
from jaxgmm.variational._model import STRUCTURES, VariationalPosterior, VariationalPrior, structure_of

_TYPES = ("dirichlet_process", "dirichlet_distribution")
_expected = jit(expected)


class _Ascent(NamedTuple):
    """Some iterations, in the words of `Climb`."""

    params: VariationalPosterior
    bounds: Array
    n_iter: Array
    converged: bool
    sound: bool


class BayesianGaussianMixture(BaseMixture):
    """A Bayesian Gaussian mixture with scikit-learn's interface, by variational inference.

    Parameters, attributes, methods and defaults are those of `sklearn.mixture.BayesianGaussianMixture`, and
    `sample_weight` besides. Two things differ. `lower_bound_` has every constant, and for "diag" and
    "spherical" the expected log-determinants are those of the gamma distributions that the precisions have,
    with which alone the bound cannot fall; scikit-learn takes a Wishart distribution's. Beside it there is
    `evidence_bound_`, never above log p(X): models with other priors or numbers of components can be
    compared by it.

    Args:
      n_components: the most components; those that are not needed end with next to no weight.
      covariance_type: "full", "tied", "diag" or "spherical".
      tol: stop when the bound, a total over samples, changes by less from one iteration to the next; in
        float32 also when it changes by no more than its rounding.
      reg_covar: variance by which the samples themselves are uncertain.
      max_iter: iterations; 0 keeps the start.
      n_init: starts, of which the one of the highest bound is kept.
      init_params: "kmeans", "k-means++", "random" or "random_from_data".
      weight_concentration_prior_type: "dirichlet_process" (stick-breaking) or "dirichlet_distribution".
      weight_concentration_prior: γ, or None for 1 / n_components.
      mean_precision_prior: in samples, or None for 1.
      mean_prior: (n_features,) or None for the mean of X.
      degrees_of_freedom_prior: in samples, or None for n_features.
      covariance_prior: full and tied (n_features, n_features), diag (n_features,), spherical a number; None
        for the covariance of X.
      random_state: int, `RandomState` or None; of the start, and of `sample`.
      warm_start: go on from the last fit.
      verbose: 1 prints the iterations, 2 also the time and the change of the bound.
      verbose_interval: iterations between two such lines.

    Attributes:
      weights_: (n_components,) expected.
      means_: (n_components, n_features) expected.
      covariances_: inverses of the expected precisions, in the shapes of `GaussianMixture`.
      precisions_: expected, in the same shape.
      precisions_cholesky_: upper factors of the precisions; their square roots for diag and spherical.
      converged_: whether the best fit came to its end.
      n_iter_: its iterations.
      lower_bound_: its bound; under "dirichlet_process" that of scikit-learn's model, in which a part of the
        weight is in none of the components.
      lower_bounds_: the bound of all its iterations.
      evidence_bound_: the bound of log p(X) under weights that sum to 1, the last stick being 1, by which
        models with other priors or numbers of components can be compared; the same as `lower_bound_` under
        "dirichlet_distribution".
      weight_concentration_: (n_components,) of the Dirichlet distribution, or the two of the Beta
        distributions.
      mean_precision_: (n_components,).
      degrees_of_freedom_: (n_components,), or for tied a number.
      weight_concentration_prior_: γ.
      mean_precision_prior_: as used.
      mean_prior_: (n_features,).
      degrees_of_freedom_prior_: as used.
      covariance_prior_: as `covariance_prior`; where it is singular the fit uses one a little wider.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import BayesianGaussianMixture
      >>> X = np.array([[1, 2], [1, 4], [1, 0], [4, 2], [12, 4], [10, 7]])
      >>> mixture = BayesianGaussianMixture(n_components=2, random_state=42).fit(X)
      >>> labels = mixture.predict([[0, 0], [9, 3]])
      >>> bool(labels[0] != labels[1])
      True

    References:
      Bishop (2006), §10.2; Blei & Jordan (2006), Variational inference for Dirichlet process mixtures.
    """

    _constraints: ClassVar = {
        **BaseMixture._constraints,
        "covariance_type": checks.option(*(f.name for f in STRUCTURES)),
        "weight_concentration_prior_type": checks.option(*_TYPES),
        "weight_concentration_prior": checks.number(positive=True, none=True),
        "mean_precision_prior": checks.number(positive=True, none=True),
        "degrees_of_freedom_prior": checks.number(positive=True, none=True),
    }

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def _given(self, X: Host, sample_weight: Host | None) -> None:
        model, d = Model(gaussian(structure_of(self.covariance_type))), X.shape[1]
        given = self.weight_concentration_prior
        self.weight_concentration_prior_ = 1.0 / self.n_components if given is None else given
        given = self.mean_precision_prior
        self.mean_precision_prior_ = 1.0 if given is None else given
        given = self.degrees_of_freedom_prior
        if given is not None and not given > d - 1:
            words = f"should be greater than {d - 1}, but got {given:.3f}."
            raise ValueError(f"The parameter 'degrees_of_freedom_prior' {words}")
        self.degrees_of_freedom_prior_ = d if given is None else given
        mean, spread = _spread(X, sample_weight, model)
        self.mean_prior_ = mean if self.mean_prior is None else checks.means(self.mean_prior, (d,))
        if self.covariance_prior is None:
            self.covariance_prior_ = spread
        else:
            what, shape = f"{model.name} covariance_prior", np.shape(spread)
            value = [self.covariance_prior] if model == SPHERICAL else self.covariance_prior
            prior = checks.precisions(value, shape or (1,), model, what)
            self.covariance_prior_ = float(prior[0]) if model == SPHERICAL else prior

    def _prior(self, rows: Rows) -> VariationalPrior:
        """The prior in the coordinates and the dtype of the rows."""
        dtype = rows.x.dtype
        covariance = _definite(np.asarray(self.covariance_prior_, np.float64), float(self.reg_covar))

        def part(value: Any) -> Array:
            return jnp.asarray(np.asarray(value, dtype))

        return VariationalPrior(
            mean=part(self.mean_prior_ - rows.offset),
            mean_precision=part(self.mean_precision_prior_),
            dof=part(self.degrees_of_freedom_prior_),
            covariance=part(covariance),
            concentration=part(self.weight_concentration_prior_),
            stick_breaking=self.weight_concentration_prior_type == "dirichlet_process",
            last_stick_free=True,
        )

    def _begin(self, rows: Rows, X: Host, random_state: Any, given: Any) -> VariationalPosterior:
        resp = init.responsibilities(self.init_params, X, rows.sample_weight, self.n_components, random_state)
        padded = np.zeros((rows.x.shape[0], resp.shape[1]), rows.x.dtype)
        padded[: len(resp)] = resp
        return start(
            jnp.asarray(padded), rows.x, rows.weight, self._prior(rows), self._ridge(rows),
            structure=structure_of(self.covariance_type), block_size=self._block(rows),
        )  # fmt: skip

    def _ridge(self, rows: Rows) -> Array:
        return jnp.asarray(self.reg_covar, rows.x.dtype)

    def _block(self, rows: Rows) -> int:
        return block_rows(rows.x.shape[0], self.n_components, rows.x.shape[1])

    def _resume(self, rows: Rows) -> VariationalPosterior:
        return self._posterior(rows.x.dtype, rows.offset)

    def _posterior(self, dtype: Any, offset: Host) -> VariationalPosterior:
        """The fitted posterior for data less an offset."""
        structure = structure_of(self.covariance_type)
        k = len(self.means_)
        concentration: Any = self.weight_concentration_
        pair = concentration if isinstance(concentration, tuple) else (concentration, None)
        arrays: Any = {
            "concentration": pair[0],
            "rest": pair[1],
            "means": np.asarray(self.means_, np.float64) - offset,
            "mean_precision": self.mean_precision_,
            "dof": np.broadcast_to(self.degrees_of_freedom_, k),
            "scale": scale_from_cholesky(Model(gaussian(structure)), self.precisions_cholesky_),
        }
        return VariationalPosterior(
            **jax.tree.map(lambda a: jnp.asarray(np.asarray(a).astype(dtype)), arrays), structure=structure
        )

    def _advance(self, state: VariationalPosterior, rows: Rows, bound: float, limit: int) -> _Ascent:
        dtype = rows.x.dtype
        fit = ascend(
            state, rows.x, rows.weight, jnp.asarray(bound, dtype), jnp.asarray(self.tol, dtype),
            jnp.asarray(limit, jnp.int32), self._ridge(rows), self._prior(rows),
            block_size=self._block(rows), history_size=CHUNK,
        )  # fmt: skip
        status = int(fit.status)
        return _Ascent(
            fit.posterior, fit.history, fit.n_iter, status == Status.CONVERGED, status != Status.NONFINITE
        )

    def _keep(self, state: VariationalPosterior, rows: Rows, dtype: Any) -> None:
        q = jax.tree.map(lambda a: np.asarray(a, np.float64), state)
        weights = np.asarray(state.weights, np.float64)
        self._set(weights, q.means, q.scale, None, Model(gaussian(state.structure)), rows.offset, dtype)
        pair = (q.concentration, q.rest)
        self.weight_concentration_ = q.concentration if q.rest is None else pair
        self.mean_precision_ = q.mean_precision
        self.degrees_of_freedom_ = float(q.dof[0]) if state.structure == TIED.covariance else q.dof
        self._log_weights = np.asarray(_expected(state, self._ridge(rows)).log_weights, np.float64)

    def _take(self, trial: Trial, rows: Rows, dtype: Any, n_iter: int) -> None:
        super()._take(trial, rows, dtype, n_iter)
        self.evidence_bound_ = self.lower_bound_
        if isinstance(self.weight_concentration_, tuple):
            # With v_K = 1 the same responsibilities have a bound without the last stick's normalisers.
            a, b = (float(part[-1]) for part in self.weight_concentration_)
            prior = float(self.weight_concentration_prior_)
            self.evidence_bound_ -= float(betaln(a, b) - betaln(1, prior))

    def _mixture(self) -> tuple[Host, Host, Any, Model]:
        model = self._structure()
        scale = scale_from_cholesky(model, self.precisions_cholesky_)
        return self._log_weights, np.asarray(self.means_, np.float64), scale, model

    def to_params(self) -> GMMParams:
        """The mixture of the expected weights, means and precisions, as the rest of jaxgmm takes it."""
        check_is_fitted(self)
        _, means, scale, model = self._mixture()
        return to_device(log(self.weights_), means, scale, model, compute_dtype(self.means_.dtype))


def _spread(X: Host, sample_weight: Host | None, model: Model) -> tuple[Host, Any]:
    """Mean (D,) and covariance in the form of a prior, over Σ w − 1."""
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    total = weight.sum()
    mean = np.average(X, axis=0, weights=weight).astype(np.float64)
    residuals = X - mean
    divisor = total - 1 if total > 1 else total
    if model in (DIAG, SPHERICAL):
        variances = weight @ np.square(residuals) / divisor
        return mean, float(variances.mean()) if model == SPHERICAL else variances
    return mean, (weight[:, None] * residuals).T @ residuals / divisor


def _definite(covariance: Host, reg_covar: float) -> Host:
    """The covariance of a prior, a little wider if it is singular: collinear or constant features."""
    if covariance.ndim < 2:
        floor = max(reg_covar, 1e-12 * float(np.max(covariance)), 1e-30)
        return np.maximum(covariance, floor)
    values = np.linalg.eigvalsh(covariance)
    if values[0] > 1e-10 * values[-1]:
        return covariance
    return covariance + max(reg_covar, 1e-10 * float(values[-1]), 1e-30) * np.eye(len(covariance))
