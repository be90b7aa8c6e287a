"""`open_source`: arrays, files, data sets and functions as a `Source`."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxgmm._host_arrays import host_array, is_frame, library
from jaxgmm.data import Data
from jaxgmm.outofcore._on_disk import FORMATS, Npy, Tables, Zarr, needed
from jaxgmm.outofcore._source import Arrays, Source, named

_SUFFIXES = (".npy", *FORMATS, ".zarr")


def open_source(source: Any, columns: Any = None, weight_column: Any = None) -> Source:
    """Open data for fits that do not hold them in memory: a `Source`, whose rows are read again in each pass.

    Args:
      source: one of
        an array (N, D), or a pair of such an array and weights (N,);
        the path of a file, by its suffix: .npy; .parquet or .pq, .arrow or .feather (extra `arrow`); .zarr
        (extra `zarr`); a directory of such files, which are taken in the order of their names; a pattern,
        such as "parts/*.npy"; or a list of paths;
        a pandas or Polars data frame, a `pyarrow.dataset.Dataset`, a `pyarrow.Table` or a `zarr.Array`;
        an iterable of arrays (n, D), or of pairs of an array and weights (n,), that can be gone through
        again, such as a list; or a function without arguments that returns a fresh one each time;
        `Data`, an iterable of it, or a function that returns one: all parts with the noise, projections,
        labels or log_prior that the first has, and without groups;
        or a `Source`, which is returned as it is.
      columns: which columns are features: names for tables, numbers for arrays. None for all.
      weight_column: which column holds sample weights, in the same way; or None.

    Returns:
      A Source: n_features, n_samples (None where it is not known), columns, and `chunks`.

    Raises:
      ValueError: for a part that is empty, cut short, or has other columns than the first; it is named.
      OSError: for a file that cannot be read.
      ImportError: where an extra is not installed.
      TypeError: for anything else than these.

    Example:
      >>> import jaxgmm, numpy as np, os, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> for i in range(3):
      ...     np.save(os.path.join(folder, f"part{i}.npy"), np.ones((10 + i, 2)))
      >>> source = jaxgmm.outofcore.open_source(folder)
      >>> source.n_samples, source.n_features
      (33, 2)
    """
    which = columns, weight_column
    if isinstance(source, str | os.PathLike):
        return _files(_expand(os.fspath(source)), *which)
    if isinstance(source, Data):
        return Arrays(lambda: [source], *which, len(source.x))
    if _is_array(source) or (isinstance(source, tuple) and len(source) == 2 and all(map(_is_array, source))):
        shape = np.shape(source[0] if isinstance(source, tuple) else source)
        return Arrays(lambda: [source], *which, shape[0] if shape else None)
    module = library(source)
    if module == "pyarrow":
        return _arrow(source, *which)
    if module == "zarr" and hasattr(source, "chunks") and hasattr(source, "shape"):
        return Zarr(source, *which)
    if isinstance(source, Source) and not isinstance(source, type):
        if which != (None, None):
            raise ValueError("columns and weight_column are chosen when a source is opened; this one is open")
        return source
    if is_frame(source):
        return _frame(source, *which)
    if callable(source):
        return Arrays(_fresh(source), *which)
    if isinstance(source, list | tuple) and source and all(isinstance(p, str | os.PathLike) for p in source):
        return _files([os.fspath(p) for p in source], *which)
    if isinstance(source, Iterator):
        said = "can be read once, and each pass reads it again. Give a function that returns a fresh one"
        raise TypeError(f"source: a {type(source).__name__} {said}")
    for item in source if isinstance(source, list | tuple) else ():
        if not _is_array(item[0] if isinstance(item, tuple) and item else item):
            got = f"a {type(source).__name__} that holds a {type(item).__name__}"
            raise TypeError(f"source must be a list of arrays, of pairs of arrays or of paths; got {got}")
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return Arrays(lambda: source, *which)
    kinds = "an array, a path, a list of either, a data set, or a function that returns arrays"
    raise TypeError(f"source must be {kinds}; got {type(source).__name__}")


def _frame(frame: Any, columns: Any, weight_column: Any) -> Source:
    """A data frame in memory; its columns are chosen by name."""
    wanted = named(columns, weight_column, list(frame.columns), "source")
    chosen = wanted if weight_column is None else [*wanted, weight_column]
    table = host_array(frame[chosen], "source")
    x = table[:, : len(wanted)]
    pair = x if weight_column is None else (x, table[:, -1])
    return Arrays(lambda: [pair], None, None, len(x), tuple(str(c) for c in wanted))


def once(given: Iterator[Any]) -> Callable[[], Iterable[Any]]:
    """Of an iterator, what `open_source` takes; its arrays can be read in one pass only."""
    first = list(itertools.islice(given, 1))
    # Opening looks at the first array.
    turns = iter([first, itertools.chain(first, given)])
    return lambda: next(turns, [])


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array | Data)


def _fresh(function: Callable[[], Any]) -> Callable[[], Iterable[Any]]:
    last: list[Any] = [None]

    def restart() -> Iterable[Any]:
        given = function()
        if not isinstance(given, Iterable) or _is_array(given):
            raise TypeError(f"source() must return an iterable of arrays; it returned {type(given).__name__}")
        if isinstance(given, Iterator) and given is last[0]:
            raise TypeError("source() must return a fresh iterable each time; it returned the same iterator")
        last[0] = given
        return given

    return restart


def _arrow(source: Any, columns: Any, weight_column: Any) -> Source:
    arrow, data_sets = needed("pyarrow", "arrow"), needed("pyarrow.dataset", "arrow")
    if isinstance(source, arrow.Table):
        source = data_sets.dataset(source)
    if not isinstance(source, data_sets.Dataset):
        got = type(source).__name__
        raise TypeError(f"source must be a pyarrow Table or Dataset, which can be read again; got {got}")
    return Tables(source, columns, weight_column)


def _suffix(path: str) -> str:
    return os.path.splitext(path.rstrip("/"))[1].lower()


def _expand(path: str) -> list[str]:
    """The files that a path stands for."""
    if os.path.isdir(path) and _suffix(path) != ".zarr":
        names = sorted(n for n in os.listdir(path) if not n.startswith((".", "_")))
        found = [os.path.join(path, n) for n in names if _suffix(n) in _SUFFIXES]
        if not found:
            raise ValueError(f"{path}: the directory holds no file that ends in {', '.join(_SUFFIXES)}")
        return found
    if not os.path.lexists(path) and glob.has_magic(path):
        found = sorted(glob.glob(path))
        if not found:
            raise FileNotFoundError(f"{path}: no file has such a name")
        return found
    return [path]


def _files(paths: list[str], columns: Any, weight_column: Any) -> Source:
    for path in paths:
        if _suffix(path) not in _SUFFIXES:
            raise ValueError(f"{path}: cannot tell the format; the name must end in {', '.join(_SUFFIXES)}")
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{path}: no such file")
    suffixes = {_suffix(path) for path in paths}
    if len({FORMATS.get(s, s) for s in suffixes}) > 1:
        raise ValueError(f"source: its parts must be of one format; got {', '.join(sorted(suffixes))}")
    if ".npy" in suffixes:
        return Npy(paths, columns, weight_column)
    if ".zarr" in suffixes:
        if len(paths) > 1:
            raise ValueError(f"source: one Zarr array at a time; got {', '.join(paths[:3])}")
        return Zarr(paths[0], columns, weight_column)
    return Tables(paths, columns, weight_column)
