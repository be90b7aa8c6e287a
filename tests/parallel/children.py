"""Child processes of the tests, forked from a server that has imported JAX and the package once."""

from __future__ import annotations

import multiprocessing
import os
from typing import NamedTuple

import jax

from jaxgmm.kernels import programs

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["jaxgmm.parallel.processes", "jaxgmm.parallel.engines", "tests.problems"])


class Ended(NamedTuple):
    """How a process ended, and what it wrote."""

    code: int
    said: str


class Child:
    """A process that runs a function of a module, its output in a file.

    Programs are compiled at the lowest level of optimisation, and kept where those of the tests are.
    """

    def __init__(self, log, function, *arguments):
        self._log = log
        self._process = _SERVER.Process(target=_run, args=(str(log), function, arguments), daemon=True)
        self._process.start()

    def end(self, seconds):
        """Wait for it, and kill it if it has not ended in time."""
        self._process.join(seconds)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        return Ended(self._process.exitcode, "TIMED OUT " * late + self._log.read_text())


def _run(log, function, arguments):
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    programs.CPU_OPTIONS["xla_backend_optimization_level"] = 0
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    function(*arguments)
