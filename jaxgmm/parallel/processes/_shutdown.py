"""Coordinated shutdown: every process ends, with an error message, when one of them fails or is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import jax

from jaxgmm.outofcore._host_driver import Interruption
from jaxgmm.parallel.processes import _collectives as collectives
from jaxgmm.parallel.processes._collectives import LostProcessError, ProcessError

EXIT_FAILED = 2
EXIT_STOPPED = 128 + signal.SIGTERM
_GRACE = 10.0  # seconds that a process which has failed waits for the others to hear of it


class Stopped(SystemExit):
    """A fit was stopped by SIGTERM, its state kept; ends a program with status 143."""

    def __init__(self, message: str, *, agreed: bool = False) -> None:
        super().__init__(EXIT_STOPPED)
        self.message = message
        self.agreed = agreed  # whether it is raised in every process

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block after which either every process goes on or every process has ended.

    To be entered before `initialize`. Without it, an exception on one process leaves the others waiting until
    they time out, because JAX has every process wait for all when it ends. Here an exception is written to
    stderr, told to the others, and the process ends at once with status 2, as they do; nothing of the program
    after the block is run. SIGTERM to any of them has `fit_distributed` keep its state and end all of them
    with status 143; elsewhere in the block it ends the process. A second SIGTERM ends it in any case.

    Example:
      >>> import jaxgmm.parallel.processes
      >>> with jaxgmm.parallel.processes.together():
      ...     pass  # initialize(...), then fit_distributed(...)
    """
    with _on_sigterm():
        try:
            yield
        except BaseException as error:
            if not _joined():
                raise
            _leave(error)


def _joined() -> bool:
    asked = getattr(jax.distributed, "is_initialized", None)
    return bool(asked()) if asked is not None else jax.process_count() > 1


@contextlib.contextmanager
def _on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def told(number: int, frame: FrameType | None) -> None:
        if collectives.signal.asked:
            os._exit(EXIT_STOPPED)
        if not collectives.signal.listening:
            raise Stopped("stopped by SIGTERM")
        collectives.signal.asked = True

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        collectives.signal.asked = collectives.signal.answered = False


def _leave(error: BaseException) -> NoReturn:
    """End this process without waiting for the others, once they know."""
    code, known = EXIT_FAILED, isinstance(error, ProcessError | LostProcessError | Interruption)
    if isinstance(error, Stopped):
        code, known = EXIT_STOPPED, error.agreed
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    with contextlib.suppress(OSError, ValueError):
        if known or isinstance(error, Stopped):
            sys.stderr.write(f"jaxgmm: {' '.join((str(error) or 'stopped').split())}\n")
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
    said = collectives.describe(error)

    def tell() -> None:
        with contextlib.suppress(BaseException):
            if not known:
                with contextlib.suppress(ProcessError, Interruption):
                    collectives.agree(said)
            collectives.agree()

    # The others end as soon as process 0 does, whatever they are about to say: it hears from them first. What
    # they are told may never reach them, and is not waited for longer than this.
    if isinstance(error, LostProcessError):
        time.sleep(1.0)
    else:
        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        thread.join(_GRACE)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
