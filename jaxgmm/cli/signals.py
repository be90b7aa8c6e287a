"""Signal handling: Ctrl-C and SIGTERM during a fit.

An exception in a signal handler is raised wherever the main thread happens to be. Inside `threading` it can
come out as another exception, and inside a finaliser as none at all: so what was received is kept, too.
"""

from __future__ import annotations

import signal

_received: list[int] = []


def listen() -> None:
    """Raise SystemExit on Ctrl-C, if that is not ignored, and on SIGTERM."""
    _received.clear()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _receive)
    signal.signal(signal.SIGTERM, _receive)


def _receive(number: int, _frame: object) -> None:
    _received.append(number)
    check()


def check() -> None:
    """Raise what a signal has asked for, if there was one."""
    if _received:
        # An exception, so that a temporary file is removed on the way out.
        raise SystemExit(128 + _received[0])


def answer() -> tuple[int, str] | None:
    """The status, and what to say, of a process that a signal has ended; None where none has."""
    if not _received:
        return None
    return 128 + _received[0], "interrupted" if _received[0] == signal.SIGINT else ""
