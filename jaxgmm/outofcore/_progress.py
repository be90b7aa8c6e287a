"""Progress of a long fit, with an estimate of the time left."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from jaxgmm.solvers.squarem import RUNNING, State

_EVERY = 0.2  # seconds between two lines on a terminal
_SELDOM = 10.0  # and in a file


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a fit is.

    Attributes:
      n_iter: EM steps taken; −1 during the first pass, which surveys the data.
      max_iter: the limit on them.
      log_likelihood: mean per unit of sample weight, at the latest good point; NaN before there is one.
      rows: rows done in the pass that is under way.
      n_samples: rows of a pass, None where that is not known yet.
      seconds: since the fit began, or was taken up.
      seconds_per_pass: of the passes so far; NaN before the first has ended.
      seconds_left: what plain steps would still take, at the rate at which they converge, or all the steps
        that are allowed; NaN before there is an estimate.
    """

    n_iter: int
    max_iter: int
    log_likelihood: float
    rows: int
    n_samples: int | None
    seconds: float
    seconds_per_pass: float
    seconds_left: float

    def __str__(self) -> str:
        """One line."""
        share = f", {100 * self.rows // self.n_samples} %" if self.n_samples and self.rows else ""
        if self.n_iter < 0:
            return f"first pass{share or f', {self.rows} rows'}"
        text = f"step {self.n_iter} of at most {self.max_iter}{share}"
        if math.isfinite(self.log_likelihood):
            text += f", log-likelihood {self.log_likelihood:.6g}"
        if not math.isnan(self.seconds_per_pass):
            text += f", {self.seconds_per_pass:.3g} s a step"
        if not math.isnan(self.seconds_left):
            text += f", at most {_duration(self.seconds_left)} left"
        return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def steps_left(state: State, tol: float, max_iter: int) -> int:
    """How many plain steps would bring an iteration within tol, as far as its rate of convergence is known.

    A step of length Δ at a horizon h = ρ/(1 − ρ) leaves the distance Δh, which a step multiplies by ρ.
    """
    allowed = max(0, max_iter - int(state.n_iter))
    step, horizon = float(state.step), float(state.horizon)
    if int(state.status) != RUNNING:
        return 0
    if not (0 < step < math.inf and horizon > 0 and tol > 0):
        return allowed
    left = math.log(max(step * horizon / tol, 1.0)) / math.log1p(1 / horizon)
    return min(allowed, math.ceil(left) + 1)


class Reporter:
    """Tells of a fit's progress: on stderr, or to a function.

    Args:
      told: None or False for nobody, True for a line on stderr, or a function of a `Progress`.
    """

    def __init__(self, told: Any) -> None:
        if not (told is None or isinstance(told, bool) or callable(told)):
            raise TypeError(f"progress must be True, False, None or a function; got {told!r}")
        self._call: Callable[[Progress], Any] | None = told if callable(told) else None
        self._stream: TextIO | None = sys.stderr if told is True else None
        self._began = time.monotonic()
        self._pass_began = self._began
        self._last_line = -math.inf
        self._width = 0
        self._latest = Progress(-1, 0, math.nan, 0, None, 0.0, math.nan, math.nan)

    def watch(self, rows: int) -> None:
        """So many rows of a pass are done."""
        self._show(dataclasses.replace(self._latest, rows=rows, seconds=time.monotonic() - self._began))

    def begin(self, n_samples: int, max_iter: int, state: State) -> None:
        """The first pass has ended."""
        self._pass_began = time.monotonic()
        self._latest = dataclasses.replace(
            self._latest, n_iter=int(state.n_iter), max_iter=max_iter, n_samples=n_samples
        )

    def step(self, state: State, tol: float) -> None:
        """A pass of a fit has ended."""
        before, now = self._latest, time.monotonic()
        took, self._pass_began = now - self._pass_began, now
        mean = took if math.isnan(before.seconds_per_pass) else 0.7 * before.seconds_per_pass + 0.3 * took
        self._latest = Progress(
            int(state.n_iter), before.max_iter, float(state.report), 0, before.n_samples, now - self._began,
            mean, mean * steps_left(state, tol, before.max_iter),
        )  # fmt: skip
        if self._call is not None:
            self._call(self._latest)
        self._show(self._latest)

    def end(self) -> None:
        """Nothing more will be told."""
        if self._stream is not None and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _show(self, progress: Progress) -> None:
        now = time.monotonic()
        terminal = self._stream is not None and self._stream.isatty()
        if self._stream is None or now - self._last_line < (_EVERY if terminal else _SELDOM):
            return
        self._last_line = now
        line = str(progress)
        self._stream.write("\r" + line.ljust(self._width) if terminal else line + "\n")
        self._stream.flush()
        self._width = len(line) if terminal else 0
