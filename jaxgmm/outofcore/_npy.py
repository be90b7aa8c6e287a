"""npy sources: rows read at need, not memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgmm.outofcore._source import Matrices, Part, identity


class Npy(Matrices):
    """One or several npy files, as one array after another.

    Args:
      paths: the files.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
    """

    def __init__(self, paths: Sequence[str], columns: Any = None, weight_column: Any = None) -> None:
        super().__init__([_opened(path) for path in paths], columns, weight_column)

    def describe(self) -> dict[str, Any]:
        """Names, sizes, times and shapes of the files."""
        parts = [{**(p.identity or {}), "shape": list(p.shape), "dtype": p.dtype.str} for p in self._parts]
        return {"kind": "npy", "parts": parts, "columns": self._selection.features}


def _opened(path: str) -> Part:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as an npy file: {error}") from None

    n, d = array.shape if array.ndim == 2 else (0, 0)
    dtype, offset, by_rows = array.dtype, array.offset, array.flags.c_contiguous

    # Reading through the map would end the process where the file is cut or the disk has an error.
    def read(first: int, end: int) -> np.ndarray:
        def numbers(at: int, many: int) -> np.ndarray:
            # Fewer than there should be have no such shape.
            return np.fromfile(path, dtype, many, offset=offset + at * dtype.itemsize).reshape(many)

        rows = end - first
        if by_rows:
            return numbers(first * d, rows * d).reshape(rows, d)
        return np.stack([numbers(j * n + first, rows) for j in range(d)], axis=1)

    return Part(path, array.shape, dtype, read, identity=identity(path))
