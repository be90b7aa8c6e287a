"""Display tables: mixtures as text and HTML, for the prompt, notebooks and the command line.

Nothing here computes with JAX or knows its transformations: `look` gives an array that can be shown, or None.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Array = np.ndarray[Any, Any]

# A status, by its name, in words.
STATUS = {
    "CONVERGED": "converged",
    "MAX_ITER": "max. steps",
    "NONFINITE": "not finite",
    "DECREASED": "decreased",
    "DEGENERATE": "degenerate",
}
_SHOWN = 1 << 16  # numbers in the largest array that is fetched from a device only to be printed
_WIDTH = 100  # columns of a terminal


class Table(NamedTuple):
    """Text in cells: a heading for each column, and rows that start with a label."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # what was left out


def look(a: Any) -> Array | None:
    """An array's values as NumPy's; None for an array that is traced, deleted, on other hosts, or large."""
    if isinstance(a, jax.core.Tracer) or not isinstance(a, jax.Array | np.ndarray | np.generic):
        return None
    if a.size > _SHOWN or not np.issubdtype(a.dtype, np.number):
        return None
    if isinstance(a, jax.Array) and (a.is_deleted() or not a.is_fully_addressable):
        return None
    return np.asarray(a)


def means_and_widths(means: Sequence[float], widths: Sequence[float]) -> list[tuple[str, str]]:
    """Means and standard deviations of a feature, to the third significant digit of the smallest.

    Example:
      >>> from jaxgmm._display import means_and_widths
      >>> means_and_widths([2.0364, 54.479], [0.26275, 5.8])
      [('2.036', '0.263'), ('54.479', '5.800')]
    """
    least = min((w for w in widths if 0 < w < math.inf), default=1.0)
    decimals = max(0, 2 - math.floor(math.log10(least)))
    formats = (f".{decimals}f", f".{decimals}f")
    if decimals > 8 or not max(map(abs, [*means, *widths])) < 1e9:
        formats = (".9g", ".2e")
    pairs = zip(means, widths, strict=True)
    return [(format(mean, formats[0]), format(width, formats[1])) for mean, width in pairs]


def mixture_table(
    weights: Array,
    means: Array,
    widths: Array,
    columns: Sequence[str] | None = None,
    *,
    counts: Array | None = None,
    most: tuple[int, int] = (12, 20),
    sign: str = "±",
) -> Table:
    """A mixture's components side by side: weights (K,), and means ± standard deviations (K, D).

    `counts` (K,) are samples for each component; of more than `most` components or features the first are
    shown, and the table's note says so.
    """
    n_components, n_features = means.shape
    k, d = min(n_components, most[0]), min(n_features, most[1])
    names = [f"x{j}" for j in range(n_features)] if columns is None else list(map(str, columns))
    rows = [("weight", *(f"{w:.4f}" for w in weights[:k]))]
    if counts is not None:
        rows.append(("samples", *(f"{n:.1f}" for n in counts[:k])))
    for j in range(d):
        cells = means_and_widths(means[:k, j].tolist(), widths[:k, j].tolist())
        rows.append((names[j], *(f"{m} {sign} {s}" for m, s in cells)))
    left_out = [(n_components - k, "components"), (n_features - d, "features")]
    note = " and ".join(f"{n} more {what}" for n, what in left_out if n)
    return Table(("component", *map(str, range(k))), tuple(rows), f"… {note}" if note else "")


