"""Names of covariance structures, for those who pass strings."""

from __future__ import annotations

import difflib
import re

from jaxgmm.families.diagonal import diag, spherical
from jaxgmm.families.factor import factor
from jaxgmm.families.family import Family
from jaxgmm.families.full import full
from jaxgmm.families.tied import tied

FAMILIES: dict[str, Family] = {f.name: f for f in (full, tied, diag, spherical)}


def get_family(covariance_type: str | Family) -> Family:
    """The record for a name, such as "full" or "factor(5)"; a record is returned as it is.

    Raises:
      ValueError: for a name that is not in the table.
      TypeError: for anything that is neither a name nor a `Family`.

    Example:
      >>> from jaxgmm.families import get_family
      >>> get_family("tied").n_parameters(3, 2)
      3
    """
    if isinstance(covariance_type, Family):
        return covariance_type
    if not isinstance(covariance_type, str):
        raise TypeError(f"covariance_type must be a name or a Family; got {type(covariance_type).__name__}")
    if covariance_type in FAMILIES:
        return FAMILIES[covariance_type]
    if factors := re.fullmatch(r"factor\(([1-9][0-9]{0,8})\)", covariance_type):
        return factor(int(factors[1]))
    near = difflib.get_close_matches(covariance_type, FAMILIES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"covariance_type must be one of {sorted(FAMILIES)}, or 'factor(q)' with a number q; "
        f"got {covariance_type!r}{hint}"
    )
