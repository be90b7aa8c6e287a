"""Model files: saving and loading mixtures.

A file is an npz archive of plain arrays (see `jaxgmm.io.archive`):

==================  =======  ================================================================
member              shape    what it holds
==================  =======  ================================================================
``format_version``  ()       int64, now 1
``model``           ()       text, the name of the model: component and rule for the weights
``custom_model``    ()       bool, whether the component is a user's own record
``log_weights``     (K,)     float32 or float64
``means``           (K, D)   the same dtype
``scale_0`` …       its own  the same dtype, ``params.scale`` in the order of ``jax.tree.leaves``
``columns``         (D,)     text, the names of the features; optional
==================  =======  ================================================================
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.components.base import Component
from jaxgmm.components.covariance.base import Covariance
from jaxgmm.components.registry import get_component, get_model
from jaxgmm.components.weights import Model, split_name
from jaxgmm.io.archive import read_arrays, write_arrays
from jaxgmm.io.atomic import atomic_write
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams

Array = np.ndarray[Any, Any]
Record = Covariance | Component | Model

_FLOATS = ("<f4", "<f8")
_REQUIRED = {"model", "custom_model", "log_weights", "means"}


def save(
    path: str | os.PathLike[str],
    params: GMMParams,
    *,
    columns: Sequence[str] | None = None,
    covariance_type: Record | None = None,
) -> None:
    """Write one mixture to ``path``, whole or not at all.

    The file first gets another name in the same directory and takes its own once it is safely on disk; an
    error or Ctrl-C on the way leaves what was there before. No ``.npz`` is appended to the name.

    Args:
      path: where to write; an existing file is replaced.
      params: one mixture, log_weights (K,) and means (K, D), float32 or float64; `load` gives back the same
        bits. Switched-off components (``log_weights = -inf``) are kept; `jaxgmm.mixture.active` drops them.
      columns: names of the D features, for `load_columns`.
      covariance_type: needed only where the structure or component of ``params`` is a record of your own: the
        same record, to confirm that you will hand it to `load` too. A file holds arrays, never functions.

    Raises:
      TypeError: ``params`` is not a ``GMMParams``.
      ValueError: batched, non-finite or unnormalised parameters, or a structure that is not in the table.
      OSError: the directory is missing, or cannot be written.

    Example:
      >>> import jax.numpy as jnp, jaxgmm, tempfile, os
      >>> from jaxgmm.io import load, save
      >>> params = jaxgmm.make_params(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones((1, 2)), "diag")
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> save(path, params, columns=["height", "weight"])
      >>> load(path).means.shape
      (1, 2)
    """
    if not isinstance(params, GMMParams):
        hint = "; pass result.params" if hasattr(params, "params") else ""
        raise TypeError(f"save: params must be a GMMParams, got {type(params).__name__}{hint}")
    custom = _is_custom(params.model, covariance_type)
    log_weights, means = np.asarray(params.log_weights), np.asarray(params.means)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params.scale)]
    if log_weights.ndim > 1:
        raise ValueError(
            f"save: params must be one mixture, got leading batch axes {log_weights.shape[:-1]}; "
            "take one out with jax.tree.map(lambda a: a[i], params)"
        )
    names = None if columns is None else list(columns)
    problem = _problem(log_weights, means, leaves, names, params.model, jax.tree.structure(params.scale))
    if problem is not None:
        raise ValueError(f"save: {problem}")

    members = {
        "model": np.asarray(params.model.name, np.str_),
        "custom_model": np.asarray(custom),
        "log_weights": log_weights,
        "means": means,
        **{f"scale_{i}": leaf for i, leaf in enumerate(leaves)},
        **({} if names is None else {"columns": np.asarray(names, np.str_)}),
    }
    with atomic_write(path) as stream:
        write_arrays(stream, members)


def load(path: str | os.PathLike[str], covariance_type: Record | None = None) -> GMMParams:
    """Read a mixture that `save` wrote.

    Names, sizes, dtypes and shapes are checked before anything is read, and the parameters themselves after;
    nothing in the file is executed, and memory stays within a small multiple of the file's size.

    Args:
      path: the file.
      covariance_type: the record of the structure or component, needed when it is your own.

    Returns:
      The mixture in the dtype it was saved in; float64 becomes float32 where JAX's x64 mode is off.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: as ``open`` does.
      ValueError: the file is damaged, truncated, newer than this jaxgmm, or holds something other than one
        valid mixture. The message names the file and what is wrong.

    Example:
      >>> import jax.numpy as jnp, jaxgmm, tempfile, os
      >>> from jaxgmm.io import load, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> save(path, jaxgmm.make_params(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1), "spherical"))
      >>> load(path).model.name
      'spherical'
    """
    members = read_arrays(path, _accept)
    try:
        return _build(members, covariance_type)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def load_columns(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The feature names saved with a mixture, or None where it was saved without.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError, ValueError: as `load` does, but the values of the
        parameters are not looked at.

    Example:
      >>> import jax.numpy as jnp, jaxgmm, tempfile, os
      >>> from jaxgmm.io import load_columns, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> params = jaxgmm.make_params(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1), "spherical")
      >>> save(path, params, columns=["height", "weight"])
      >>> load_columns(path)
      ('height', 'weight')
    """
    members = read_arrays(path, _accept)
    try:
        names = _names(members)
        n_features = members["means"].shape[-1] if members["means"].ndim else 0
        if names is not None and (problem := _column_problem(names, n_features)) is not None:
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    return None if names is None else tuple(names)


