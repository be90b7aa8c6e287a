"""Launcher of several processes on this host, for trying out."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_GRACE = 30.0  # seconds that processes have to end by themselves once one of them has


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def launch(arguments: Sequence[str], n_processes: int) -> int:
    """Run `python -m jaxgmm.parallel.processes` with these arguments in several processes.

    SIGTERM and Ctrl-C are passed on. Where one of them fails the others end by themselves; those that have
    not after 30 seconds, one that is stopped for example, are killed.

    Returns:
      The status of the first that failed, or 0.
    """
    address = f"localhost:{free_port()}"
    children = []
    try:
        for i in range(n_processes):
            own = ["--coordinator", address, "--num-processes", str(n_processes), "--process-id", str(i)]
            program = [sys.executable, "-m", "jaxgmm.parallel.processes"]
            children.append(subprocess.Popen([*program, *arguments, *own]))

        def pass_on(number: int, _: FrameType | None) -> None:
            for child in children:
                child.send_signal(number)  # which does nothing once a child has ended

        before = [(number, signal.signal(number, pass_on)) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            return _watch(children)
        finally:
            for number, handler in before:
                signal.signal(number, handler)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _watch(children: list[subprocess.Popen[bytes]]) -> int:
    failed, since = 0, 0.0
    while True:
        codes = [child.poll() for child in children]
        if not failed and any(codes):
            failed, since = next(code for code in codes if code), time.monotonic()
            if failed < 0:
                name, i = signal.Signals(-failed).name, codes.index(failed)
                sys.stderr.write(f"jaxgmm: process {i} of {len(children)} was ended by {name}\n")
                sys.stderr.flush()
        late = failed and time.monotonic() - since > _GRACE
        if late and None in codes:
            left = ", ".join(str(i) for i, code in enumerate(codes) if code is None)
            sys.stderr.write(f"jaxgmm: process {left} did not end within {_GRACE:.0f} s: killed\n")
        if late or None not in codes:
            return 128 - failed if failed < 0 else failed
        time.sleep(0.05)
