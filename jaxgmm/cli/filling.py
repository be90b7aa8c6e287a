"""Tables that are written again: filled in, or with other columns beside; all else is kept as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgmm.cli.tables import Table, UserError, is_csv

Array = np.ndarray[Any, Any]


def check_format(table: Table, names: Sequence[str], path: str | None) -> None:
    """Raise where an .npy file is asked for and a column beside `names` is not all numbers."""
    if path is None or os.path.splitext(path)[1].lower() != ".npy":
        return
    for name in table.names:
        if name not in names and not table.columns[name].dtype.is_numeric():
            reason = f".npy holds numbers only, and column {name!r} of {table.path} has others"
            raise UserError(f"--out {path}: {reason}; write .csv or .parquet")


def fill(table: Table, names: Sequence[str], copies: Sequence[Array], path: str | None, draw: bool) -> Any:
    """The table with its gaps filled, once for each of `copies`.

    Args:
      table: what was read.
      names: the columns with gaps to fill.
      copies: arrays (N, D) of these columns without gaps.
      path: where it will be written. From CSV to CSV the cells keep their text.
      draw: whether a column `draw`, 1 to the number of copies, comes last.

    Returns:
      A polars frame.
    """
    import polars

    as_text = table.cells is not None and is_csv(path)
    frame = frame_of(table, path)
    places = [table.names.index(name) for name in names]
    # A column of text without gaps is text still; the frame for .npy has numbers alone.
    whole = path is not None and path.lower().endswith(".npy")
    parts = []
    for i, copy in enumerate(copies):
        part = frame.clone()
        for place, name, values in zip(places, names, copy.T, strict=True):
            gaps = table.gaps(name)
            if gaps.any() or whole:
                filled = _filled(table, name, frame.to_series(place), gaps, values, as_text)
                part = part.replace_column(place, filled.alias(frame.columns[place]))
        if draw:
            part = part.with_columns(polars.lit(i + 1, polars.Int64).alias("draw"))
        parts.append(part)
    return polars.concat(parts)


def beside(table: Table, columns: dict[str, Array], path: str | None) -> Any:
    """The table as it is with other columns at its end, a polars frame; see `fill`."""
    import polars

    added = polars.DataFrame(columns)
    if table.decimal_comma and is_csv(path):
        reals = polars.selectors.float()
        added = added.with_columns(reals.cast(polars.String).str.replace(".", ",", literal=True))
    return frame_of(table, path).hstack(added)


def frame_of(table: Table, path: str | None) -> Any:
    """The table as a frame to be written there: its cells as they are, from text to text."""
    import polars

    if table.cells is not None and is_csv(path):
        return table.cells
    frame = polars.DataFrame(list(table.columns.values()))
    frame.columns = table.names
    return frame


def _filled(table: Table, name: str, column: Any, gaps: Array, values: Array, as_text: bool) -> Any:
    """A column with its gaps filled: as text, or as numbers in the column's own precision."""
    import polars

    if as_text:
        cells = column.to_list()
        for row in np.flatnonzero(gaps):
            number = repr(float(values[row]))
            cells[row] = number.replace(".", ",") if table.decimal_comma else number
        return polars.Series(cells, dtype=polars.String)
    dtype = column.dtype if column.dtype.is_float() else polars.Float64
    return polars.Series(np.where(gaps, values, table.values(name))).cast(dtype)
