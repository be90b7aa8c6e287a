"""Columnar sources: Parquet and Arrow through pyarrow (extra `arrow`), Zarr through zarr (extra `zarr`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxgmm.outofcore._source import (
    Piece,
    Selection,
    check_features,
    check_numbers,
    check_shape,
    identity,
    is_wide,
    unchanged,
)

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "feather"}
_TILE = 1024  # rows that are turned from columns at once: they stay in a core's first cache


def needed(module: str, extra: str) -> Any:
    """An optional module, or an error that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this source needs {module.partition('.')[0]}; install it with pip install 'jaxgmm[{extra}]'"
        ) from error


class Tables:
    """Parquet or Arrow files, or any `pyarrow.dataset.Dataset`: numeric columns, by their names.

    Args:
      dataset: a pyarrow Dataset, or the paths of its files, all of one format.
      columns: names of the features; None for all columns, which must then be numeric.
      weight_column: name of the column that holds the weights, or None.
    """

    def __init__(self, dataset: Any, columns: Any = None, weight_column: Any = None) -> None:
        ds = needed("pyarrow.dataset", "arrow")
        self._arrow = needed("pyarrow", "arrow")
        self._identities: dict[str, dict[str, Any]] = {}
        if isinstance(dataset, list):
            self._identities = {path: identity(path) for path in dataset}
            fragments = [self._open(ds, path) for path in dataset]
        else:
            fragments = list(dataset.get_fragments())
        if not fragments:
            raise ValueError("source: the data set has no files")
        self._parts = [(getattr(f, "path", "") or f"part {i}", f) for i, f in enumerate(fragments)]
        self._weight = weight_column
        self._features = self._names(columns)
        self._check_schemas()
        self.columns: tuple[str, ...] | None = self._features
        self.n_features = len(self._features)
        self._counts = [self._count(*part) for part in self._parts]
        self.n_samples: int | None = sum(self._counts)
        narrow = (self._arrow.float32(), self._arrow.float16())
        self.wide = any(
            f.physical_schema.field(c).type not in narrow for _, f in self._parts for c in self._features
        )

    def describe(self) -> dict[str, Any]:
        """Names, sizes and times of the files, rows and columns."""
        parts = [
            {**self._identities.get(path, {"name": os.path.basename(path)}), "rows": rows}
            for (path, _), rows in zip(self._parts, self._counts, strict=True)
        ]
        return {
            "kind": "tables", "parts": parts, "columns": list(self._features), "weight_column": self._weight
        }  # fmt: skip

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        wanted = [*self._features, *([] if self._weight is None else [self._weight])]
        buffer = np.empty((rows, self.n_features), np.float64 if self.wide else np.float32)
        for (path, fragment), count in zip(self._parts, self._counts, strict=True):
            if path in self._identities:
                unchanged(path, self._identities[path])
            first = 0
            batches = iter(fragment.to_batches(columns=wanted, batch_size=rows, **self._frugal(fragment)))
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, self._arrow.ArrowException) as error:
                    raise OSError(f"{path}: cannot be read at row {first}: {_line(error)}") from error
                if batch is None:
                    break
                for at in range(0, batch.num_rows, rows):
                    part = batch.slice(at, rows)
                    x = buffer[: part.num_rows]
                    _turn([_numbers(part.column(j)) for j in range(self.n_features)], x)
                    w = None if self._weight is None else _numbers(part.column(self.n_features))
                    yield Piece(x, w, path, first)
                    first += part.num_rows
            if first != count:
                raise ValueError(f"{path}: gave {first} rows where it has said that it has {count}")

    def _frugal(self, fragment: Any) -> dict[str, Any]:
        """Reading in one thread and little ahead: pyarrow's own way holds hundreds of megabytes."""
        ds = needed("pyarrow.dataset", "arrow")
        options: dict[str, Any] = {"use_threads": False, "batch_readahead": 1, "fragment_readahead": 1}
        if isinstance(fragment, ds.ParquetFileFragment):
            scan = ds.ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
            options["fragment_scan_options"] = scan
        return options

    def _open(self, ds: Any, path: str) -> Any:
        try:
            one = ds.dataset(path, format=FORMATS[os.path.splitext(path)[1].lower()], partitioning=None)
            return next(iter(one.get_fragments()))
        except (OSError, self._arrow.ArrowException) as error:
            raise OSError(f"{path}: cannot be read: {_line(error)}") from error

    def _count(self, path: str, fragment: Any) -> int:
        try:
            count = int(fragment.count_rows())
        except (OSError, self._arrow.ArrowException) as error:
            raise OSError(f"{path}: cannot be read: {_line(error)}") from error
        if count == 0:
            raise ValueError(f"{path}: an empty part, without rows; leave it out")
        return count

    def _names(self, columns: Any) -> tuple[str, ...]:
        path, fragment = self._parts[0]
        known = list(fragment.physical_schema.names)
        if len(set(known)) < len(known):
            raise ValueError(f"{path}: two columns have the same name")
        if columns is None:
            chosen = [c for c in known if c != self._weight]
        else:
            chosen = [columns] if isinstance(columns, str) else list(columns)
        for c in chosen + ([] if self._weight is None else [self._weight]):
            if not isinstance(c, str):
                raise TypeError(f"columns of a table are named by text; got {c!r}")
        check_features(chosen, self._weight)
        return tuple(chosen)

    def _check_schemas(self) -> None:
        types = self._arrow.types
        one = self._parts[0]
        for path, fragment in self._parts:
            schema = fragment.physical_schema
            for name in (*self._features, *([] if self._weight is None else [self._weight])):
                if name not in schema.names:
                    has = ", ".join(schema.names[:12])
                    other = f"; {one[0]} has it" if name in one[1].physical_schema.names else ""
                    raise ValueError(f"{path}: has no column {name!r}{other}; its columns are {has}")
                kind = schema.field(name).type
                if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
                    raise ValueError(
                        f"{path}: column {name!r} is of type {kind}, not a number; name the columns to take "
                        "with columns="
                    )


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _numbers(column: Any) -> np.ndarray:
    """An Arrow column as an array, NaN where a value is missing."""
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _turn(columns: Sequence[np.ndarray], into: np.ndarray) -> None:
    """Columns (n,) beside each other as rows (n, D)."""
    for start in range(0, len(into), _TILE):
        tile = into[start : start + _TILE]
        for j, column in enumerate(columns):
            tile[:, j] = column[start : start + _TILE]


