"""Streaming statistics: passes over a source, in memory that does not grow."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm import _validate as validate
from jaxgmm.components.base import Component
from jaxgmm.data import Context, Data
from jaxgmm.density import check_component
from jaxgmm.kernels import quadratic, trimmed
from jaxgmm.kernels.base import Kernel, Statistics
from jaxgmm.kernels.exact import WHITENED
from jaxgmm.kernels.kept_share import ordered
from jaxgmm.kernels.observed import rows_for
from jaxgmm.kernels.programs import jit
from jaxgmm.mixture import GMMParams
from jaxgmm.outofcore._data_summary import DataSummary
from jaxgmm.outofcore._prefetch import Chunk, ReadAhead
from jaxgmm.outofcore._source import KNOWN, Arrays, Source, known_of

_BYTES = {"cpu": 1 << 23}  # of a chunk
_ACCELERATOR_BYTES = 1 << 26
_TILE = 4096  # rows that are summed together
_VIEWS = ("noise", "projection")  # what a component must have a density for

R = TypeVar("R")
Watch = Callable[[int], Any]  # told how many rows of a pass are done


def chunk_rows(n_samples: int | None, n_features: int, dtype: np.dtype) -> int:
    """Rows that are worked on at once: a power of two, or all there are."""
    numbers = _BYTES.get(jax.default_backend(), _ACCELERATOR_BYTES) // dtype.itemsize
    rows = 1 << max(numbers // n_features, 1).bit_length() - 1
    return rows if n_samples is None else min(rows, n_samples)


def dtype_of(dtype: Any, wide: bool) -> np.dtype:
    """The dtype of a fit: the one that is given, or float32; of wide data, the widest that JAX allows."""
    if dtype is None:
        return np.dtype(jnp.result_type(float) if wide else np.float32)
    if dtype not in (np.float32, np.float64, "float32", "float64", np.dtype("f4"), np.dtype("f8")):
        raise TypeError(f"dtype must be float32, float64 or None; got {dtype!r}")
    if np.dtype(dtype) == np.float64 and jnp.result_type(float) != np.float64:
        raise ValueError("dtype float64 needs 64-bit JAX: jax.config.update('jax_enable_x64', True)")
    return np.dtype(dtype)


def rows_of(source: Source, n_features: int, dtype: np.dtype, chunk_size: Any) -> int:
    """Rows of a chunk, of a source with the features of a mixture: as a user wants them, or `chunk_rows`."""
    if source.n_features != n_features:
        names = "" if source.columns is None else f": {', '.join(source.columns)}"
        got = f"{source.n_features}{names}"
        raise ValueError(f"source must have the {n_features} features of params; it has {got}")
    if chunk_size is not None:
        return validate.count(chunk_size, "chunk_size", 1)
    return chunk_rows(source.n_samples, n_features, dtype)


def check_known(source: Source, component: Component, n_components: int, missing: bool) -> bool:
    """Whether rows have gaps, noise, projections or labels; raise where they do not fit the components."""
    known = known_of(source)
    check_component(component, *(["missing"] if missing else []), *(w for w in _VIEWS if w in known))
    columns = known.get("log_prior", (n_components,))
    if columns != (n_components,):
        raise ValueError(
            f"log_prior must have a column for each of {n_components} components; got {columns[0]}"
        )
    return missing or bool(known)


def refuse_known(source: Source, what: str) -> None:
    """Raise where a source gives more than rows and weights, of which `what` knows nothing."""
    given = [KNOWN[name] for name in known_of(source)]
    if isinstance(source, Arrays) and source.gaps:
        given.insert(0, "missing entries")
    if given:
        words = " and ".join(given)
        raise ValueError(f"rows with {words} are not for {what}; use fit_stream")


def summarise(
    source: Source, rows: int, dtype: np.dtype, *, covariance: bool = False, watch: Watch | None = None,
    missing: bool = False, n_components: int | None = None,
) -> DataSummary:  # fmt: skip
    """The first pass: what `DataSummary` holds, with every row and weight checked.

    Raises:
      ValueError: for a number that is not finite in `dtype`, a negative weight, or a label that is not below
        `n_components`, with part, row and column; for weights that are zero everywhere.
    """
    total: DataSummary | None = None
    done, projected = 0, "projection" in known_of(source)
    with ReadAhead(source, rows, dtype) as chunks:
        for chunk in chunks:
            for start in range(0, chunk.n, _TILE):
                x, w = (a[: chunk.n][start : start + _TILE] for a in (chunk.x, chunk.w))
                fine = (~np.isinf(x) if missing else np.isfinite(x)).all()
                if not (fine and np.isfinite(w).all() and (w >= 0).all()):
                    check(chunk, source, missing)
                if projected:
                    one = DataSummary.unknown(x, w, source.n_features, missing=missing)
                else:
                    one = DataSummary.of(x, w, covariance=covariance, missing=missing)
                total = one if total is None else total + one
            if n_components is not None and "label" in chunk.known:
                label = chunk.known["label"][: chunk.n]
                if label.max() >= n_components:
                    part, at = chunk.place(int(label.argmax()))
                    said = f"labels must be below n_components = {n_components}; got {label.max()}"
                    raise ValueError(f"{part}, row {at}: {said}")
            done += chunk.n
            chunks.release(chunk)
            if watch is not None:
                watch(done)
    if total is None:
        raise ValueError("source must give at least one row; it gave none")
    if not total.total_weight > 0:
        raise ValueError("the sample weights must not be zero everywhere: no sample would be left")
    return total


def check(chunk: Chunk, source: Source, missing: bool = False) -> None:
    """Raise where a row of a chunk is not finite, or its weight is not finite or negative."""
    x, w = chunk.x[: chunk.n], chunk.w[: chunk.n]
    bad = np.isinf(x) if missing else ~np.isfinite(x)
    heavy = ~(np.isfinite(w) & (w >= 0))
    if not bad.any() and not heavy.any():
        return
    row = int(np.argmax(bad.any(1) | heavy))
    part, at = chunk.place(row)
    if heavy[row]:
        said = f"sample weights must be finite and not negative; got {w[row]}. A weight of 0 leaves a row out"
        raise ValueError(f"{part}, row {at}: {said}")
    column = int(np.argmax(bad[row]))
    name = repr(source.columns[column]) if source.columns else column
    gaps = source.columns or (isinstance(source, Arrays) and source.of_data)
    absent = ", as a missing value is (missing='nan')" if gaps and np.isnan(x[row, column]) else ""
    raise ValueError(
        f"{part}, row {at}, column {name}: must be finite in {x.dtype}; got {x[row, column]}{absent}. Drop "
        "or impute such rows, or scale the data, before the fit"
    )


@functools.partial(jit, static_argnames=("kernel", "block_size"))
def _statistics(
    params: GMMParams, data: Data, shift: Array, prepared: Any, share: Array, kernel: Kernel, block_size: int
) -> Statistics:
    part = None if prepared is None else quadratic.part(prepared, share)
    return kernel.sums(params, data, shift, part, block_size)


_log_densities = jit(trimmed.log_densities, static_argnames="block_size")
_DIGIT = 16  # bits of a log-density that one pass tells apart


class Passes:
    """The moments of all rows of a source, or of the rows of each chunk.

    Args:
      source: the rows.
      summary: what the first pass has found; a later pass that finds other rows raises.
      rows: of a chunk.
      dtype: of the chunks.
      watch: told how many rows of a pass are done.
      trim: the weight of the rows of lowest density that moments of all rows leave out, or None.

    NaN are missing entries, if the summary was made so.
    """

    def __init__(
        self, source: Source, summary: DataSummary, rows: int, dtype: np.dtype, watch: Watch | None = None,
        trim: float | None = None,
    ) -> None:  # fmt: skip
        self.source, self.summary, self.rows, self.dtype, self.trim = source, summary, rows, dtype, trim
        self._missing = summary.seen_weight is not None
        self.n_chunks = -(-summary.n_samples // rows)
        self._watch = watch

    def moments(
        self, params: GMMParams, f: Context, kernel: Kernel = WHITENED, prepared: Any = None
    ) -> Statistics:
        """Of all rows about `params`, whose means are relative to `f.shift`.

        Chunks are added in float64 on the host; within a chunk the sum is compensated.
        """
        total: Any = None
        kept = None if self.trim is None else self._threshold(params, f, self.trim)
        for moments in self.each(lambda: params, f, kernel, prepared, kept=kept):
            total = wide(moments) if total is None else jax.tree.map(np.add, total, moments)
        return self.narrow(total)

    def narrow(self, moments: Statistics) -> Statistics:
        """Moments on the host as arrays in the dtype of the chunks."""
        return jax.tree.map(lambda a: jnp.asarray(a, self.dtype), moments)

    def each(
        self, params_of: Callable[[], GMMParams], f: Context, kernel: Kernel = WHITENED, prepared: Any = None,
        ahead: bool = True, kept: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Iterator[Statistics]:  # fmt: skip
        """The moments of one chunk after another, in NumPy arrays.

        Args:
          params_of: what a chunk is to be about; asked after the moments of the chunk before it have been
            taken, unless `ahead`.
          f: the context.
          kernel: how the sums are computed.
          prepared: what the kernel knows of all rows.
          ahead: have the device begin a chunk before the one before it is taken.
          kept: from the log-densities of a chunk's rows, which part of each counts; None for all of it.
        """

        def of(data: Data, share: np.ndarray) -> Statistics:
            params = params_of()
            block = self._block(data, params, kernel)
            if kept is not None:
                log_density = np.asarray(_log_densities(params, data, f.shift, block_size=block))
                weight = np.asarray(data.weight) * kept(log_density)
                data = dataclasses.replace(data, weight=jax.device_put(weight.astype(self.dtype)))
            found: Statistics = _statistics(params, data, f.shift, prepared, share, kernel, block)
            return found

        return self._over(of, ahead)

    def _block(self, data: Data, params: GMMParams, kernel: Kernel = WHITENED) -> int:
        """Rows that are summed together."""
        if not data.is_complete:
            return rows_for(data, params.covariance, params.n_components)
        return kernel.rows(params.component, self.rows, params.n_components, params.n_features, 1)

    def _threshold(self, params: GMMParams, f: Context, trim: float) -> Callable[[np.ndarray], np.ndarray]:
        """Which part of a row is kept, by its log-density: as `kept_shares` has it, of all rows.

        In each pass some bits of the threshold are found from a histogram of the weights; the densities are
        computed anew, by one program, so that they are the same in every pass.
        """
        level, below, at, bits = 0, 0.0, 0.0, 8 * self.dtype.itemsize
        for digit in range(bits - _DIGIT, -1, -_DIGIT):
            counts = np.zeros(1 << _DIGIT)
            for log_density, weight in self._over(
                lambda data, _: (
                    _log_densities(params, data, f.shift, block_size=self._block(data, params)),
                    np.array(data.weight, np.float64),
                )
            ):
                keys = ordered(log_density, np).astype(np.uint64)
                high, low = keys >> np.uint64(digit), np.uint64((1 << _DIGIT) - 1)
                among = high >> np.uint64(_DIGIT) == np.uint64(level)
                counts += np.bincount((high & low)[among].astype(np.int64), weight[among], len(counts))
            before = below + np.cumsum(counts) - counts
            here = int(np.searchsorted(before, trim)) - 1 if trim > 0 else 0  # the last with less before it
            level, below, at = level << _DIGIT | here, float(before[here]), float(counts[here])
        part = min(max((trim - below) / at, 0.0), 1.0) if at > 0 else 0.0

        def kept(log_density: np.ndarray) -> np.ndarray:
            keys, threshold = ordered(log_density, np).astype(np.uint64), np.uint64(level)
            return np.where(keys == threshold, 1 - part, (keys > threshold).astype(np.float64))

        return kept

    def _over(self, of: Callable[[Data, np.ndarray], R], ahead: bool = True) -> Iterator[R]:
        """What a function gives of each chunk and its share of the weight, in NumPy arrays."""
        waiting: deque[tuple[Chunk, R]] = deque()
        done, weight, expected = 0, 0.0, self.summary
        with ReadAhead(self.source, self.rows, self.dtype) as chunks:
            for chunk in chunks:
                done += chunk.n
                own = float(chunk.w[: chunk.n].sum(dtype=np.float64))
                weight += own
                share = np.asarray(own / expected.total_weight, self.dtype)
                waiting.append((chunk, of(self._data(chunk), share)))
                while len(waiting) > ahead:
                    yield self._computed(*waiting.popleft(), chunks)
                if self._watch is not None:
                    self._watch(done)
            while waiting:
                yield self._computed(*waiting.popleft(), chunks)
        if done != expected.n_samples or abs(weight / expected.total_weight - 1) > 1e-9:
            first = f"{expected.n_samples} rows of {expected.total_weight:.9g} in the first"
            now = f"{done} rows of total weight {weight:.9g} in this pass"
            raise ValueError(f"the source gave {now}, and {first}: it must give the same rows each time")

    def _data(self, chunk: Chunk) -> Data:
        """A chunk on the device: rows with gaps say where they are, whether or not this chunk has any."""
        if not self._missing:
            x, w, known = jax.device_put((chunk.x, chunk.w, chunk.known))
            return Data(x, w, **known)
        seen = ~np.isnan(chunk.x)
        x, w, seen, known = jax.device_put((np.where(seen, chunk.x, 0), chunk.w, seen, chunk.known))
        return Data(x, w, seen, **known)

    def _computed(self, chunk: Chunk, found: R, chunks: ReadAhead) -> R:
        host: R = jax.device_get(found)
        if isinstance(host, Statistics) and not np.isfinite(host.log_likelihood):
            check(chunk, self.source, self._missing)
        chunks.release(chunk)
        return host


def wide(moments: Statistics) -> Statistics:
    """The same in float64 on the host."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64), moments)
