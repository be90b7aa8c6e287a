"""`jax.jit` for large programs of the tests' own, which run once: compiled as the package does small ones."""

from __future__ import annotations

import functools

from jaxgmm.kernels import programs

quick_jit = functools.partial(programs.jit, work=lambda *args, **kwargs: 0.0)
