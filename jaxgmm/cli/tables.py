"""Tables: columns by name, errors that name the row, and writing as CSV, Parquet or npy."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import numpy as np

Array = np.ndarray[Any, Any]

WRITABLE = (".csv", ".parquet", ".npy")

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".")


class UserError(click.ClickException):
    """What a user can put right: one line on stderr, exit status 2."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Table:
    """A file's columns by name.

    Attributes:
      path: what messages call it.
      columns: name -> polars.Series.
      named: whether the file has names of its own.
      cells: of a text, where they were asked for, its cells as they are written: a polars frame.
      encoding: of a text.
      decimal_comma: whether its numbers have one.
      header: whether its first line names the columns.
      delimiter: between its fields.
    """

    path: str
    columns: dict[str, Any]
    named: bool
    cells: Any = None
    encoding: str = "utf-8"
    decimal_comma: bool = False
    header: bool = True
    delimiter: str = ","

    @property
    def names(self) -> list[str]:
        """The columns' names, in the file's order."""
        return list(self.columns)

    def values(self, name: str) -> Array:
        """One column as float64 (N,): NaN where a value is missing or is not a number."""
        column = self.columns[name]
        if _is_text(column):
            column = column.str.strip_chars()
            if self.decimal_comma:
                column = column.str.replace(",", ".", literal=True)
            column = column.cast(float, strict=False)
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
        if not _is_text(column) or self.decimal_comma:
            return
        present = column.filter(_present(column))
        commas = present.str.strip_chars().str.contains(r"^[+-]?\d+(,\d+)+(\.\d*)?$")
        if len(present) and 2 * commas.sum() >= len(present):
            what = f"column {name!r} has numbers with commas, such as {present.filter(commas)[0]!r}"
            remedy = "give --decimal-comma for decimal commas, write 1234.5 for others"
            raise UserError(f"{self.path}: {what}; {remedy}, or choose other columns with --columns")

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
            rest = for_option(n for n in names if np.isfinite(self.values(n)).all())
            columns = rest if rest != "''" and len(rest) < 40 else "..."
            remedy = f"{drop}, {fill}, or leave the column out with --columns {columns}"
        if hint and missing[row]:
            remedy = f"{hint}, {remedy}"
        raise UserError(f"{self.path}: column {name!r}, row {row + 1}: {what}{more}; {remedy}")


def for_option(names: Iterable[str]) -> str:
    """Names as --columns takes them, quoted for a shell where that is needed."""
    fields = ('"' + name.replace('"', '""') + '"' if {",", '"'} & set(name) else name for name in names)
    return shlex.quote(",".join(fields))


def is_csv(path: str | None) -> bool:
    """Whether what is written there is CSV; stdout is, for which there is no path."""
    return path is None or os.path.splitext(path)[1].lower() == ".csv"


def write(path: str | None, columns: dict[str, Array]) -> None:
    """Write columns to a file by its extension, whole or not at all; CSV to stdout where there is none."""
    import polars

    write_frame(path, polars.DataFrame(columns))


def write_frame(path: str | None, frame: Any, like: Table | None = None) -> None:
    """`write` for a polars frame; CSV is written as the text of a table is, where there is one."""
    text = b""
    if is_text := is_csv(path):
        if like is None or like.cells is None:
            text = frame.write_csv().encode()
        else:
            written = frame.write_csv(include_header=like.header, separator=like.delimiter)
            text = written.encode(like.encoding)
    if path is None:
        sys.stdout.buffer.write(text)
        return
    from jaxgmm.io import atomic_write

    extension = os.path.splitext(path)[1].lower()
    with atomic_write(path) as stream:
        if is_text:
            stream.write(text)
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


def _is_text(column: Any) -> bool:
    return str(column.dtype) == "String"


def _present(column: Any) -> Any:
    """Which values of a polars column are not missing, as a polars column."""
    if not _is_text(column):
        return column.is_not_null()
    return ~column.str.strip_chars().str.to_lowercase().is_in(list(_MISSING)).fill_null(True)


def _counts(values: Array) -> bool:
    """Whether a column counts up from 0 or 1."""
    return bool(len(values) > 2 and values[0] in (0, 1) and np.all(np.diff(values) == 1))


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 12 else shown
