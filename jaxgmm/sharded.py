"""One fit over several devices: the rows are divided among them, and only `Moments` travel."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxgmm import priors, quadratic, validate
from jaxgmm.compilation import is_concrete, jit
from jaxgmm.density import inputs
from jaxgmm.linalg import block_rows
from jaxgmm.loop import HISTORY_SIZE, MAX_ITER, REG_COVAR, TOL, run
from jaxgmm.params import GMMParams
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult

_shard_map: Any
try:
    _shard_map = functools.partial(jax.shard_map, check_vma=False)
except AttributeError:  # before JAX 0.6
    from jax.experimental.shard_map import shard_map as _older

    _shard_map = functools.partial(_older, check_rep=False)

AXIS = "rows"
Numbers = tuple[Array, Array, Array, Array]  # tol, max_iter, reg_covar, accelerate
_PAYS = 1 << 22  # N · K · D from which dividing the rows among the cores of a CPU is worth the copy


def use_cores(n_cores: int | None = None) -> int:
    """Have JAX's CPU backend show every core as a device of its own; `fit` then uses all of them.

    XLA's own threads keep little more than one core busy with EM. To be called before anything is computed,
    because JAX looks at its devices once. The searches, many small fits, are not divided.

    Args:
      n_cores: how many; None for as many as this process may run on.

    Returns:
      How many it asked for.

    Raises:
      RuntimeError: where JAX has already met its devices, and they are another number.
      ValueError, TypeError: for n_cores below 1, or not an integer.

    Example:
      >>> import jaxgmm
      >>> jaxgmm.use_cores(1)
      1
    """
    n = _available() if n_cores is None else validate.count(n_cores, "n_cores", 1)
    try:
        jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        if jax.local_device_count("cpu") != n:
            raise RuntimeError(
                f"use_cores({n}) comes too late: JAX has met its devices, "
                f"{jax.local_device_count('cpu')} of the CPU. Call it before anything is computed."
            ) from None
    return n


def _available() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@functools.cache
def _cores() -> Mesh:
    """The cores of this process, where JAX shows them as devices."""
    return Mesh(np.asarray(jax.local_devices(backend="cpu")), (AXIS,))


def over_cores(params: GMMParams, x: Any, w: Any, *rest: Any) -> Mesh | None:
    """The mesh to divide this fit over, if it is large, on a CPU that shows several cores, and not traced."""
    if not is_concrete(params, x, w, *rest) or jax.default_backend() != "cpu":
        return None
    if x.size * params.n_components < _PAYS or len(jax.local_devices(backend="cpu")) < 2:
        return None
    return _cores() if len(x.sharding.device_set) == 1 else None


def divide(x: Array, w: Array | None, mesh: Mesh, axis_name: str) -> tuple[Array, Array]:
    """Rows and weights divided over an axis of a mesh; what is there twice has weight 0 the second time."""
    n, parts = x.shape[0], mesh.shape[axis_name]
    sharding = NamedSharding(mesh, PartitionSpec(axis_name))
    weight = jnp.ones(n, x.dtype) if w is None else w
    if n % parts == 0:
        return jax.device_put(x, sharding), jax.device_put(weight, sharding)
    rows = -(-n // parts)
    host, weights = np.asarray(x), np.asarray(weight)

    def begins(index: Any) -> int:
        return index[0].start or 0

    def own(index: Any) -> np.ndarray:
        start, _ = part_of(begins(index), rows, weights)
        return host[start : start + rows]

    shape = (rows * parts, *x.shape[1:])
    return (
        jax.make_array_from_callback(shape, sharding, own),
        jax.make_array_from_callback(
            shape[:1], sharding, lambda index: part_of(begins(index), rows, weights)[1]
        ),
    )


def part_of(first: int, rows: int, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """Where the part of `rows` rows from `first` on begins, so as to lie within all of them; and its weights.

    A part that would end beyond them begins earlier, with weight 0 for the rows of the part before.
    """
    start = min(first, len(weights) - rows)
    own = weights[start : start + rows].copy()
    own[: first - start] = 0
    return start, own


@functools.partial(
    jit,
    static_argnames=("mesh", "axis_name", "block_size", "history_size", "unconverged", "kernel"),
    long=lambda options: options["kernel"] != "whitened",
)
def _fit(
    params: GMMParams,
    x: Array,
    w: Array,
    numbers: Numbers,
    prior: Prior | None,
    *,
    mesh: Mesh,
    axis_name: str,
    block_size: int,
    history_size: int,
    unconverged: str,
    kernel: str,
) -> FitResult:
    def part(params: GMMParams, x: Array, w: Array, numbers: Numbers, prior: Prior | None) -> FitResult:
        return run(
            params, x, w, *numbers, prior, block_size=block_size, history_size=history_size,
            unconverged=unconverged, kernel=kernel, axis_name=axis_name,
        )  # fmt: skip

    rows, all_of_it = PartitionSpec(axis_name), PartitionSpec()
    mapped = _shard_map(
        part, mesh=mesh, in_specs=(all_of_it, rows, rows, all_of_it, all_of_it), out_specs=all_of_it
    )
    return mapped(params, x, w, numbers, prior)


def fit_divided(
    params: GMMParams,
    x: Array,
    w: Array | None,
    numbers: Numbers,
    prior: Prior | None,
    *,
    mesh: Mesh,
    axis_name: str = AXIS,
    block_size: int,
    history_size: int,
    unconverged: str,
    kernel: str,
) -> FitResult:
    """`fit_sharded` of checked arguments; its result lies on every device of the mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    params, numbers, prior = jax.device_put((params, numbers, prior), everywhere)
    return _fit(
        params, *divide(x, w, mesh, axis_name), numbers, prior, mesh=mesh, axis_name=axis_name,
        block_size=block_size, history_size=history_size, unconverged=unconverged, kernel=kernel,
    )  # fmt: skip


