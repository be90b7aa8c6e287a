"""The record `Source`: rows in parts, read again in every pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxgmm._host_arrays import unmasked
from jaxgmm.data import Data


class Piece(NamedTuple):
    """Some rows that lie together. The arrays may be written over once the next piece is asked for."""

    rows: np.ndarray  # (n, D)  real numbers of any type
    weight: np.ndarray | None  # (n,)
    part: str  # what the part of the data that holds them is called in messages
    first: int  # which row of that part is the first of them, from 0
    known: Mapping[str, np.ndarray] = MappingProxyType({})  # fields of `Data`, with n rows each


@runtime_checkable
class Source(Protocol):
    """Rows of data that can be read any number of times, in the same order.

    A source whose pieces hold more than rows and weights has a dict `known` too: the shapes of a row in each
    of their fields.

    Attributes:
      n_features: D.
      n_samples: N where it is known without reading, else None.
      columns: names of the features, or None.
      wide: whether the numbers need float64 to be told apart.
    """

    n_features: int
    n_samples: int | None
    columns: tuple[str, ...] | None
    wide: bool

    def describe(self) -> dict[str, Any]:
        """What tells these data from others, for checkpoints: text, numbers, and lists and dicts of these."""
        ...

    def chunks(self, rows: int) -> Iterator[Piece]:
        """All rows from the first to the last, in pieces of at most `rows`."""
        ...


KNOWN = {"noise": "noise", "projection": "projections", "label": "labels", "log_prior": "log_prior"}
# What a part says of rows by having no such field.
_NOTHING = {"noise": 0, "label": -1, "log_prior": 0}


def known_of(source: Source) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a row in each of the fields of `Data` that a source gives beside rows and weights."""
    shapes: Mapping[str, tuple[int, ...]] = getattr(source, "known", {})
    return shapes


def is_wide(dtype: np.dtype) -> bool:
    """Whether numbers of that type become float64 where JAX allows it, as in `validate.floating`."""
    return dtype.kind != "f" or dtype.itemsize > 4


def unreadable(name: str, error: BaseException, place: str = "") -> OSError:
    """An error of whatever kind as that of a part of the data."""
    line = str(error).partition("\n")[0] or type(error).__name__
    return OSError(f"{name}: cannot be read{place}: {line}")


def checked(array: Any, where: str) -> Any:
    """An array of real numbers (rows, columns) with at least one of each; raise for another."""
    check_numbers(array.dtype, where)
    shape = array.shape
    if len(shape) != 2:
        hint = "; a single feature is X[:, None]" if len(shape) == 1 else ""
        raise ValueError(f"{where}: must be 2-D (rows, columns); its shape is {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"{where}: an empty part, of shape {shape}; leave it out")
    return array


def check_numbers(dtype: np.dtype, where: str) -> None:
    """Raise unless a type holds real numbers."""
    if dtype.kind not in "fiub":
        raise ValueError(f"{where}: must hold real numbers; got dtype {dtype}")


def positions(columns: Any, n_columns: int, name: str) -> list[int]:
    """Columns of an array by number, from 0; negative ones count from the end."""
    chosen = [columns] if isinstance(columns, int | np.integer) else list(columns)
    for c in chosen:
        if not isinstance(c, int | np.integer) or isinstance(c, bool):
            raise TypeError(f"{name} of an array without names must be ints; got {c!r}")
        if not -n_columns <= c < n_columns:
            raise ValueError(f"{name} must lie between {-n_columns} and {n_columns - 1}; got {int(c)}")
    return [int(c) % n_columns for c in chosen]


class Selection(NamedTuple):
    """Which columns of an array are features, None for all, and which one holds the weights, if any."""

    features: list[int] | None
    weight: int | None

    @staticmethod
    def of(columns: Any, weight_column: Any, n_columns: int) -> Selection:
        """From what a user gives."""
        if columns is None and weight_column is None:
            return Selection(None, None)
        weight = None if weight_column is None else positions(weight_column, n_columns, "weight_column")[0]
        others = [j for j in range(n_columns) if j != weight]
        features = others if columns is None else positions(columns, n_columns, "columns")
        check_features(features, weight)
        return Selection(features, weight)

    def n_features(self, n_columns: int) -> int:
        """How many are features."""
        return n_columns if self.features is None else len(self.features)

    def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features and weights of rows (n, columns)."""
        if self.features is None:
            return rows, None
        return rows[:, self.features], None if self.weight is None else rows[:, self.weight]


def check_features(features: Sequence[Any], weight: Any) -> None:
    """Raise unless there are some, each once, and the weights are none of them."""
    if not features or len(set(features)) < len(features):
        raise ValueError(f"columns must name at least one column, each once; got {list(features)}")
    if weight is not None and weight in features:
        raise ValueError(f"weight_column {weight!r} is one of the columns too")


def named(columns: Any, weight_column: Any, known: Sequence[Any], where: str) -> list[Any]:
    """The columns of a table that are features, by name; raise where one that is given is not there."""
    others = [c for c in known if c != weight_column]
    chosen = others if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for c in chosen if weight_column is None else [*chosen, weight_column]:
        if (many := list(known).count(c)) != 1:
            said = f"several columns are called {c!r}" if many else f"has no column {c!r}"
            raise ValueError(f"{where}: {said}; its columns are {list(known)[:12]}")
    check_features(chosen, weight_column)
    return chosen


class Part(NamedTuple):
    """An array (rows, columns) on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]  # the rows from one to before another
    band: int = 1  # rows that are stored together, and would be unpacked again for each slice of them
    identity: Mapping[str, Any] | None = None