def _accept(names: set[str]) -> str | None:
    """What is wrong with the names of a file's members; None where nothing is."""
    n_scales = sum(name.startswith("scale_") for name in names)
    allowed = _REQUIRED | {"columns"} | {f"scale_{i}" for i in range(n_scales)}
    if _REQUIRED <= names <= allowed:
        return None
    return f"members missing: {sorted(_REQUIRED - names)}, unknown: {sorted(names - allowed)[:8]}"


def is_in_table(model: Model) -> bool:
    """Whether a model's name says all of it: `get_model` finds the same."""
    try:
        return get_model(model.name) == model
    except ValueError:
        return False


def _is_custom(own: Model, given: Record | None) -> bool:
    """Whether ``own`` is outside the table; raises unless the caller has confirmed it by passing it again."""
    if is_in_table(own):
        return False
    if given is None:
        said = "a file holds no functions; pass covariance_type=<the record> to save, and again to load"
        raise ValueError(f"save: {own.name!r} is not in jaxgmm's table, and {said}")
    confirmed = _with_weights(given, own)
    if confirmed != own:
        said = f"{confirmed.name!r}, another record than that of params, {own.name!r}"
        raise ValueError(f"save: covariance_type= is {said}")
    return True


def _problem(
    log_weights: Array, means: Array, leaves: list[Array], names: list[Any] | None, model: Model,
    structure: Any = None,
) -> str | None:  # fmt: skip
    """What keeps these arrays from being one mixture of ``model``; None where nothing does."""
    if means.ndim != 2 or 0 in means.shape:
        return f"means must have shape (K, D), got {means.shape}"
    shape = k, d = means.shape
    if log_weights.shape != (k,):
        return f"log_weights must have shape ({k},), as means {shape}, got {log_weights.shape}"
    for name, array in [("log_weights", log_weights), ("means", means), *(("scale", a) for a in leaves)]:
        if array.dtype.newbyteorder("<").str not in _FLOATS:
            return f"{name} must be float32 or float64, got {array.dtype}"
        if array.dtype != means.dtype:
            return f"{name} must have the dtype of means, {means.dtype}, got {array.dtype}"
    template = _template(model, means)
    if structure is not None and structure != jax.tree.structure(template):
        return f"the scale of {model.name!r} is {jax.tree.structure(template)}, and not {structure}"
    wanted, got = ([a.shape for a in arrays] for arrays in (jax.tree.leaves(template), leaves))
    if wanted != got:
        said = f"must have shapes {wanted} for {k} components in {d} dimensions, got {got}"
        return f"the scale of {model.name!r} {said}"
    if np.isnan(log_weights).any() or not all(np.isfinite(a).all() for a in (means, *leaves)):
        return "the parameters are not finite"
    with np.errstate(over="ignore"):
        total = np.exp(log_weights.astype(np.float64)).sum()
    if not abs(total - 1) < (1e-4 if means.dtype == np.float32 else 1e-8):
        return f"the weights must sum to 1, got {total:.6g}"
    triangular = model.component.name in ("full", "tied", "VEE", "EVV")
    if triangular and any(np.triu(leaf, 1).any() for leaf in leaves):
        return f"the scale of {model.name!r} must be lower triangular"
    scale = jax.tree.unflatten(jax.tree.structure(template), leaves)
    if not np.isfinite(_log_det(scale, model, shape)).all():
        return "the covariances are not positive definite"
    return None if names is None else _column_problem(names, d)


