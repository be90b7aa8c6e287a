"""jaxgmm: Gaussian mixtures as pure functions of JAX, that jit, vmap and differentiate, right in float32."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jaxgmm._version import __version__

if TYPE_CHECKING:
    from jaxgmm import (
        cache,
        components,
        distributions,
        em,
        gradients,
        inference,
        init,
        interchange,
        mixture,
        outofcore,
        parallel,
        plot,
        selection,
        sklearn,
        variational,
    )
    from jaxgmm._public import *

__all__ = [
    "Data",
    "EMOptions",
    "FitResult",
    "GMMParams",
    "Prior",
    "Selection",
    "Statistics",
    "Status",
    "Summary",
    "__version__",
    "aic",
    "best",
    "bic",
    "cache",
    "check",
    "component_log_prob",
    "components",
    "default_prior",
    "distributions",
    "e_step",
    "elbo",
    "em",
    "em_step",
    "fit",
    "fit_best",
    "fit_components",
    "fit_gradient",
    "fit_restarts",
    "fit_sharded",
    "fit_stream",
    "fit_variational",
    "gradients",
    "icl",
    "impute",
    "inference",
    "init",
    "interchange",
    "load",
    "log_prior",
    "log_prob",
    "m_step",
    "make_params",
    "mixture",
    "n_parameters",
    "observe",
    "outliers",
    "outofcore",
    "parallel",
    "plot",
    "predict",
    "responsibilities",
    "sample",
    "save",
    "score",
    "select",
    "selection",
    "sklearn",
    "summary",
    "variational",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: a command line with a mistake in it does not wait for JAX.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A namespace is a module of its own: `_public` may be waiting for it.
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}._public"), name)
    return value


def __dir__() -> list[str]:
    return __all__