class Matrices:
    """Arrays on disk, one after another.

    Args:
      parts: the arrays.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
    """

    def __init__(self, parts: Sequence[Part], columns: Any, weight_column: Any) -> None:
        self._parts = parts
        n_columns = checked(parts[0], parts[0].name).shape[1]
        for part in parts:
            if checked(part, part.name).shape[1] != n_columns:
                raise ValueError(f"{part.name}: has {part.shape[1]} columns; {parts[0].name} has {n_columns}")
        self._selection = Selection.of(columns, weight_column, n_columns)
        self.n_features = self._selection.n_features(n_columns)
        self.n_samples: int | None = sum(part.shape[0] for part in parts)
        self.columns: tuple[str, ...] | None = None
        self.wide = any(is_wide(part.dtype) for part in parts)

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        for part in self._parts:
            if part.identity is not None:
                unchanged(part.name, part.identity)
            n, band = part.shape[0], part.band
            step = band if rows < band else rows // band * band
            for first in range(0, n, step):
                try:
                    whole = part.read(first, min(first + step, n))
                except Exception as error:  # libraries raise of every kind
                    raise unreadable(part.name, error, f" at row {first}") from error
                for at in range(0, len(whole), rows):
                    yield Piece(*self._selection.split(whole[at : at + rows]), part.name, first + at)


class _Array(NamedTuple):
    """One of the arrays of `Arrays`."""

    x: np.ndarray
    weight: np.ndarray | None
    known: Mapping[str, np.ndarray]
    of_data: bool = False
    gaps: bool = False


