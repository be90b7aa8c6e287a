"""Sharded fits: rows divided over devices, of which only `Statistics` are sent."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxgmm import _validate as validate
from jaxgmm import em, priors
from jaxgmm._batch import concurrency
from jaxgmm.data import Data
from jaxgmm.density import check_accepts, check_mixture, check_ungrouped, data_of, get_data
from jaxgmm.em import DEFAULT_OPTIONS, MAX_ITER, REG_COVAR, EMOptions, check_options, warn_of_nan
from jaxgmm.kernels import kept_share, quadratic
from jaxgmm.kernels.exact import rows_for, rows_of
from jaxgmm.kernels.programs import is_concrete
from jaxgmm.mixture import GMMParams
from jaxgmm.parallel._shard_program import How, Numbers, fit_parts, starts_over
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult

AXIS = "rows"
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
      >>> jaxgmm.parallel.use_cores(1)
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
    em.divided = _over_cores
    return n


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _cores() -> Mesh:
    """The cores of this process, where JAX shows them as devices."""
    return Mesh(np.asarray(jax.local_devices(backend="cpu")), (AXIS,))


def _over_cores(
    params: GMMParams,
    data: Data,
    numbers: Numbers,
    prior: Prior | None,
    trim: Array | None = None,
    **static: Any,
) -> FitResult | None:
    """The fit divided over the cores of a CPU, if it is large; None where it had better not be."""
    x = data.x
    if jax.default_backend() != "cpu" or not data.is_complete or len(x.sharding.device_set) > 1:
        return None
    if x.size * params.n_components < _PAYS or len(jax.local_devices(backend="cpu")) < 2:
        return None
    result = fit_divided(params, data, numbers, prior, trim, How(_cores(), AXIS, None, **static))
    placed: FitResult = jax.device_put(result, x.sharding)
    return placed


def axis_of(mesh: Mesh, axis_name: str | None) -> str:
    """The axis of a mesh that rows are divided over: its first where none is named."""
    axis: str = mesh.axis_names[0] if axis_name is None else axis_name
    if axis not in mesh.axis_names:
        raise ValueError(f"axis_name {axis!r} is not an axis of the mesh, whose are {list(mesh.axis_names)}")
    return axis


def divide(data: Data, mesh: Mesh, axis_name: str) -> Data:
    """Rows and weights divided over an axis of a mesh; what is there twice has weight 0 the second time."""
    data = data.by_row()
    x, rows = data.x, data.rows
    weight: Any = np.ones(x.shape[0], x.dtype) if data.weight is None else data.weight
    sharding, n = NamedSharding(mesh, PartitionSpec(axis_name)), x.shape[0]
    total = n + -n % mesh.shape[axis_name]
    if total == n:
        both: Data = _put(dataclasses.replace(rows, weight=weight), sharding)
        return both
    index = np.minimum(np.arange(total, dtype=np.int32), n - 1)  # the last row again
    first = np.arange(total) < n
    if not is_concrete(data):
        once = jnp.where(first, weight[index], jnp.zeros((), weight.dtype))
        more = jax.tree.map(lambda a: a[index], rows)
        placed: Data = jax.device_put(dataclasses.replace(more, weight=once), sharding)
        return placed
    weights = np.where(first, np.asarray(weight)[index], 0).astype(weight.dtype)

    def over(a: Array) -> Array:
        host = np.asarray(a)

        def part(at: Any) -> np.ndarray:
            # A part at a time: only the last ones are copied on the host.
            return host[at] if first[at[0]].all() else host[index[at[0]]]

        return jax.make_array_from_callback((total, *a.shape[1:]), sharding, part)

    own = jax.make_array_from_callback((total,), sharding, lambda at: weights[at])
    divided: Data = dataclasses.replace(jax.tree.map(over, rows), weight=own)
    return divided


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays divided as they should be; where devices are another process's, that puts its part there."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(a: Any) -> Array:
        if isinstance(a, Array) and not a.is_fully_addressable:
            return jax.device_put(a, sharding)
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def fit_divided(
    params: GMMParams, data: Data, numbers: Numbers, prior: Prior | None, trim: Array | None, how: How
) -> FitResult:
    """`fit_sharded` of checked arguments; its result lies on every device of the mesh."""
    numbers, prior, trim = _put((numbers, prior, trim), NamedSharding(how.mesh, PartitionSpec()))
    n_fits = params.means.shape[0]
    over = 0 if how.restarts_axis is None else -n_fits % how.mesh.shape[how.restarts_axis]
    if over:
        params = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], over, axis=0)]), params)
    params = _put(params, NamedSharding(how.mesh, starts_over(how.restarts_axis)))
    result = fit_parts(params, divide(data, how.mesh, how.axis_name), numbers, prior, trim, how=how)
    return jax.tree.map(lambda a: a[:n_fits], result) if over else result


def fit_sharded(
    params: GMMParams,
    X: ArrayLike | Data,
    sample_weight: ArrayLike | None = None,
    *,
    mesh: Mesh,
    axis_name: str | None = None,
    restarts_axis: str | None = None,
    tol: ArrayLike | None = None,
    max_iter: int | Array = MAX_ITER,
    reg_covar: ArrayLike = REG_COVAR,
    prior: Prior | None = None,
    accelerate: bool | Array = True,
    trim: ArrayLike | None = None,
    options: EMOptions = DEFAULT_OPTIONS,
) -> FitResult:
    """`fit` with the rows of X divided over the devices of a mesh, the loop inside `shard_map`.

    In each EM step one sum of `Statistics` over the devices is all that is communicated.

    Args:
      params: where to start, as in `fit`; or several starts, with a leading axis R.
      X: (N, D); N need not divide by the number of devices. Over several processes an array that is divided
        already, as `jaxgmm.parallel.processes.over_processes` makes it of each one's own rows.
      sample_weight: (N,) or None for ones.
      mesh: a `jax.sharding.Mesh` of this process's devices, or of those of all processes, which then all
        call this.
      axis_name: the mesh's axis to divide the rows over; None for its first. Over other axes all is repeated.
      restarts_axis: the mesh's axis to divide several starts over; R need not divide. None has every device
        take all of them.
      tol: as in `fit`, as is the rest.
      max_iter: as in `fit`.
      reg_covar: as in `fit`.
      prior: as in `fit`.
      accelerate: as in `fit`.
      trim: as in `fit`: the threshold is found by sums over the devices, and is that of all rows.
      options: as in `fit`.

    Returns:
      FitResult, on every device of the mesh; equal to that of `fit` to rounding. Of several starts with a
      leading axis, divided as they are: `best(results)` picks one. Its derivatives are those of `fit`.

    Raises:
      ValueError, TypeError: as in `fit`, and for an axis that the mesh does not have.

    Example:
      >>> import jax, jaxgmm
      >>> X = jax.random.normal(jax.random.key(0), (301, 2))
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], "spherical")
      >>> mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
      >>> jaxgmm.fit_sharded(start, X, mesh=mesh, max_iter=5).params.means.shape
      (2, 2)
    """
    check_options(options)
    many = isinstance(params, GMMParams) and params.means.ndim == 3
    params, data = _starts(params, X, sample_weight) if many else data_of(params, X, sample_weight)
    check_ungrouped(data, "fit_sharded")
    data, x, amount = data.by_row(), data.x, kept_share.amount(trim, data)
    axis = axis_of(mesh, axis_name)
    if restarts_axis is not None and (restarts_axis not in mesh.axis_names or restarts_axis == axis):
        raise ValueError(
            f"restarts_axis must be an axis of the mesh, {list(mesh.axis_names)}, other than that of the "
            f"rows, {axis!r}; got {restarts_axis!r}"
        )
    if restarts_axis is not None and not many:
        raise ValueError(
            f"restarts_axis={restarts_axis!r} is for several starts: params with a leading axis; got one"
        )
    if x.shape[0] < (parts := mesh.shape[axis]):
        raise ValueError(f"X {x.shape} has fewer rows than the mesh has devices ({parts}); use `fit`")
    shape = params.means.shape[-2:]
    n_fits = -(-(params.means.shape[0] if many else 1) // (mesh.shape[restarts_axis] if restarts_axis else 1))
    rows = -(-x.shape[0] // mesh.shape[axis])
    width = concurrency(n_fits, rows, shape[0] * shape[1])
    if data.is_complete:
        block = rows_for(params.component, rows, shape[0], shape[1], width)
    else:
        block = rows_of(data, params.component, shape[0], width)
    block = min(options.block_size or block, rows)
    numbers = validate.iteration(tol, max_iter, reg_covar, accelerate, x.dtype, x.shape[0])
    checked = None if prior is None else priors.check(prior, params.model, shape, x.dtype)
    kernels = quadratic.choose_for(data, options.kernel, params.component, shape[0], n_fits, trim is not None)
    how = How(mesh, axis, restarts_axis, block, options.history_size, options.unconverged_gradient, kernels)
    return warn_of_nan(fit_divided(params, data, numbers, checked, amount, how), options)


def _starts(
    params: GMMParams, X: ArrayLike | Data, sample_weight: ArrayLike | None
) -> tuple[GMMParams, Data]:
    """Several checked mixtures, with a leading axis, and the data, both in the data's dtype."""
    n_fits = params.means.shape[0]
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(params)}
    if lengths != {n_fits} or not n_fits:
        raise ValueError(f"the arrays of several params must share a leading axis; got {sorted(lengths)}")
    data = get_data(X, sample_weight, n_features=params.n_features)
    check_accepts(data, params.component, params.n_components)
    for i in range(n_fits if is_concrete(params) else 0):
        check_mixture(jax.tree.map(lambda a, i=i: a[i], params))
    return jax.tree.map(lambda a: jnp.asarray(a, data.x.dtype), params), data
