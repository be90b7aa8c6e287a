"""`GaussianMixtureImputer`: missing entries filled in from a mixture fitted to incomplete rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from jaxgmm import priors
from jaxgmm.components.registry import ModelLike
from jaxgmm.density import impute
from jaxgmm.kernels.programs import in_float64
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn._data import Host, check_weight, compute_dtype, fits_float32, in_blocks, rows_with_gaps
from jaxgmm.sklearn._gaussian import GaussianMixture, shared_options

_FILLED = 1 << 14  # rows at a time: each may have factors of its own


class GaussianMixtureImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Missing entries filled in from a Gaussian mixture, fitted by EM to the observed entries.

    Entries are NaN, or masked, where they are missing, at random. `transform` puts in their place
    E[x_missing | x_observed] under the mixture, or one draw from that distribution. One component with a full
    covariance is regression on the observed features; several make it piecewise.

    Args:
      n_components: number of components.
      covariance_type: as in `GaussianMixture`; structures without correlations fill in what depends on the
        component alone.
      n_init: starts, of which the best is kept, or "auto".
      tol: as in `GaussianMixture`.
      reg_covar: added to the variances.
      max_iter: EM steps.
      init_params: as in `GaussianMixture`.
      prior: None, "default" or a `jaxgmm.Prior`.
      sample: False for conditional means; True for one draw for each row, so that the filled data vary as the
        mixture does. Several values of random_state give multiple imputations.
      random_state: int, `RandomState` or None; of the start, and of the draws. With an int every call of
        `transform` makes the same draws.

    Attributes:
      mixture_: the fitted `GaussianMixture`.
      n_iter_: its EM steps.
      n_features_in_: number of features.
      feature_names_in_: names of the features, where the data had any.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import GaussianMixtureImputer
      >>> X = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [3.0, np.nan]])
      >>> GaussianMixtureImputer(tol=1e-6, max_iter=1000).fit_transform(X).round(1).tolist()
      [[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]

    References:
      Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach; Little & Rubin
      (2002), Statistical Analysis with Missing Data, §11.2.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: ModelLike = "full",
        n_init: int | str = 1,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        init_params: str = "kmeans",
        prior: priors.Prior | str | None = None,
        sample: bool = False,
        random_state: Any = None,
    ) -> None:
        checks.set_parameters(**locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GaussianMixtureImputer:
        """Fit the mixture to the observed entries.

        Args:
          X: array-like or data frame (n_samples, n_features), NaN where an entry is missing.
          y: ignored.
          sample_weight: array-like (n_samples,) or None for ones; a weight of 0 leaves the sample out.

        Raises:
          ValueError: for parameters out of range, or a feature without any observed entry.
        """
        checks.check_parameters(self, {"sample": checks.FLAG})
        mixture = GaussianMixture(
            self.n_components, covariance_type=self.covariance_type, missing="nan", **shared_options(self)
        )
        checks.check_parameters(mixture, mixture._constraints)
        random_state = check_random_state(self.random_state)
        data = checks.data(self, X, missing=True, ensure_min_samples=2)
        mixture._fit_data(data, check_weight(sample_weight, data), random_state)
        mixture.n_features_in_ = data.shape[1]
        self.mixture_, self.n_iter_ = mixture, mixture.n_iter_
        return self

    def transform(self, X: Any) -> Host:
        """X with its missing entries filled in.

        Args:
          X: array-like or data frame (n_samples, n_features), NaN where an entry is missing.

        Returns:
          (n_samples, n_features) in X's dtype, float32 or float64. Observed entries are as they were.
        """
        check_is_fitted(self)
        data = checks.data(self, X, missing=True, reset=False)
        gaps = np.isnan(data)
        filled, some = data.copy(), gaps.any(1)
        if some.any():
            seed = None
            if self.sample:
                seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
            filled[some] = np.where(gaps[some], self._filled(data[some], seed), data[some])
        return filled

    def _filled(self, X: Host, seed: int | None) -> Host:
        """Rows (N, D) filled in, by draws from a seed or by means; their observed entries may be rounded."""
        dtype = compute_dtype(X.dtype)
        means = np.asarray(self.mixture_.means_, np.float64)
        offset = np.asarray(self.mixture_.weights_, np.float64) @ means
        if dtype != np.float64 and not (self.mixture_._is_wide(means - offset) and fits_float32(X)):
            with in_float64():
                return self._filled(X.astype(np.float64), seed).astype(X.dtype)
        params, blocks = self.mixture_._params(dtype, offset), iter(range(len(X)))
        root = None if seed is None else jax.random.key(seed)

        def fill(x: Host) -> tuple[Any]:
            key = None if root is None else jax.random.fold_in(root, next(blocks))
            return (np.asarray(impute(params, rows_with_gaps(x), key), np.float64) + offset,)

        return in_blocks(fill, X, offset, dtype, _FILLED)[0]
