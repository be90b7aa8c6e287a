"""Sources on disk: npy; Parquet and Arrow through pyarrow (extra `arrow`); Zarr (extra `zarr`)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxgmm.outofcore import _source as sources
from jaxgmm.outofcore._source import Matrices, Part, Piece, unreadable

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "feather"}
_TILE = 1024  # rows copied from columns in one step, so that they stay in a core's first-level cache


def needed(module: str, extra: str) -> Any:
    """An optional module, or an error that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"this source needs {name}: pip install 'jaxgmm[{extra}]'") from error


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
        into = np.empty((end - first, d) if by_rows else (d, end - first), dtype)
        pieces = [(first * d, into)] if by_rows else [(j * n + first, into[j]) for j in range(d)]
        with open(path, "rb", buffering=0) as file:
            for at, numbers in pieces:
                file.seek(offset + at * dtype.itemsize)
                view = numbers.reshape(-1).view(np.uint8).data
                while len(view):
                    got = file.readinto(view)
                    if not got:
                        raise EOFError("the file ends too early")
                    view = view[got:]
        return into if by_rows else into.T

    return Part(path, array.shape, dtype, read, identity=sources.identity(path))


class Tables:
    """Parquet or Arrow files, or any `pyarrow.dataset.Dataset`: numeric columns, by their names.

    Args:
      dataset: a pyarrow Dataset, or the paths of its files, all of one format.
      columns: names of the features; None for all columns, which must then be numeric.
      weight_column: name of the column that holds the weights, or None.
    """

    def __init__(self, dataset: Any, columns: Any = None, weight_column: Any = None) -> None:
        self._dataset, self._arrow = needed("pyarrow.dataset", "arrow"), needed("pyarrow", "arrow")
        self._errors = (OSError, self._arrow.ArrowException)
        self._identities: dict[str, dict[str, Any]] = {}
        if isinstance(dataset, list):
            self._identities = {path: sources.identity(path) for path in dataset}
            self._parts = [(path, self._open(path)) for path in dataset]
        else:
            fragments = enumerate(dataset.get_fragments())
            self._parts = [(getattr(f, "path", "") or f"part {i}", f) for i, f in fragments]
        if not self._parts:
            raise ValueError("source: the data set has no files")
        if columns is not None:
            columns = [columns] if isinstance(columns, str) else list(columns)
        for c in [*(columns or []), *([] if weight_column is None else [weight_column])]:
            if not isinstance(c, str):
                raise TypeError(f"columns of a table are named by text; got {c!r}")
        self._weight = weight_column
        known = self._parts[0][1].physical_schema.names
        self._features = tuple(sources.named(columns, weight_column, known, self._parts[0][0]))
        self._wanted = [*self._features, *([] if weight_column is None else [weight_column])]
        self._check_schemas()
        self.columns: tuple[str, ...] | None = self._features
        self.n_features = len(self._features)
        self._counts = [self._count(*part) for part in self._parts]
        self.n_samples: int | None = sum(self._counts)
        narrow = (self._arrow.float32(), self._arrow.float16())
        types = (f.physical_schema.field(c).type for _, f in self._parts for c in self._features)
        self.wide = any(t not in narrow for t in types)

    def describe(self) -> dict[str, Any]:
        """Names, sizes and times of the files, rows and columns."""
        parts = []
        for (path, _), rows in zip(self._parts, self._counts, strict=True):
            parts.append({**self._identities.get(path, {"name": os.path.basename(path)}), "rows": rows})
        chosen = {"columns": list(self._features), "weight_column": self._weight}
        return {"kind": "tables", "parts": parts, **chosen}

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        buffer = np.empty((rows, self.n_features), np.float64 if self.wide else np.float32)
        for (path, fragment), count in zip(self._parts, self._counts, strict=True):
            if path in self._identities:
                sources.unchanged(path, self._identities[path])
            first = 0
            try:
                for batch in fragment.to_batches(
                    columns=self._wanted, batch_size=rows, **self._frugal(fragment)
                ):
                    for at in range(0, batch.num_rows, rows):
                        # NaN where a value is missing.
                        values = [c.to_numpy(zero_copy_only=False) for c in batch.slice(at, rows).columns]
                        x = buffer[: len(values[0])]
                        for start in range(0, len(x), _TILE):
                            tile = [v[start : start + _TILE] for v in values[: self.n_features]]
                            np.stack(tile, axis=1, out=x[start : start + _TILE], casting="unsafe")
                        yield Piece(x, None if self._weight is None else values[-1], path, first)
                        first += len(x)
            except self._errors as error:
                raise unreadable(path, error, f" at row {first}") from error
            if first != count:
                raise ValueError(f"{path}: gave {first} rows where it has said that it has {count}")

    def _frugal(self, fragment: Any) -> dict[str, Any]:
        """Reading in one thread and little ahead: pyarrow's own way holds hundreds of megabytes."""
        options: dict[str, Any] = {"use_threads": False, "batch_readahead": 1, "fragment_readahead": 1}
        if isinstance(fragment, self._dataset.ParquetFileFragment):
            scan = self._dataset.ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
            options["fragment_scan_options"] = scan
        return options

    def _open(self, path: str) -> Any:
        kind = FORMATS[os.path.splitext(path)[1].lower()]
        one = self._tried(path, lambda: self._dataset.dataset(path, format=kind, partitioning=None))
        return next(iter(one.get_fragments()))

    def _count(self, path: str, fragment: Any) -> int:
        count = int(self._tried(path, fragment.count_rows))
        if count == 0:
            raise ValueError(f"{path}: an empty part, without rows; leave it out")
        return count

    def _tried(self, path: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._errors as error:
            raise unreadable(path, error) from error

    def _check_schemas(self) -> None:
        types = self._arrow.types
        for path, fragment in self._parts:
            schema = fragment.physical_schema
            sources.named(self._features, self._weight, schema.names, path)
            for name in self._wanted:
                kind = schema.field(name).type
                if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
                    raise ValueError(
                        f"{path}: column {name!r} is of type {kind}; name those to take in columns="
                    )


class Zarr(Matrices):
    """A Zarr array (rows, columns), read a band of its own chunks at a time.

    Args:
      array: a zarr.Array, or the path of one.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
    """

    def __init__(self, array: Any, columns: Any = None, weight_column: Any = None) -> None:
        name = array if isinstance(array, str) else "zarr array"
        if isinstance(array, str):
            zarr = needed("zarr", "zarr")
            try:
                array = zarr.open_array(array, mode="r")
            except Exception as error:  # its stores raise of every kind
                raise unreadable(name, error) from error

        def read(first: int, end: int) -> np.ndarray:
            return np.asarray(array[first:end])

        part = Part(name, array.shape, array.dtype, read, (*array.chunks, 1)[0])
        super().__init__([part], columns, weight_column)

    def describe(self) -> dict[str, Any]:
        """Name, shape and type of the array."""
        part = self._parts[0]
        kept = {"shape": list(part.shape), "dtype": part.dtype.str, "columns": self._selection.features}
        return {"kind": "zarr", "name": os.path.basename(os.path.normpath(part.name)), **kept}
