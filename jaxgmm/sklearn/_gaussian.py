"""`GaussianMixture`: scikit-learn's estimator, fitted by compiled EM."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, ClassVar

import jax
import numpy as np
from sklearn.utils.validation import check_is_fitted

from jaxgmm import priors
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import MISSING
from jaxgmm.density import check_gaussian
from jaxgmm.kernels.programs import in_float64, jit
from jaxgmm.mixture import GMMParams
from jaxgmm.selection._merging import METHODS, merge
from jaxgmm.selection._search import fit_best
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn import _conversion as conversion
from jaxgmm.sklearn import _em_loop as em_loop
from jaxgmm.sklearn import _init as init
from jaxgmm.sklearn._base import BaseMixture, Trial
from jaxgmm.sklearn._conversion import SHAPED, CollapsedError, gaussian_model, host, log, to_device
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
    `sample_weight`, missing entries, every covariance structure of jaxgmm, priors, `n_init="auto"` and `icl`.

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
      missing: "error" refuses NaN in X. "nan" takes NaN and masked entries for missing at random, in `fit`
        and in every method that takes X: densities are those of the observed entries, and EM is that of
        `jaxgmm.fit` on `jaxgmm.observe(X, missing="nan")`. A row may have no observed entry. Where there are
        missing entries, the starts are the library's own (scikit-learn's k-means takes none), drawn from
        random_state.
      merge: None, or how components are merged into clusters after the fit: "entropy", "overlap" or "modes",
        as in `jaxgmm.selection.merge_components`, which also chooses how many clusters there are. `predict`
        and `fit_predict` then give the labels of clusters, and `predict_proba` their probabilities,
        (n_samples, n_clusters). All else is of the mixture, which stays as it is.

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
      merging_: with `merge`, the `jaxgmm.selection.Merging`: labels for every number of clusters, n_clusters.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Fitted attributes are NumPy arrays in the dtype of X. JAX computes in float32 unless
    `jax.config.update("jax_enable_x64", True)` has been called; the mean of float64 data is then subtracted
    in float64 before they are cast, so that an offset costs no digits. What is left of float32 shows in the
    seventh digit of parameters and log-densities, the float64 of the attributes notwithstanding.

    Programs are compiled for shapes of data, once in a session; rows are padded so that data sets of about
    one size (the folds of a cross-validation) share theirs. On a CPU they are kept for later sessions (see
    `jaxgmm.cache`). Compiled, 20 EM steps took a quarter of scikit-learn's time or less wherever it was
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
      Pedregosa et al. (2011), Scikit-learn: machine learning in Python, JMLR 12, for the interface;
      Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach.
    """

    _constraints: ClassVar = {
        **BaseMixture._constraints,
        "n_init": checks.either(checks.integer(1), checks.option("auto")),
        "covariance_type": _STRUCTURE,
        "prior": _PRIOR,
        "missing": checks.option(*MISSING),
        "merge": checks.either(checks.option(*METHODS), (lambda v: v is None, "None")),
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
        missing: str = "error",
        merge: str | None = None,
    ) -> None:
        checks.set_parameters(**locals())

    def _takes_gaps(self) -> bool:
        return self.missing == "nan"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_gaps()
        return tags

    def _fit_data(self, data: Host, weight: Host | None, random_state: Any) -> None:
        super()._fit_data(data, weight, random_state)
        self.__dict__.pop("merging_", None)
        if self.merge is None:
            return
        resp = self._evaluated(data)[0]
        with in_float64():
            params = self._params(np.dtype(np.float64), np.zeros(data.shape[1]))
            given = conversion.device((resp, weight), np.float64)
            self.merging_ = jax.tree.map(np.asarray, merge(params, *given, by=self.merge))

    def _shares(self, X: Host) -> Host:
        resp = super()._shares(X)
        merging = getattr(self, "merging_", None)
        if merging is None:
            return resp
        each = np.arange(int(merging.n_clusters))
        return resp @ (merging.labels_of()[:, None] == each).astype(resp.dtype)

    def _given(self, X: Host, sample_weight: Host | None) -> Any:
        """Weights, means and precisions to start from, each None where it is not given."""
        model, (k, d) = gaussian_model(self.covariance_type), (self.n_components, X.shape[1])
        weights, means, precisions = self.weights_init, self.means_init, self.precisions_init
        if weights is not None:
            weights = checks.weights_init(weights, k)
        if means is not None:
            means = checks.array(means, (k, d), "means")
        if precisions is not None:
            shape = model.covariance.covariance_shape(k, d) if model in SHAPED else (k, d, d)
            precisions = checks.precisions(precisions, shape, model, f"{model.name} precision")
        return weights, means, precisions

    def _begin(self, rows: Rows, X: Host, random_state: Any, given: Any) -> GMMParams:
        model = gaussian_model(self.covariance_type)
        weights, means, precisions = given
        if any(part is None for part in given):
            k, ridge, prior = self.n_components, float(self.reg_covar), self._prior(rows)
            if rows.known is not None:
                start = init.of_known(self.init_params, rows, model, k, ridge, prior, random_state)
            else:
                resp = init.responsibilities(self.init_params, X, rows.sample_weight, k, random_state)
                start = init.m_step(resp, rows, model, ridge, prior)
        weights = start.weights if weights is None else weights
        means = start.means if means is None else means - rows.offset
        scale = start.scale if precisions is None else _scale_of(precisions, model)
        return to_device(log(weights), means, scale, model, rows.x.dtype)

    def _resume(self, rows: Rows) -> GMMParams:
        return self._params(rows.x.dtype, rows.offset)

    def _advance(self, state: GMMParams, rows: Rows, bound: float, limit: int) -> em_loop.Climb:
        margin = conversion.MARGIN
        if rows.x.dtype == np.float64:  # a ridge or a prior keeps each component from collapsing
            margin = 0.0 if self.reg_covar > 0 or self.prior is not None else 1.0
        numbers = conversion.device((bound, self.tol, self.reg_covar, margin), rows.x.dtype)
        data, block_size = rows.for_sums(state.model, self.n_components)
        return em_loop.climb(state, data, np.int32(limit), *numbers, self._prior(rows), block_size=block_size)

    def _prior(self, rows: Rows) -> priors.Prior | None:
        """The prior in the coordinates of the rows."""
        if self.prior is None:
            return None
        model = gaussian_model(self.covariance_type)
        if isinstance(self.prior, str):
            return priors.default_prior(rows.data, self.n_components, model)
        prior = self.prior
        if prior.mean is not None:
            prior = dataclasses.replace(prior, mean=np.asarray(prior.mean, np.float64) - rows.offset)
        return priors.check(prior, model, (self.n_components, rows.x.shape[1]), rows.x.dtype)

    def _search(self, rows: Rows, X: Host, random_state: Any, given: Any, dtype: Any) -> None:
        if self.n_init != "auto":
            super()._search(rows, X, random_state, given, dtype)
            model = gaussian_model(self.covariance_type)
            closed = rows.known is None and self.prior is None and model in SHAPED
            if self.n_components == 1 and self.max_iter > 0 and closed:
                # One component's fit is the M-step of any start, here in float64 whatever JAX computes in.
                start = init.m_step(np.ones((len(X), 1)), rows, model, float(self.reg_covar))
                self._set(start.weights, start.means + rows.offset, start.scale, model, dtype)
            return
        key = jax.random.key(int(random_state.randint(np.iinfo(np.int32).max)))
        given, weight = (rows.x, rows.weight) if rows.known is None else (rows.known, None)
        result = fit_best(
            key, given, self.n_components, weight, covariance_type=self.covariance_type,
            reg_covar=self.reg_covar, prior=self._prior(rows),
        )  # fmt: skip
        status, history = int(result.status), host(result.history)
        if status not in (Status.CONVERGED, Status.MAX_ITER):
            raise CollapsedError
        ending = (history[np.isfinite(history)].tolist(), int(result.n_iter), status == Status.CONVERGED)
        self._take(Trial(result.params, float(result.objective), *ending), rows.offset, dtype)

    def _keep(self, state: GMMParams, offset: Host | float, dtype: Any) -> None:
        log_weights, means, scale = host((state.log_weights, state.means, state.scale))
        lower = None if state.model in SHAPED else conversion.lower_factors(state)
        self._set(np.exp(log_weights), means + offset, scale, state.model, dtype, lower)

    def _mixture(self) -> tuple[Host, Host, Any, Model]:
        model = self._structure()
        scale: Any
        if model in SHAPED:
            scale = conversion.scale_from_cholesky(model, self.precisions_cholesky_)
        else:
            scale = self._scale
        return log(self.weights_), host(self.means_), scale, model

    def _n_parameters(self) -> int:
        """Free parameters of the components that have a weight."""
        k, d = int((np.asarray(self.weights_) > 0).sum()), self.means_.shape[1]
        return int(self._structure().n_parameters(k, d))

    def _criteria(self, X: Any, sample_weight: Any) -> tuple[float, float, float]:
        """AIC, BIC and ICL of new data."""
        data = self._new(X)
        weight = check_weight(sample_weight, data)
        weight = np.ones(len(data)) if weight is None else weight
        resp, log_prob = self._evaluated(data)
        deviance, free = -2 * float(weight @ log_prob), self._n_parameters()
        bic = deviance + free * math.log(weight.sum())
        return deviance + 2 * free, bic, bic - 2 * float(weight @ np.log(resp.max(1)))

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike's criterion −2 log L + 2 p of new data; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: counts of the samples (n_samples,), or None for ones.
        """
        return self._criteria(X, sample_weight)[0]

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Schwarz's criterion −2 log L + p log n of new data; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: counts of the samples (n_samples,), of which n is the sum, or None for ones.
        """
        return self._criteria(X, sample_weight)[1]

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """The integrated completed likelihood, bic − 2 Σ log max_k r_nk; smaller is better.

        Args:
          X: array-like (n_samples, n_features).
          sample_weight: as in `bic`.

        References:
          Biernacki, Celeux & Govaert (2000).
        """
        return self._criteria(X, sample_weight)[2]

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
            mixture's own. With `merge`, components are merged by the next `fit`, for that needs data.

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
        mixture._take(Trial(params, -np.inf, [], 0, True), 0.0, params.means.dtype)
        mixture.n_features_in_ = params.n_features
        return mixture


def shared_options(estimator: Any) -> dict[str, Any]:
    """The parameters that an estimator made of mixtures passes on to each of them."""
    names = ("tol", "reg_covar", "max_iter", "n_init", "init_params", "prior", "random_state")
    return {name: getattr(estimator, name) for name in names}


def _scale_of(precisions: Host, model: Model) -> Any:
    """The structure's own arrays from precisions in their own shape."""
    if model in (conversion.DIAG, conversion.SPHERICAL):
        return 1 / np.sqrt(precisions)
    lower = conversion.lower_of_precision(precisions)
    if model in (conversion.FULL, conversion.TIED):
        return lower
    k, d = precisions.shape[:2]
    covariances = lower @ np.swapaxes(lower, -1, -2)
    build = model.covariance.from_covariance
    if model.covariance.covariance_shape(k, d) != (k, d, d):
        covariances, build = np.einsum("kdd->kd", covariances), model.covariance.from_variances
    return host(jit(build)(conversion.device(covariances, compute_dtype(np.float64))))
