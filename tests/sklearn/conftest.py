"""The estimators' own tests: in float32, and in float64 where that is the point or among the slow tests."""

import numpy as np
import pytest

from tests.conftest import x64


@pytest.fixture(params=["float32", pytest.param("float64", marks=pytest.mark.slow)], ids=["x32", "x64"])
def dtype(request):
    with x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture(params=["float32", "float64"], ids=["x32", "x64"])
def either(request):
    """Both precisions, also in the quick tests."""
    with x64(request.param == "float64"):
        yield np.dtype(request.param)
