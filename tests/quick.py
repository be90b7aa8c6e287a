"""How the tests compile: as the package does for small problems, whatever the size, and in one piece."""

from __future__ import annotations

import functools

from jaxgmm.kernels import programs

quick_jit = functools.partial(programs.jit, work=lambda *args, **kwargs: 0.0)


def compile_quickly() -> None:
    """Have every program compiled as a small one is, and none divided into parts for several cores.

    Compiling is most of the tests' time, and their programs run a few times: the first saves a fifth of it,
    and the second a tenth, for each of pytest's workers has about one core. The last bits of what is computed
    depend on it, so a process whose results must be a test's to the last bit calls it, too.
    """
    programs.SMALL = float("inf")
    programs.CPU_OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1
