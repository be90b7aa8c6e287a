"""A fixture: the package's own programs are compiled at XLA's lowest level of optimisation."""

from __future__ import annotations

import pytest

from jaxgmm.kernels.programs import _Program
from tests.quick import quick_jit


def _quickly(self):
    if "quick" not in self._whole:
        self._whole["quick"] = quick_jit(self._jit.args[0], **self._jit.keywords)
    return self._whole["quick"]


@pytest.fixture(autouse=True)
def quick_programs(monkeypatch):
    """For tests of what cannot be put inside `jit` as a whole."""
    monkeypatch.setattr(_Program, "_program", _quickly)
