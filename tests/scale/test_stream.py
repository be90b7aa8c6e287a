"""A fit of data that are read in pieces is the fit of the whole."""

import jax
import numpy as np
import pytest

import jaxgmm
from tests.conftest import costly, overlapping, start_from

X, LABELS = overlapping(1300, 3, 3, seed=1)
W = np.random.default_rng(0).uniform(0.5, 2, 1300)
W[700] = 0
CUTS = ((0, 370), (370, 371), (371, 1000), (1000, 1300))  # none of them where a chunk ends


def parts(shift=0.0, dtype=np.float64):
    return [((X[i:j] + shift).astype(dtype), W[i:j].astype(dtype)) for i, j in CUTS]


def apart(a, b, least=1e-3):
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(
        jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]  # fmt: skip
    return max(float(np.nanmax(np.abs(x - y) / (least + np.abs(x)), initial=0)) for x, y in pairs)


@pytest.mark.parametrize("kernel", ["whitened", "quadratic"])
@pytest.mark.parametrize(
    "structure", [costly(n, quick=["full", "tied"]) for n in ("full", "tied", "diag", "spherical", "VEV")]
    + [pytest.param("factor(1)", marks=pytest.mark.slow)],
)  # fmt: skip
def test_it_is_the_fit_of_all_the_rows(double, structure, kernel):
    if kernel == "quadratic" and structure == "factor(1)":
        pytest.skip("a factor analyser has no quadratic kernel")
    start = start_from(X + 30, LABELS, structure, np.float64)
    options = {"tol": 0.0, "max_iter": 8, "kernel": kernel}
    whole = jaxgmm.fit(start, X + 30, W, **options)
    result = jaxgmm.fit_stream(start, parts(30.0), chunk_size=256, **options)
    assert int(result.n_iter) == 8
    assert apart(whole, result) < 1e-12
