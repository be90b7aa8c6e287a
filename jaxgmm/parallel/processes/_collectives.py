"""Collectives: bytes and errors exchanged among processes.

Every exchange begins with headers, always of one size, so that a process that has come to harm can take part
in the next one, whatever that is about, and all of them learn of it before anyone waits for numbers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgmm.outofcore._host_driver import Interruption
from jaxgmm.parallel._shard_program import shard_map

T = TypeVar("T")

_HEADER = 2048
_AT_ONCE = 1 << 16  # numbers of all processes together that may go to everyone
_WELL, _FAILED, _STOP = 0, 1, 2


class ProcessError(RuntimeError):
    """What went wrong on one of the processes, raised on all of them."""


class LostProcessError(RuntimeError):
    """Another process has ended, or cannot be reached, in the middle of a run."""


class _Signal:
    asked = False  # to stop, by SIGTERM
    answered = False  # the others know
    listening = False  # a fit is under way that will look


signal = _Signal()


class _Lines(NamedTuple):
    """One device of each process, in the processes' order."""

    rows: NamedSharding  # an array with a row of each process
    own: Any  # this one's device
    everywhere: Callable[[jax.Array], jax.Array]  # (P, n) -> all of it on every process
    across: Callable[[jax.Array], jax.Array]  # (P, P, n) -> transposed: what each process has for this one


@functools.cache
def _lines() -> _Lines:
    first: dict[int, Any] = {}
    for device in jax.devices():
        known = first.setdefault(device.process_index, device)
        first[device.process_index] = min(known, device, key=lambda d: d.id)
    mesh = Mesh(np.asarray([first[i] for i in sorted(first)]), ("processes",))
    rows = NamedSharding(mesh, PartitionSpec("processes"))

    def turned(a: jax.Array) -> jax.Array:
        return lax.all_to_all(a, "processes", split_axis=1, concat_axis=0, tiled=True).swapaxes(0, 1)

    across = shard_map(turned, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec)
    everywhere = jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return _Lines(rows, first[jax.process_index()], everywhere, jax.jit(across))


def _sent(program: Callable[[jax.Array], jax.Array], own: np.ndarray) -> np.ndarray:
    """What a program of `_lines` gives here, where every process puts an array of one shape into it."""
    lines = _lines()
    mine = jax.device_put(own[None], lines.own)
    shape = (jax.process_count(), *own.shape)
    try:
        shared = program(jax.make_array_from_single_device_arrays(shape, lines.rows, [mine]))
        return np.asarray(shared.addressable_data(0))
    except (RuntimeError, ValueError) as error:  # which of them depends on whether JAX has run it before
        raise LostProcessError(
            "another process has ended or cannot be reached; what it wrote last says why. Once that is put "
            "right, start all of them again: a fit with a checkpoint goes on from it. "
            f"({describe(error)[:300]})"
        ) from None


def gather(own: bytes) -> list[bytes]:
    """The bytes of every process, in the processes' order; as many on each of them."""
    if jax.process_count() == 1:
        return [own]
    return [row.tobytes() for row in _sent(_lines().everywhere, np.frombuffer(own, np.uint8))]


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


def agree(problem: str | None = None, *, stop: bool = False) -> None:
    """Tell the others that all is well here, or what is not, and hear the same of them.

    Raises:
      ProcessError: something went wrong on one of them; the same words on all.
      Interruption: one of them was asked to stop.
    """
    kind = _FAILED if problem is not None else _STOP if stop else _WELL
    text = (problem or "").encode()[: _HEADER - 1]
    headers = gather(bytes([kind]) + text.ljust(_HEADER - 1, b"\0"))
    kinds = [header[0] for header in headers]
    if _FAILED in kinds:
        process = kinds.index(_FAILED)
        said = headers[process][1:].rstrip(b"\0").decode(errors="replace")
        raise ProcessError(f"process {process} of {len(headers)}: {said}")
    if _STOP in kinds:
        raise Interruption


def agreed(local: Callable[[], T]) -> T:
    """What a function returns here, once it has returned everywhere.

    Raises:
      ProcessError: it has raised on one of the processes.
      Interruption: one of them was asked to stop.
    """
    try:
        value = local()
    except Interruption:
        agree(stop=True)
        raise
    except Exception as error:
        try:
            agree(describe(error))
        except ProcessError as same:
            raise same from error
        raise
    agree(stop=signal.asked and not signal.answered)
    return value


def digest(*values: Any) -> bytes:
    """A short name for bytes and the arrays of trees: two of them are alike if their names are."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(values):
        found.update(leaf if isinstance(leaf, bytes) else np.asarray(leaf).tobytes())
    return found.digest()


def same(what: bytes, message: str) -> None:
    """Raise on every process unless all of them have the same bytes."""
    if len(set(gather(what))) > 1:
        raise ProcessError(message)


def sum_floats(own: np.ndarray, mark: bytes, message: str) -> np.ndarray:
    """The sum of the processes' float64 (n,), added in their order: the same bits on all of them, every time.

    Where the numbers are many, each process adds up one part of all of them, so that each sends and keeps
    twice n numbers, however many processes there are.

    Raises:
      ProcessError: with the message, on all of them, unless all have the same mark of eight bytes.
    """
    n_processes = jax.process_count()
    divided = n_processes > 1 and own.size * n_processes > _AT_ONCE
    size = -(-own.size // n_processes) if divided else own.size
    n_parts = n_processes if divided else 1
    parts = np.empty((n_parts, 1 + size))
    parts[:, 0] = np.frombuffer(mark, np.float64)
    parts[:, 1:] = np.pad(own, (0, size * n_parts - own.size)).reshape(n_parts, size)
    if divided:
        mine = _sent(_lines().across, parts.view(np.uint8))[0].view(np.float64)
    else:
        mine = np.stack(gather_floats(parts[0]))
    if len({row.tobytes() for row in mine[:, :1]}) > 1:
        raise ProcessError(message)
    total = functools.reduce(np.add, mine[1:, 1:], mine[0, 1:])
    return np.concatenate(gather_floats(total))[: own.size] if divided else total


def gather_floats(own: np.ndarray) -> list[np.ndarray]:
    """Arrays of float64, of one shape on every process, in the processes' order."""
    a = np.ascontiguousarray(own, np.float64)
    return [np.frombuffer(b, np.float64).reshape(a.shape) for b in gather(a.tobytes())]
