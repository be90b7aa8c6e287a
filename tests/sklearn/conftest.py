"""Fixture of these tests: one thread for scikit-learn's k-means, whose waiting threads use up cores."""

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with threadpool_limits(1):
        yield
