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
ESTIMATORS = {name: getattr(jaxgmm.sklearn, name) for name in ("GaussianMixture", "BayesianGaussianMixture")}

# Tests of what scikit-learn keeps to itself, and of arrays that are not NumPy's.
FUNCTIONS = "of scikit-learn's private functions only"
PRIVATE = {
    "test_suffstat_sk_full": FUNCTIONS,
    "test_suffstat_sk_tied": FUNCTIONS,
    "test_suffstat_sk_diag": FUNCTIONS,
    "test_gaussian_suffstat_sk_spherical": FUNCTIONS,
    "test_compute_log_det_cholesky": FUNCTIONS,
    "test_gaussian_mixture_log_probabilities": FUNCTIONS,
    "test_log_dirichlet_norm": FUNCTIONS,
    "test_log_wishart_norm": FUNCTIONS,
    "test_gaussian_mixture_precisions_init": "calls the private methods _initialize and _set_parameters",
    "test_compare_covar_type": "calls the private methods _check_parameters and _initialize_parameters",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts the calls of a private function"
    ),
    "test_gaussian_mixture_array_api_compliance": "JAX computes; other array libraries are not dispatched to",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": "the same",
}
# What float32 cannot do, for the tests that are left out without 64-bit JAX.
SINGLE = {
    "test_gaussian_warm_start": "compares a continued fit with another to seven decimals",
    "test_bayesian_monotonic_likelihood": "wants a bound that does not fall by its last digit either",
}
# The words of an error, which are the newest release's.
if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 7):
    PRIVATE["test_regularisation"] = "the message said less then"


def _read(name):
    """The test functions of one of their modules, with our classes in place of theirs."""
    path = FOLDER / f"test_{name}.py"
    if not path.exists():

        def missing():
            pytest.skip(f"{path} is not installed")

        return {f"test_{name}": missing}
    spec = importlib.util.spec_from_file_location(f"borrowed_{name}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.multiple(sklearn.mixture, **ESTIMATORS):
        spec.loader.exec_module(module)
    prefix = name.removesuffix("_mixture")
    return {
        f"test_{prefix}_{n.removeprefix('test_')}": f
        for n, f in vars(module).items()
        if n.startswith("test_") and n not in PRIVATE
    }


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(params=["x32", "x64"], autouse=True)
def _precision(request):
    if request.param == "x32" and request.node.originalname in SINGLE:
        pytest.skip(SINGLE[request.node.originalname])
    with x64(request.param == "x64"):
        yield


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 42


for _name in ("gaussian_mixture", "bayesian_mixture", "mixture"):
    globals().update(_read(_name))