class Zarr:
    """A Zarr array (rows, columns), read a band of its own chunks at a time.

    Args:
      array: a zarr.Array, or the path of one.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
    """

    def __init__(self, array: Any, columns: Any = None, weight_column: Any = None) -> None:
        zarr = needed("zarr", "zarr")
        self._name = "zarr array"
        if isinstance(array, str):
            self._name = array
            try:
                array = zarr.open_array(array, mode="r")
            except Exception as error:  # its stores raise of every kind
                raise OSError(f"{self._name}: not a Zarr array that can be read: {_line(error)}") from error
        check_numbers(array.dtype, self._name)
        check_shape(array.shape, self._name)
        self._array = array
        self._selection = Selection.of(columns, weight_column, array.shape[1])
        self.n_features = self._selection.n_features(array.shape[1])
        self.n_samples: int | None = array.shape[0]
        self.columns: tuple[str, ...] | None = None
        self.wide = is_wide(array.dtype)

    def describe(self) -> dict[str, Any]:
        """Name, shape and type of the array."""
        return {
            "kind": "zarr", "name": os.path.basename(os.path.normpath(self._name)),
            "shape": list(self._array.shape), "dtype": self._array.dtype.str,
            "columns": self._selection.features,
        }  # fmt: skip

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        n, band = self._array.shape[0], self._array.chunks[0]
        # A chunk that is read in slices would be unpacked again for each of them.
        step = band if rows < band else rows // band * band
        for first in range(0, n, step):
            try:
                whole = np.asarray(self._array[first : first + step])
            except Exception as error:
                raise OSError(f"{self._name}: cannot be read at row {first}: {_line(error)}") from error
            for at in range(0, len(whole), rows):
                yield Piece(*self._selection.split(whole[at : at + rows]), self._name, first + at)