class Arrays:
    """Arrays in memory, or whatever gives arrays afresh each time it is asked.

    Args:
      restart: gives a fresh iterable of arrays (n, D), of pairs of such an array and weights (n,), or of
        `Data`.
      columns: numbers of the columns that are features, or None for all.
      weight_column: number of the column that holds the weights, or None.
      n_samples: where it is known.
      names: of the features, or None.
    """

    def __init__(
        self,
        restart: Callable[[], Iterable[Any]],
        columns: Any = None,
        weight_column: Any = None,
        n_samples: int | None = None,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self._restart, self.n_samples, self.columns = restart, n_samples, names
        self.known: dict[str, tuple[int, ...]] = {}
        first = next(self._parts(), None)
        if first is None:
            raise ValueError("source must give at least one array; it gave none")
        self._n_columns = first.x.shape[1]
        self.known = {name: a.shape[1:] for name, a in first.known.items()}
        self._selection = Selection.of(columns, weight_column, self._n_columns)
        if first.of_data and self._selection.features is not None:
            raise ValueError("columns and weight_column are for arrays; choose columns before observe")
        self.n_features = self._selection.n_features(self._n_columns)
        if "projection" in self.known:
            self.n_features = self.known["projection"][-1]
        self.wide, self.of_data, self.gaps = is_wide(first.x.dtype), first.of_data, first.gaps

    def describe(self) -> dict[str, Any]:
        """Numbers alone: the summary of the data tells them from others."""
        known = {"known": {name: list(shape) for name, shape in self.known.items()}} if self.known else {}
        about = {"kind": "arrays", "n_columns": self._n_columns, "columns": self._selection.features}
        return {**about, **known}

    def chunks(self, rows: int) -> Iterator[Piece]:
        """As `Source` says."""
        for i, (x, w, known) in enumerate(p[:3] for p in self._parts()):
            if x.shape[1] != self._n_columns:
                raise ValueError(f"array {i}: has {x.shape[1]} columns; array 0 has {self._n_columns}")
            every = self._filled(known, len(x), f"array {i}")
            for first in range(0, x.shape[0], rows):
                piece, weight = self._selection.split(x[first : first + rows])
                weight = weight if w is None else w[first : first + rows]
                some = {name: a[first : first + rows] for name, a in every.items()}
                yield Piece(piece, weight, f"array {i}", first, some)

    def _filled(self, known: Mapping[str, np.ndarray], n: int, where: str) -> dict[str, np.ndarray]:
        """The fields that all parts have; one that says nothing of a part's rows is filled in."""
        every = {}
        for name in {**self.known, **known}:
            a, shape = known.get(name), self.known.get(name)
            if a is None and shape is not None and name in _NOTHING and len(shape) < 2:
                a = np.full((n, *shape), _NOTHING[name])
            got = "none" if a is None else f"rows of shape {a.shape[1:]}"
            if a is None or shape != a.shape[1:]:
                first = "none" if shape is None else f"rows of shape {shape}"
                raise ValueError(
                    f"{where}: of {KNOWN[name]} it has {got}; array 0 has {first}. All parts must have what "
                    "the first has"
                )
            every[name] = a
        return every

    def _parts(self) -> Iterator[_Array]:
        for i, item in enumerate(self._restart()):
            if isinstance(item, Data):
                yield _of_data(item, f"array {i}")
                continue
            pair = item if isinstance(item, tuple) else (item, None)
            if len(pair) != 2:
                raise ValueError(f"array {i}: must be an array or a pair (X, weights); got {len(pair)}")
            x = checked(np.asarray(unmasked(pair[0], f"array {i}")), f"array {i}")
            w = None
            if pair[1] is not None:
                w = np.asarray(unmasked(pair[1], f"array {i}, weights"))
                if w.shape != x.shape[:1]:
                    raise ValueError(f"array {i}: its weights must have shape {x.shape[:1]}; got {w.shape}")
                check_numbers(w.dtype, f"array {i}, weights")
            yield _Array(x, w, {})


def _of_data(data: Data, where: str) -> _Array:
    """What `observe` returned, with NaN again where entries are missing."""
    if data.group is not None:
        raise ValueError(f"{where}: rows in groups are not for data in parts: leave groups out of observe")
    x = np.asarray(data.x)
    if data.observed is not None:
        x = np.where(np.asarray(data.observed), x, np.asarray(np.nan, x.dtype))
    fields = {name: getattr(data, name) for name in KNOWN}
    known = {name: np.asarray(a) for name, a in fields.items() if a is not None}
    return _Array(
        x, None if data.weight is None else np.asarray(data.weight), known, True, data.observed is not None
    )


def identity(path: str) -> dict[str, Any]:
    """What tells a file from one that has taken its place: name, size and time of the last change."""
    status = os.stat(path)
    return {"name": os.path.basename(path), "bytes": status.st_size, "modified": status.st_mtime_ns}


def unchanged(path: str, before: Mapping[str, Any]) -> None:
    """Raise where a file is no longer what it was when it was opened."""
    if identity(path) != before:
        raise ValueError(f"{path}: has changed since it was opened; a fit reads its data again in every pass")
