"""`GaussianMixtureOutliers`: an outlier detector from a mixture that knows of outliers."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxgmm.components.contaminated import contaminated
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.student_t import student_t
from jaxgmm.data import Data
from jaxgmm.density import inliers
from jaxgmm.em import fit
from jaxgmm.kernels.programs import in_float64
from jaxgmm.mixture import GMMParams, with_background
from jaxgmm.result import FitResult
from jaxgmm.selection._criteria import best
from jaxgmm.selection._restarts import fit_restarts
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn._conversion import CollapsedError
from jaxgmm.sklearn._data import Host, check_weight, compute_dtype, in_blocks
from jaxgmm.solvers.squarem import Status

METHODS = ("contaminated", "background", "student_t", "gaussian")
# Rows are outliers below this probability of being none: where components know of outliers, whichever is
# likelier; where they do not, one row in a hundred of the mixture's own.
_AUTO = {"contaminated": 0.5, "background": 0.5, "student_t": 0.01, "gaussian": 0.01}
_ROWS = 1 << 16
_TOL = 1e-8  # of the fits: a repeated row and one of weight 2 give the same to as many digits


class GaussianMixtureOutliers(OutlierMixin, BaseEstimator):
    """Outliers of a mixture: rows that its components call so, with a probability for each.

    Args:
      n_components: number of clusters.
      method: "contaminated" gives every cluster a share of rows with an inflated covariance; "background"
        puts a uniform component over the box of the data beside them; "student_t" has heavy tails, and
        "gaussian" nothing: for these two, rows far out from a Gaussian cluster count as outliers.
      covariance_type: the clusters' structure, by name.
      contamination: the share of the training rows that are to be called outliers, in (0, 0.5], as in
        `sklearn.covariance.EllipticEnvelope`; or "auto" for rows that are more probably outliers than not
        ("contaminated", "background"), or farther out than 99 % of their cluster.
      trim: the share of the rows that the fit leaves out, those of lowest density, in [0, 1), as in
        `jaxgmm.fit`; None for none. With `method="gaussian"` the clusters are then those of the other rows.
      n_init: random starts, of which the best is kept.
      reg_covar: ridge, as in `jaxgmm.fit`.
      max_iter: EM steps.
      random_state: int, `RandomState` or None; of the starts.

    Attributes:
      params_: the fitted `jaxgmm.GMMParams`, for data less `location_`.
      location_: (n_features,) what is taken off the data.
      n_iter_: EM steps of the best fit.
      offset_: the score below which a row is an outlier.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import GaussianMixtureOutliers
      >>> X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), [[9.0, 9.0], [-8.0, 9.0]]]
      >>> GaussianMixtureOutliers(contamination="auto", random_state=0).fit_predict(X)[-3:].tolist()
      [1, -1, -1]

    References:
      Punzo & McNicholas (2016), Parsimonious mixtures of multivariate contaminated normal distributions;
      Banfield & Raftery (1993); Peel & McLachlan (2000); García-Escudero et al. (2008) for trimming.
    """

    _constraints: ClassVar = {
        "n_components": checks.integer(1),
        "method": checks.option(*METHODS),
        "contamination": checks.either(
            checks.option("auto"), (lambda v: isinstance(v, float) and 0 < v <= 0.5, "a float in (0, 0.5]")
        ),
        "trim": (
            lambda v: v is None or (isinstance(v, float) and 0 <= v < 1),
            "a float in [0, 1) or None",
        ),
        "n_init": checks.integer(1),
        "reg_covar": checks.number(),
        "max_iter": checks.integer(1),
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        method: str = "contaminated",
        covariance_type: str = "full",
        contamination: float | str = 0.1,
        trim: float | None = None,
        n_init: int = 5,
        reg_covar: float = 1e-6,
        max_iter: int = 1000,
        random_state: Any = None,
    ) -> None:
        checks.set_parameters(**locals())

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GaussianMixtureOutliers:
        """Fit the mixture.

        Args:
          X: array-like or data frame (n_samples, n_features).
          y: ignored.
          sample_weight: array-like (n_samples,) or None for ones.

        Raises:
          ValueError: for parameters out of range, or where every start ends at a singular covariance.
        """
        checks.check_parameters(self, self._constraints)
        model: ModelLike = self.covariance_type
        get_model(model)
        if self.method != "gaussian":
            model = (contaminated if self.method == "contaminated" else student_t)(self.covariance_type)
        random_state = check_random_state(self.random_state)
        data = checks.data(self, X, ensure_min_samples=2)
        if self.n_components > len(data):
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {len(data)}"
            )
        weight = check_weight(sample_weight, data)
        self.location_ = np.average(data.astype(np.float64), axis=0, weights=weight)
        key = jax.random.key(int(random_state.randint(np.iinfo(np.int32).max)))
        # In float64: how far out a row lies is told by small differences of probabilities from 1.
        with in_float64():
            result = self._fitted(key, data - self.location_, weight, model)
            params = jax.tree.map(np.asarray, result.params)
        if int(result.status) not in (Status.CONVERGED, Status.MAX_ITER):
            raise CollapsedError
        self._params = params
        self.params_: GMMParams = jax.tree.map(lambda a: a.astype(compute_dtype(a.dtype)), params)
        self.n_iter_ = int(result.n_iter)
        self.offset_ = _AUTO[self.method]
        if self.contamination != "auto":
            score = self.score_samples(data)
            order = np.argsort(score, kind="stable")
            below = np.cumsum(np.ones(len(data)) if weight is None else weight[order])
            at = np.searchsorted(below, float(self.contamination) * below[-1] * (1 + 1e-12), side="right")
            self.offset_ = float(score[order[min(at, len(data) - 1)]])
        return self

    def _fitted(self, key: Any, data: Host, weight: Host | None, model: ModelLike) -> FitResult:
        options: dict[str, Any] = {"reg_covar": self.reg_covar, "max_iter": self.max_iter}
        options |= {"tol": _TOL, "trim": self.trim}
        result = best(
            fit_restarts(
                key, data, self.n_components, weight, covariance_type=model, n_init=self.n_init, **options
            )
        )
        if self.method == "background":
            # Clusters as a fit sees them that outliers do not widen.
            robust, sides = result.params, np.ptp(data, axis=0)
            parts = (robust.log_weights, robust.means, robust.scatter)
            core = GMMParams(*parts, *get_model(self.covariance_type))
            result = fit(with_background(core, np.where(sides > 0, sides, 1)), data, weight, **options)
        return result

    def score_samples(self, X: Any) -> Host:
        """(n_samples,) the probability of each row to be no outlier; low for outliers.

        Args:
          X: array-like or data frame (n_samples, n_features).
        """
        check_is_fitted(self)
        data = checks.data(self, X, reset=False)
        with in_float64():
            found: Host = in_blocks(
                lambda x: (inliers(self._params, Data(x)),), data, self.location_, np.dtype(np.float64), _ROWS
            )[0]
        return found

    def decision_function(self, X: Any) -> Host:
        """(n_samples,) `score_samples` less `offset_`: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Host:
        """(n_samples,) −1 for outliers, 1 for the others."""
        return np.where(self.decision_function(X) < 0, -1, 1)
