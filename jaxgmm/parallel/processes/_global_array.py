"""Global arrays: the rows of every process as one array over a mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm.parallel._sharded import axis_of
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes._collectives import ProcessError, agreed


def over_processes(
    X: ArrayLike, sample_weight: ArrayLike | None = None, *, mesh: Mesh, axis_name: str | None = None
) -> tuple[Array, Array]:
    """Every process's own rows as one array over a mesh of all their devices: what `fit_sharded` takes.

    To be called by all processes, each with rows of its own; how many may differ. Every device gets as many
    as the fullest one needs; what is missing elsewhere is filled with rows of weight 0. No row leaves its
    process.

    Args:
      X: (n, D) this process's rows, n ≥ 1; D and the dtype are the same everywhere.
      sample_weight: (n,) or None for ones.
      mesh: a mesh of the devices of all processes, such as `jax.make_mesh((jax.device_count(),), ("rows",))`.
      axis_name: the mesh's axis that the rows are divided over; None for its first.

    Returns:
      X (N, D) and sample_weight (N,), both divided over the axis, N ≥ Σ n: for `fit_sharded`, on all of them.

    Raises:
      ValueError, TypeError: bad rows or weights here, or an axis that the mesh does not have.
      ProcessError: the same on another process, or rows that do not fit together.

    Example:
      >>> import jax
      >>> from jaxgmm.parallel.processes import over_processes
      >>> mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
      >>> X, weight = over_processes(jax.random.normal(jax.random.key(0), (301, 2)), mesh=mesh)
      >>> int(weight.sum())  # `fit_sharded(start, X, weight, mesh=mesh)` takes them
      301
    """

    def checked() -> tuple[np.ndarray, np.ndarray, str, list[int]]:
        axis = axis_of(mesh, axis_name)
        x = validate.data(X)
        w = validate.weight(sample_weight, x)
        # The places along the axis that are this process's, by the first of two rows in each.
        over = NamedSharding(mesh, PartitionSpec(axis))
        places = over.addressable_devices_indices_map((2 * mesh.shape[axis],))
        mine = sorted({(index[0].start or 0) // 2 for index in places.values() if index is not None})
        if not mine:
            raise ValueError("the mesh has no device of this process; make it of all of `jax.devices()`")
        return np.asarray(x), np.ones(len(x), x.dtype) if w is None else np.asarray(w), axis, mine

    x, w, axis, mine = agreed(checked)
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    rows = -(-len(x) // len(mine))
    facts = collectives.gather(np.array([rows, x.shape[1], x.dtype.itemsize], np.int64).tobytes())
    found = np.array([np.frombuffer(fact, np.int64) for fact in facts])
    for what, column in (("features", found[:, 1]), ("bytes a number", found[:, 2])):
        if len(set(column)) > 1:
            raise ProcessError(f"the processes' rows must be alike; they have {column.tolist()} {what}")
    rows = int(found[:, 0].max())

    def placed(own: np.ndarray, fill: Any) -> Array:
        missing = rows * len(mine) - len(own)
        padded = np.concatenate([own, np.broadcast_to(fill, (missing, *own.shape[1:])).astype(own.dtype)])

        def part(index: Any) -> np.ndarray:
            at = mine.index((index[0].start or 0) // rows) * rows
            return padded[at : at + rows]

        shape = (rows * mesh.shape[axis], *own.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return placed(x, x[0]), placed(w, 0)
