"""Option values of the command line, and the longer texts of --help."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import Any

import click

SEED = click.IntRange(0, 2**32 - 1)  # what a key is made of


# What does not fit on the line of its option.
OPTIONS = {
    "components": "Numbers of components: 3, 1:9 (both included), 1,2,5.",
    "covariance": "Covariance structures, joined by commas: full, VVE, factor(2), ...; "
    "all for mclust's fourteen.",
    "criterion": "What decides which fit is best; smaller is better. cv: minus the mean log-likelihood of "
    "rows left out, each fold in its turn; heldout: of one fold.",
    "prior": "default: Fraley and Raftery's weak one, under which components on few rows do not collapse.",
    "delimiter": "Between the fields of a text: one character, or \\t.  [default: as its first line shows]",
    "no_header": "The first line of the text is a row; the columns are called x1, x2, ...",
    "encoding": "Of the text.  [default: UTF-8, or UTF-16 by its mark, or else Latin-1]",
    "columns": "The columns to fit, joined by commas.  [default: all numeric ones]",
    "columns of the model": "The columns that play the model's, in its order.  [default: by name]",
    "missing": "What to do with missing values: error refuses them; fit takes them for missing at random and "
    "fits to the others; drop leaves their rows out.",
    "missing in rows": "What to do with missing values: error refuses them; fit goes by the others.",
    "budget": "EM steps spent on each fit's tournament of starts, before the finalists converge.",
    "tol": "How near its optimum a fit must be; about tol²/2 nats per row are left. Default: 0.01/√rows.",
    "reg_covar": "Added to the diagonals of the covariances; times the variance of a column where that is "
    "below 1.",
}

# Criteria of rows left out, as the report explains them.
LEFT_OUT = {"cv": "left out, each fold in its turn", "heldout": "of the fold that was left out"}
CRITERION = click.Choice(["bic", "aic", "icl", *LEFT_OUT])


def finite(_context: Any, _parameter: Any, value: float | None) -> float | None:
    """The number, unless it is NaN or infinite: click's own ranges let these through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"'{value}' is not a finite number")
    return value


def integers(_context: Any, _parameter: Any, value: str) -> tuple[int, ...]:
    """Rising numbers from `3`, `1:9` (both ends included), `1,2,5`, or several of these joined by commas."""
    sizes: set[int] = set()
    try:
        for part in value.split(","):
            first, colon, last = part.partition(":")
            low, high = int(first), int(last if colon else first)
            if not 1 <= low <= high <= 10_000:
                raise ValueError
            sizes.update(range(low, high + 1))
    except ValueError:
        words = "is not a number such as 3, a range such as 1:9, or a list such as 1,2,5"
        raise click.BadParameter(f"{value!r} {words}") from None
    return tuple(sorted(sizes))


def name_list(_context: Any, _parameter: Any, value: str | None) -> tuple[str, ...] | None:
    """Names joined by commas, each once, quoted as in CSV where a name has a comma."""
    if value is None:
        return None
    found = tuple(name.strip() for name in next(csv.reader([value], skipinitialspace=True), []))
    if not found or not all(found):
        raise click.BadParameter(f"{value!r} has an empty name")
    if len(set(found)) != len(found):
        raise click.BadParameter(f"{value!r} has a name twice")
    return found


def spell(sizes: Sequence[int]) -> str:
    """`1..6` or `1, 2, 5`."""
    if len(sizes) > 2 and sizes[-1] - sizes[0] == len(sizes) - 1:
        return f"{sizes[0]}..{sizes[-1]}"
    return ", ".join(map(str, sizes))
