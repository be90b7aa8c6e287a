"""Spark engine: partitions of a data frame, as Arrow batches."""

from __future__ import annotations

import functools
import itertools
import operator
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxgmm.parallel.engines import _blocks as blocks
from jaxgmm.parallel.engines._blocks import Outcome


def _gathered(batches: Iterator[Any], weighted: bool) -> Iterator[tuple[Any, Any]]:
    """Blocks of whole batches, long enough to be worth a call each; a null is NaN."""
    held: list[np.ndarray] = []
    for batch in itertools.chain(batches, [None]):
        if batch is not None and batch.num_rows:
            held.append(np.column_stack([c.to_numpy(zero_copy_only=False) for c in batch.columns]))
        if held and (batch is None or sum(map(len, held)) >= blocks.ROWS):
            rows, held = np.concatenate(held), []
            yield (rows[:, :-1], np.ascontiguousarray(rows[:, -1])) if weighted else (rows, None)


def _partition() -> int:
    from pyspark import TaskContext

    context = TaskContext.get()
    return 0 if context is None else int(context.partitionId())


def _sum(
    function: Callable[..., Any], broadcast: tuple[Any, ...], pairs: Iterator[tuple[Any, Any]]
) -> Outcome:
    """What a task makes of the blocks of its partition."""
    blocks.use_one_thread()
    part = _partition()
    return blocks.over(function, pairs, broadcast, part, f"partition {part}")


def _table(name: str, make: Callable[[Iterator[Any]], Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A function for mapInArrow: of what is made of a partition's batches each object is a row, as bytes."""

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow

        for made in make(batches):
            row = pyarrow.array([pickle.dumps(made, protocol=5)], pyarrow.binary())
            yield pyarrow.record_batch([row], names=[name])

    return run


def _unpacked(
    function: Callable[..., Any], broadcast: tuple[Any, ...], rows: Iterator[Any]
) -> Iterator[Outcome]:
    yield _sum(function, broadcast, (pickle.loads(row) for row in rows))


class SparkEngine:
    """An engine of a Spark data frame (extra `spark`): one row of sums for each partition and EM step.

    Rows never leave their partition. The first pass turns each partition into arrays (`mapInArrow`), which
    Spark keeps, in memory or where that is short on disk, until `close()` or the end of a `with` block; so
    the data frame itself need not be cached. The sums of the partitions are added by the driver, in the
    partitions' order. A task that Spark runs again gives the same bits; a partition that it has to make again
    does so if it then holds the same rows in the same order, as those of files do. jaxgmm must be installed
    where the workers run. How often a task is tried is Spark's `spark.task.maxFailures`; in local mode it is
    once, unless the master is such as `local[2,4]`.

    Args:
      dataframe: a `pyspark.sql.DataFrame`.
      columns: those to fit, in the order of the features; None for all but the weights.
      weight_column: the column that holds the sample weights, or None for ones.
      keep: False to read the data frame anew in every step instead; that is slower, and all that Spark
        Connect can do.

    Raises:
      ImportError: where PySpark or PyArrow is not installed.
      TypeError, ValueError: for what is not a data frame, or columns that it does not have or that are not
        numbers.

    Example:
      With a session, `fit_engine(start, SparkEngine(spark.read.parquet("data/").cache(), ["x", "y"]))`.
    """

    def __init__(
        self,
        dataframe: Any,
        columns: Sequence[str] | None = None,
        weight_column: str | None = None,
        *,
        keep: bool = True,
    ) -> None:
        try:
            import pyarrow  # noqa: F401 - only to see that it is there
            import pyspark  # noqa: F401 - likewise
        except ModuleNotFoundError as error:
            raise ImportError(f"SparkEngine needs {error.name}: pip install 'jaxgmm[spark]'") from error
        if not hasattr(dataframe, "mapInArrow"):
            raise TypeError(f"dataframe must be a pyspark.sql.DataFrame; got {type(dataframe).__name__}")
        weights = [] if weight_column is None else [weight_column]
        wanted = blocks.named(list(dataframe.columns), columns, weights)
        if not wanted:
            raise ValueError("columns must name at least one feature; got none")
        types = dict(dataframe.dtypes)
        numeric = ("tinyint", "smallint", "int", "bigint", "float", "double")
        other = [c for c in [*wanted, *weights] if types[c] not in numeric]
        if other:
            raise ValueError(
                f"column {other[0]!r} holds {types[other[0]]}; cast it to double, or leave it out"
            )
        self._weighted = weight_column is not None
        self._source = dataframe
        from pyspark.sql.functions import col

        # A name may have a dot in it, which mapInArrow does not know what to make of.
        quoted = ["`" + c.replace("`", "``") + "`" for c in [*wanted, *weights]]
        self._frame = dataframe.select(*(col(c).alias(f"c{j}") for j, c in enumerate(quoted)))

        self._keep = keep
        self._kept: Any = None

    def map_reduce(self, function: Callable[..., Any], *broadcast: Any) -> Any:
        """As `Engine.map_reduce`."""
        weighted = self._weighted
        if self._keep:
            if self._kept is None:
                from pyspark import StorageLevel

                pack = _table("block", lambda batches: _gathered(batches, weighted))
                packed = self._frame.mapInArrow(pack, "block binary").rdd.map(operator.itemgetter(0))
                self._kept = packed.persist(StorageLevel.MEMORY_AND_DISK)
            # Not through SQL, whose planner takes longer over a step than the step does.
            outcomes = self._kept.mapPartitions(functools.partial(_unpacked, function, broadcast)).collect()
        else:
            mapped = _table("sums", lambda b: iter([_sum(function, broadcast, _gathered(b, weighted))]))
            rows = self._frame.mapInArrow(mapped, "sums binary").collect()
            outcomes = [pickle.loads(row[0]) for row in rows]
        outcome = functools.reduce(operator.add, outcomes, Outcome())
        if outcome.problem is not None:
            raise ValueError(f"{self._file(*outcome.place) if outcome.place else ''}{outcome.problem}")
        return outcome.total

    def close(self) -> None:
        """Have Spark forget the arrays that it keeps; they are made again if they are needed again."""
        if self._kept is not None:
            self._kept.unpersist()
            self._kept = None

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, part: int, row: int | None) -> str:
        """The file that a row of a partition comes from, in words, where Spark knows one."""
        from pyspark.sql import functions

        at = 0 if row is None else row

        def find(batches: Iterator[Any]) -> Iterator[Any]:
            import pyarrow

            seen = 0
            for batch in batches:
                if _partition() == part and seen <= at < seen + batch.num_rows:
                    yield pyarrow.record_batch([batch.column(0).slice(at - seen, 1)], names=["file"])
                seen += batch.num_rows

        found = self._source.select(functions.input_file_name()).mapInArrow(find, "file string").collect()
        return f"{found[0][0]}, in " if found and found[0][0] else ""
