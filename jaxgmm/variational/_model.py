"""Bayesian mixture: its prior, and its variational posterior."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.covariance.diagonal import diag, spherical
from jaxgmm.components.covariance.full import full
from jaxgmm.components.covariance.tied import tied
from jaxgmm.components.gaussian import gaussian
from jaxgmm.components.registry import ModelLike, get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, covariance_of, total_weight
from jaxgmm.density import get_data
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.priors import factor_of, part

STRUCTURES = (full, tied, diag, spherical)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VariationalPrior:
    """What is believed of a mixture before data: an immutable pytree.

    Λ_k ~ Wishart(ν, S⁻¹), μ_k | Λ_k ~ N(m, (β Λ_k)⁻¹), and the weights are Dirichlet(γ, …, γ), or broken off
    a stick, π_k = v_k Π_{j<k} (1 − v_j) with v_k ~ Beta(1, γ) for k < K and v_K = 1: a Dirichlet process
    truncated at K. Other structures than "full" have what follows the same rules of counting:

      tied: one Λ ~ Wishart(K ν, (K S)⁻¹): every component brings ν degrees of freedom.
      diag: precisions λ_kd ~ Gamma(ν / 2, S_d / 2).   spherical: λ_k ~ Gamma(D ν / 2, D S / 2).

    Attributes:
      mean: (D,) m.
      mean_precision: () β > 0, in samples.
      dof: () ν > D − 1, in samples.
      covariance: S, full and tied (D, D), diag (D,), spherical (): ν times a typical covariance.
      concentration: () γ > 0; the smaller, the fewer components.
      stick_breaking: which of the two; static.
      last_stick_free: with stick_breaking, v_K ~ Beta(1, γ) too, as scikit-learn has it. A part of the weight
        is then in none of the K components, and bounds of different K do not compare: with K = 1 and γ = 1
        it costs log(N + 1) nats. Static.

    References:
      Bishop (2006), §10.2; Blei & Jordan (2006), Variational inference for Dirichlet process mixtures;
      Ishwaran & James (2001), Gibbs sampling methods for stick-breaking priors, for the truncation.
    """

    mean: Any  # (D,)
    mean_precision: Any  # ()
    dof: Any  # ()
    covariance: Any  # (D, D), (D,) or ()
    concentration: Any  # ()
    stick_breaking: bool = dataclasses.field(default=True, metadata={"static": True})
    last_stick_free: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VariationalPosterior:
    """The posterior of weights, means and precisions, in the prior's own form: an immutable pytree.

    Attributes:
      concentration: (K,) of the Dirichlet; or (K − 1,) the a_k of the pieces v_k ~ Beta(a_k, b_k), beside
        v_K = 1; (K,) where the prior says last_stick_free.
      rest: the b_k, as many as a_k, or None for a Dirichlet.
      means: (K, D) m_k.
      mean_precision: (K,) β_k.
      dof: (K,) ν_k; for tied the same in all, a K-th of that of the one Wishart distribution.
      scale: the covariance structure's own arrays, of E[Λ_k]⁻¹.
      structure: full, tied, diag or spherical; static.
    """

    concentration: Array  # (K,) or (K − 1,)
    rest: Array | None  # (K,) or (K − 1,)
    means: Array  # (K, D)
    mean_precision: Array  # (K,)
    dof: Array  # (K,)
    scale: Any
    structure: Covariance = dataclasses.field(metadata={"static": True})

    @property
    def weights(self) -> Array:
        """(K,) expected mixing weights, normalised."""
        if self.rest is None:
            return self.concentration / self.concentration.sum(-1, keepdims=True)
        total = self.concentration + self.rest
        one = jnp.ones((*total.shape[:-1], 1), total.dtype)
        # What is broken off each time, and what was left before. The last 1 is v_K, where that is not free.
        piece = jnp.concatenate([self.concentration / total, one], axis=-1)
        left = jnp.concatenate([one, jnp.cumprod(self.rest / total, axis=-1)], axis=-1)
        weights = (piece * left)[..., : self.means.shape[-2]]
        return weights / weights.sum(-1, keepdims=True)

    def to_params(self) -> GMMParams:
        """The mixture of the expected weights, means and precisions."""
        return GMMParams(jnp.log(self.weights), self.means, self.scale, gaussian(self.structure))


def structure_of(covariance_type: ModelLike) -> Covariance:
    """One of the four structures that have a conjugate prior with known expectations.

    Raises:
      ValueError: for any other.
    """
    model = get_model(covariance_type)
    if model not in [Model(gaussian(structure)) for structure in STRUCTURES]:
        names = ", ".join(repr(f.name) for f in STRUCTURES)
        raise ValueError(f"covariance_type must be one of {names} for a variational fit; got {model.name!r}")
    return model.covariance


@functools.partial(jit, static_argnames="structure")
def _moments(data: Data, *, structure: Covariance) -> tuple[Array, Array]:
    """Weighted mean (D,), and the covariance over Σ w − 1 in the shape that the structure's prior has it."""
    mean, variance, covariance = covariance_of(data)
    total = total_weight(data)
    spread = covariance if structure in (full, tied) else variance
    spread = spread * total / jnp.where(total > 1, total - 1, total)
    return mean, spread.mean() if structure == spherical else spread


