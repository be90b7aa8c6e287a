"""Properties of mclust's structures that follow from their three letters: volume, shape and orientation.

E equal, V varying, I identity: VVV is "full", EEE "tied", VVI "diag", VII "spherical".
"""

from __future__ import annotations

from typing import Any

from jaxgmm.components.covariance.base import Partial


def covariance_shape(letters: str, n_components: int, n_features: int) -> tuple[int, ...]:
    """The shape of covariances: of all components or one; of matrices, variances, or one variance."""
    own = (n_components,) if "V" in letters else ()
    if letters.endswith("II"):
        return own
    return (*own, n_features) if letters.endswith("I") else (*own, n_features, n_features)


def n_parameters(letters: str, n_components: Any, n_features: int) -> Any:
    """Free parameters: a volume, a shape of D − 1 and D(D − 1)/2 angles, each once or for each component."""
    numbers = (1, n_features - 1, n_features * (n_features - 1) // 2)
    times = {"E": 1, "V": n_components, "I": 0}
    return sum(times[letter] * number for letter, number in zip(letters, numbers, strict=True))


def properties(letters: str) -> dict[str, Any]:
    """The fields of a `Covariance` that follow from the letters."""
    return {
        "covariance_shape": Partial(covariance_shape, letters),
        "n_parameters": Partial(n_parameters, letters),
        "free_volumes": letters.startswith("V"),
    }
