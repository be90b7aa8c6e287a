"""Fits over several devices, processes, or the workers of an engine.

`fit_sharded` and `use_cores` are for the devices of one process, `jaxgmm.parallel.processes` for processes
joined by `jax.distributed`, `jaxgmm.parallel.engines` for Spark, Dask and whatever else has a `map_reduce`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgmm.parallel import engines, processes
    from jaxgmm.parallel._sharded import fit_sharded, use_cores

__all__ = ["engines", "fit_sharded", "processes", "use_cores"]


def __getattr__(name: str) -> Any:
    # `em` imports a module of this package, and these import `em`: hence only when they are asked for.
    if name in ("engines", "processes"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}._sharded"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
