"""`jax.jit` that compiles in half the time on a CPU, for programs that stand on their own.

Most of what XLA spends on a fit goes into LLVM's vectorising passes and into a second code generator for
fused loops. What a small fit computes is nearly all of it in products and triangular solves, and in
exponentials that are vectorised either way, so that neither makes it faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

R = TypeVar("R")

CPU_OPTIONS: dict[str, bool | int | str] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}


def is_traced(*values: Any) -> bool:
    """Whether any of the values is being traced, and so cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


@functools.cache
def options(platform: str) -> dict[str, bool | int | str] | None:
    """What to tell the compiler of a platform: None for nothing, also where it does not know the words."""
    if platform != "cpu":
        return None
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(lambda a: a + 1, compiler_options=CPU_OPTIONS)(jnp.zeros((), jnp.float32))
    except RuntimeError:  # "No such compile option": a release of XLA that has retired one
        return None
    return CPU_OPTIONS


def jit(
    function: Callable[..., R],
    *,
    static_argnames: str | tuple[str, ...] = (),
    long: Callable[[dict[str, Any]], bool] | None = None,
) -> Callable[..., R]:
    """`jax.jit` with the options of the default platform, wherever XLA allows them.

    Options belong to a whole program. Inside another transformation, and when called while JAX traces, this
    is `jax.jit` itself, and the program around it decides. So it is where `long` says of a call's keyword
    arguments that the program will run for long enough to be worth all of the compiler's efforts.
    """
    part = jax.jit(function, static_argnames=static_argnames)

    @functools.cache
    def whole(platform: str) -> Callable[..., Any]:
        known = options(platform)
        return (
            part
            if known is None
            else jax.jit(function, static_argnames=static_argnames, compiler_options=known)
        )

    def program() -> Callable[..., Any]:
        return whole(jax.default_backend())

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        # A number made here is traced if a trace is under way, even where every argument is concrete.
        if (long is not None and long(kwargs)) or is_traced(args, kwargs, lax.full((), 0, jnp.float32)):
            return cast(R, part(*args, **kwargs))
        return cast(R, program()(*args, **kwargs))

    call._cache_size = lambda: program()._cache_size()  # type: ignore[attr-defined]
    call.lower = lambda *args, **kwargs: program().lower(*args, **kwargs)  # type: ignore[attr-defined]
    return call
