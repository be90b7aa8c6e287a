"""Some of scikit-learn's own tests of its mixtures, from the installed wheel, run against our estimators."""

import importlib.util
import inspect
import pathlib
import sys
from unittest import mock

import numpy as np
import pytest
import sklearn
import sklearn.mixture

import jaxgmm.sklearn

FOLDER = pathlib.Path(sklearn.__file__).parent / "mixture" / "tests"
ESTIMATORS = {name: getattr(jaxgmm.sklearn, name) for name in ("GaussianMixture", "BayesianGaussianMixture")}

# Of what users rely on and our own tests do not have; each compiles little. The others are of scikit-learn's
# private functions, or show what the comparison with its estimators shows, for many shapes of data.
CHOSEN = [
    "test_gaussian_mixture_predict_predict_proba",
    "test_gaussian_mixture_fit_predict",
    "test_gaussian_mixture_fit_convergence_warning",
    "test_convergence_detected_with_warm_start",
    "test_score",
    "test_score_samples",
    "test_init_means_not_duplicated",
    "test_means_for_all_inits",
    "test_max_iter_zero",
    "test_mixture_n_components_greater_than_n_samples_error",
]


@pytest.fixture(scope="module")
def theirs():
    """Their test functions by name, with our classes in place of theirs and one structure for all four."""
    found = {}
    for name in ("gaussian_mixture", "mixture"):
        path = FOLDER / f"test_{name}.py"
        if not path.exists():
            pytest.skip(f"{path} is not installed")
        spec = importlib.util.spec_from_file_location(f"borrowed_{name}", path)
        module = importlib.util.module_from_spec(spec)
        with mock.patch.multiple(sklearn.mixture, **ESTIMATORS):
            spec.loader.exec_module(module)
        module.COVARIANCE_TYPE = ["full"]
        found |= {n: f for n, f in vars(module).items() if n.startswith("test_")}
    return found


def cases(function):
    """The arguments of each run of one of their tests."""
    given = {"global_dtype": np.float32, "global_random_seed": 42}
    runs = [{name: given[name] for name in inspect.signature(function).parameters if name in given}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = [n.strip() for n in mark.args[0].split(",")], mark.args[1]
            rows = values if len(names) > 1 else [(v,) for v in values]
            runs = [run | dict(zip(names, row, strict=True)) for run in runs for row in rows]
    return runs


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", CHOSEN)
def test_our_estimators_pass(name, theirs):
    assert name in theirs, f"scikit-learn {sklearn.__version__} has no {name}"
    for arguments in cases(theirs[name]):
        sys.stdout.write(f"{arguments}\n")  # pytest shows it beside a failure
        theirs[name](**arguments)
