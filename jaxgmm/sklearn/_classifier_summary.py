"""What a classifier is made of, and its errors on labelled samples, as tables."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxgmm._display import Shown, Table, as_html, as_text
from jaxgmm.sklearn._data import Host


@dataclasses.dataclass(frozen=True, repr=False)
class ClassifierSummary(Shown):
    """A `GaussianMixtureClassifier` on labelled samples. Print it for the tables.

    Attributes:
      model_type: "MclustDA" or "EDDA".
      classes: (C,) the classes, in order.
      n_samples: (C,) how many of the samples belong to each.
      covariance_types: of each class the name of its structure.
      n_components: of each class the number of its components.
      confusion: (C, C) how many samples of each class, by row, are predicted to be of each, by column.
      error_rate: the share of samples that are misclassified.
      brier_score: Σ_n Σ_c (p_nc − y_nc)² / (2N) of the probabilities p and y = 1 for the class of a sample,
        else 0: 0 at best, and 1 where a wrong class is certain for every sample. mclust's `BrierScore`.
    """

    model_type: str
    classes: Host
    n_samples: Host
    covariance_types: tuple[str, ...]
    n_components: tuple[int, ...]
    confusion: Host
    error_rate: float
    brier_score: float

    def __repr__(self) -> str:
        """One line: the model and its errors. Printed, it is two tables."""
        n, errors = len(self.classes), f"error rate {self.error_rate:.4f}, Brier score {self.brier_score:.4f}"
        return f"ClassifierSummary({self.model_type}, {n} classes: {errors})"

    def _table(self) -> Table:
        cells = zip(
            map(str, self.classes),
            map(str, self.n_samples.tolist()),
            self.covariance_types,
            map(str, self.n_components),
            strict=True,
        )
        return Table(("class", "samples", "structure", "components"), tuple(cells))

    def _confusion_table(self) -> Table:
        names = [str(c) for c in self.classes]
        rows = tuple(
            (name, *map(str, counts)) for name, counts in zip(names, self.confusion.tolist(), strict=True)
        )
        n = int(self.confusion.sum())
        wrong = n - int(np.trace(self.confusion))
        return Table(("class", *(f"as {name}" for name in names)), rows, f"{wrong} of {n} misclassified")

    def __str__(self) -> str:
        """The line and both tables."""
        return f"{self!r}\n{as_text(self._table())}\n\n{as_text(self._confusion_table())}"

    def _repr_html_(self) -> str:
        return f"{as_html(self._table(), repr(self))}\n{as_html(self._confusion_table(), 'predicted')}"


def of_predictions(
    model_type: str,
    classes: Host,
    structures: list[tuple[str, int]],
    labels: Host,
    probabilities: Host,
) -> ClassifierSummary:
    """The summary from what was predicted: labels (N,) of `classes` (C,), and probabilities (N, C)."""
    n = len(classes)
    codes = np.searchsorted(classes, labels)
    confusion = np.bincount(codes * n + probabilities.argmax(1), minlength=n * n).reshape(n, n)
    kinds, sizes = zip(*structures, strict=True)
    return ClassifierSummary(
        model_type,
        classes,
        confusion.sum(1),
        kinds,
        sizes,
        confusion,
        float(1 - np.trace(confusion) / len(codes)),
        float(((probabilities - np.eye(n)[codes]) ** 2).sum() / (2 * len(codes))),
    )
