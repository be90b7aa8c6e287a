"""Names of covariance structures."""

from __future__ import annotations

import difflib
import re

from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import EEI, EII, EVI, VEI, diag, spherical
from jaxgmm.components.covariance.eigen import EEV, EVE, EVV, VEE, VEV, VVE
from jaxgmm.components.covariance.eigen_ratio import eigen_ratio
from jaxgmm.components.covariance.factor import factor
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.tied import tied

STRUCTURES: dict[str, Covariance] = {
    f.name: f for f in (full, tied, diag, spherical, EII, EEI, VEI, EVI, VEE, EVE, VVE, EEV, VEV, EVV)
}

# mclust's names of structures that have another one here; E and V are its names in one dimension.
ALIASES: dict[str, Covariance] = {
    "VVV": full, "EEE": tied, "VVI": diag, "VII": spherical, "V": spherical, "E": EII
}  # fmt: skip


def get_covariance(covariance_type: str | Covariance) -> Covariance:
    """The record for a name, such as "full" or "factor(5)"; a record is returned as it is.

    mclust's fourteen structures Σ_k = λ_k D_k A_k D_kᵀ go by its three letters for volume, shape and
    orientation (E equal, V varying, I identity). Four of them have another name here: VVV is "full", EEE
    "tied", VVI "diag", VII "spherical"; either finds the one record. So do mclust's E (EII) and V (VII) for
    one dimension. "full-ratio(100)" is `eigen_ratio(full, 100)`, "factor(5)" `factor(5)`.

    Raises:
      ValueError: for a name that is not in the table.
      TypeError: for anything that is neither a name nor a `Covariance`.

    Example:
      >>> from jaxgmm.components import get_covariance
      >>> get_covariance("tied").n_parameters(3, 2)
      3
      >>> get_covariance("VVE")
      Covariance('VVE')
      >>> get_covariance("VVV")
      Covariance('full')

    References:
      Celeux & Govaert (1995), Gaussian parsimonious clustering models, Pattern Recognition 28.
    """
    if isinstance(covariance_type, Covariance):
        return covariance_type
    if not isinstance(covariance_type, str):
        raise TypeError(
            "covariance_type must be a name, a Covariance, a Component or a Model; got "
            f"{type(covariance_type).__name__}"
        )
    names = STRUCTURES | ALIASES
    if covariance_type in names:
        return names[covariance_type]
    if factors := re.fullmatch(r"factor\(([1-9][0-9]{0,8})\)", covariance_type):
        return factor(int(factors[1]))
    if limited := re.fullmatch(r"(.+)-ratio\((\d+(?:\.\d*)?(?:e\+?\d+)?)\)", covariance_type):
        return eigen_ratio(get_covariance(limited[1]), float(limited[2]))
    near = difflib.get_close_matches(covariance_type, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known, others = (", ".join(map(repr, names)) for names in (STRUCTURES, ALIASES))
    raise ValueError(
        f"covariance_type must be one of {known} (or, in mclust's words, {others}) or 'factor(q)' with a "
        f"number q, each also with '-equal' or '-fixed' at its end, or 'student_t(…)'; "
        f"got {covariance_type!r}{hint}"
    )
