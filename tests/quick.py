"""`jax.jit` for large programs of the tests' own, which run once: compiled as the package does small ones."""

from __future__ import annotations

import functools

from jaxgmm.kernels import programs

quick_jit = functools.partial(programs.jit, work=lambda *args, **kwargs: 0.0)


def compile_in_one_piece() -> None:
    """Have no program divided into parts that several cores compile at once: a tenth of the tests' time.

    Each of pytest's workers has about one core. The last bits of what is computed depend on it, so a process
    whose results must be a test's to the last bit calls it, too.
    """
    programs.CPU_OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1
