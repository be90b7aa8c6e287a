"""Reading tables: CSV, TSV, Parquet, Feather, Excel and npy; CSV also compressed, or from stdin."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import gzip
import importlib.util
import io
import os
import pathlib
import sys
import zlib
from typing import Any

import numpy as np

from jaxgmm.cli.tables import Array, Table, UserError

STDIN = "-"
TEXT = (".csv", ".tsv")
READABLE = (*TEXT, *(f"{name}.gz" for name in TEXT), ".parquet", ".pq", ".feather", ".arrow", ".xlsx", ".npy")


@dataclasses.dataclass(frozen=True)
class Format:
    """How text is a table. None: as its first line and its bytes show.

    Attributes:
      delimiter: one character between fields.
      decimal_comma: whether 1,5 is one and a half.
      header: whether the first line names the columns; otherwise they are x1, x2, ...
      encoding: of the bytes, by Python's names.
    """

    delimiter: str | None = None
    decimal_comma: bool = False
    header: bool = True
    encoding: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no text is written in."""
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\n\r'):
            raise UserError(f"--delimiter {self.delimiter!r}: it must be one character, such as ';' or '\\t'")
        if self.delimiter is not None and not self.delimiter.isascii():
            raise UserError(f"--delimiter {self.delimiter!r}: it must be an ASCII character")
        if self.decimal_comma and self.delimiter == ",":
            raise UserError("--decimal-comma: the comma cannot be the delimiter too")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                known = "utf-8, latin-1, cp1252 or utf-16"
                raise UserError(f"--encoding {self.encoding}: no such encoding; such as {known}") from None


def read(path: str, form: Format | None = None, keep_text: bool = False) -> Table:
    """The table in a file, by its extension; "-" is CSV from stdin.

    Args:
      path: the file.
      form: how its text is a table; refused where the file holds no text.
      keep_text: whether the cells of a text are kept as they are written, too.
    """
    given = form or Format()
    source = "standard input" if path == STDIN else path
    if path == STDIN:
        return _from_text(source, sys.stdin.buffer.read(), given, keep_text)
    _check_readable(path)
    base, extension = os.path.splitext(path.lower())
    if extension == ".gz" and os.path.splitext(base)[1] in TEXT:
        return _from_text(source, _decompressed(path), given, keep_text)
    if extension in TEXT:
        if extension == ".tsv" and given.delimiter is None:
            given = dataclasses.replace(given, delimiter="\t")
        return _from_text(source, pathlib.Path(path).read_bytes(), given, keep_text)
    if given != Format():
        words = "--delimiter, --decimal-comma, --no-header and --encoding"
        raise UserError(f"{path}: {words} are for {' and '.join(TEXT)} files")
    if extension == ".npy":
        return Table(path, _read_npy(path).to_dict(), named=False)
    return _named(source, _read_frame(path, extension))


def _check_readable(path: str) -> None:
    if os.path.isdir(path):
        raise UserError(f"{path}: is a directory")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if not path.lower().endswith(READABLE):
        raise UserError(f"{path}: cannot tell the format; the name must end in {', '.join(READABLE)}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: permission denied")
    if not os.path.getsize(path):
        raise UserError(f"{path}: the file is empty")


def _decompressed(path: str) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable as a gzip file: {error}") from None


def _named(path: str, frame: Any, **text: Any) -> Table:
    """The table of a frame with names."""
    if not len(frame):
        raise UserError(f"{path}: no rows of data")
    names = ["".join(c if c.isprintable() else "?" for c in name.strip()) for name in frame.columns]
    names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two columns have the same name")
    return Table(path, dict(zip(names, frame.get_columns(), strict=True)), named=True, **text)


def _from_text(path: str, data: bytes, form: Format, keep_text: bool) -> Table:
    """The table in the bytes of a CSV file."""
    text, encoding = _decoded(path, data, form.encoding)
    # Without the empty lines at its end, which polars takes for rows.
    text = text.rstrip("\r\n")
    delimiter = _delimiter(path, text, form)
    cells = _parsed(path, text, delimiter, form.header, typed=False) if keep_text else None
    frame = _parsed(path, text, delimiter, form.header, typed=True)
    known: dict[str, Any] = {"encoding": encoding, "delimiter": delimiter}
    known |= {"decimal_comma": form.decimal_comma, "header": form.header}
    if form.header:
        return _named(path, frame, cells=cells, **known)
    columns = {f"x{j + 1}": column for j, column in enumerate(frame.get_columns())}
    return Table(path, columns, named=False, cells=cells, **known)


def _decoded(path: str, data: bytes, encoding: str | None) -> tuple[str, str]:
    """The text and its encoding: what is given, UTF-16 by its mark, UTF-8, or else Latin-1."""
    reason = ""
    guesses = ["utf-16"] if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ["utf-8", "latin-1"]
    for name in [encoding] if encoding else guesses:
        try:
            return data.decode(name).removeprefix("\ufeff"), name
        except (UnicodeDecodeError, LookupError) as error:
            reason = str(error)
    raise UserError(f"{path}: not readable as {encoding or guesses[-1]}: {reason}")


def _delimiter(path: str, text: str, form: Format) -> str:
    """The delimiter that the first line shows; and errors for a first line that is no header."""
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    line = text[: 1 << 20].partition("\n")[0].rstrip("\r")
    if not line.strip():
        wanted = "it must name the columns" if form.header else "it must be the first row"
        raise UserError(f"{path}: the first line is blank; {wanted}")
    usual = ";\t|" if form.decimal_comma else ",;\t|"
    delimiter = form.delimiter or max(usual, key=lambda mark: line.count(mark))
    if not form.header:
        return delimiter
    fields = next(csv.reader([line], delimiter=delimiter), [])
    if fields and all(_is_number(field) for field in fields):
        remedy = "it must name the columns, or give --no-header"
        raise UserError(f"{path}: the first line holds numbers; {remedy}")
    names = [field.strip() for field in fields]
    for i, name in enumerate(names):
        if name and (first := names.index(name)) < i:
            raise UserError(f"{path}: columns {first + 1} and {i + 1} have the same name, {name!r}")
    return delimiter


def _parsed(path: str, text: str, delimiter: str, header: bool, typed: bool) -> Any:
    """The polars frame of a text: with types, or every cell as it is written."""
    import polars

    try:
        return polars.read_csv(
            text.encode(), separator=delimiter, has_header=header, infer_schema_length=None if typed else 0
        )
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        detail = _ragged(text, delimiter) or str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable csv file: {detail}") from None


def _ragged(text: str, delimiter: str) -> str | None:
    """Which row of a CSV file has more fields than the first."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    with contextlib.suppress(csv.Error):
        width = len(next(rows, []))
        for i, row in enumerate(rows):
            if len(row) > width:
                return f"row {i + 1} has {len(row)} fields, the header {width}"
    return None


def _read_frame(path: str, extension: str) -> Any:
    import polars

    readers: dict[str, Any] = {".feather": polars.read_ipc, ".arrow": polars.read_ipc}
    try:
        if extension == ".xlsx":
            if importlib.util.find_spec("fastexcel") is None:
                raise UserError(f"{path}: Excel files need fastexcel: pip install fastexcel")
            return polars.read_excel(path)
        return readers.get(extension, polars.read_parquet)(path)
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        detail = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable {extension[1:]} file: {detail}") from None


def _read_npy(path: str) -> Any:
    import polars

    with open(path, "rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            raise UserError(f"{path}: not an npy file")
    try:
        data: Array = np.load(path, allow_pickle=False)
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
