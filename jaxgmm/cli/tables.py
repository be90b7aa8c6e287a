"""Table input and output: CSV, Parquet and npy columns, and errors that name the row."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import io
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from jaxgmm.io import atomic_write

Array = np.ndarray[Any, Any]

READABLE = (".csv", ".tsv", ".parquet", ".pq", ".npy")
WRITABLE = (".csv", ".parquet", ".npy")

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".")


class UserError(click.ClickException):
    """What a user can put right: one line on stderr, exit status 2."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Table:
    """A file's columns by name. `named` is False where the file has no names of its own (npy)."""

    path: str
    columns: dict[str, Any]  # name -> polars.Series
    named: bool

    @property
    def names(self) -> list[str]:
        """The columns' names, in the file's order."""
        return list(self.columns)

    def values(self, name: str) -> Array:
        """One column as float64 (N,): NaN where a value is missing or is not a number."""
        column = self.columns[name]
        if _is_text(column):
            column = column.str.strip_chars().cast(float, strict=False)
        elif not column.dtype.is_numeric():
            return np.full(len(column), np.nan)
        return np.asarray(column.cast(float).fill_null(np.nan).to_numpy(), np.float64)

    def gaps(self, name: str) -> Array:
        """Which values of a column are missing (N,): empty, null, NaN, or a word that says so."""
        column = self.columns[name]
        nan = np.isnan(self.values(name)) if column.dtype.is_numeric() else False
        return np.asarray(~_present(column).to_numpy() | nan, bool)

    def is_numeric(self, name: str) -> bool:
        """Whether most of what the column holds is numbers."""
        column = self.columns[name]
        n_present = _present(column).sum()
        found = np.isfinite(self.values(name)).sum()
        return column.dtype.is_numeric() or bool(n_present and 2 * found >= n_present)

    def default_columns(self, without: str | None) -> tuple[list[str], list[str]]:
        """The numeric columns, and what to tell about those that are left out."""
        numeric = [name for name in self.names if name != without and self.is_numeric(name)]
        text = [name for name in self.names if name != without and name not in numeric]
        for name in text:
            self._refuse_commas(name)
        notes = [f"left out, not numeric: {', '.join(text)}"] if text else []
        first = numeric[0] if self.named and len(numeric) > 1 and numeric[0] == self.names[0] else None
        if first is not None and _counts(self.values(first)):
            notes.append(f"left out, it only numbers the rows: {first} (name it in --columns to keep it)")
            numeric = numeric[1:]
        if not numeric:
            raise UserError(f"{self.path}: no numeric column among {_listing(self.names)}")
        return numeric, notes

    def find(self, name: str) -> str:
        """`name`, or an error that suggests the nearest names."""
        if name not in self.columns:
            raise self.missing(name)
        return name

    def missing(self, name: str, reason: str = "") -> UserError:
        """The error for a name that no column has."""
        by_case = {known.casefold(): known for known in self.names}
        near = [by_case[n] for n in difflib.get_close_matches(name.casefold(), by_case, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_listing(self.names)}"
        return UserError(f"{self.path}: no column {name!r}; {hint}{reason}")

    def matrix(self, names: Sequence[str], gaps: bool = False, hint: str = "") -> Array:
        """The columns as float64 (N, D), or an error naming the first value that is not a finite number.

        With `gaps` missing values are NaN. Without, the error for one begins its remedies with `hint`.
        """
        for name in names:
            self._check(name, names, gaps, hint)
        return np.column_stack([self.values(name) for name in names])

    def weights(self, name: str) -> Array:
        """A column of sample weights (N,): finite, not negative, not all zero."""
        weights = self.matrix([name])[:, 0]
        for row in np.flatnonzero(weights < 0)[:1]:
            place = f"{self.path}: column {name!r}, row {row + 1}"
            raise UserError(f"{place}: the weight {weights[row]:g} is negative")
        if not weights.any():
            raise UserError(f"{self.path}: column {name!r}: all weights are zero")
        return weights

    def _refuse_commas(self, name: str) -> None:
        """Raise where a column of text is numbers with decimal commas."""
        column = self.columns[name]
        if not _is_text(column):
            return
        present = column.filter(_present(column))
        commas = present.str.strip_chars().str.contains(r"^[+-]?\d+(,\d+)+(\.\d*)?$")
        if len(present) and 2 * commas.sum() >= len(present):
            what = f"column {name!r} has numbers with commas, such as {present.filter(commas)[0]!r}"
            raise UserError(f"{self.path}: {what}; write 1234.5 for them, or choose others with --columns")

    def _check(self, name: str, names: Sequence[str], gaps: bool, hint: str) -> None:
        bad, missing = ~np.isfinite(self.values(name)), self.gaps(name)
        if gaps:
            bad &= ~missing
        if not bad.any():
            return
        row = int(np.argmax(bad))
        raw = self.columns[name][row]
        if not self.is_numeric(name):
            raise UserError(f"{self.path}: column {name!r} is not numeric: row {row + 1} holds {raw!r}")
        if missing[row]:
            what = "the value is missing"
        elif np.isnan(self.values(name)[row]):
            what = f"{raw!r} is not a number"
        else:
            what = f"the value is {float(raw)}"
        others = int(bad.sum()) - 1
        more = f" (and in {others} more row{'s' * (others > 1)})" if others else ""
        drop, fill = ("drop the rows", "fill them in") if others else ("drop the row", "fill it in")
        remedy = f"{drop} or {fill}"
        if len(names) > 1:
            rest = ",".join(n for n in names if np.isfinite(self.values(n)).all())
            columns = rest if 0 < len(rest) < 40 else "..."
            remedy = f"{drop}, {fill}, or leave the column out with --columns {columns}"
        if hint and missing[row]:
            remedy = f"{hint}, {remedy}"
        raise UserError(f"{self.path}: column {name!r}, row {row + 1}: {what}{more}; {remedy}")


def read(path: str) -> Table:
    """The table in a file, by its extension."""
    extension = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        raise UserError(f"{path}: is a directory")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if extension not in READABLE:
        raise UserError(f"{path}: cannot tell the format; the name must end in {', '.join(READABLE)}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: permission denied")
    if not os.path.getsize(path):
        raise UserError(f"{path}: the file is empty")
    if extension == ".npy":
        return Table(path, _read_npy(path).to_dict(), named=False)
    frame = _read_frame(path, extension)
    if not len(frame):
        raise UserError(f"{path}: no rows of data")
    names = ["".join(c if c.isprintable() else "?" for c in name.strip()) for name in frame.columns]
    names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two columns have the same name")
    return Table(path, dict(zip(names, frame.get_columns(), strict=True)), named=True)


def write(path: str | None, columns: dict[str, Array]) -> None:
    """Write columns to a file by its extension, whole or not at all; CSV to stdout where there is none."""
    import polars

    write_frame(path, polars.DataFrame(columns))


def write_frame(path: str | None, frame: Any, encoding: str = "utf-8") -> None:
    """`write` for a polars frame; the encoding is that of CSV."""
    if path is None:
        sys.stdout.buffer.write(frame.write_csv().encode(encoding))
        return
    extension = os.path.splitext(path)[1].lower()
    with atomic_write(path) as stream:
        if extension == ".csv":
            stream.write(frame.write_csv().encode(encoding))
        elif extension == ".parquet":
            frame.write_parquet(stream)
        else:
            columns = [column.to_numpy() for column in frame.get_columns()]
            np.save(stream, np.column_stack(columns), allow_pickle=False)


def check_target(path: str | None, option: str, extensions: Sequence[str], taken: Mapping[str, str]) -> None:
    """Raise now, before the work, where `path` cannot be written afterwards.

    `taken` maps what other paths are to those paths: none may be written over.
    """
    if path is None:
        return
    if os.path.splitext(path)[1].lower() not in extensions:
        raise UserError(f"{option} {path}: the name must end in {', '.join(extensions)}")
    for what, other in taken.items():
        if os.path.realpath(other) == os.path.realpath(path):
            raise UserError(f"{option} {path}: would overwrite {what}")
    directory = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise UserError(f"{option} {path}: is a directory")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{option} {path}: is not a regular file")
    if not os.path.isdir(directory):
        raise UserError(f"{option} {path}: the directory {directory} does not exist")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: the directory {directory} is not writable")


def _read_npy(path: str) -> Any:
    import polars

    with open(path, "rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            raise UserError(f"{path}: not an npy file")
    try:
        data = np.load(path, allow_pickle=False)
    except MemoryError:
        raise UserError(f"{path}: too large for this machine's memory, or damaged") from None
    except (ValueError, EOFError, OSError, SyntaxError, RecursionError) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else "damaged"
        raise UserError(f"{path}: not readable as an array of numbers: {reason}") from None
    if data.dtype.kind not in "fiu":
        raise UserError(f"{path}: the array must hold real numbers, not {data.dtype}")
    if data.ndim != 2:
        hint = "; make it one column with X.reshape(-1, 1)" if data.ndim == 1 else ""
        raise UserError(f"{path}: the array must be 2-D (rows, columns), its shape is {data.shape}{hint}")
    if 0 in data.shape:
        raise UserError(f"{path}: the array is empty, its shape is {data.shape}")
    return polars.DataFrame({f"x{j + 1}": column for j, column in enumerate(data.T.astype(np.float64))})


def read_text(path: str) -> tuple[Any, str]:
    """A CSV file's cells as they are written, a polars frame of text; and the encoding of the file."""
    data = pathlib.Path(path).read_bytes()
    encoding = "utf-8"
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"  # which gives every byte back
        data = data.decode(encoding).encode()
    return _read_frame(path, os.path.splitext(path)[1].lower(), data), encoding


def _read_frame(path: str, extension: str, cells: bytes | None = None) -> Any:
    """The frame in a file; given the bytes of a CSV file, all its columns as text."""
    import polars

    text, separator = b"", ","
    try:
        if extension in (".parquet", ".pq"):
            return polars.read_parquet(path)
        # Without the empty lines at its end, which polars takes for rows.
        text = (pathlib.Path(path).read_bytes() if cells is None else cells).rstrip(b"\r\n")
        separator = _separator(path, text, extension)
        types: dict[str, Any] = {"infer_schema_length": None} if cells is None else {"infer_schema_length": 0}
        return polars.read_csv(text, separator=separator, encoding="utf8-lossy", **types)
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        detail = _ragged(text, separator) or str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable {extension[1:]} file: {detail}") from None


def _separator(path: str, text: bytes, extension: str) -> str:
    """The field separator that the first line shows; and errors for a first line that is no header."""
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: the text is UTF-16; save it as UTF-8")
    line = text[: 1 << 20].partition(b"\n")[0].decode("utf-8-sig", "replace").rstrip("\r")
    if not line.strip():
        raise UserError(f"{path}: the first line is blank; it must name the columns")
    separator = "\t" if extension == ".tsv" else max(",;\t", key=line.count)
    fields = next(csv.reader([line], delimiter=separator), [])
    if fields and all(_is_number(field) for field in fields):
        raise UserError(f"{path}: the first line holds numbers; it must name the columns")
    names = [field.strip() for field in fields]
    for i, name in enumerate(names):
        if name and (first := names.index(name)) < i:
            raise UserError(f"{path}: columns {first + 1} and {i + 1} have the same name, {name!r}")
    return separator


def _ragged(text: bytes, separator: str) -> str | None:
    """Which row of a CSV file has more fields than the header."""
    rows = csv.reader(io.StringIO(text.decode(errors="replace"), newline=""), delimiter=separator)
    with contextlib.suppress(csv.Error):
        width = len(next(rows, []))
        for i, row in enumerate(rows):
            if len(row) > width:
                return f"row {i + 1} has {len(row)} fields, the header {width}"
    return None


def _is_text(column: Any) -> bool:
    return str(column.dtype) == "String"


def _present(column: Any) -> Any:
    """Which values of a polars column are not missing, as a polars column."""
    if not _is_text(column):
        return column.is_not_null()
    return ~column.str.strip_chars().str.to_lowercase().is_in(list(_MISSING)).fill_null(True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _counts(values: Array) -> bool:
    """Whether a column counts up from 0 or 1."""
    return bool(len(values) > 2 and values[0] in (0, 1) and np.all(np.diff(values) == 1))


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 12 else shown
