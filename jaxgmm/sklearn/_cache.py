"""Compilation cache of the estimators: programs kept on disk for the next session."""

from __future__ import annotations

import os
import pathlib

from jaxgmm.kernels import programs


def cache_compiled(directory: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Keep compiled programs in a folder, for this process and those after it.

    The first fit of a shape of data spends most of its time in the compiler. What it makes can be kept: this
    switches on JAX's persistent compilation cache, for all that the process compiles from now on.

    Args:
      directory: None for $JAX_COMPILATION_CACHE_DIR if that is set, or else jaxgmm/xla in $XDG_CACHE_HOME or
        ~/.cache. It is made if need be, for its owner alone: programs that lie there will be run.

    Returns:
      The folder; None where JAX is older than 0.6.1, whose cache gives other results on the CPU.

    Raises:
      PermissionError: if others may write to the folder.

    Example:
      >>> import tempfile, jaxgmm.sklearn
      >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
      ...     jaxgmm.sklearn.cache_compiled(folder)
    """
    if not programs.CACHES_RIGHT:
        return None
    given = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = pathlib.Path(given or programs.program_folder()).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not programs.is_own(str(folder)):
        raise PermissionError(f"{folder} must be yours alone: programs that lie there are run")
    programs.keep_programs(str(folder))
    return folder
