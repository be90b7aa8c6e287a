"""Atomic writes: a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that appears at ``path`` only when the block ends without an error.

    What is written goes to a temporary file in the same directory, which is flushed to disk and then renamed.
    On any exception, KeyboardInterrupt included, the temporary file is removed and ``path`` is as it was. A
    symbolic link is followed, and a file that is replaced hands on its permissions.

    Args:
      path: the file to write. A directory or a device is refused.

    Yields:
      A binary stream.

    Example:
      >>> import os, tempfile
      >>> from jaxgmm.io import atomic_write
      >>> path = os.path.join(tempfile.mkdtemp(), "note.txt")
      >>> with atomic_write(path) as stream:
      ...     _ = stream.write(b"done")
    """
    target = os.path.realpath(path)
    exists = os.path.exists(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{os.fspath(path)} is a directory")
    if exists and not os.path.isfile(target):
        raise ValueError(f"{os.fspath(path)} is not a regular file, so it cannot be replaced")
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".jaxgmm-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if exists:
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The new name must survive a power cut as well; not every file system lets a directory be flushed.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
