"""Names of covariance structures, for those who pass strings."""

from __future__ import annotations

import difflib
import re

from jaxgmm.components.covariance.base import Family
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.eigen import EEV, EVE, EVV, VEE, VEV, VVE
from jaxgmm.components.covariance.eigen_diagonal import EEI, EII, EVI, VEI
from jaxgmm.components.covariance.eigen_ratio import eigen_ratio
from jaxgmm.components.covariance.factor import factor
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.tied import tied

FAMILIES: dict[str, Family] = {
    f.name: f for f in (full, tied, diag, spherical, EII, EEI, VEI, EVI, VEE, EVE, VVE, EEV, VEV, EVV)
}

# mclust's names of structures that have another one here; E and V are its names in one dimension.
ALIASES: dict[str, Family] = {
    "VVV": full, "EEE": tied, "VVI": diag, "VII": spherical, "V": spherical, "E": EII
}  # fmt: skip

_EQUAL = "-equal"


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"covariance_type {name!r}: {text!r} is not a number") from None


def get_family(covariance_type: str | Family) -> Family:
    """The record for a name, such as "full", "factor(5)" or "full-equal"; a record is returned as it is.

    mclust's fourteen structures Σ_k = λ_k D_k A_k D_kᵀ go by its three letters for volume, shape and
    orientation (E equal, V varying, I identity). Four of them have another name here: VVV is "full", EEE
    "tied", VVI "diag", VII "spherical"; either finds the one record. So do mclust's E (EII) and V (VII) for
    one dimension. "full-ratio(100)" is `eigen_ratio(full, 100)`, "factor(5)" `factor(5)`, and "-equal" at the
    end of any name `equal_weights` of it.

    Raises:
      ValueError: for a name that is not in the table.
      TypeError: for anything that is neither a name nor a `Family`.

    Example:
      >>> from jaxgmm.components import get_family
      >>> get_family("tied").n_parameters(3, 2)
      3
      >>> get_family("VVE")
      Family('VVE')
      >>> get_family("VVV")
      Family('full')

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28.
    """
    if isinstance(covariance_type, Family):
        return covariance_type
    if not isinstance(covariance_type, str):
        raise TypeError(f"covariance_type must be a name or a Family; got {type(covariance_type).__name__}")
    names = FAMILIES | ALIASES
    if covariance_type in names:
        return names[covariance_type]
    if factors := re.fullmatch(r"factor\(([1-9][0-9]{0,8})\)", covariance_type):
        return factor(int(factors[1]))
    if limited := re.fullmatch(r"(.+)-ratio\(([\d.e+]+)\)", covariance_type):
        return eigen_ratio(get_family(limited[1]), _number(limited[2], covariance_type))
    if covariance_type.endswith(_EQUAL) and not covariance_type.endswith(2 * _EQUAL):
        return equal_weights(covariance_type.removesuffix(_EQUAL))
    near = difflib.get_close_matches(covariance_type, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known, others = (", ".join(map(repr, names)) for names in (FAMILIES, ALIASES))
    raise ValueError(
        f"covariance_type must be one of {known} (or, in mclust's words, {others}) or 'factor(q)' with a "
        f"number q, each also with {_EQUAL!r} at its end; got {covariance_type!r}{hint}"
    )


def equal_weights(covariance_type: str | Family) -> Family:
    """The same covariance structure, in mixtures whose components all have the same weight.

    A fit holds every π_k at 1/K, K being the number of components that are on, and the criteria count K − 1
    parameters fewer. Nothing else changes: mixtures with unequal weights can be evaluated, and are made equal
    where a fit begins.

    Args:
      covariance_type: a name or a `Family`.

    Returns:
      A `Family`, its name that of the structure and "-equal": "full-equal" can be passed as
      covariance_type too.

    Raises:
      ValueError, TypeError: as `get_family`.

    Example:
      >>> import jax, jaxgmm
      >>> from jaxgmm.components import equal_weights
      >>> X = jax.random.normal(jax.random.key(0), (100, 2))
      >>> family = equal_weights("full")
      >>> results = jaxgmm.fit_restarts(jax.random.key(1), X, 4, covariance_type=family, n_init=1)
      >>> results.params.weights.round(3).tolist()
      [[0.25, 0.25, 0.25, 0.25]]

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28: the models
      with equal proportions.
    """
    family = get_family(covariance_type)
    if family.equal_weights:
        return family
    return family._replace(name=family.name + _EQUAL, equal_weights=True)
