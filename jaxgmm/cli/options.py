"""Option types of the command line, and the long texts of --help."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

SEED = click.IntRange(0, 2**32 - 1)  # what a key is made of

# click's ParamType is generic for type checkers only, from version 8.4 on.
if TYPE_CHECKING:
    _Integers = click.ParamType[tuple[int, ...]]
    _Strings = click.ParamType[tuple[str, ...]]
else:
    _Integers = _Strings = click.ParamType

# A line of \b keeps click from filling the paragraph.
GROUP_HELP = """Gaussian mixtures: fit them to a table, label rows, draw new ones.

\b
Example:
  jaxgmm fit faithful.csv --components 1:6 --plot faithful.png --out old.npz
  jaxgmm predict old.npz faithful.csv --out labels.csv
  jaxgmm sample old.npz 1000 --out new.csv
"""

FIT_HELP = """Fit mixtures to DATA (.csv, .tsv, .parquet, .npy) and keep the best.

Every covariance structure is fitted with every number of components K. The first table has one row per fit,
the best marked with *:

\b
  covariance   how the components' covariances are restricted: full (not),
               tied (all the same), diag (diagonal), spherical (the same
               variance in every direction); or one of mclust's
               fourteen, such as VVE or EEI
  K            number of components
  parameters   free parameters of the mixture
  log-lik.     mean log-likelihood per row, in nats; larger is better
  AIC BIC ICL  -2 log L plus a penalty for parameters, and in ICL for
               overlap; smaller is better; - where the fit failed. With
               --criterion cv or heldout a column for it, in nats per row
  fit          converged, or why not; and what makes an optimum spurious
               (few samples, too narrow, twins): it wins only where no other
               is sound

The second table has the best mixture: each component's weight, and the mean and standard deviation of each
column within it. Components are numbered from 0, as in the picture and in `jaxgmm predict`.

Without --columns, columns that are not numeric are left out, and so is a first column that only numbers the
rows. A missing value is an error. The columns of an .npy array are called x1, x2, and so on.

\b
Exit status: 0; 1 if the best fit did not converge; 2 for a mistake in the
command or the data, before anything is written.

\b
Example:
  jaxgmm fit faithful.csv --components 1:6 --covariance full,tied
"""

PREDICT_HELP = """Label the rows of DATA with the components of MODEL.

Writes one row per row of data:

\b
  label           the likeliest component, numbered from 0
  responsibility  the probability that the row came from it
  log_density     log p(row) under the mixture, in nats; low where the row
                  is unlike the data that were fitted

\b
Example:
  jaxgmm predict model.npz faithful.csv --out labels.csv
"""

SAMPLE_HELP = """Draw N rows from MODEL.

\b
Example:
  jaxgmm sample model.npz 1000 --seed 1 --out new.csv
"""


class Interrupted(Exception):
    """Ctrl-C, on its way past click."""


class Group(click.Group):
    """A group whose Ctrl-C is one line and no more."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class NotNegative(click.FloatRange):
    """A finite number that is not negative; click's own range lets NaN through."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Components(_Integers):
    """`3`, `1:9` (both ends included), `1,2,5`, or several of these joined by commas."""

    name = "K"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers, rising."""
        if isinstance(value, tuple):
            return value
        sizes: set[int] = set()
        try:
            for part in str(value).split(","):
                first, colon, last = part.partition(":")
                low, high = int(first), int(last if colon else first)
                if not 1 <= low <= high <= 10_000:
                    raise ValueError
                sizes.update(range(low, high + 1))
        except ValueError:
            self.fail(
                f"{value!r} is not a number such as 3, a range such as 1:9, or a list such as 1,2,5",
                param,
                ctx,
            )
        return tuple(sorted(sizes))


class Names(_Strings):
    """Names joined by commas, quoted as in CSV where a name has a comma."""

    name = "NAMES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names, each once."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in next(csv.reader([str(value)], skipinitialspace=True), []))
        if not names or not all(names):
            self.fail(f"{value!r} has an empty name", param, ctx)
        if len(set(names)) != len(names):
            self.fail(f"{value!r} has a name twice", param, ctx)
        return names


def spell(sizes: Sequence[int]) -> str:
    """`1..6` or `1, 2, 5`."""
    if len(sizes) > 2 and sizes[-1] - sizes[0] == len(sizes) - 1:
        return f"{sizes[0]}..{sizes[-1]}"
    return ", ".join(map(str, sizes))
