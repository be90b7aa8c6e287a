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
import inspect
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import jax
import jax.extend.core
import numpy as np

from jaxgmm.kernels import program_store as store

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
ITERATED = 1e3  # multiply–adds for each number of the arguments, as a guess, of a program that iterates


def in_float64() -> contextlib.AbstractContextManager[None]:
    """A context in which JAX computes in float64, for one thread, whatever its configuration says."""
    # Up to JAX 0.7 it is an experimental function.
    module: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return cast("contextlib.AbstractContextManager[None]", module.enable_x64(True))


def is_concrete(*values: Any) -> bool:
    """Whether the values can be looked at, that is, are not being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def is_tracing() -> bool:
    """Whether a trace is under way in this thread, even where every argument is concrete."""
    # A number made in a trace is traced.
    return _trace() != _NO_TRACE if _trace else not is_concrete(jax.device_put(np.zeros((), np.float32)))


def work_of_fits(n_samples: int, n_components: int, n_features: int, n_fits: int = 1) -> float:
    """Predicted multiply–adds of EM fits."""
    return float(n_samples * n_components * n_features**2 * n_fits * _ITERATIONS)


def options(platform: str, small: bool = False) -> dict[str, bool | int | str] | None:
    """Options for the compiler of a platform, less those that it has refused; None where there are none."""
    return {name: value for name, value in _wanted(platform, small).items() if name not in _unknown} or None


def _wanted(platform: str, small: bool) -> dict[str, bool | int | str]:
    """Options for the compiler of a platform, known to it or not: part of a stored program's name."""
    if platform != "cpu":
        return {}
    return CPU_OPTIONS | SMALL_LEVEL if small else CPU_OPTIONS


_unknown: set[str] = set()  # options that this release of XLA does not have: some are retired in time
_trace: Any = getattr(jax.extend.core, "get_opaque_trace_state", None)  # not in the oldest releases
with jax.core.eval_context():
    _NO_TRACE = _trace() if _trace else None
_functions: dict[str, Any] = {}  # by the names of their programs


class _Program(Generic[R]):
    """What `jit` makes of a function."""

    def __init__(
        self,
        function: Callable[..., R],
        static_argnames: str | tuple[str, ...],
        work: Callable[..., float],
        name: str,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._static = frozenset([static_argnames] if isinstance(static_argnames, str) else static_argnames)
        self._names = tuple(inspect.signature(function).parameters)
        self._jit = functools.partial(jax.jit, function, static_argnames=static_argnames)
        self._part = self._jit()
        self._work = work
        known = name.startswith("jaxgmm.") and "<" not in name
        self._name = name if known and _functions.setdefault(name, function) is function else None
        self._whole: dict[tuple[str, bool], Any] = {}  # by platform, and whether the work is small
        self._kept: dict[tuple[store.Call, bool], Any] = {}  # a `store.Program`, or None
        self._locks: dict[tuple[store.Call, bool], Any] = {}  # of the programs that are being made

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if is_tracing() or not is_concrete(args, kwargs):
            return cast(R, self._part(*args, **kwargs))
        key = jax.default_backend(), self._work(*args, **kwargs) < SMALL
        if self._name is not None:
            # Static arguments by name, and what stands behind them.
            n = next((i for i, name in enumerate(self._names) if name in self._static), len(args))
            args, kwargs = args[:n], kwargs | dict(zip(self._names[n:], args[n:], strict=False))
            call, leaves = store.call(args, kwargs, self._static)
            program = call and self._program(call, leaves, key)
            if call and program:
                try:
                    numbers = program.run(*leaves)
                except Exception:
                    if not program.is_loaded:
                        raise
                    program = self._kept[call, key[1]] = self._compile(None, call, leaves, key)
                    numbers = program.run(*leaves)
                return cast(R, jax.tree.unflatten(program.tree, numbers))
        known = options(*key)
        try:
            return cast(R, self._as_jit(key, known)(*args, **kwargs))
        except RuntimeError as error:
            _leave_out(known, error)
        return self(*args, **kwargs)

    def _as_jit(self, key: tuple[str, bool], known: Any) -> Any:
        if key not in self._whole or known != self._whole[key][0]:
            self._whole[key] = known, self._part if known is None else self._jit(compiler_options=known)
        return self._whole[key][1]

    def _program(self, call: store.Call, leaves: list[Any], key: tuple[str, bool]) -> store.Program | None:
        """The program of a call: loaded, or compiled and kept; None where it cannot be kept."""
        this = call, key[1]
        if this not in self._kept:
            with self._locks.setdefault(this, threading.Lock()):  # two threads compile it once
                if this not in self._kept:
                    entry = store.name_of(self._name, call, _wanted(*key))
                    loaded = entry and store.load(entry)
                    self._kept[this] = loaded or (entry and self._compile(entry, call, leaves, key))
        return self._kept[this]

    def _compile(
        self, entry: str | None, call: store.Call, leaves: list[Any], key: tuple[str, bool]
    ) -> store.Program:
        tree: Any = None

        def flat(*leaves: Any) -> list[Any]:
            nonlocal tree
            args, kwargs = store.arguments(call, leaves)
            numbers, tree = jax.tree.flatten(self._function(*args, **kwargs))
            return numbers

        flat.__name__ = self._function.__name__
        lowered = jax.jit(flat).lower(*leaves)
        compiled: Any = None
        while compiled is None:
            known: Any = options(*key)
            try:
                compiled = lowered.compile(compiler_options=known)
            except RuntimeError as error:
                _leave_out(known, error)
        if entry is not None:
            store.save(entry, compiled, tree)
        return store.Program(compiled, tree)

    def _cache_size(self) -> int:
        """How many programs are compiled, as `jax.jit`'s own functions say it."""
        programs = {id(p): p for p in (self._part, *(p for _, p in self._whole.values()))}
        return sum(int(p._cache_size()) for p in programs.values()) + sum(map(bool, self._kept.values()))


def _leave_out(known: dict[str, Any] | None, error: RuntimeError) -> None:
    """Give up the options that this release of XLA says it does not have; raise any other error."""
    refused = {name for name in known or () if name in str(error)}
    if not refused or "No such compile option" not in str(error):
        raise error
    _unknown.update(refused)


def work_by_size(per_number: float) -> Callable[..., float]:
    """So many multiply–adds for each number of the arguments that are given by position."""

    def work(*args: Any, **_: Any) -> float:
        return per_number * float(sum(np.size(a) for a in jax.tree.leaves(args)))

    return work


_guess = work_by_size(ITERATED)


def jit(
    function: Callable[..., R],
    *,
    static_argnames: str | tuple[str, ...] = (),
    work: Callable[..., float] = _guess,
    name: str = "",
) -> _Program[R]:
    """`jax.jit` with the options of the default platform, wherever XLA allows them, and the program store.

    Options belong to a whole program. Inside another transformation, and when called while JAX traces, this
    is `jax.jit` itself, and the program around it decides.

    Args:
      function: what to compile.
      static_argnames: as in `jax.jit`.
      work: of the same arguments, the predicted multiply–adds; by default a guess from their size.
      name: of the stored program; by default the function's. A local function without one is not stored.
    """
    name = name or f"{function.__module__}.{getattr(function, '__qualname__', '<unnamed>')}"
    return _Program(function, static_argnames, work, name)
