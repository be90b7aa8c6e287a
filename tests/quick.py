"""`jax.jit` for large programs of the tests' own: XLA compiles them at its lowest level of optimisation."""

from __future__ import annotations

import functools

import jax

from jaxgmm.kernels import programs

# A program that runs once is compiled for longer than it runs. The lowest level takes a third of the time of
# the default, and half of that of the package's own options.
_KNOWN = programs.options(jax.default_backend())
_LEAST = _KNOWN and {**_KNOWN, "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

quick_jit = functools.partial(jax.jit, compiler_options=_LEAST)
