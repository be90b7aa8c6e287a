"""`GaussianMixtureRegressor`: the conditional mean of a mixture of inputs and outputs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jax import Array
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from jaxgmm import priors
from jaxgmm.distributions._operations import regress
from jaxgmm.sklearn import _checks as checks
from jaxgmm.sklearn._data import check_weight, compute_dtype, in_blocks
from jaxgmm.sklearn._gaussian import GaussianMixture, shared_options

_EVALUATED = 1 << 14  # rows at a time: each has a covariance of its own


class GaussianMixtureRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Gaussian mixture regression: a mixture of inputs and outputs together, conditioned on the inputs.

    E[y | x] is a sum of one linear function for each component, weighted by how well the component explains
    x. One component with a full covariance is linear regression. The conditional covariance comes with it.

    Args:
      n_components: number of components.
      covariance_type: a name or a `jaxgmm.components.Covariance`, of inputs and outputs together; structures
        without correlations give functions that are constant within a component.
      tol: as in `GaussianMixture`, and so on down to `random_state`.
      reg_covar: added to the variances.
      max_iter: EM steps.
      n_init: starts, or "auto".
      init_params: as in `GaussianMixture`; k-means on inputs and outputs together, in the units they have.
      prior: None, "default" or a `jaxgmm.Prior`, of inputs and outputs together.
      random_state: int, `RandomState` or None.

    Attributes:
      mixture_: the fitted `GaussianMixture` of (x, y).
      n_iter_: its EM steps.
      n_features_in_: number of inputs.
      feature_names_in_: names of the inputs, where the data had any.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.sklearn import GaussianMixtureRegressor
      >>> x = np.linspace(-1, 1, 50)[:, None]
      >>> model = GaussianMixtureRegressor(n_components=2, random_state=0).fit(x, np.abs(x[:, 0]))
      >>> model.predict([[-0.5], [0.5]]).round(2).tolist()
      [0.5, 0.5]

    References:
      Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM approach; Sung (2004),
      Gaussian Mixture Regression and Classification.
    """

    _constraints: ClassVar = {"n_components": checks.integer(1)}

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Any = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int | str = 1,
        init_params: str = "kmeans",
        prior: priors.Prior | str | None = None,
        random_state: Any = None,
    ) -> None:
        checks.set_parameters(**locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> GaussianMixtureRegressor:
        """Fit the mixture of inputs and outputs.

        Args:
          X: array-like or data frame (n_samples, n_features).
          y: (n_samples,) or (n_samples, n_outputs).
          sample_weight: array-like (n_samples,) or None for ones; a weight of 0 leaves the sample out.
        """
        checks.check_parameters(self, self._constraints)
        options: dict[str, Any] = {"multi_output": True, "y_numeric": True, "ensure_min_samples": 2}
        data, outputs = checks.data(self, X, y, **options)
        weight = check_weight(sample_weight, data)
        if weight is not None:
            data, outputs, weight = data[weight > 0], outputs[weight > 0], weight[weight > 0]
        self._single = outputs.ndim == 1
        outputs = outputs.reshape(len(data), -1).astype(data.dtype)
        self.mixture_ = GaussianMixture(
            self.n_components, covariance_type=self.covariance_type, **shared_options(self)
        )
        self.mixture_.fit(np.hstack([data, outputs]), sample_weight=weight)
        self.n_iter_ = self.mixture_.n_iter_
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The conditional mean of the outputs, and on request how wide they scatter about it.

        Args:
          X: array-like (n_samples, n_features).
          return_std: also standard deviations, of the shape of the mean.
          return_cov: also covariances (n_samples, n_outputs, n_outputs).

        Returns:
          The mean (n_samples,) or (n_samples, n_outputs), or a tuple of it and what was asked for.

        Raises:
          ValueError: if both are asked for.
        """
        if return_std and return_cov:
            raise ValueError("At most one of return_std or return_cov can be requested.")
        check_is_fitted(self)
        data = checks.data(self, X, reset=False)
        dtype = compute_dtype(data.dtype)
        d, means = data.shape[1], np.asarray(self.mixture_.means_, np.float64)
        offset = np.asarray(self.mixture_.weights_, np.float64) @ means
        params = self.mixture_._params(dtype, offset)

        def moments(x: Array) -> tuple[Array, Array]:
            found = regress(params, x, range(d))
            return found.mean, found.covariance

        mean, covariance = in_blocks(moments, data, offset[:d], dtype, _EVALUATED)
        mean = (mean + offset[d:]).astype(data.dtype)
        mean = mean[:, 0] if self._single else mean
        if return_cov:
            return mean, covariance
        if return_std:
            std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
            return mean, std[:, 0] if self._single else std
        return mean
