"""Gaussian mixtures of any structure by dense factors of their covariances: one program for all structures.

`alike` is a view of a mixture for E-steps and moments. `one_of`, for `select`, also has M-steps: it is a
covariance structure that stands for several, and an index among its arrays says for which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.components.covariance.base import Covariance, Partial
from jaxgmm.components.covariance.full import full
from jaxgmm.components.gaussian import gaussian
from jaxgmm.kernels.linalg import column_squares, einsum
from jaxgmm.mixture import GMMParams

Shape = Any  # (K, D)


class Factors(NamedTuple):
    """The scale of a mixture of any structure, seen as one of full covariances.

    Σ_k = C_k C_kᵀ by factors that are dense, but need not be triangular.

    With the structure's own C⁻¹ beside C nothing is inverted again, and nothing lost of thin covariances.
    """

    colour: Array  # (K, D, D)  C
    white: Array  # (K, D, D)  C⁻¹
    log_det: Array  # (K,)  log |Σ|


class OneOf(NamedTuple):
    """The scale of `one_of`: which structure it is, its own arrays, and the dense factors."""

    which: Array  # () the index, in the dtype of the other arrays
    own: Array  # (K, P)  the structure's arrays: a row for each component, with what all share in every row
    dense: Factors


def _dense(scale: Factors | OneOf) -> Factors:
    return scale.dense if isinstance(scale, OneOf) else scale


def _whitener(scale: Factors | OneOf) -> Callable[[Array], Array]:
    return lambda residuals: einsum("kde,keb->kdb", _dense(scale).white, residuals)


def _colour(scale: Factors | OneOf, y: Array) -> Array:
    return einsum("kde,keb->kdb", _dense(scale).colour, y)


def _log_det(scale: Factors | OneOf, shape: Shape) -> Array:
    return _dense(scale).log_det


def _diagonal(scale: Factors | OneOf, shape: Shape) -> Array:
    return jnp.square(_dense(scale).colour).sum(-1)


def _inverse_diagonal(scale: Factors | OneOf, shape: Shape) -> Array:
    return column_squares(_dense(scale).white)


# For E-steps and moments. It has no M-step of its own: that is what structures differ in.
_ALIKE = full._replace(
    name="alike",
    whitener=_whitener,
    colour=_colour,
    log_det=_log_det,
    diagonal=_diagonal,
    inverse_diagonal=_inverse_diagonal,
)
ALIKE = gaussian(_ALIKE)


def _factors_of(covariance: Covariance, scale: Any, shape: Shape) -> Factors:
    identity = jnp.eye(shape[1], dtype=jax.tree.leaves(scale)[0].dtype)
    identity = jnp.broadcast_to(identity[None], (*shape, shape[1]))
    return Factors(
        covariance.colour(scale, identity),
        covariance.whitener(scale)(identity),
        covariance.log_det(scale, shape),
    )


def factors(params: GMMParams) -> Factors:
    """The dense factors of one mixture."""
    if isinstance(params.scale, OneOf):
        return params.scale.dense
    return _factors_of(params.covariance, params.scatter, (params.n_components, params.n_features))


def alike(params: GMMParams, scale: Factors | None) -> GMMParams:
    """A mixture by its dense factors; itself where there are none. Any leading axes."""
    return params if scale is None else GMMParams(params.log_weights, params.means, scale, ALIKE)


def can_be_one_of(covariance: Covariance) -> bool:
    """Whether `one_of` can stand for it: its moments are part of a matrix, and it can be extrapolated."""
    return not callable(covariance.second_moment) and covariance.to_natural is not None


def one_of(structures: tuple[Covariance, ...]) -> Covariance:
    """A structure that stands for one of several: `OneOf.which` is its index.

    E-steps are those of the dense factors. M-steps and coordinates of extrapolation are the structures' own,
    in branches of a `lax.switch`: of mclust's fourteen, one program for all compiles in less than half of the
    time of one for each. In a batch, all fits must be of the same structure.
    """
    return _ALIKE._replace(
        name="one of " + ", ".join(s.name for s in structures),
        update=Partial(_update, structures),
        from_variances=Partial(_from_variances, structures),
        to_natural=Partial(_to_natural, structures),
        from_natural=Partial(_from_natural, structures),
    )


def start(structures: tuple[Covariance, ...], which: Array, variances: Array) -> OneOf:
    """The scale of diagonal covariances of variances (K, D), of the structure with this index."""
    which = jnp.asarray(which, variances.dtype)
    return OneOf(which, *_chosen(_each(_started, structures), which, variances))


def own_params(params: GMMParams, covariance: Covariance) -> GMMParams:
    """A mixture of `one_of` as one of its own structure; of NumPy's arrays, with any leading axes."""
    scale = _unpacked(covariance, params.scale.own, params.means.shape[-2:])
    return GMMParams(params.log_weights, params.means, scale, gaussian(covariance), params.weights_rule)


