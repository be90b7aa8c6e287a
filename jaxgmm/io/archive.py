"""Array archives: zips of npy members that ``numpy.load`` opens too, and a reader that trusts nothing.

Nothing is pickled, and nothing in a file is evaluated. Members are stored uncompressed, so a file can never
unpack to more than its own size, and a reader can refuse one that claims to before it allocates anything.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, Any]

FORMAT_VERSION = 1

_MAX_MEMBERS = 64
_MAX_HEADER = 512
_KINDS = ("<f4", "<f8", "<i8", "|b1", "<U")
# What zipfile raises of bytes that are no archive.
_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, struct.error)
# The header that numpy writes, and no other.
_HEADER = re.compile(
    r"\{'descr': '([<|][a-zA-Z])(\d{1,9})', 'fortran_order': False, "
    r"'shape': \(((?:\d{1,18}(?:, ?|(?=\))))*)\), \} *\n"
)


def write_arrays(stream: BinaryIO, members: dict[str, Array]) -> None:
    """Write arrays of numbers, truth values or text, and the format's version. Same arrays, same bytes."""
    members = {"format_version": np.asarray(FORMAT_VERSION, np.int64), **members}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # A fixed date, because the clock is no part of a model.
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            with archive.open(info, "w", force_zip64=little.nbytes > 2**30) as member:
                np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)


def read_arrays(
    path: str | os.PathLike[str], accept: Callable[[set[str]], str | None], what: str = "model"
) -> dict[str, Array]:
    """Read what `write_arrays` wrote.

    Args:
      path: the file.
      accept: given the members' names, says what is wrong with them, or None. It is asked before any is read.
      what: what the file is to hold, for the messages.

    Raises:
      OSError: as `open` does.
      ValueError: the file is damaged, newer, or not of this format; the message names the file and the fault.
    """
    name = os.fspath(path)
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name}: not a regular file")
    with open(path, "rb") as stream:
        try:
            return _members(stream, os.fstat(stream.fileno()).st_size, accept, what)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        except _DAMAGED as error:
            said = error or type(error).__name__
            raise ValueError(f"{name}: damaged, or not a jaxgmm {what}: {said}") from None


def _members(
    stream: BinaryIO, size: int, accept: Callable[[set[str]], str | None], what: str
) -> dict[str, Array]:
    with zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(infos) > _MAX_MEMBERS or len(set(names)) != len(names):
            raise ValueError(f"not a jaxgmm {what}: too many members, or one name twice")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
            raise ValueError(
                f"not a jaxgmm {what}: its members are compressed or encrypted, not stored plain"
            )
        if sum(info.file_size for info in infos) > size:
            raise ValueError("damaged: its directory claims more than the file holds")
        if "format_version.npy" not in names:
            raise ValueError(f"not a jaxgmm {what}: it has no format_version")
        version = _array(archive, archive.getinfo("format_version.npy"))
        if version.dtype != np.dtype("<i8") or version.shape != () or version < 1:
            raise ValueError("damaged: its format_version is not a positive integer")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"written by a newer jaxgmm: its format is version {version}, and this one reads up to "
                f"{FORMAT_VERSION}; upgrade with pip install --upgrade jaxgmm"
            )
        stems = [member.removesuffix(".npy") if member.endswith(".npy") else "" for member in names]
        problem = accept(set(stems) - {"format_version"})
        if problem is not None:
            raise ValueError(f"not a jaxgmm {what}: {problem}")
        return {stem: _array(archive, info) for stem, info in zip(stems, infos, strict=True)}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One member, whose bytes must be as many as its header says; reads no more than `info.file_size`."""
    with archive.open(info) as member:
        content = member.read(info.file_size + 1)
    if len(content) != info.file_size or content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"damaged: {info.filename} is truncated, or not an array")
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _HEADER.fullmatch(content[10:start].decode("latin-1")) if start <= 10 + _MAX_HEADER else None
    kind = "" if header is None else header[1] if header[1] == "<U" else header[1] + header[2]
    if header is None or kind not in _KINDS:
        raise ValueError(f"damaged: {info.filename} does not hold plain numbers or text")
    shape = tuple(int(axis) for axis in header[3].replace(",", " ").split())
    itemsize = int(header[2]) * (4 if kind == "<U" else 1)
    if len(shape) > 32 or itemsize == 0 or math.prod(shape) * itemsize != len(content) - start:
        held = f"{len(content) - start} bytes, which are no array of shape {shape}"
        raise ValueError(f"damaged: {info.filename} holds {held}")
    if kind == "<U" and (np.frombuffer(content, "<u4", offset=start) > 0x10FFFF).any():
        raise ValueError(f"damaged: {info.filename} holds text that is not Unicode")
    return np.frombuffer(content, header[1] + header[2], offset=start).reshape(shape)
