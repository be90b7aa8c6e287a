"""Reports: the table of criteria and the best mixture, as `jaxgmm fit` prints them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxgmm._display import STATUS, mixture_table
from jaxgmm.cli.fitting import Cell
from jaxgmm.cli.options import LEFT_OUT


def console() -> Console:
    """Stdout, as wide as the terminal; a file or a pipe gets room for whole lines."""
    wide = None if sys.stdout.isatty() else 100
    return Console(file=sys.stdout, highlight=False, width=wide)


def print_criteria(out: Console, cells: Sequence[Cell], best: Cell | None, criterion: str, unit: str) -> None:
    """One row per fit; the best is marked. `unit` is what the log-likelihood is a mean over."""
    table = _table(out)
    table.add_column("")
    table.add_column("covariance")
    for name in ("K", "parameters", "log-lik.", *(name.upper() for name in cells[0].criteria)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fit", no_wrap=True)
    for previous, cell in zip([cells[0], *cells], cells, strict=False):
        if cell.covariance_type != previous.covariance_type:
            table.add_section()
        table.add_row(
            "*" if cell is best else "",
            cell.covariance_type,
            str(cell.n_components),
            str(cell.n_parameters),
            f"{cell.log_likelihood:.4f}",
            *(
                f"{value:.{4 if name in LEFT_OUT else 1}f}" if math.isfinite(value) else "-"
                for name, value in cell.criteria.items()
            ),
            STATUS[cell.status] + (f", {cell.spurious}" if cell.spurious else ""),
            style="bold" if cell is best else "",
        )
    out.print(table)
    out.print(f"* smallest {criterion.upper()}.  log-lik.: mean log-likelihood per {unit}, in nats.")
    if any(cell.spurious for cell in cells):
        out.print("few samples, too narrow, twins: spurious, and cannot win while another fit is sound.")
    if any(cell.status == "MAX_ITER" for cell in cells):
        out.print(f"{STATUS['MAX_ITER']}: ended at the limit on steps before it had converged.")
    if criterion in LEFT_OUT:
        out.print(f"{criterion.upper()}: minus the mean log-likelihood per {unit} {LEFT_OUT[criterion]}.")


def print_best(
    out: Console, best: Cell, criterion: str, columns: Sequence[str], n_rows: int, incomplete: str
) -> None:
    """Which fit is best, and its mixture; `incomplete` says what the rows lack."""
    size = f"{n_rows} rows, {len(columns)} column{'s' * (len(columns) > 1)}"
    name = f"{best.covariance_type}, K = {best.n_components}"
    out.print(f"\nBest by {criterion.upper()}: {name}  ({size})")
    if incomplete:
        out.print(incomplete)
    out.print()
    print_mixture(out, best, columns)


def print_json(
    cells: Sequence[Cell], best: Cell | None, criterion: str, columns: Sequence[str], n_rows: int
) -> None:
    """The same as one JSON object on stdout; null for what is not a finite number."""

    def numbers(array: Any) -> Any:
        return np.asarray(array, np.float64).tolist()

    def described(cell: Cell) -> dict[str, Any]:
        names = ("covariance_type", "n_components", "n_parameters", "log_likelihood", "status", "spurious")
        row = {name: getattr(cell, name) for name in names} | cell.criteria
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}

    found: dict[str, Any] = {"columns": list(columns), "n_rows": n_rows, "criterion": criterion}
    found["fits"] = [described(cell) for cell in cells]
    found["best"] = None
    if best is not None:
        p = best.params
        arrays = {"weights": p.weights, "means": p.means, "covariances": p.covariances}
        found["best"] = described(best) | {name: numbers(a) for name, a in arrays.items()}
    print(json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False))


def print_mixture(out: Console, cell: Cell, columns: Sequence[str]) -> None:
    """Weights, and mean ± standard deviation of every feature in every component."""
    arrays = (cell.params.weights, cell.params.means, cell.params.covariances)
    weights, means, covariances = (np.asarray(a) for a in arrays)
    sds = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    sign = "±" if _unicode(out) else "+/-"
    whole = mixture_table(weights, means, sds, columns, most=means.shape, sign=sign)
    label = min(max(len("component"), *(len(name) for name in columns)), 24)
    width = max(len(text) for row in whole.rows for text in row[1:]) + 3
    across = max(1, (out.width - label - 1) // width)
    for first in range(1, len(weights) + 1, across):
        shown = slice(first, first + across)
        table = _table(out)
        table.add_column(whole.head[0], max_width=24, overflow="fold")
        for k in whole.head[shown]:
            table.add_column(k, justify="right", no_wrap=True)
        for i, (name, *cells) in enumerate(whole.rows):
            table.add_row(Text(name), *cells[first - 1 : first - 1 + across], end_section=i == 0)
        out.print(table)
        out.print()
    out.print(f"Each cell: mean {sign} standard deviation within the component.")


def _table(out: Console) -> Table:
    style = box.SIMPLE_HEAD if _unicode(out) else box.ASCII2
    return Table(box=style, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _unicode(out: Console) -> bool:
    return out.encoding.lower().startswith("utf")
