"""Against R's mclust 6.0.0, whose numbers stand in tests/data."""

import numpy as np
import pytest

import jaxgmm
from jaxgmm import Status
from tests.conftest import soft_labels

DATA = ["iris", "faithful"]
MODELS = {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical"}


def _data(mclust, data, k):
    X = np.array(mclust[data]["X"])
    return X, np.array(mclust[data]["hc_labels"][str(k)])


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_one_m_step_and_the_e_step_after_it(mclust, double, data, model, k):
    reference = mclust[data]["steps"][f"{model},{k}"]
    X, labels = _data(mclust, data, k)
    params = jaxgmm.m_step(soft_labels(labels, k), X, covariance_type=MODELS[model], reg_covar=0.0)
    np.testing.assert_allclose(params.weights, reference["parameters"]["pro"], rtol=1e-10)
    np.testing.assert_allclose(params.means, reference["parameters"]["mean"], rtol=1e-10)
    np.testing.assert_allclose(params.covariances, reference["parameters"]["sigma"], rtol=1e-8, atol=1e-12)
    resp, log_prob = jaxgmm.e_step(params, X)
    np.testing.assert_allclose(log_prob.sum(), reference["loglik"], rtol=1e-9)
    np.testing.assert_allclose(resp[:5], reference["z_first5"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(resp.sum(0), reference["z_colsum"], rtol=1e-8)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_fits(mclust, double, data, model, k):
    reference = mclust[data]["fits"][f"{model},{k}"]
    X, labels = _data(mclust, data, k)
    start = jaxgmm.m_step(np.eye(k)[labels], X, covariance_type=MODELS[model], reg_covar=0.0)
    result = jaxgmm.fit(start, X, reg_covar=0.0)
    assert result.status == Status.CONVERGED
    n = len(X)
    total = float(result.log_likelihood) * n
    assert abs(total - reference["loglik"]) < 1e-5
    df = mclust[data]["df"][k - 1][mclust[data]["models"].index(model)]
    assert jaxgmm.n_parameters(result.params) == df
    np.testing.assert_allclose(
        jaxgmm.bic(result.params, X), df * np.log(n) - 2 * reference["loglik"], atol=1e-4
    )

    single = X.astype(np.float32)
    start = jaxgmm.m_step(np.eye(k)[labels], single, covariance_type=MODELS[model], reg_covar=0.0)
    narrow = jaxgmm.fit(start, single, reg_covar=0.0)
    assert narrow.params.means.dtype == np.float32
    assert abs(float(narrow.log_likelihood) - reference["loglik"] / n) < 1e-4
