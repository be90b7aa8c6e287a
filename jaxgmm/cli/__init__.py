"""The command line: ``jaxgmm fit``, ``predict``, ``impute`` and ``sample`` (extra ``[cli]``)."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from jaxgmm.cli import signals

_EXTRAS = {"click": "cli", "rich": "cli", "polars": "cli", "matplotlib": "plot"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process.

    Every error a user can make is one line on stderr and status 2; a fit that did not converge ends with 1,
    Ctrl-C with 130.

    Args:
      arguments: the words after ``jaxgmm``; None takes them from ``sys.argv``.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    signals.listen()
    code, message = _run(None if arguments is None else list(arguments))
    if message:
        # Of a terminal that has just shown ^C, on a line of its own.
        start = "\n" if code == 130 and sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}jaxgmm: {' '.join(message.split())}\n")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    # Not sys.exit: after an interrupt a fit is still running in its thread, and Python would wait for it.
    os._exit(code)


def _run(arguments: list[str] | None) -> tuple[int, str]:
    """The status, and what to say on stderr."""
    try:
        ended = _answer(arguments)
    except BaseException:
        if signals.answer() is None:
            raise
    return signals.answer() or ended


def _answer(arguments: list[str] | None) -> tuple[int, str]:
    try:
        import click

        from jaxgmm.cli.commands import cli

        try:
            result = cli.main(arguments, prog_name="jaxgmm", standalone_mode=False)
            return (result if isinstance(result, int) else 0), ""
        except click.ClickException as error:
            return error.exit_code, error.format_message()
        except click.Abort:
            return 130, "interrupted"
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return 2, f"this needs {package}: pip install 'jaxgmm[{_EXTRAS[package]}]'"
    except (MemoryError, RuntimeError) as error:
        # XLA's word for it; any other RuntimeError is a mistake of ours.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return 2, "not enough memory"
    except OSError as error:
        return 2, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except SystemExit as stop:
        return (stop.code if isinstance(stop.code, int) else 1), ""
