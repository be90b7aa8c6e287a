"""Progress line of a search over structures: on a terminal or in a notebook."""

from __future__ import annotations

import sys
import time
from typing import Any

_CELLS = 20  # length of the bar


class ProgressLine:
    """A bar with what is being computed. A terminal's is removed at the end, a notebook's says the time.

    Args:
      caller: the function's name, which begins the line.
      total: how many names there will be.
    """

    def __init__(self, caller: str, total: int) -> None:
        self._caller, self._total, self._done = caller, total, 0
        self._began = time.monotonic()
        self._display: Any = None  # of IPython, to be updated
        self._width = 0
        self._notebook = in_notebook()

    def __call__(self, name: str) -> None:
        """This one is being computed; those before have ended."""
        done, self._done = self._done, self._done + 1
        full = _CELLS * done // self._total
        bar = "━" * full + "·" * (_CELLS - full)
        seconds = time.monotonic() - self._began
        self._write(f"{self._caller} {bar} {done} of {self._total}, {seconds:.0f} s: {name}")

    def end(self) -> None:
        """Nothing more is computed."""
        if self._display is not None:
            seconds = time.monotonic() - self._began
            self._write(f"{self._caller}: {self._done} of {self._total} in {seconds:.1f} s")
        elif self._width:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _write(self, line: str) -> None:
        if not self._notebook:
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = len(line)
            return
        from IPython.display import display

        content = {"text/plain": line}
        if self._display is None:
            self._display = display(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)


def in_notebook() -> bool:
    """Whether output goes to a notebook's page, which a kernel of IPython writes to."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def progress_line(caller: str, total: int) -> ProgressLine | None:
    """One where somebody may be watching: on a terminal or in a notebook."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return ProgressLine(caller, total) if terminal or in_notebook() else None
