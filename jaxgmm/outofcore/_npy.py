"""npy sources: rows read into one buffer, not memory-mapped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxgmm.outofcore._source import (
    Piece,
    Selection,
    check_numbers,
    check_shape,
    identity,
    is_wide,
    unchanged,
)


class _Part(NamedTuple):
    path: str
    offset: int  # bytes before the first number
    shape: tuple[int, int]
    dtype: np.dtype
    fortran: bool
    identity: dict[str, Any]


class Npy:
    """One or several npy files, as one array after another.

    Args:
      paths: the files.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
    """

    def __init__(self, paths: Sequence[str], columns: Any = None, weight_column: Any = None) -> None:
        self._parts = [_header(path) for path in paths]
        one = self._parts[0]
        for other in self._parts[1:]:
            if other.shape[1] != one.shape[1]:
                raise ValueError(f"{other.path}: has {other.shape[1]} columns; {one.path} has {one.shape[1]}")
        self._selection = Selection.of(columns, weight_column, one.shape[1])
        self.n_features = self._selection.n_features(one.shape[1])
        self.n_samples: int | None = sum(p.shape[0] for p in self._parts)
        self.columns: tuple[str, ...] | None = None
        self.wide = any(is_wide(p.dtype) for p in self._parts)

    def describe(self) -> dict[str, Any]:
        """Names, sizes, times and shapes of the files."""
        parts = [{**p.identity, "shape": list(p.shape), "dtype": p.dtype.str} for p in self._parts]
        return {"kind": "npy", "parts": parts, "columns": self._selection.features}

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        for part in self._parts:
            unchanged(part.path, part.identity)
            n, d = part.shape
            buffer = np.empty((min(rows, n), d), part.dtype)
            with open(part.path, "rb", buffering=0) as stream:
                for first in range(0, n, rows):
                    here = buffer[: min(rows, n - first)]
                    try:
                        (_columns if part.fortran else _rows)(stream, part, first, here)
                    except (OSError, EOFError) as error:
                        raise OSError(
                            f"{part.path}: cannot be read at row {first}: "
                            f"{getattr(error, 'strerror', None) or error}"
                        ) from error
                    yield Piece(*self._selection.split(here), part.path, first)


def _fill(stream: BinaryIO, into: np.ndarray) -> None:
    """Read exactly as many bytes as an array holds."""
    view = into.reshape(-1).view(np.uint8).data
    while len(view):
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the file ends too early")
        view = view[got:]


def _rows(stream: BinaryIO, part: _Part, first: int, into: np.ndarray) -> None:
    stream.seek(part.offset + first * part.shape[1] * part.dtype.itemsize)
    _fill(stream, into)


def _columns(stream: BinaryIO, part: _Part, first: int, into: np.ndarray) -> None:
    """The same from a file in Fortran order, where each column lies together."""
    column = np.empty(len(into), part.dtype)
    for j in range(part.shape[1]):
        stream.seek(part.offset + (j * part.shape[0] + first) * part.dtype.itemsize)
        _fill(stream, column)
        into[:, j] = column


def _header(path: str) -> _Part:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a directory, not an npy file")
    with open(path, "rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(stream)
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path}: not an npy file, or damaged: {error}") from None
        offset = stream.tell()
        size = os.fstat(stream.fileno()).st_size
    if dtype.hasobject:
        raise ValueError(f"{path}: holds Python objects, which are not read; save numbers")
    check_numbers(dtype, path)
    check_shape(shape, path)
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise ValueError(
            f"{path}: is cut short: an array of shape {shape} takes {needed} bytes, and it has {size}"
        )
    return _Part(path, offset, (shape[0], shape[1]), dtype, fortran and min(shape) > 1, identity(path))