def variational_prior(
    X: ArrayLike | Data,
    n_components: int,
    covariance_type: ModelLike = "full",
    sample_weight: ArrayLike | None = None,
    *,
    stick_breaking: bool = True,
    **overrides: Any,
) -> VariationalPrior:
    """scikit-learn's default numbers for data: m the mean of X, S its covariance, β = 1, ν = D, γ = 1/K.

    Args:
      X: (N, D), or `Data`: by what is observed, noise included; with projections 0 and I.
      n_components: K.
      covariance_type: "full", "tied", "diag" or "spherical".
      sample_weight: (N,) or None for ones.
      stick_breaking: a truncated Dirichlet process, or a Dirichlet distribution.
      **overrides: any of `VariationalPrior`'s numbers: mean, mean_precision, dof, covariance, concentration.

    Raises:
      ValueError, TypeError: for data that do not fit, or a field that `VariationalPrior` has not.

    Example:
      >>> import jaxgmm
      >>> prior = jaxgmm.variational.variational_prior([[0.0], [2.0]], 4, "spherical", mean_precision=0.5)
      >>> prior.mean.tolist(), float(prior.covariance), float(prior.concentration)
      ([1.0], 2.0, 0.25)
    """
    data = get_data(X, sample_weight)
    structure = structure_of(covariance_type)
    k = validate.n_components(n_components)
    fields = {f.name for f in dataclasses.fields(VariationalPrior)} - {"stick_breaking", "last_stick_free"}
    if set(overrides) - fields:
        raise TypeError(f"variational_prior takes {sorted(fields)}; got {sorted(set(overrides) - fields)}")
    d, dtype = data.n_features, data.x.dtype
    mean, scale = _moments(dataclasses.replace(data, pattern=None, patterns=None), structure=structure)
    prior = VariationalPrior(mean, 1.0, float(d), scale, 1 / k, stick_breaking)
    return check(dataclasses.replace(prior, **overrides), structure, d, dtype)


def check(prior: VariationalPrior, structure: Covariance, n_features: int, dtype: Any) -> VariationalPrior:
    """The prior in the data's dtype; raise unless it fits D features and the structure."""
    if not isinstance(prior, VariationalPrior):
        raise TypeError(f"prior must be a VariationalPrior; got {type(prior).__name__}")
    d, dense = n_features, structure in (full, tied)

    def array(name: str, *shape: int) -> Array:
        advice = "Every part of a variational prior is proper."
        return part(getattr(prior, name), name, (shape,), d, structure, dtype, advice)

    numbers: dict[str, Any] = {}
    for name, least in (("mean_precision", 0), ("dof", d - 1 if dense else 0), ("concentration", 0)):
        numbers[name] = array(name)
        if validate.is_concrete(numbers[name]) and not float(numbers[name]) > least:
            raise ValueError(f"prior.{name} must be greater than {least}; got {float(numbers[name])}")
    covariance = array("covariance", *((d, d) if dense else (d,) if structure == diag else ()))
    if validate.is_concrete(covariance):
        values = np.asarray(covariance, np.float64)
        if not (np.linalg.eigvalsh(values) if dense else values).min() > 0:
            raise ValueError("prior.covariance must be positive definite; give one with overrides")
    flags = {name: bool(getattr(prior, name)) for name in ("stick_breaking", "last_stick_free")}
    return VariationalPrior(array("mean", d), covariance=covariance, **numbers, **flags)


def root(prior: VariationalPrior, structure: Covariance) -> Array:
    """A lower factor (D, D) of the prior's covariance, or the root of its diagonal (D,).

    Where rounding has made a covariance indefinite, that of one a few units of rounding wider.
    """
    if structure in (diag, spherical):
        return jnp.broadcast_to(jnp.sqrt(prior.covariance), prior.mean.shape)
    return factor_of(prior.covariance)


def counted(prior: VariationalPrior, n: Array) -> tuple[Array, Array | None]:
    """`concentration` and `rest` of the posterior after n (K,) samples."""
    if not prior.stick_breaking:
        return prior.concentration + n, None
    later = jnp.concatenate([jnp.cumsum(n[::-1])[::-1][1:], jnp.zeros_like(n[:1])])
    sticks = len(n) if prior.last_stick_free else len(n) - 1
    return 1 + n[:sticks], prior.concentration + later[:sticks]


def without_data(prior: VariationalPrior, structure: Covariance, n_components: int) -> VariationalPosterior:
    """The posterior of K components that have seen nothing."""
    d = prior.mean.shape[0]
    typical = root(prior, structure) / jnp.sqrt(prior.dof)
    scale = typical if structure == tied else jnp.broadcast_to(typical, (n_components, *typical.shape))
    ones = jnp.ones(n_components, prior.mean.dtype)
    return VariationalPosterior(
        *counted(prior, 0 * ones),
        means=jnp.broadcast_to(prior.mean, (n_components, d)),
        mean_precision=prior.mean_precision * ones,
        dof=prior.dof * ones,
        scale=scale[:, 0] if structure == spherical else scale,
        structure=structure,
    )
