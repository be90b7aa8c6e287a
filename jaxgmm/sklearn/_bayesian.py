"""`BayesianGaussianMixture`: scikit-learn's estimator, fitted by compiled variational inference."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jax import Array
from scipy.special import betaln
from sklearn.utils.validation import check_is_fitted

from jaxgmm.components.weights import Model
from jaxgmm.data import Data
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _conversion as conversion
from jaxgmm.sklearn import _init as init
from jaxgmm.sklearn._base import BaseMixture, Trial
from jaxgmm.sklearn._conversion import DIAG, SPHERICAL, device, gaussian_model, host
from jaxgmm.sklearn._data import Host, Rows, compute_dtype, padded
from jaxgmm.sklearn._em_loop import CHUNK, Climb
from jaxgmm.solvers.squarem import Status
from jaxgmm.variational._ascent import ascend, start
from jaxgmm.variational._bound import expected
from jaxgmm.variational._model import STRUCTURES, VariationalPosterior, VariationalPrior, structure_of

_TYPES = ("dirichlet_process", "dirichlet_distribution")


@jit
def _weights(state: VariationalPosterior, reg_covar: Array) -> tuple[Array, Array]:
    """Expected weights, and what stands for the log-weights where rows are evaluated."""
    return state.weights, expected(state, reg_covar).log_weights


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
        checks.set_parameters(**locals())

    mean_prior_: Host

    def _given(self, X: Host, sample_weight: Host | None) -> None:
        model, d = gaussian_model(self.covariance_type), X.shape[1]
        mean, spread = _spread(X, sample_weight, model)
        defaults = {
            "weight_concentration_prior": 1.0 / self.n_components,
            "mean_precision_prior": 1.0,
            "degrees_of_freedom_prior": d,
            "mean_prior": mean,
            "covariance_prior": spread,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            setattr(self, f"{name}_", default if value is None else value)
        if not self.degrees_of_freedom_prior_ > d - 1:
            words = f"should be greater than {d - 1}, but got {self.degrees_of_freedom_prior_:.3f}."
            raise ValueError(f"The parameter 'degrees_of_freedom_prior' {words}")
        self.mean_prior_ = checks.array(self.mean_prior_, (d,), "means")
        if self.covariance_prior is not None:
            value = [self.covariance_prior] if model == SPHERICAL else self.covariance_prior
            shape = np.shape(spread) or (1,)
            prior = checks.precisions(value, shape, model, f"{model.name} covariance_prior")
            self.covariance_prior_ = float(prior[0]) if model == SPHERICAL else prior

    def _prior(self, rows: Rows) -> VariationalPrior:
        """The prior in the coordinates and the dtype of the rows."""
        arrays = {
            "mean": self.mean_prior_ - rows.offset,
            "mean_precision": self.mean_precision_prior_,
            "dof": self.degrees_of_freedom_prior_,
            "covariance": _definite(np.asarray(self.covariance_prior_, np.float64), float(self.reg_covar)),
            "concentration": self.weight_concentration_prior_,
        }
        return VariationalPrior(
            **device(arrays, rows.x.dtype),
            stick_breaking=self.weight_concentration_prior_type == "dirichlet_process",
            last_stick_free=True,
        )

    def _begin(self, rows: Rows, X: Host, random_state: Any, given: Any) -> VariationalPosterior:
        resp = init.responsibilities(self.init_params, X, rows.sample_weight, self.n_components, random_state)
        return start(
            padded(resp, rows.x.dtype), Data(rows.x, rows.weight), self._prior(rows),
            np.asarray(self.reg_covar, rows.x.dtype), structure=structure_of(self.covariance_type),
            block_size=rows.block_size(self.n_components),
        )  # fmt: skip

    def _resume(self, rows: Rows) -> VariationalPosterior:
        concentration: Any = self.weight_concentration_
        pair = concentration if isinstance(concentration, tuple) else (concentration, None)
        arrays = (
            *pair,
            np.asarray(self.means_, np.float64) - rows.offset,
            self.mean_precision_,
            np.broadcast_to(self.degrees_of_freedom_, len(self.means_)),
            conversion.scale_from_cholesky(self._structure(), self.precisions_cholesky_),
        )
        parts: Any = (*device(arrays, rows.x.dtype), structure_of(self.covariance_type))
        return VariationalPosterior(*parts)

    def _advance(self, state: VariationalPosterior, rows: Rows, bound: float, limit: int) -> Climb:
        before, tol, ridge = device((bound, self.tol, self.reg_covar), rows.x.dtype)
        fit = ascend(
            state, Data(rows.x, rows.weight), before, tol, np.int32(limit), ridge, self._prior(rows),
            block_size=rows.block_size(self.n_components), history_size=CHUNK,
        )  # fmt: skip
        converged, sound = int(fit.status) == Status.CONVERGED, int(fit.status) != Status.NONFINITE
        return Climb(fit.posterior, fit.bound, fit.history, fit.n_iter, converged, sound)

    def _keep(self, state: VariationalPosterior, offset: Host | float, dtype: Any) -> None:
        q = host(state)
        weights, self._log_weights = host(_weights(state, np.asarray(self.reg_covar, state.means.dtype)))
        self._set(weights, q.means + offset, q.scale, gaussian_model(self.covariance_type), dtype)
        self.weight_concentration_ = q.concentration if q.rest is None else (q.concentration, q.rest)
        self.mean_precision_ = q.mean_precision
        self.degrees_of_freedom_ = float(q.dof[0]) if self.covariance_type == "tied" else q.dof

    def _take(self, trial: Trial, offset: Host | float, dtype: Any) -> None:
        super()._take(trial, offset, dtype)
        self.evidence_bound_ = self.lower_bound_
        if isinstance(self.weight_concentration_, tuple):
            # With v_K = 1 the same responsibilities have a bound without the last stick's normalisers.
            a, b = (float(part[-1]) for part in self.weight_concentration_)
            prior = float(self.weight_concentration_prior_)
            self.evidence_bound_ -= float(betaln(a, b) - betaln(1, prior))

    def _mixture(self) -> tuple[Host, Host, Any, Model]:
        scale = conversion.scale_from_cholesky(self._structure(), self.precisions_cholesky_)
        return self._log_weights, host(self.means_), scale, self._structure()

    def to_params(self) -> GMMParams:
        """The mixture of the expected weights, means and precisions, as the rest of jaxgmm takes it."""
        check_is_fitted(self)
        _, means, scale, model = self._mixture()
        log_weights, dtype = conversion.log(self.weights_), compute_dtype(self.means_.dtype)
        return conversion.to_device(log_weights, means, scale, model, dtype)


def _spread(X: Host, sample_weight: Host | None, model: Model) -> tuple[Host, Any]:
    """Mean (D,) and covariance in the form of a prior, over Σ w − 1."""
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    mean = np.average(X, axis=0, weights=weight).astype(np.float64)
    residuals = X - mean
    divisor = weight.sum() - (weight.sum() > 1)
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
