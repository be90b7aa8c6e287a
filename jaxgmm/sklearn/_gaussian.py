"""`GaussianMixture`: scikit-learn's estimator, fitted by compiled EM."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.utils.validation import check_is_fitted

from jaxgmm import priors
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.density import check_gaussian
from jaxgmm.kernels.blocked_sum import block_rows
from jaxgmm.mixture import GMMParams
from jaxgmm.selection._search import fit_best
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _em_loop as em_loop
from jaxgmm.sklearn import _init as init
from jaxgmm.sklearn._base import BaseMixture, Trial
from jaxgmm.sklearn._conversion import (
    DIAG,
    FULL,
    MARGIN,
    SHAPED,
    SPHERICAL,
    TIED,
    CollapsedError,
    gaussian_model,
    host,
    log,
    lower_factors,
    lower_of_precision,
    scale_from_cholesky,
    to_device,
)
from jaxgmm.sklearn._data import Host, Rows, check_weight, compute_dtype
from jaxgmm.solvers.squarem import Status

_PRIOR: checks.Check = (
    lambda v: v is None or isinstance(v, priors.Prior) or (isinstance(v, str) and v == "default"),
    "a jaxgmm.Prior, 'default' or None",
)
_STRUCTURE: checks.Check = (
    lambda v: isinstance(v, ModelLike),
    "the name of a covariance structure or a jaxgmm.components.Covariance",
)


class GaussianMixture(BaseMixture):
    """A Gaussian mixture with scikit-learn's interface: change the import, and the rest works as it did.

    Parameters, attributes, methods, warnings and defaults are those of `sklearn.mixture.GaussianMixture`, and
    the same `random_state` gives the same start, so that EM takes the same path. Beyond it there are
    `sample_weight`, every covariance structure of jaxgmm, priors, `n_init="auto"` and `icl`.

    Args:
      n_components: number of components.
      covariance_type: "full", "tied", "diag", "spherical", any other name that `jaxgmm.components.get_model`
        knows (mclust's fourteen, "factor(5)", "full-equal"), or a `jaxgmm.components.Covariance`.
      tol: stop when the mean log-likelihood per sample changes by less from one EM step to the next. In
        float32 also when it changes by no more than its rounding; 0 takes max_iter steps.
      reg_covar: added to the variances as it is.
      max_iter: EM steps; 0 keeps the start.
      n_init: starts, of which the best is kept; a start that fails is passed over if another does not.
        "auto" searches for the best optimum with `jaxgmm.fit_best`, which has its own stopping rule: tol,
        max_iter, init_params and the other …_init are then not used.
      init_params: "kmeans", "k-means++", "random" or "random_from_data".
      weights_init: (n_components,) or None.
      means_init: (n_components, n_features) or None.
      precisions_init: inverse covariances in the shape of `precisions_`, or None.
      random_state: int, `RandomState` or None; of the start, and of `sample`.
      warm_start: go on from the last fit.
      verbose: 1 prints the iterations, 2 also the time and the change of the bound.
      verbose_interval: iterations between two such lines.
      prior: None, a `jaxgmm.Prior` for maximum a posteriori, or "default" for `jaxgmm.default_prior`. The
        bound is then the mean log-likelihood plus the log-prior per sample.

    Attributes:
      weights_: (n_components,).
      means_: (n_components, n_features).
      covariances_: full (n_components, n_features, n_features), tied (n_features, n_features), diag
        (n_components, n_features), spherical (n_components,); of every other structure as full.
      precisions_: their inverses, in the same shape.
      precisions_cholesky_: upper factors U of the precisions U Uᵀ; 1 / σ for diag and spherical.
      converged_: whether the best fit came to its end.
      n_iter_: its EM steps.
      lower_bound_: its last bound, the mean log-likelihood before the last M-step.
      lower_bounds_: the bounds of all its steps.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Fitted attributes are NumPy arrays in the dtype of X. JAX computes in float32 unless
    `jax.config.update("jax_enable_x64", True)` has been called; the mean of float64 data is then subtracted
    in float64 before they are cast, so that an offset costs no digits. What is left of float32 shows in the
    seventh digit of parameters and log-densities, the float64 of the attributes notwithstanding.

    Programs are compiled for shapes of data, once in a session; rows are padded so that data sets of about
    one size (the folds of a cross-validation) share theirs. `jaxgmm.sklearn.cache_compiled` keeps them for
    the next session. Compiled, 20 EM steps took a quarter of scikit-learn's time or less wherever it was
    measured (N·K·D from 2e3 to 3e6, two CPU cores that were busy with other work too). The first fit of a
    shape compiles for 1 to 2 s. Of whole fits on clusters well apart, which are k-means for a good part,
    later ones with full covariances took a third of scikit-learn's time or less from N·K·D = 1e6 on; up to
    1e5, and with diagonal ones, about as long.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import GaussianMixture
      >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
      >>> mixture = GaussianMixture(n_components=2, random_state=0).fit(X)
      >>> sorted(mixture.means_.round(3).tolist())
      [[1.0, 2.0], [10.0, 2.0]]
      >>> int(mixture.predict([[0, 0], [12, 3]]).sum())
      1

    References:
      Pedregosa et al. (2011), Scikit-learn: machine learning in Python, JMLR 12, for the interface.
    """

    _constraints: ClassVar = {
        **BaseMixture._constraints,
        "n_init": checks.either(checks.integer(1), checks.option("auto")),
        "covariance_type": _STRUCTURE,
        "prior": _PRIOR,
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: ModelLike = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int | str = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        prior: priors.Prior | str | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.prior = prior

    def _given(self, X: Host, sample_weight: Host | None) -> Any:
        model, (k, d) = gaussian_model(self.covariance_type), (self.n_components, X.shape[1])
        return (
            None if self.weights_init is None else checks.weights_init(self.weights_init, k),
            None if self.means_init is None else checks.means(self.means_init, (k, d)),
            None
            if self.precisions_init is None
            else checks.precisions(
                self.precisions_init, checks.precision_shape(model, k, d), model, f"{model.name} precision"
            ),
        )

    def _begin(self, rows: Rows, X: Host, random_state: Any, given: Any) -> GMMParams:
        model = gaussian_model(self.covariance_type)
        weights, means, precisions = given
        scale = None if precisions is None else _scale_of(precisions, model)
        if weights is None or means is None or scale is None:
            resp = init.responsibilities(
                self.init_params, X, rows.sample_weight, self.n_components, random_state
            )
            start = init.m_step(resp, rows, model, float(self.reg_covar), self._prior(rows))
        weights = start.weights if weights is None else weights
        means = start.means if means is None else means - rows.offset
        scale = start.scale if scale is None else scale
        return to_device(log(weights), means, scale, model, rows.x.dtype)

    def _resume(self, rows: Rows) -> GMMParams:
        return self._params(rows.x.dtype, rows.offset)

    def _advance(self, state: GMMParams, rows: Rows, bound: float, limit: int) -> em_loop.Climb:
        dtype = rows.x.dtype
        n_samples, n_features = rows.x.shape
        return em_loop.climb(
            state, rows.x, rows.weight, jnp.asarray(bound, dtype), jnp.asarray(self.tol, dtype),
            jnp.asarray(limit, jnp.int32), jnp.full(n_features, self.reg_covar, dtype), self._prior(rows),
            jnp.asarray(self._margin(dtype), dtype),
            block_size=block_rows(n_samples, state.n_components, n_features),
        )  # fmt: skip

    def _margin(self, dtype: Any) -> float:
        """How wide a component must be: in float64 a ridge or a prior keeps each from collapsing."""
        if dtype != np.float64:
            return MARGIN
        return 0.0 if self.reg_covar > 0 or self.prior is not None else 1.0

    def _prior(self, rows: Rows) -> priors.Prior | None:
        """The prior in the coordinates of the rows."""
        if self.prior is None:
            return None
        model = gaussian_model(self.covariance_type)
        if isinstance(self.prior, str):
            return priors.default_prior(rows.x, self.n_components, model, rows.weight)
        prior = self.prior
        if prior.mean is not None:
            prior = dataclasses.replace(prior, mean=np.asarray(prior.mean, np.float64) - rows.offset)
        return priors.check(prior, model.component, (self.n_components, rows.x.shape[1]), rows.x.dtype)

    def _search(self, rows: Rows, X: Host, random_state: Any, given: Any, dtype: Any) -> None:
        if self.n_init != "auto":
            super()._search(rows, X, random_state, given, dtype)
            self._refine(rows, dtype)
            return
        key = jax.random.key(int(random_state.randint(np.iinfo(np.int32).max)))
        result = fit_best(
            key, rows.x, self.n_components, rows.weight, covariance_type=self.covariance_type,
            reg_covar=self.reg_covar, prior=self._prior(rows),
        )  # fmt: skip
        status = int(result.status)
        if status not in (Status.CONVERGED, Status.MAX_ITER):
            raise CollapsedError
        history = np.asarray(result.history, np.float64)
        bounds = history[np.isfinite(history)].tolist()
        trial = Trial(result.params, float(result.objective), bounds, status == Status.CONVERGED)
        self._take(trial, rows, dtype, int(result.n_iter))

    def _refine(self, rows: Rows, dtype: Any) -> None:
        """One component's fit is the M-step of any start: take it in float64, whatever JAX computes in."""
        model = gaussian_model(self.covariance_type)
        if self.n_components == 1 and self.max_iter > 0 and self.prior is None and model in SHAPED:
            start = init.m_step(np.ones((len(rows.host), 1)), rows, model, float(self.reg_covar))
            self._set(*start, None, model, rows.offset, dtype)

    def _keep(self, state: GMMParams, rows: Rows, dtype: Any) -> None:
        log_weights, means, scale = host((state.log_weights, state.means, state.scale))
        lower = None if state.model in SHAPED else lower_factors(state)
        self._set(np.exp(log_weights), means, scale, lower, state.model, rows.offset, dtype)

    def _mixture(self) -> tuple[Host, Host, Any, Model]:
        model = self._structure()
        scale = scale_from_cholesky(model, self.precisions_cholesky_) if model in SHAPED else self._scale
        return log(self.weights_), np.asarray(self.means_, np.float64), scale, model

    def _n_parameters(self) -> int:
        """Free parameters of the components that have a weight."""
        k, d = int((np.asarray(self.weights_) > 0).sum()), self.means_.shape[1]
        return int(self._structure().n_parameters(k, d))

    def _likelihood(self, X: Any, sample_weight: Any) -> tuple[Host, Host, Host]:
        """Responsibilities, log-densities and weights of new data."""
        data = self._new(X)
        weight = _weights(sample_weight, data)
        return *self._evaluated(data), weight

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike's criterion −2 log L + 2 p of new data; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: counts of the samples (n_samples,), or None for ones.
        """
        _, log_prob, weight = self._likelihood(X, sample_weight)
        return float(-2 * (weight @ log_prob) + 2 * self._n_parameters())

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Schwarz's criterion −2 log L + p log n of new data; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: counts of the samples (n_samples,), of which n is the sum, or None for ones.
        """
        _, log_prob, weight = self._likelihood(X, sample_weight)
        return float(-2 * (weight @ log_prob) + self._n_parameters() * math.log(weight.sum()))

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """The integrated completed likelihood, bic − 2 Σ log max_k r_nk; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: as in `bic`.

        References:
          Biernacki, Celeux & Govaert (2000).
        """
        resp, log_prob, weight = self._likelihood(X, sample_weight)
        free = self._n_parameters() * math.log(weight.sum())
        return float(-2 * (weight @ log_prob) + free - 2 * (weight @ np.log(resp.max(1))))

    def to_params(self) -> GMMParams:
        """The fitted mixture as the rest of jaxgmm takes it, in float64 where JAX has it.

        Example:
          >>> import numpy as np, jaxgmm
          >>> from jaxgmm.sklearn import GaussianMixture
          >>> mixture = GaussianMixture(random_state=0).fit(np.array([[0.0], [1.0], [2.0]]))
          >>> mixture.to_params().means.tolist()
          [[1.0]]
        """
        check_is_fitted(self)
        return self._params(compute_dtype(self.means_.dtype), np.zeros(self.means_.shape[1]))

    @classmethod
    def from_params(cls, params: GMMParams, **parameters: Any) -> GaussianMixture:
        """A fitted estimator that holds a mixture; `fit` with warm_start=True goes on from it.

        Args:
          params: one mixture.
          **parameters: of the estimator, such as random_state; n_components and covariance_type are the
            mixture's own.

        Raises:
          ValueError, TypeError: if params is not one mixture.

        Example:
          >>> import jaxgmm
          >>> from jaxgmm.sklearn import GaussianMixture
          >>> params = jaxgmm.make_params([0.5, 0.5], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
          >>> GaussianMixture.from_params(params).predict([[-3.0], [5.0]]).tolist()
          [0, 1]
        """
        check_gaussian(params, "from_params")
        model: Any = params.model
        with contextlib.suppress(ValueError):
            model = model.name if get_model(model.name) == model else model
        if model == get_model(params.covariance):  # a structure of the user's own
            model = params.covariance
        mixture = cls(params.n_components, covariance_type=model, **parameters)
        nowhere = Rows(
            params.means, params.log_weights, np.asarray(params.means), np.zeros(params.n_features), None
        )
        mixture._keep(params, nowhere, np.asarray(params.means).dtype)
        mixture.n_features_in_ = params.n_features
        mixture.converged_, mixture.n_iter_ = True, 0
        mixture.lower_bound_, mixture.lower_bounds_ = -np.inf, []
        return mixture


def _weights(sample_weight: Any, X: Host) -> Host:
    """sample_weight (N,) in float64, ones for None."""
    weight = check_weight(sample_weight, X)
    return np.ones(len(X)) if weight is None else weight


def _scale_of(precisions: Host, model: Model) -> Any:
    """The structure's own arrays from precisions in their own shape."""
    if model in (DIAG, SPHERICAL):
        return 1 / np.sqrt(precisions)
    lower = lower_of_precision(precisions)
    if model in (FULL, TIED):
        return lower
    k, d = precisions.shape[:2]
    covariances = lower @ np.swapaxes(lower, -1, -2)
    shape = model.covariance.covariance_shape(k, d)
    if shape != (k, d, d):
        variances = np.einsum("kdd->kd", covariances)
        scale = host(
            model.covariance.from_variances(jnp.asarray(variances.astype(compute_dtype(np.float64))))
        )
    else:
        scale = host(
            model.covariance.from_covariance(jnp.asarray(covariances.astype(compute_dtype(np.float64))))
        )
    return scale
