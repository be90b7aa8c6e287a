"""Rules for the mixing weights, and `Model`: all that is static about a mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgmm.components.base import Component
from jaxgmm.components.covariance.base import Covariance


class Weights(NamedTuple):
    """How a fit treats the mixing weights.

    Fields:
      rule: "free"; "equal" for 1/K in each of the K components that are on; "fixed" for the weights that the
        fit starts from.
    """

    rule: str = "free"

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


FREE = Weights()


def _equal(on: Array, dtype: Any) -> Array:
    return jnp.where(on, -jnp.log(jnp.maximum(on.sum(), 1).astype(dtype)), -jnp.inf)


_SUFFIXES = {"": "free", "-equal": "equal", "-fixed": "fixed"}


class Model(NamedTuple):
    """What is static about a mixture: the density of its components, and the rule for its weights."""

    component: Component
    weights: Weights = FREE

    @property
    def name(self) -> str:
        """The component's, with the rule for the weights where they are not free: "full-equal"."""
        return self.component.name + next(s for s, rule in _SUFFIXES.items() if rule == self.weights.rule)

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
        return self.weights.n_free(n_components) + own


def split_name(name: str) -> tuple[str, Weights]:
    """A model's name as the component's name and the rule for the weights."""
    for suffix, rule in _SUFFIXES.items():
        if suffix and name.endswith(suffix):
            return name.removesuffix(suffix), Weights(rule)
    return name, FREE