def fit_sharded(
    params: GMMParams,
    X: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    mesh: Mesh,
    axis_name: str | None = None,
    tol: ArrayLike = TOL,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool | Array = True,
    block_size: int | None = None,
    history_size: int = HISTORY_SIZE,
    unconverged_gradient: str = "nan",
    kernel: str = "auto",
) -> FitResult:
    """`fit` with the rows of X divided over the devices of a mesh, the loop inside `shard_map`.

    In each EM step one sum of `Moments` over the devices is all that is communicated.

    Args:
      params: where to start, as in `fit`.
      X: (N, D); N need not divide by the number of devices.
      sample_weight: (N,) or None for ones.
      mesh: a `jax.sharding.Mesh` of this process's devices.
      axis_name: the mesh's axis to divide the rows over; None for its first. Over other axes all is repeated.
      tol: as in `fit`, as is the rest.
      max_iter: as in `fit`.
      reg_covar: as in `fit`.
      prior: as in `fit`.
      accelerate: as in `fit`.
      block_size: rows per block on each device.
      history_size: as in `fit`.
      unconverged_gradient: as in `fit`.
      kernel: as in `fit`.

    Returns:
      FitResult, on every device of the mesh; equal to that of `fit` to rounding.

    Raises:
      ValueError, TypeError: as in `fit`, and for an axis that the mesh does not have.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (1001, 2))
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], "spherical")
      >>> mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
      >>> jaxgmm.fit_sharded(start, X, mesh=mesh, max_iter=5).params.means.shape
      (2, 2)
    """
    params, x = inputs(params, X)
    w = validate.weight(sample_weight, x)
    axis = mesh.axis_names[0] if axis_name is None else axis_name
    if axis not in mesh.axis_names:
        raise ValueError(f"axis_name {axis!r} is not an axis of the mesh, whose are {list(mesh.axis_names)}")
    if x.shape[0] < mesh.shape[axis]:
        raise ValueError(
            f"X {x.shape} has fewer rows than the mesh has devices ({mesh.shape[axis]}); use `fit`"
        )
    shape = params.means.shape
    rows = -(-x.shape[0] // mesh.shape[axis])
    if block_size is None:
        block = block_rows(rows, *shape)
    else:
        block = min(validate.count(block_size, "block_size", 1), rows)
    return fit_divided(
        params,
        x,
        w,
        validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype),
        None if prior is None else priors.check(prior, params.family, shape, x.dtype),
        mesh=mesh,
        axis_name=axis,
        block_size=block,
        history_size=validate.count(history_size, "history_size", 0),
        unconverged=validate.choice(unconverged_gradient, "unconverged_gradient", ("nan", "warn", "ignore")),
        kernel=quadratic.choose(kernel, params.family, x.shape[0], *shape),
    )
