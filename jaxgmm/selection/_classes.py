"""How far a clustering agrees with known classes: the table of both, and the error of the best matching."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxgmm._display import Table, as_html, as_text

Host = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, repr=False)
class ClassError:
    """Clusters beside classes. Print it for the table.

    Attributes:
      error_rate: the share of samples that are misclassified, under the matching of which it is smallest.
      misclassified: (n,) the rows of these samples, rising.
      table: (K, C) how many samples of each cluster belong to each class.
      clusters: (K,) the different labels, in order.
      classes: (C,) the different classes, in order.
      matched: (K,) which of the classes a cluster stands for; −1 for a cluster that is left over.
    """

    error_rate: float
    misclassified: Host
    table: Host
    clusters: Host
    classes: Host
    matched: Host

    def __repr__(self) -> str:
        """What one wants to see at a prompt: the table."""
        return as_text(self._table())

    def _repr_html_(self) -> str:
        return as_html(self._table(), "clusters and classes")

    def _table(self) -> Table:
        names = [str(c) for c in self.classes]
        rows = [
            (str(cluster), *map(str, counts), names[m] if m >= 0 else "none")
            for cluster, counts, m in zip(self.clusters, self.table.tolist(), self.matched, strict=True)
        ]
        n = int(self.table.sum())
        note = f"{len(self.misclassified)} of {n} misclassified, {100 * self.error_rate:.1f} %"
        return Table(("cluster", *names, "stands for"), tuple(rows), note)


def class_error(labels: ArrayLike, truth: Any) -> ClassError:
    """The misclassified samples and the error rate of a clustering whose classes are known.

    The numbers of clusters mean nothing: each cluster stands for one class, and each class for at most one
    cluster, in the way that has the fewest errors (an assignment problem). Samples of clusters that are left
    over, where there are more clusters than classes, are misclassified.

    Args:
      labels: (N,) the cluster of each sample, as `predict` gives it.
      truth: (N,) the class of each, as numbers or words.

    Returns:
      A `ClassError`.

    Raises:
      ValueError: for no samples, or of different numbers.
      TypeError: for traced labels.

    Example:
      >>> from jaxgmm.selection import class_error
      >>> found = class_error([1, 1, 0, 0, 0], ["a", "a", "b", "b", "a"])
      >>> found.error_rate, found.misclassified.tolist()
      (0.2, [4])
      >>> print(found)
      cluster  a  b  stands for
      ─────────────────────────
      0        1  2           b
      1        2  0           a
      1 of 5 misclassified, 20.0 %
    """
    if isinstance(labels, jax.core.Tracer) or isinstance(truth, jax.core.Tracer):
        raise TypeError("class_error needs concrete labels; call it outside of jit")
    given, known = np.asarray(labels), np.asarray(truth)
    if given.ndim != 1 or given.shape != known.shape or not given.size:
        raise ValueError(
            f"labels and truth must have the same shape (N,), N > 0; got {given.shape} and {known.shape}"
        )
    clusters, row = np.unique(given, return_inverse=True)
    classes, column = np.unique(known, return_inverse=True)
    table = np.zeros((len(clusters), len(classes)), int)
    np.add.at(table, (row, column), 1)
    matched = np.full(len(clusters), -1)
    some, theirs = _best(table)
    matched[some] = theirs
    wrong = matched[row] != column
    return ClassError(float(wrong.mean()), np.flatnonzero(wrong), table, clusters, classes, matched)


def _best(table: Host) -> tuple[Host, Host]:
    """The rows and columns of the assignment with the largest sum."""
    from optax.assignment import hungarian_algorithm  # a second to import, and little else needs it

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        # As one program: it would be some dozens.
        rows, columns = jax.jit(hungarian_algorithm)(np.float32(table.max()) - table.astype(np.float32))
    return np.asarray(rows), np.asarray(columns)
