"""mclust's `parameters`: a list of pro, mean (D × G) and variance, as R or a JSON file of it gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.registry import ALIASES, STRUCTURES, get_covariance
from jaxgmm.density import check_gaussian
from jaxgmm.mixture import GMMParams, active, make_params

Host = np.ndarray[Any, Any]

# For one component mclust drops the letters that compare components.
_ONE = {"X": "E", "XII": "EII", "XXI": "EEI", "XXX": "EEE"}
_MODELS = {structure.name: name for name, structure in ALIASES.items() if len(name) == 3}


def from_mclust(parameters: Mapping[str, Any], model_name: str | None = None) -> GMMParams:
    """The mixture in mclust's `parameters`.

    Args:
      parameters: `pro` (G,), `mean` (D, G), or (G,) for one feature, and `variance` with `modelName` and
        `sigma` (D, D, G), or `sigmasq` for one feature: what R's `fit$parameters` is as nested mappings of
        arrays. A fit that has `parameters` will do, too. Numbers and names in lists of one are taken out of
        them, for so R's JSON has them.
      model_name: mclust's name, where `variance` has none.

    Returns:
      GMMParams of that structure, float64 where JAX has it.

    Raises:
      ValueError: for a missing or misshapen part, an unknown model, or a noise component, which is no
        Gaussian.
      TypeError: if it is not a mapping.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.interchange import from_mclust
      >>> variance = {"modelName": "VII", "sigma": np.stack([np.eye(2), 4 * np.eye(2)], axis=2)}
      >>> from_mclust({"pro": [0.4, 0.6], "mean": [[0.0, 3.0], [0.0, 1.0]], "variance": variance})
      GMMParams(spherical, K = 2, D = 2, float32)

    References:
      Scrucca, Fop, Murphy & Raftery (2016), mclust 5, The R Journal 8; `mclustVariance` in its manual.
    """
    if isinstance(parameters, Mapping) and isinstance(parameters.get("parameters"), Mapping):
        model_name = model_name or parameters.get("modelName")
        parameters = parameters["parameters"]
    variance = parameters.get("variance") if isinstance(parameters, Mapping) else None
    if not isinstance(variance, Mapping):
        got = list(parameters) if isinstance(parameters, Mapping) else type(parameters).__name__
        raise TypeError(f"parameters must be a mapping with pro, mean and variance, a mapping too; got {got}")
    if parameters.get("Vinv") is not None:
        raise ValueError("parameters have a noise component (Vinv), which a Gaussian mixture cannot hold")
    name = variance.get("modelName") if model_name is None else model_name
    if isinstance(name, list | tuple) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise ValueError("model_name must be given: variance has no modelName")
    structure = get_covariance(_ONE.get(name, name))
    mean = _part(parameters, "mean")
    if mean.ndim == 1:  # of one feature, or of one component
        mean = mean[:, None] if "sigma" in variance else mean[None, :]
    if mean.ndim != 2:
        raise ValueError(f"mean must have shape (n_features, n_components); got {mean.shape}")
    d, g = mean.shape
    pro = np.full(g, 1 / g) if parameters.get("pro") is None else np.atleast_1d(_part(parameters, "pro"))
    if pro.shape != (g,):
        raise ValueError(
            f"pro must have shape ({g},), one for each column of mean {mean.shape}; got {pro.shape}. "
            "A longer one has a noise component, which a Gaussian mixture cannot hold"
        )
    if "sigma" in variance:
        sigma = _part(variance, "sigma")
        if sigma.size == d * d:
            sigma = np.broadcast_to(sigma.reshape(d, d, 1), (d, d, g))
        if sigma.shape != (d, d, g):
            raise ValueError(f"sigma must have shape {(d, d, g)} for mean {mean.shape}; got {sigma.shape}")
    else:
        square = np.atleast_1d(_part(variance, "sigmasq"))
        if square.shape not in ((1,), (g,)):
            raise ValueError(f"sigmasq must be one number or have shape ({g},); got {square.shape}")
        sigma = np.eye(d)[:, :, None] * np.broadcast_to(square, (g,))
    return make_params(pro / pro.sum(), mean.T, _given(structure, np.moveaxis(sigma, 2, 0)), structure)


def to_mclust(params: GMMParams) -> dict[str, Any]:
    """A mixture as mclust's `parameters`, for `mclust::predict`, `dens` or `em` once R has them.

    Args:
      params: one concrete mixture. Switched-off components are left out. What is not one of mclust's
        fourteen structures becomes "VVV", but that "-equal" at the end of a name is left out.

    Returns:
      A dict of `pro` (G,), `mean` (D, G) and `variance`, a dict of `modelName`, `d`, `G`, `sigma` (D, D, G)
      and what mclust's own functions read for that model: `sigmasq`; `Sigma` and `cholSigma`, upper; or
      `cholsigma` (D, D, G); or `scale`, `shape` and `orientation`, Σ = scale · O diag(shape) Oᵀ with
      |diag(shape)| = 1. float64. For one feature `mean` is (G,), and the model "E" or "V".

    Raises:
      ValueError, TypeError: if params is not one concrete mixture.

    Example:
      >>> import jaxgmm
      >>> from jaxgmm.interchange import to_mclust
      >>> params = jaxgmm.make_params([0.5, 0.5], [[0.0, 0.0], [3.0, 1.0]], [1.0, 4.0], "spherical")
      >>> variance = to_mclust(params)["variance"]
      >>> variance["modelName"], variance["sigmasq"].tolist()
      ('VII', [1.0, 4.0])

    References:
      As `from_mclust`.
    """
    check_gaussian(params, "to_mclust")
    if not validate.is_concrete(params):
        raise TypeError("to_mclust needs a concrete mixture; call it outside jit")
    params = active(params)
    base = params.covariance.name
    name = _MODELS.get(base, base if base in STRUCTURES else "VVV")
    weights = np.exp(np.asarray(params.log_weights, np.float64))
    means = np.asarray(params.means, np.float64).T
    covariances = np.asarray(params.covariances, np.float64)
    d, g = means.shape
    variance: dict[str, Any] = {"d": d, "G": g}
    if d == 1:
        square = covariances[:, 0, 0]
        variance |= {"modelName": name[0], "sigmasq": square if name[0] == "V" else square[0]}
        return {"pro": weights / weights.sum(), "mean": means[0], "variance": variance}
    variance |= {"modelName": name, "sigma": np.moveaxis(covariances, 0, 2)} | _details(name, covariances)
    return {"pro": weights / weights.sum(), "mean": means, "variance": variance}


def _details(name: str, covariances: Host) -> dict[str, Any]:
    """What mclust's functions read beside sigma, of covariances (G, D, D)."""
    volume, shape, orientation = list(name)
    if name in ("VVV", "EEE"):
        upper = np.swapaxes(np.linalg.cholesky(covariances), 1, 2)
        if name == "EEE":
            return {"Sigma": covariances[0], "cholSigma": upper[0]}
        return {"cholsigma": np.moveaxis(upper, 0, 2)}
    d = covariances.shape[1]
    sizes = np.exp(np.linalg.slogdet(covariances)[1] / d)  # (G,)
    said: dict[str, Any] = {"scale": sizes if volume == "V" else sizes[0]}
    if shape == "I":
        return said | {"sigmasq": said["scale"]}
    unit = covariances / sizes[:, None, None]
    if orientation == "I":
        axes = np.broadcast_to(np.eye(d), covariances.shape)
    elif orientation == "E":
        # No one component need tell all axes apart; a sum of them with unequal weights does.
        weights = 1 + np.sqrt(np.arange(len(unit)))
        axes = np.broadcast_to(_axes((unit * weights[:, None, None]).sum(0)), covariances.shape)
    else:
        axes = _axes(unit)
    shapes = np.einsum("gde,gdf,gfe->ge", axes, unit, axes)
    said["shape"] = shapes.T if shape == "V" else shapes[0]
    if orientation != "I":
        said["orientation"] = axes[0] if orientation == "E" else np.moveaxis(axes, 0, 2)
    return said


def _axes(matrices: Host) -> Host:
    """Eigenvectors (…, D, D), in columns, the largest eigenvalue's first."""
    axes: Host = np.linalg.eigh(matrices)[1][..., ::-1]
    return axes


def _given(structure: Covariance, covariances: Host) -> Host:
    """Dense covariances (K, D, D) in the shape that the structure takes."""
    variances = np.einsum("kdd->kd", covariances)
    # Told apart by a shape whose K and D differ, for those of the data may not.
    kept = {
        (2, 3, 3): covariances, (3, 3): covariances[0], (2, 3): variances, (3,): variances[0],
        (2,): variances.mean(1), (): variances.mean(),
    }  # fmt: skip
    return kept[structure.covariance_shape(2, 3)]


def _part(mapping: Mapping[str, Any], name: str) -> Host:
    if mapping.get(name) is None:
        raise ValueError(f"parameters must have {name}; got {', '.join(map(str, mapping))}")
    return np.asarray(mapping[name], np.float64)
