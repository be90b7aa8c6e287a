"""Rules for the mixing weights, and `Model`: all that is static about a mixture."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.components.base import Component
from jaxgmm.components.covariance.base import Covariance

Held = bool | tuple[int, ...]  # all components, none, or those of these numbers


class Weights(NamedTuple):
    """How a fit treats the mixing weights, and which other parameters it holds as they are.

    Fields:
      rule: "free"; "equal" for 1/K in each of the K components that are on; "fixed" for the weights that the
        fit starts from.
      means: which components' means a fit holds: False for none, True for all, or their numbers.
      covariances: the same of covariances.
    """

    rule: str = "free"
    means: Held = False
    covariances: Held = False

    @property
    def holds(self) -> bool:
        """Whether any mean or covariance is held."""
        return self.means is not False or self.covariances is not False

    def start(self, log_weights: Array) -> Array:
        """(K,) where a fit may begin: equal weights are made equal."""
        if self.rule != "equal":
            return log_weights
        # A weight that is not a number is for the fit's status to tell.
        equal = _equal(log_weights > -jnp.inf, log_weights.dtype)
        return jnp.where(jnp.isnan(log_weights), jnp.nan, equal)

    def update(self, log_weights: Array, counts: Array) -> Array:
        """(K,) the M-step's log-weights, from the current ones and effective counts (K,), a prior's too."""
        on = counts > 0
        if self.rule == "equal":
            return _equal(on, counts.dtype)
        if self.rule == "fixed":
            return log_weights
        return jnp.where(on, jnp.log(jnp.where(on, counts, 1)) - jnp.log(counts.sum()), -jnp.inf)

    def n_free(self, n_components: Any) -> Any:
        """How many are free parameters; K may be traced."""
        return n_components - 1 if self.rule == "free" else 0


def is_held(which: Held, n_components: int) -> np.ndarray[Any, Any]:
    """(K,) bool, of which components a parameter is held."""
    if isinstance(which, bool):
        return np.full(n_components, which)
    return np.isin(np.arange(n_components), which)


FREE = Weights()


def _equal(on: Array, dtype: Any) -> Array:
    return jnp.where(on, -jnp.log(jnp.maximum(on.sum(), 1).astype(dtype)), -jnp.inf)


_SUFFIXES = {"": "free", "-equal": "equal", "-fixed": "fixed"}
_HELD = ("means", "covariances")


class Model(NamedTuple):
    """What is static about a mixture: the density of its components, and the rule for its weights."""

    component: Component
    weights: Weights = FREE

    @property
    def name(self) -> str:
        """The component's, with what a fit does not leave free: "full-equal", "full-fixed-means[0,2]"."""
        rule = self.weights
        suffix = next(s for s, known in _SUFFIXES.items() if known == rule.rule)
        held = [(word, getattr(rule, word)) for word in _HELD if getattr(rule, word) is not False]
        parts = [f"-{word}[{'all' if which is True else ','.join(map(str, which))}]" for word, which in held]
        return self.component.name + suffix + "".join(parts)

    @property
    def covariance(self) -> Covariance:
        """The structure of the components' scatter matrices."""
        return self.component.covariance

    def __repr__(self) -> str:
        """Short."""
        return f"Model({self.name!r})"

    def n_parameters(self, n_components: Any, n_features: int) -> Any:
        """Free parameters of K components: weights, means and the rest. K may be traced.

        Everything that counts parameters asks this.
        """
        own = self.component.n_parameters(self.component, n_components, n_features)
        held: Any = 0
        if self.weights.means is not False:
            held = n_features * self._n_held(self.weights.means, n_components)
        if self.weights.covariances is not False:
            n = self._n_held(self.weights.covariances, n_components)
            held = held + self.covariance.n_parameters(n, n_features)
        return self.weights.n_free(n_components) + own - held

    @staticmethod
    def _n_held(which: Held, n_components: Any) -> Any:
        return n_components if which is True else len(which or ())


def split_name(name: str) -> tuple[str, Weights]:
    """A model's name as the component's name and the rule for the weights."""
    held: dict[str, Any] = {}
    for word in reversed(_HELD):
        found = re.fullmatch(rf"(.*)-{word}\[(all|\d+(?:,\d+)*)\]", name)
        if found is not None:
            name, numbers = found[1], found[2]
            held[word] = True if numbers == "all" else tuple(map(int, numbers.split(",")))
    for suffix, rule in _SUFFIXES.items():
        if suffix and name.endswith(suffix):
            return name.removesuffix(suffix), Weights(rule)._replace(**held)
    return name, FREE._replace(**held)
