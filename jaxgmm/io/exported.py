"""Exported programs: `jax.export` writes the records of this package by the names of what is static in them.

A serialised program names the types of its inputs and outputs, and holds what is static in them as bytes: for
`GMMParams` the name of the model, as in a model file. Importing this module registers `GMMParams`,
`FitResult`, `Data`, `Prior` and `Statistics`; `jaxgmm.io` imports it. It adds nothing to the time of an
import: `jax` has imported `jax.export` by then.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from jax import export

from jaxgmm.components.registry import get_model
from jaxgmm.components.weights import Model
from jaxgmm.data import Data, View
from jaxgmm.io.model import is_in_table
from jaxgmm.kernels.base import Statistics
from jaxgmm.mixture import GMMParams
from jaxgmm.priors import Prior
from jaxgmm.result import FitResult


def model_as_bytes(static: Any) -> bytes:
    """What is static in `GMMParams`, component and rule for the weights, by its name."""
    model = Model(*static)
    if not is_in_table(model):
        raise ValueError(
            f"jax.export: {model.name!r} is not in jaxgmm's table, and an exported program holds no record "
            "of your own; take and return arrays, such as params.means, in place of GMMParams"
        )
    return json.dumps({"model": model.name}).encode()


def model_of_bytes(written: bytes) -> Model:
    """What `model_as_bytes` wrote."""
    return get_model(str(json.loads(written)["model"]))


def _as_bytes(static: Any) -> bytes:
    return json.dumps(list(static or ())).encode()


def _of_bytes(written: bytes) -> tuple[Any, ...]:
    return tuple(json.loads(written))


def _register(
    record: Any,
    write: Callable[[Any], bytes] = _as_bytes,
    read: Callable[[bytes], tuple[Any, ...]] = _of_bytes,
) -> None:
    """Tell JAX how to write and read what is static in a record, whose static fields are its last."""

    def build(aux_data: Any, children: Any) -> Any:
        return record(*children, *aux_data)

    # ValueError: the name is registered already, as where this module is loaded a second time.
    with contextlib.suppress(ValueError):
        export.register_pytree_node_serialization(
            record, serialized_name=f"jaxgmm.{record.__name__}", serialize_auxdata=write,
            deserialize_auxdata=read, from_children=build,
        )  # fmt: skip


_register(GMMParams, model_as_bytes, model_of_bytes)
_register(FitResult)
_register(Data)
_register(Prior)
_register(Statistics)
with contextlib.suppress(ValueError):
    export.register_namedtuple_serialization(View, serialized_name="jaxgmm.View")
