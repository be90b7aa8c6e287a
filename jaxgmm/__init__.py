"""jaxgmm: Gaussian mixtures as pure functions of JAX, that jit, vmap and differentiate, right in float32."""

from __future__ import annotations

import importlib
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

# The module of every public name that is not a namespace. `_public.py` says the same to type checkers.
_NAMES = {
    "_summary": ("Summary", "summary"),
    "data": ("Data", "observe"),
    "density": (
        "component_log_prob",
        "impute",
        "log_prob",
        "outliers",
        "predict",
        "responsibilities",
        "sample",
        "score",
    ),
    "em": ("EMOptions", "e_step", "elbo", "em_step", "fit", "m_step"),
    "gradients": ("fit_gradient",),
    "io": ("load", "save"),
    "kernels.base": ("Statistics",),
    "mixture": ("GMMParams", "make_params"),
    "outofcore": ("fit_stream",),
    "parallel._sharded": ("fit_sharded",),
    "priors": ("Prior", "default_prior", "log_prior"),
    "result": ("FitResult",),
    "selection": (
        "Selection",
        "aic",
        "best",
        "bic",
        "check",
        "fit_best",
        "fit_components",
        "fit_restarts",
        "icl",
        "n_parameters",
        "select",
    ),
    "solvers.squarem": ("Status",),
    "variational": ("fit_variational",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when asked for: a mistyped option of the command does not wait for JAX, nor a fit for searches.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME:
        return importlib.import_module(f"{__name__}.{name}")
    importlib.import_module(f"{__name__}.io")  # tells jax.export how to write the package's records
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