def parameter_table(
    parts: Mapping[str, Sequence[Any]], columns: Sequence[str] | None, most: int = 60
) -> Table | None:
    """A row for each weight, mean and variance of a mixture; None where `look` finds no values.

    Args:
      parts: for each column of the table its heading, and weights (K,), means (K, D) and covariances
        (K, D, D): the estimates, their standard errors, and others. Numbers have digits to the third
        significant one of the standard error.
      columns: names of the features, or None.
      most: rows; the table's note counts those that are left out.
    """
    seen: list[list[Any]] = [[look(a) for a in arrays] for arrays in parts.values()]
    if any(a is None for arrays in seen for a in arrays) or seen[0][1].ndim != 2:
        return None
    k, d = seen[0][1].shape
    names = [f"x{j}" for j in range(d)] if columns is None else list(columns)
    kinds = ["weight", *(f"mean {name}" for name in names), *(f"variance {name}" for name in names)]

    def in_order(weights: Any, means: Any, covariances: Any) -> Array:
        return np.column_stack([weights, means, np.diagonal(covariances, axis1=-2, axis2=-1)]).astype(float)

    numbers = np.stack([in_order(*arrays) for arrays in seen], -1)
    rows = []
    for i, j in np.ndindex(k, len(kinds)):
        estimate, error, *others = numbers[i, j].tolist()
        written = means_and_widths([estimate, *others], [error] * (1 + len(others)))
        cells = [value for value, _ in written]
        rows.append((f"{i}  {kinds[j]}", cells[0], written[0][1], *cells[1:]))
    left_out = [f"{len(rows) - most} more rows"] if len(rows) > most else []
    left_out += ["covariances between features: .covariances"] if d > 1 else []
    note = f"… {'; '.join(left_out)}" if left_out else ""
    return Table(("component", *parts), tuple(rows[:most]), note)


class Shown:
    """A record with a table: `repr` is one line, printed it is the line and the table, in a notebook HTML."""

    def _table(self) -> Table | None:
        """The table, or None where `look` finds no values."""
        return None

    def _caption(self) -> str:
        """The line above the table in a notebook."""
        return repr(self)

    def __str__(self) -> str:
        """The line and the table."""
        table = self._table()
        return repr(self) if table is None else f"{self!r}\n{as_text(table)}"

    def _repr_html_(self) -> str:
        table = self._table()
        return f"<pre>{html.escape(repr(self))}</pre>" if table is None else as_html(table, self._caption())


def as_text(table: Table, width: int = _WIDTH) -> str:
    """The table for a terminal: a rule under the heading, what is wider than `width` in several parts."""
    lengths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    parts: list[list[int]] = [[]]
    for i in range(1, len(lengths)):
        if parts[-1] and lengths[0] + sum(2 + lengths[j] for j in (*parts[-1], i)) > width:
            parts.append([])
        parts[-1].append(i)
    blocks = []
    for part in parts:
        cells = [
            [row[0].ljust(lengths[0]), *(row[i].rjust(lengths[i]) for i in part)]
            for row in (table.head, *table.rows)
        ]
        head, *lines = ("  ".join(row) for row in cells)
        blocks.append("\n".join([head.rstrip(), "─" * len(head), *(line.rstrip() for line in lines)]))
    return "\n\n".join(blocks) + (f"\n{table.note}" if table.note else "")


def as_html(table: Table, caption: str = "", marked: tuple[int, int] | None = None) -> str:
    """The table for a notebook: no colours of its own, so that it is legible on dark and on light.

    `marked` is the row and the column of a cell to set in bold.
    """

    def line(texts: Sequence[str], tag: str, bold: int | None = None) -> str:
        cells = []
        for i, text in enumerate(texts):
            kind = tag if i else "th"
            style = "text-align:right;font-variant-numeric:tabular-nums" if i else "text-align:left"
            inner = f"<b>{html.escape(text)}</b>" if i == bold else html.escape(text)
            cells.append(f'<{kind} style="{style}">{inner}</{kind}>')
        return f"<tr>{''.join(cells)}</tr>"

    lines = ["<table>"]
    if caption:
        lines.append(f'<caption style="text-align:left">{html.escape(caption)}</caption>')
    lines += [f"<thead>{line(table.head, 'th')}</thead>", "<tbody>"]
    row, column = marked or (None, None)
    lines += [line(texts, "td", column if r == row else None) for r, texts in enumerate(table.rows)]
    lines.append("</tbody></table>")
    if table.note:
        lines.append(f"<p>{html.escape(table.note)}</p>")
    return "\n".join(lines)
