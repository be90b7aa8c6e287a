"""scikit-learn's own tests of its mixtures, read from the installed wheel and run against our estimators."""

import importlib.util
import pathlib
from unittest import mock

import numpy as np
import pytest
import sklearn
import sklearn.mixture

import jaxgmm.sklearn
from tests.conftest import x64

FOLDER = pathlib.Path(sklearn.__file__).parent / "mixture" / "tests"
ESTIMATORS = {
    name: getattr(jaxgmm.sklearn, name)
    for name in ("GaussianMixture", "BayesianGaussianMixture")
    if hasattr(jaxgmm.sklearn, name)
}

# Tests of what scikit-learn keeps to itself, and of arrays that are not NumPy's.
PRIVATE = {
    "test_suffstat_sk_full": "of scikit-learn's private functions only",
    "test_suffstat_sk_tied": "of scikit-learn's private functions only",
    "test_suffstat_sk_diag": "of scikit-learn's private functions only",
    "test_gaussian_suffstat_sk_spherical": "of scikit-learn's private functions only",
    "test_compute_log_det_cholesky": "of scikit-learn's private functions only",
    "test_gaussian_mixture_log_probabilities": "of scikit-learn's private functions only",
    "test_gaussian_mixture_precisions_init": "calls the private methods _initialize and _set_parameters",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts the calls of a private function"
    ),
    "test_gaussian_mixture_array_api_compliance": "JAX computes; other array libraries are not dispatched to",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": "the same",
}
# Without 64-bit JAX.
SINGLE = {"test_warm_start": "compares a continued fit with another to seven decimals, which float32 has not"}


def _read(name):
    """The test functions of one of their modules, with our classes in place of theirs."""
    path = FOLDER / name
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"borrowed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.multiple(sklearn.mixture, **ESTIMATORS):
        spec.loader.exec_module(module)
    return {n: f for n, f in vars(module).items() if n.startswith("test_") and n not in PRIVATE}


pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(params=["x32", "x64"], autouse=True)
def _precision(request):
    if request.param == "x32" and request.function.__name__ in SINGLE:
        pytest.skip(SINGLE[request.function.__name__])
    with x64(request.param == "x64"):
        yield


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 42


globals().update(_read("test_gaussian_mixture.py"))
