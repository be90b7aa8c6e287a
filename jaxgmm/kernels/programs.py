"""Compilation: `jax.jit` with options that halve its time on a CPU, and programs kept on disk.

Most of what XLA spends on a fit goes into LLVM's vectorising passes and into a second code generator for
fused loops. What a fit computes is nearly all of it in products and triangular solves, and in elementwise
loops that are as fast either way, as long as they do not write over what they read (`linalg.outlived`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

R = TypeVar("R")

CPU_OPTIONS: dict[str, bool | int | str] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}
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


@functools.cache
def options(platform: str) -> dict[str, bool | int | str] | None:
    """What to tell the compiler of a platform: None for nothing, also where it knows none of the words."""
    if platform != "cpu":
        return None
    known = {name: value for name, value in CPU_OPTIONS.items() if _is_known(name, value)}
    return known or None


def _is_known(name: str, value: bool | int | str) -> bool:
    """Whether this release of XLA has an option: some are retired in time."""
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(lambda a: a + 1, compiler_options={name: value})(jnp.zeros((), jnp.float32))
    except RuntimeError:  # "No such compile option"
        return False
    return True


class _Program(Generic[R]):
    """What `jit` makes of a function."""

    def __init__(self, function: Callable[..., R], static_argnames: str | tuple[str, ...]) -> None:
        functools.update_wrapper(self, function)
        self._jit = functools.partial(jax.jit, function, static_argnames=static_argnames)
        self._part = self._jit()
        self._whole: dict[str, Any] = {}  # by platform

    def _program(self) -> Any:
        platform = jax.default_backend()
        if platform not in self._whole:
            known = options(platform)
            self._whole[platform] = self._part if known is None else self._jit(compiler_options=known)
        return self._whole[platform]

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        # A number made here is traced if a trace is under way, even where every argument is concrete.
        alone = is_concrete(args, kwargs, lax.full((), 0, jnp.float32))
        if not alone:
            return cast(R, self._part(*args, **kwargs))
        return cast(R, self._program()(*args, **kwargs))

    def _cache_size(self) -> int:
        """How many programs are compiled, as `jax.jit`'s own functions say it."""
        programs = {id(p): p for p in (self._part, *self._whole.values())}
        return sum(int(p._cache_size()) for p in programs.values())


def jit(function: Callable[..., R], *, static_argnames: str | tuple[str, ...] = ()) -> _Program[R]:
    """`jax.jit` with the options of the default platform, wherever XLA allows them.

    Options belong to a whole program. Inside another transformation, and when called while JAX traces, this
    is `jax.jit` itself, and the program around it decides.
    """
    return _Program(function, static_argnames)