@functools.partial(jit, static_argnames=("model", "shape"))
def _log_det(scale: Any, model: Model, shape: tuple[int, int]) -> jax.Array:
    return model.covariance.log_det(model.component.scatter(model.component, scale), shape)


def _template(model: Model, means: Array) -> Any:
    """The structure and shapes of the scale that goes with means (K, D); allocates nothing."""
    c, like = model.component, jax.ShapeDtypeStruct(means.shape, jnp.float32)
    return jax.eval_shape(lambda variances: c.start(c, variances), like)


def _with_weights(record: Record, own: Model) -> Model:
    """The model of a record that was passed, with the weights of `own` where it does not say."""
    return record if isinstance(record, Model) else get_model(record)._replace(weights=own.weights)


def _column_problem(columns: list[Any], n_features: int) -> str | None:
    """What keeps ``columns`` from being names of ``n_features`` features; None where nothing does."""
    if len(columns) != n_features:
        return f"columns must name the {n_features} features, got {len(columns)} names"
    for name in columns:
        if not isinstance(name, str) or not name or "\0" in name or not name.isprintable():
            return f"columns must be non-empty printable text, got {name!r}"
    if len(set(columns)) != len(columns):
        return "columns must differ from one another"
    return None


def _text(members: dict[str, Array], name: str, ndim: int) -> Array:
    array = members[name]
    if array.dtype.kind != "U" or array.ndim != ndim:
        raise ValueError(f"damaged: {name} must be text with {ndim} axes, got {array.dtype} {array.shape}")
    return array


def _names(members: dict[str, Array]) -> list[str] | None:
    return _text(members, "columns", 1).tolist() if "columns" in members else None


def _build(members: dict[str, Array], given: Record | None) -> GMMParams:
    """The mixture in ``members``; ValueError, without the file's name, where they are not one."""
    name, custom = str(_text(members, "model", 0)), members["custom_model"]
    if custom.dtype != np.bool_ or custom.shape != ():
        raise ValueError("damaged: custom_model must be one truth value")
    if given is None and custom:
        raise ValueError(f"its {name!r} is a user's own; pass the record: load(path, covariance_type=…)")
    if given is None:
        record = get_model(name)
    else:
        record = _with_weights(given, Model(get_component("full"), split_name(name)[1]))
    if record.name != name:
        raise ValueError(f"its covariance structure is {name!r}, not the {record.name!r} that was passed")
    leaves = [members[f"scale_{i}"] for i in range(sum(stem.startswith("scale_") for stem in members))]
    log_weights, means = members["log_weights"], members["means"]
    if means.dtype.kind != "f":
        raise ValueError(f"damaged: means must be floating point, got {means.dtype}")
    dtype = jax.dtypes.canonicalize_dtype(means.dtype)
    narrowed = dtype != means.dtype
    if narrowed and all(a.dtype == means.dtype for a in (log_weights, *leaves)):
        with np.errstate(over="ignore"):
            log_weights, means, *leaves = (a.astype(dtype) for a in (log_weights, means, *leaves))
    problem = _problem(log_weights, means, leaves, _names(members), record)
    if problem is not None:
        hint = " (in float32; the file is float64: set jax_enable_x64)" if narrowed else ""
        raise ValueError(f"not a valid mixture: {problem}{hint}")
    scale = jax.tree.unflatten(jax.tree.structure(_template(record, means)), map(jnp.asarray, leaves))
    return GMMParams(jnp.asarray(log_weights), jnp.asarray(means), scale, *record)
