"""Dask engine: blocks of an array or partitions of a data frame."""

from __future__ import annotations

import functools
import operator
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from jaxgmm.parallel.engines import _blocks as blocks
from jaxgmm.parallel.engines._blocks import Outcome

_FAN_IN = 8
_PROCESS = secrets.token_hex(8)  # tells this process from the workers that it sends work to


def _block(
    x: Any, w: Any, task: tuple[Callable[..., Any], tuple[Any, ...]], part: int, process: str
) -> Outcome:
    if process != _PROCESS:
        blocks.use_one_thread()
    function, broadcast = task
    x = x.to_numpy() if hasattr(x, "to_numpy") else x
    w = w.to_numpy() if hasattr(w, "to_numpy") else w
    return blocks.over(function, [(x, w)], broadcast, part, f"partition {part}")


def _add(outcomes: list[Outcome]) -> Outcome:
    return functools.reduce(operator.add, outcomes)


class DaskEngine:
    """An engine of a Dask array or data frame (extra `dask`).

    Each partition is a task, and sums are added eight at a time by the workers, in the partitions' order.
    What the collection is made of is computed anew in every EM step; if the workers' memory holds it,
    `persist()` it before. A worker that is lost then costs the computation of its partitions: Dask knows how
    they were made. What was scattered to a worker is lost with it, so make collections from files or from
    functions, and not of arrays that lie in the client: these would also be sent anew in every step.

    Args:
      data: an array (N, D) or a data frame.
      columns: of a data frame, those to fit, in the order of the features; None for all but the weights.
      sample_weight: an array (N,) or series with the same partitions, or the name of a data frame's column;
        None for ones.
      client: a `distributed.Client`; None for whatever scheduler Dask is set to.

    Raises:
      ImportError: where Dask is not installed.
      TypeError, ValueError: for other data, columns that are not there, or weights in other partitions.

    Example:
      >>> import pytest; da = pytest.importorskip("dask.array", reason="the extra dask")
      >>> import jaxgmm
      >>> from jaxgmm.parallel.engines import DaskEngine, fit_engine
      >>> X = da.random.default_rng(0).normal(size=(500, 2), chunks=(200, 2)).persist()
      >>> start = jaxgmm.make_params([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], "spherical")
      >>> fit_engine(start, DaskEngine(X), max_iter=3).params.means.shape
      (2, 2)
    """

    def __init__(
        self,
        data: Any,
        columns: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
        client: Any = None,
    ) -> None:
        try:
            import dask.delayed
        except ModuleNotFoundError as error:
            raise ImportError("DaskEngine needs Dask: pip install 'jaxgmm[dask]'") from error
        self._dask: Any = dask
        self._client = client
        if hasattr(data, "npartitions") and hasattr(data, "columns"):
            self._parts = self._frame(data, columns, sample_weight)
        elif hasattr(data, "chunks") and hasattr(data, "to_delayed"):
            if columns is not None:
                raise TypeError("columns are of data frames; take those of an array by data[:, columns]")
            self._parts = self._array(data, sample_weight)
        else:
            raise TypeError(f"data must be a Dask array or data frame; got {type(data).__name__}")

    @staticmethod
    def _frame(data: Any, columns: Any, sample_weight: Any) -> list[tuple[Any, Any]]:
        weight = [sample_weight] if isinstance(sample_weight, str) else []
        wanted = blocks.named(list(data.columns), columns, weight)
        return _paired(data[wanted].to_delayed(), data[sample_weight] if weight else sample_weight)

    @staticmethod
    def _array(data: Any, sample_weight: Any) -> list[tuple[Any, Any]]:
        if data.ndim != 2:
            raise ValueError(f"data must be (N, D); got shape {data.shape}")
        if len(data.chunks[1]) != 1:
            data = data.rechunk({1: -1})
        if sample_weight is not None and getattr(sample_weight, "chunks", None) != data.chunks[:1]:
            raise ValueError(
                "sample_weight must be a Dask array (N,) with the chunks of data's rows; "
                "rechunk it to data.chunks[:1]"
            )
        return _paired(data.to_delayed()[:, 0], sample_weight)

    def map_reduce(self, function: Callable[..., Any], *broadcast: Any) -> Any:
        """As `Engine.map_reduce`."""
        delayed = self._dask.delayed
        task = delayed((function, broadcast), traverse=False)
        block, add = delayed(_block, pure=False), delayed(_add, pure=False)
        level = [block(x, w, task, part, _PROCESS) for part, (x, w) in enumerate(self._parts)]
        while len(level) > 1:
            level = [add(level[i : i + _FAN_IN]) for i in range(0, len(level), _FAN_IN)]
        if self._client is not None:
            return blocks.value_of([self._client.compute(level[0]).result()])
        return blocks.value_of(self._dask.compute(level[0]))


def _paired(parts: Any, sample_weight: Any) -> list[tuple[Any, Any]]:
    """Each partition with its weights, or None."""
    weights = [None] * len(parts) if sample_weight is None else sample_weight.to_delayed()
    if len(parts) != len(weights):
        raise ValueError(
            f"sample_weight must have the partitions of data, {len(parts)}; it has {len(weights)}"
        )
    return list(zip(parts, weights, strict=True))
