"""Prefetching: a thread fills chunks of one fixed shape while the device works on those before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxgmm.outofcore._source import Source, known_of

_DEPTH = 3  # one that is worked on, one that waits, one that is being filled
_PATIENCE = 10.0  # seconds that a source may take to give the next rows after nobody wants them any more
_ALIGNMENT = 64  # bytes: JAX takes an array that is so aligned as it is, without a copy


class Chunk(NamedTuple):
    """Rows to work on at once; those from `n` on do not count, and have weight 0."""

    x: np.ndarray  # (C, D), or (C, E) with projections
    w: np.ndarray  # (C,)
    n: int
    places: list[tuple[int, str, int]]  # first row here, part, and first row there
    known: dict[str, np.ndarray]  # what else is known of the rows, fields of `Data`

    def place(self, row: int) -> tuple[str, int]:
        """The part that a row of the chunk comes from, and its number there."""
        at, part, first = [p for p in self.places if p[0] <= row][-1]
        return part, first + row - at


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class _Buffers(NamedTuple):
    """The memory of a chunk."""

    x: np.ndarray
    w: np.ndarray
    known: dict[str, np.ndarray]


class ReadAhead:
    """The rows of a source as chunks of C rows, the last one filled up; to be used in a `with` statement.

    What goes wrong in the thread is raised here. When the `with` statement ends the thread ends too.

    Args:
      source: the rows.
      rows: C.
      dtype: of the chunks, to which the source's numbers are converted.
    """

    def __init__(self, source: Source, rows: int, dtype: np.dtype) -> None:
        self._source, self._rows = source, rows
        self._free: queue.SimpleQueue[_Buffers | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        shapes = known_of(source)
        width = shapes["projection"][0] if "projection" in shapes else source.n_features
        kinds = {name: np.dtype(np.int32) if name == "label" else dtype for name in shapes}
        for _ in range(_DEPTH):
            known = {name: _aligned((rows, *shape), kinds[name]) for name, shape in shapes.items()}
            self._free.put(_Buffers(_aligned((rows, width), dtype), _aligned((rows,), dtype), known))
        self._thread = threading.Thread(target=self._run, name="jaxgmm-read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._free.put(None)
        self._thread.join(_PATIENCE)

    def __iter__(self) -> Iterator[Chunk]:
        while (given := self._full.get()) is not None:
            if isinstance(given, BaseException):
                raise given
            yield given

    def release(self, chunk: Chunk) -> None:
        """Say that a chunk is done with, so that its memory may be filled again."""
        self._free.put(_Buffers(chunk.x, chunk.w, chunk.known))

    def _run(self) -> None:
        try:
            self._read()
            self._full.put(None)
        except BaseException as error:
            self._full.put(error)

    def _read(self) -> None:
        buffers: _Buffers | None = None
        n = 0
        places: list[tuple[int, str, int]] = []
        for piece in self._source.chunks(self._rows):
            taken = 0
            while taken < len(piece.rows):
                if buffers is None:
                    buffers, n, places = self._free.get(), 0, []
                if buffers is None or self._stop.is_set():
                    return
                x, w, known = buffers
                step = min(len(piece.rows) - taken, self._rows - n)
                # What does not fit the dtype becomes infinite, and is then reported with its place.
                with np.errstate(over="ignore"):
                    x[n : n + step] = piece.rows[taken : taken + step]
                    w[n : n + step] = 1 if piece.weight is None else piece.weight[taken : taken + step]
                    for name, a in known.items():
                        a[n : n + step] = piece.known[name][taken : taken + step]
                places.append((n, piece.part, piece.first + taken))
                n, taken = n + step, taken + step
                if n == self._rows:
                    self._full.put(Chunk(x, w, n, places, known))
                    buffers = None
        if buffers is not None:
            x, w, known = buffers
            x[n:], w[n:] = 0, 0
            for a in known.values():
                a[n:] = a[n - 1]  # what is right for a row
            self._full.put(Chunk(x, w, n, places, known))
