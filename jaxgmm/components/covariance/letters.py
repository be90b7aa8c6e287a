"""Properties of mclust's structures that follow from their three letters: volume, shape and orientation.

E equal, V varying, I identity: VVV is "full", EEE "tied", VVI "diag", VII "spherical".
"""

from __future__ import annotations

from typing import Any

from jaxgmm.components.covariance.base import Collapse, Partial


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


def collapse(letters: str, n_features: int) -> Collapse:
    """What of the covariances can become singular.

    An axis of a component's own vanishes on D samples, and one along a feature on a single sample. What all
    share vanishes only where every component is flat. A common orientation does not help: it may have an axis
    across the few samples of any one component.
    """
    volume, shape, axes = tuple(letters)
    samples = 2 if axes == "I" else n_features + 1
    if shape == "V":
        # With one feature there is no shape, and the volume is common.
        return Collapse(pooled=2) if volume == "E" and n_features == 1 else Collapse(each=samples)
    own: dict[str, Any] = {"each": 2, "by_volume": True} if volume == "V" else {}
    if not (own and axes == "I"):
        own["largest" if axes == "V" else "pooled"] = samples
    return Collapse(**own)


def properties(letters: str) -> dict[str, Any]:
    """The fields of a `Covariance` that follow from the letters."""
    without_prior = "VVI" if letters.endswith("I") else "VVV"
    return {
        "collapse": Partial(collapse, letters),
        "prior": letters if letters in ("EEE", "EEI", "EII", "VII") else without_prior,
        "covariance_shape": Partial(covariance_shape, letters),
        "n_parameters": Partial(n_parameters, letters),
        "free_volumes": letters.startswith("V"),
    }
