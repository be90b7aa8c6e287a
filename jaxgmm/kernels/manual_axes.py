"""Types inside `shard_map`: loops and conditions want equal types, with the axes that values vary over.

With `check_vma` JAX counts these axes in the type of a value. A constant varies over none of them, so that a
loop over the rows of one shard cannot begin with it. Everywhere else these functions do nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

_typeof: Any = getattr(jax, "typeof", None)  # before JAX 0.6 types have no such axes


def _axes(value: Any) -> frozenset[Any]:
    if _typeof is None:
        return frozenset()
    kind = value if isinstance(value, jax.ShapeDtypeStruct) else _typeof(value)
    named = getattr(kind, "manual_axis_type", None)  # before JAX 0.10 the axes are the type's `vma`
    return frozenset((getattr(kind, "vma", None) if named is None else named.varying) or ())


def varying_like(tree: Tree, *others: Any) -> Tree:
    """The arrays of a tree, each varying over all axes that any of them varies over, or any of the others."""
    axes = frozenset[Any]().union(*(_axes(leaf) for leaf in jax.tree.leaves((tree, others))))
    return jax.tree.map(lambda leaf: _vary(leaf, axes), tree) if axes else tree


def _vary(value: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(sorted(axes - _axes(value), key=str))
    if not missing:
        return value
    pcast: Any = getattr(lax, "pcast", None)
    if pcast is not None:
        return pcast(value, missing, to="varying")
    vary: Any = getattr(lax, "pvary")  # noqa: B009 - before JAX 0.9, and not known to a later one
    return vary(value, missing)


def replicated(a: jax.Array) -> jax.Array:
    """An array whose type says how it is divided over a mesh (explicit sharding) without such a type.

    While a mesh is set (`jax.set_mesh`) or a trace is under way it is then whole on every device. Of other
    arrays, and before JAX has such types, it is the array itself.
    """
    kind = _typeof(a) if _typeof is not None else None
    sharding = getattr(kind, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or not any("Explicit" in str(t) for t in getattr(mesh, "axis_types", ()) or ()):
        return a
    whole = PartitionSpec(*(None,) * a.ndim)
    if isinstance(a, jax.core.Tracer):
        reshard: Any = jax.sharding.reshard
        return reshard(a, NamedSharding(mesh, whole))
    placed: Any = a.sharding
    if not jax.sharding.get_abstract_mesh().empty:
        return jax.device_put(a, NamedSharding(placed.mesh, whole))
    # On a mesh of the same devices whose axes are not part of the type, the array is divided as it was.
    return jax.device_put(a, NamedSharding(Mesh(placed.mesh.devices, placed.mesh.axis_names), placed.spec))
