"""Compilation: `jax.jit` with options by predicted work on a CPU, and programs kept on disk.

Most of what XLA spends on a fit goes into LLVM's vectorising passes and into a second code generator for
fused loops. What a fit computes is nearly all of it in products and triangular solves, and in elementwise
loops that are as fast either way, as long as they do not write over what they read (`linalg.outlived`).
Programs of little work are compiled without LLVM's optimisation (`SMALL_LEVEL`), in two thirds of that time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import jax
import numpy as np

R = TypeVar("R")

CPU_OPTIONS: dict[str, bool | int | str] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}
SMALL_LEVEL: dict[str, bool | int | str] = {"xla_backend_optimization_level": 0}
# Multiply–adds below which a program is small. CPU-seconds of a first fit and of a later one, at level 1 | at
# level 0, two cores with AVX-512: N=300 D=2 K=3 diag (4e5) 1.35 and 0.009 | 0.95 and 0.058; N=500 D=3 K=4
# full (2e6) 1.8 and 0.03 | 1.2 and 0.1. What the first fit saves is used up by some ten later ones.
SMALL = 1e6
_ITERATIONS = 100  # of a fit, as a guess
_PER_NUMBER = 1e3  # multiply–adds for each number of its arguments, where a program predicts nothing
# Up to 0.6.0 a program from JAX's cache gave other results on the CPU than the program that was stored.
CACHES_RIGHT = jax.__version_info__ >= (0, 6, 1)


def program_folder() -> str:
    """Where compiled programs of this user are kept: jaxgmm/xla in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "jaxgmm", "xla")


def is_own(folder: str) -> bool:
    """Whether no other user may write to a folder: programs that lie there will be run."""
    status = os.stat(folder)
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def keep_programs(folder: str, least_seconds: float = 0.05) -> None:
    """Have JAX keep what takes longer than that to compile in a folder, and take it from there."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def in_float64() -> contextlib.AbstractContextManager[None]:
    """A context in which JAX computes in float64, for one thread, whatever its configuration says."""
    # Up to JAX 0.7 it is an experimental function.
    module: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return cast("contextlib.AbstractContextManager[None]", module.enable_x64(True))


def is_concrete(*values: Any) -> bool:
    """Whether the values can be looked at, that is, are not being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def work_of_fits(n_samples: int, n_components: int, n_features: int, n_fits: int = 1) -> float:
    """Predicted multiply–adds of EM fits."""
    return float(n_samples * n_components * n_features**2 * n_fits * _ITERATIONS)


def options(platform: str, small: bool = False) -> dict[str, bool | int | str] | None:
    """What to tell the compiler of a platform: None for nothing, also where it knows none of the words."""
    if platform != "cpu":
        return None
    wanted = CPU_OPTIONS | SMALL_LEVEL if small else CPU_OPTIONS
    return {name: value for name, value in wanted.items() if name not in _unknown} or None


_unknown: set[str] = set()  # options that this release of XLA does not have: some are retired in time
_ZERO = np.zeros((), np.float32)


class _Program(Generic[R]):
    """What `jit` makes of a function."""

    def __init__(
        self, function: Callable[..., R], static_argnames: str | tuple[str, ...], work: Callable[..., float]
    ) -> None:
        functools.update_wrapper(self, function)
        self._jit = functools.partial(jax.jit, function, static_argnames=static_argnames)
        self._part = self._jit()
        self._work = work
        self._whole: dict[tuple[str, bool], Any] = {}  # by platform, and whether the work is small

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        # A number made here is traced if a trace is under way, even where every argument is concrete.
        alone = is_concrete(args, kwargs, jax.device_put(_ZERO))
        if not alone:
            return cast(R, self._part(*args, **kwargs))
        key = jax.default_backend(), self._work(*args, **kwargs) < SMALL
        while True:
            if key not in self._whole:
                known = options(*key)
                self._whole[key] = self._part if known is None else self._jit(compiler_options=known)
            try:
                return cast(R, self._whole[key](*args, **kwargs))
            except RuntimeError as error:
                refused = {name for name in options(*key) or () if name in str(error)}
                if not refused or "No such compile option" not in str(error):
                    raise
                _unknown.update(refused)
                self._whole.pop(key)

    def _cache_size(self) -> int:
        """How many programs are compiled, as `jax.jit`'s own functions say it."""
        programs = {id(p): p for p in (self._part, *self._whole.values())}
        return sum(int(p._cache_size()) for p in programs.values())


def _guess(*args: Any, **kwargs: Any) -> float:
    return _PER_NUMBER * float(sum(np.size(a) for a in jax.tree.leaves((args, kwargs))))


def jit(
    function: Callable[..., R],
    *,
    static_argnames: str | tuple[str, ...] = (),
    work: Callable[..., float] = _guess,
) -> _Program[R]:
    """`jax.jit` with the options of the default platform, wherever XLA allows them.

    Options belong to a whole program. Inside another transformation, and when called while JAX traces, this
    is `jax.jit` itself, and the program around it decides.

    Args:
      function: what to compile.
      static_argnames: as in `jax.jit`.
      work: of the same arguments, the predicted multiply–adds; by default a guess from their size.
    """
    return _Program(function, static_argnames, work)
