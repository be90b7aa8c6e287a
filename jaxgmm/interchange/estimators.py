"""scikit-learn's fitted estimators: mixtures to and from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxgmm import _validate as validate
from jaxgmm.components.registry import get_model
from jaxgmm.density import check_gaussian, check_mixture
from jaxgmm.mixture import GMMParams, active

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

_EXTRA = "scikit-learn could not be imported ({}); pip install 'jaxgmm[sklearn]'"
_TYPES = ("full", "tied", "diag", "spherical")


def from_sklearn(estimator: Any) -> GMMParams:
    """The mixture in a fitted estimator.

    Args:
      estimator: a fitted `sklearn.mixture.GaussianMixture`, or an estimator of `jaxgmm.sklearn`. Of a
        `BayesianGaussianMixture` it is the mixture of `weights_`, `means_` and `covariances_`, where that
        class's own `score_samples` also counts what is uncertain about them.

    Returns:
      GMMParams of the same structure, float64 where JAX has it.

    Raises:
      ImportError: if scikit-learn is not installed (extra `sklearn`).
      TypeError: if it is not a mixture estimator.
      ValueError: if it is not fitted, or its attributes do not fit one another.

    Example:
      >>> import numpy as np
      >>> from sklearn.mixture import GaussianMixture
      >>> from jaxgmm.interchange import from_sklearn
      >>> X = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
      >>> from_sklearn(GaussianMixture(2, random_state=0).fit(X)).weights.tolist()
      [0.5, 0.5]
    """
    try:
        from jaxgmm.sklearn._conversion import log, scale_from_cholesky, to_device
    except ImportError as error:
        raise ImportError(_EXTRA.format(error)) from error
    if hasattr(estimator, "to_params"):
        return estimator.to_params()
    name = getattr(estimator, "covariance_type", None)
    if not hasattr(estimator, "fit") or not isinstance(name, str) or name not in _TYPES:
        wanted = "a fitted sklearn.mixture.GaussianMixture or BayesianGaussianMixture"
        raise TypeError(f"from_sklearn takes {wanted}; got {type(estimator).__name__}")
    if not hasattr(estimator, "precisions_cholesky_"):
        raise ValueError(f"this {type(estimator).__name__} is not fitted; call its fit first")
    attributes = (estimator.weights_, estimator.means_, estimator.precisions_cholesky_)
    weights, means, factors = (np.asarray(a, np.float64) for a in attributes)
    model = get_model(name)
    k, d = means.shape
    shape = model.covariance.covariance_shape(k, d)
    if weights.shape != (k,) or factors.shape != shape:
        said = f"must have shape {(k,)} and precisions_cholesky_ {shape} for means_ {means.shape}"
        raise ValueError(f"weights_ {said}; got {weights.shape} and {factors.shape}")
    scale = scale_from_cholesky(model, factors)
    dtype = np.float64 if jax.config.read("jax_enable_x64") else np.float32
    params = to_device(log(weights / weights.sum()), means, scale, model, dtype)
    check_mixture(params)
    return params


def to_sklearn(params: GMMParams) -> GaussianMixture:
    """A fitted `sklearn.mixture.GaussianMixture` that holds the mixture.

    `predict`, `predict_proba`, `score_samples`, `bic` and `sample` work at once, and `fit` with
    `warm_start=True` goes on from it. For one that computes with JAX: `jaxgmm.sklearn.GaussianMixture`'s
    `from_params`.

    Args:
      params: one mixture. The structures that scikit-learn lacks become "full", so that its `bic` counts more
        parameters; components that are switched off are left out.

    Returns:
      The estimator, its attributes float64.

    Raises:
      ImportError: if scikit-learn is not installed (extra `sklearn`).
      ValueError, TypeError: if params is not one concrete mixture.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import to_sklearn
      >>> params = jaxgmm.make_params([0.5, 0.5], [[-4.0], [4.0]], [1.0, 1.0], "spherical")
      >>> to_sklearn(params).predict([[-3.0], [5.0]]).tolist()
      [0, 1]
    """
    try:
        from sklearn.mixture import GaussianMixture

        from jaxgmm.sklearn._conversion import FULL, SHAPED, host, lower_factors, shapes_of
    except ImportError as error:
        raise ImportError(_EXTRA.format(error)) from error
    check_gaussian(params, "to_sklearn")
    if not validate.is_concrete(params):
        raise TypeError("to_sklearn needs a concrete mixture; call it outside jit")
    params = active(params)
    known = params.model in SHAPED
    model = params.model if known else FULL
    mixture = GaussianMixture(params.n_components, covariance_type=model.name)
    weights = np.exp(host(params.log_weights))
    mixture.weights_, mixture.means_ = weights / weights.sum(), host(params.means)
    # shapes_of wants a structure's own arrays, and those of "full" are lower factors.
    shapes = shapes_of(model, host(params.scale) if known else lower_factors(params))
    mixture.covariances_, mixture.precisions_, mixture.precisions_cholesky_ = shapes
    mixture.converged_, mixture.n_iter_ = True, 0
    mixture.lower_bound_, mixture.lower_bounds_ = -np.inf, []
    mixture.n_features_in_ = params.n_features
    return mixture
