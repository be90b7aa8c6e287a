"""Compiled programs kept on disk, so that the next session does not compile them again."""

from __future__ import annotations

import os
import pathlib

import jax


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
    if jax.__version_info__ < (0, 6, 1):
        return None
    given = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = pathlib.Path(given or os.path.join(home, "jaxgmm", "xla")).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f"{folder} must be yours alone: programs that lie there are run")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
