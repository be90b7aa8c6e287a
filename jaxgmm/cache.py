"""The folder of compiled programs: where it is, what it holds, and emptying it.

The first call of a function with arrays of new shapes compiles a program, which takes longer than most fits.
On a CPU the program is kept, and later processes load it. `JAXGMM_CACHE` in the environment names another
folder, or switches this off: `JAXGMM_CACHE=off`. Programs of another release, processor or setting of JAX
are never taken, nor is a folder that others may write to. There is no entry of a structure or a component of
your own, of several devices, or of a process in which JAX's own cache is switched on
(`jax_compilation_cache_dir`).
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from jaxgmm.kernels import program_store

__all__ = ["CacheInfo", "clear", "folder", "info"]


class CacheInfo(NamedTuple):
    """What the folder holds.

    Fields:
      folder: where it is; None where nothing is kept.
      n_programs: number of programs.
      n_bytes: their size.
      limit: the size in bytes beyond which the least recently used ones are removed.
    """

    folder: pathlib.Path | None
    n_programs: int
    n_bytes: int
    limit: int


def folder() -> pathlib.Path | None:
    """Where compiled programs are kept: `$JAXGMM_CACHE`, or jaxgmm/programs in `$XDG_CACHE_HOME` or ~/.cache.

    Returns:
      The folder, which need not exist yet; None if it is switched off, or JAX is older than 0.6.1.
    """
    return program_store.folder()


def info() -> CacheInfo:
    """What the folder holds.

    Example:
      >>> import jaxgmm
      >>> jaxgmm.cache.info().limit
      536870912
    """
    sizes = [size for _, size, _ in _entries()]
    return CacheInfo(folder(), len(sizes), sum(sizes), program_store.LIMIT)


def clear() -> int:
    """Remove all programs from the folder; those that this process has loaded stay with it.

    Returns:
      How many there were.

    Raises:
      OSError: one of them cannot be removed.
    """
    paths = [path for path, _, _ in _entries()]
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def _entries() -> list[tuple[pathlib.Path, int, float]]:
    where = folder()
    return list(program_store.entries(where)) if where is not None and where.is_dir() else []
