"""Local engine: blocks in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgmm import _validate as validate
from jaxgmm.parallel.engines._blocks import over, value_of


class LocalEngine:
    """An engine of arrays in memory, or of memory maps, in turn or by a few threads.

    Args:
      parts: arrays (n_i, D), each one block.
      weights: for each part its weights (n_i,), or None for ones.
      threads: how many parts are worked on at once; the sums are added in the parts' order all the same.

    Raises:
      ValueError, TypeError: for no parts, or weights that are not as many.

    Example:
      >>> import numpy as np
      >>> from jaxgmm.parallel.engines import LocalEngine
      >>> engine = LocalEngine([np.ones((3, 2)), np.ones((4, 2))])
      >>> engine.map_reduce(lambda X, weights: len(X))
      7
    """

    def __init__(
        self, parts: Sequence[Any], weights: Sequence[Any] | None = None, *, threads: int = 1
    ) -> None:
        self.parts = list(parts)
        if not self.parts:
            raise ValueError("parts must hold at least one array; got none")
        self.weights = [None] * len(self.parts) if weights is None else list(weights)
        if len(self.weights) != len(self.parts):
            n, got = len(self.parts), len(self.weights)
            raise ValueError(f"weights must hold one array for each of the {n} parts; got {got}")
        self.threads = validate.count(threads, "threads", 1)

    def map_reduce(self, function: Callable[..., Any], *broadcast: Any) -> Any:
        """As `Engine.map_reduce`."""

        def one(part: int) -> Any:
            block = self.parts[part], self.weights[part]
            return over(function, [block], broadcast, part, f"part {part}")

        numbers = range(len(self.parts))
        if self.threads == 1:
            outcomes = [one(part) for part in numbers]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                outcomes = list(pool.map(one, numbers))
        return value_of(outcomes)
