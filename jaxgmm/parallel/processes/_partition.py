"""Partition of the parts of a source among processes."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence


def expand(patterns: Sequence[str]) -> list[str]:
    """The files of some patterns, each once, by name.

    Raises:
      FileNotFoundError: a pattern has none.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = [pattern] if os.path.lexists(pattern) else glob.glob(pattern)
        if not names:
            raise FileNotFoundError(f"{pattern}: no file has such a name")
        found.update(names)
    return sorted(found)


def share_out(paths: Sequence[str], n_processes: int) -> list[list[str]]:
    """The parts of each process: the largest first, each to who has the least so far.

    Raises:
      ValueError: there are fewer parts than processes.

    Example:
      >>> from jaxgmm.parallel.processes._partition import share_out
      >>> share_out(["a.npy", "b.npy"], 3)
      Traceback (most recent call last):
      ValueError: 2 parts are too few for 3 processes: each of them reads whole files
    """
    if len(paths) < n_processes:
        n = len(paths)
        raise ValueError(f"{n} parts are too few for {n_processes} processes: each of them reads whole files")
    sizes = {path: os.path.getsize(path) for path in paths}
    shares: list[list[str]] = [[] for _ in range(n_processes)]
    loads = [0] * n_processes
    for path in sorted(paths, key=lambda p: (-sizes[p], p)):
        # An empty file is a part too: whoever has fewer goes first among equals, so that all have one.
        i = min(range(n_processes), key=lambda j: (loads[j], len(shares[j]), j))
        shares[i].append(path)
        loads[i] += sizes[path]
    return [sorted(share) for share in shares]