class _Place(NamedTuple):
    """Where one of a structure's arrays is in the rows of `OneOf.own`."""

    shape: tuple[int, ...]
    by_component: bool  # or the same in every row
    size: int  # numbers in a row


@functools.lru_cache
def _layout(covariance: Covariance, shape: Shape) -> tuple[Any, tuple[_Place, ...]]:
    """The tree of a structure's arrays, and their places."""

    def shapes(k: int) -> Any:
        return jax.eval_shape(covariance.from_variances, jax.ShapeDtypeStruct((k, shape[1]), jnp.float32))

    here, more = shapes(shape[0]), jax.tree.leaves(shapes(shape[0] + 1))
    places = []
    for a, b in zip(jax.tree.leaves(here), more, strict=True):
        by_component = a.shape != b.shape
        places.append(_Place(a.shape, by_component, a.size // shape[0] if by_component else a.size))
    return jax.tree.structure(here), tuple(places)


def _packed(structures: tuple[Covariance, ...], i: int, scale: Any, shape: Shape) -> Array:
    """(K, P) the arrays of a structure; P is what the largest of them takes."""
    k = shape[0]
    rows = [
        a.reshape(k, -1) if place.by_component else jnp.broadcast_to(a.reshape(1, -1), (k, a.size))
        for a, place in zip(jax.tree.leaves(scale), _layout(structures[i], shape)[1], strict=True)
    ]
    found = jnp.concatenate(rows, 1)
    width = max(sum(place.size for place in _layout(c, shape)[1]) for c in structures)
    return jnp.pad(found, ((0, 0), (0, width - found.shape[1])))


def _unpacked(covariance: Covariance, own: Any, shape: Shape) -> Any:
    tree, places = _layout(covariance, shape)
    leaves, at = [], 0
    for place in places:
        part = own[..., at : at + place.size]
        part = part if place.by_component else part[..., 0, :]
        leaves.append(part.reshape(own.shape[:-2] + place.shape))
        at += place.size
    return jax.tree.unflatten(tree, leaves)


def _each(branch: Callable[..., Any], structures: tuple[Covariance, ...]) -> tuple[Callable[..., Any], ...]:
    """A branch for each structure."""
    return tuple(functools.partial(branch, structures, i) for i in range(len(structures)))


def _chosen(branches: tuple[Callable[..., Any], ...], which: Array, *arrays: Array) -> Any:
    """`lax.switch` that remains one under `vmap`, also where `which` was mapped: all fits have the same."""
    call: Any = jax.custom_batching.custom_vmap(
        lambda which, *arrays: lax.switch(which.astype(jnp.int32), branches, *arrays)
    )

    def rule(size: int, mapped: list[bool], which: Array, *arrays: Array) -> tuple[Any, Any]:
        one, several = (which[0] if mapped[0] else which), tuple(mapped[1:])
        if any(several):
            axes = tuple(0 if m else None for m in several)
            inner = tuple(jax.vmap(b, axes, axis_size=size) for b in branches)
        else:
            inner = branches
        found = _chosen(inner, one, *arrays)
        return found, jax.tree.map(lambda _: any(several), found)

    call.def_vmap(rule)
    return call(which, *arrays)


# A loop that is mapped has its body batched several times: `jit` remembers what it has traced.
_traced_once = functools.partial(jax.jit, static_argnums=(0, 1))


def _next(structures: tuple[Covariance, ...], scale: Any, i: int, shape: Shape) -> tuple[Array, Factors]:
    return _packed(structures, i, scale, shape), _factors_of(structures[i], scale, shape)


@_traced_once
def _started(structures: tuple[Covariance, ...], i: int, variances: Array) -> tuple[Array, Factors]:
    shape = variances.shape
    return _next(structures, structures[i].from_variances(variances), i, shape)


@_traced_once
def _updated(
    structures: tuple[Covariance, ...], i: int, own: Array, weight: Array, mean: Array, second: Array,
    ridge: Array,
) -> tuple[tuple[Array, Factors], Array]:  # fmt: skip
    covariance, shape = structures[i], mean.shape
    scale = _unpacked(covariance, own, shape)
    new, change = covariance.update(scale, weight, mean, covariance.part_of(scale, second), ridge)
    return _next(structures, new, i, shape), change


def _charts(covariance: Covariance) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The coordinates of extrapolation, to and from, which all structures have that `can_be_one_of`."""
    assert covariance.to_natural is not None
    assert covariance.from_natural is not None
    return covariance.to_natural, covariance.from_natural


@functools.lru_cache
def _natural_like(covariance: Covariance, shape: Shape) -> Any:
    """The shapes of a structure's coordinates of extrapolation."""

    def natural(variances: Array) -> Any:
        scale = covariance.from_variances(variances)
        return _charts(covariance)[0](scale, variances[:, 0], scale, variances)

    return jax.eval_shape(natural, jax.ShapeDtypeStruct(shape, jnp.float32))


@_traced_once
def _to(
    structures: tuple[Covariance, ...], i: int, reference: Array, weights: Array, own: Array, shift: Array
) -> Array:
    covariance, shape = structures[i], shift.shape
    before, after = (_unpacked(covariance, a, shape) for a in (reference, own))
    natural = _charts(covariance)[0](before, weights, after, shift)
    flat = jnp.concatenate([a.reshape(-1) for a in jax.tree.leaves(natural)])
    sizes = (sum(a.size for a in jax.tree.leaves(_natural_like(c, shape))) for c in structures)
    return jnp.pad(flat, (0, max(sizes) - flat.size))


@_traced_once
def _back(
    structures: tuple[Covariance, ...], i: int, reference: Array, weights: Array, flat: Array, means: Array
) -> tuple[tuple[Array, Factors], Array]:
    covariance, shape = structures[i], means.shape
    leaves, at = [], 0
    for a in jax.tree.leaves(_natural_like(covariance, shape)):
        leaves.append(flat[at : at + a.size].reshape(a.shape))
        at += a.size
    natural = jax.tree.unflatten(jax.tree.structure(_natural_like(covariance, shape)), leaves)
    scale, shift = _charts(covariance)[1](_unpacked(covariance, reference, shape), weights, natural)
    return _next(structures, scale, i, shape), shift


def _from_variances(structures: tuple[Covariance, ...], variances: Array) -> OneOf:
    return start(structures, jnp.zeros((), variances.dtype), variances)


def _update(structures: tuple[Covariance, ...], scale: OneOf, *moments: Array) -> tuple[OneOf, Array]:
    found, change = _chosen(_each(_updated, structures), scale.which, scale.own, *moments)
    return OneOf(scale.which, *found), change


def _to_natural(
    structures: tuple[Covariance, ...], reference: OneOf, weights: Array, scale: OneOf, shift: Array
) -> Array:
    branches = _each(_to, structures)
    found: Array = _chosen(branches, reference.which, reference.own, weights, scale.own, shift)
    return found


def _from_natural(
    structures: tuple[Covariance, ...], reference: OneOf, weights: Array, flat: Array
) -> tuple[OneOf, Array]:
    means = reference.dense.colour[:, :, 0]
    found, shift = _chosen(_each(_back, structures), reference.which, reference.own, weights, flat, means)
    return OneOf(reference.which, *found), shift
