"""Shared fixtures: every test that takes `dtype` runs in float32 and, with 64-bit JAX, in float64."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import FAMILIES
from jaxgmm.kernels.programs import CACHES_RIGHT, CPU_OPTIONS, keep_programs

# What the tests compile themselves is compiled as the package compiles what it can: compilation is most of
# the tests' time. Read when JAX first meets a device, which is later than this.
_FLAGS = " ".join(
    [
        *(f"--{name}={str(value).lower()}" for name, value in CPU_OPTIONS.items()),
        "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling",  # which only a flag can say
    ]
)
_ASKED = "JAXGMM_TEST_FLAGS"


def _are_known(flags):
    """Whether XLA knows its flags, in a process of its own: one that it does not know is the end of it."""
    command = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    return not subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        check=False,
    ).returncode


if _ASKED not in os.environ:  # pytest's workers inherit the answer
    os.environ[_ASKED] = _FLAGS if jax.__version_info__ < (0, 11) or _are_known(_FLAGS) else ""
os.environ["XLA_FLAGS"] = f"{os.environ[_ASKED]} {os.environ.get('XLA_FLAGS', '')}".strip()

# What one process of a test run has compiled, the others take from it: pytest's workers inherit the folder.
_KEPT = "JAXGMM_TEST_PROGRAMS"
if CACHES_RIGHT:
    if _KEPT not in os.environ:
        _folder = tempfile.TemporaryDirectory(prefix="jaxgmm-tests-", ignore_cleanup_errors=True)
        os.environ[_KEPT] = _folder.name
    keep_programs(os.environ[_KEPT], least_seconds=0.0)

# Silent promotion is how a float64 constant gets into float32 code, or (K,) is added to (N, K) the wrong way.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = pathlib.Path(__file__).parent / "data"
NAMES = sorted(FAMILIES)
# For whole fits that test EM rather than a structure; also what the `name` fixture runs over.
CORE = ["diag", "full", "spherical", "tied"]
QUICK = ["full"]
# Tests of whole fits that are quick in float32 only, and examples of whole searches that are not.
SINGLE = {
    "test_check_passes_what_converged",
    "test_the_bound_never_falls",
    "test_a_step_is_the_dense_one",
    "test_from_covariance_is_exact_on_the_structure_and_nan_where_it_is_not_positive_definite",
    "test_equal_values_have_finite_derivatives_that_are_right_where_the_choice_does_not_matter",
    "test_it_solves_and_measures_its_own_residual",
    "test_scale_does_not_matter_and_zero_is_zero",
    "test_every_fit_is_finite_or_says_why_and_converged_means_it",
    "test_both_kernels_give_the_same_moments",
    "test_a_family_written_by_a_user_fits_every_way",
    "test_moments_add_and_zero_is_the_identity",
    "test_vmap_is_a_loop_and_jit_is_eager",
    "test_a_zero_weight_leaves_a_row_out_whatever_it_holds",
    "test_a_bad_lane_leaves_the_others_alone",
    "test_a_fit_ends_where_the_whitened_one_does",
    "test_an_awkward_sample_still_has_a_usable_lane",
    "test_the_unit_of_x_moves_the_likelihood_by_its_own_logarithm",
    "test_data_that_a_users_jit_closes_over_are_checked_and_fit",
    "test_integer_weights_are_repetition",
    "test_blocks_in_memory_give_the_fit_of_all_rows",
    "test_one_process_alone_fits_as_fit_does",
}
LONG_EXAMPLES = (
    "selection",
    "inference",
    "gradients",
    "distributions",
    "components.covariance.factor",
    "components.covariance.registry",
    "plot.history",
    "sklearn.bayesian",
    "variational",
)
CONTINUOUS = "VEV"  # of what is slow, for continuous integration
# What moves the fits of a structure as it moves the data: any linear map, a scaling of each axis, or only a
# rotation with one scaling.
EQUIVARIANCE = {
    **dict.fromkeys(["full", "tied", "VEE", "EVV"], "affine"),
    **dict.fromkeys(["diag", "EEI", "VEI", "EVI"], "axes"),
    **dict.fromkeys(["spherical", "EII", "EEV", "VEV", "EVE", "VVE"], "similar"),
}


def pytest_addoption(parser):
    parser.addoption(
        "--few", action="store_true", help="of a test's sets of parameters the first and the last"
    )
    parser.addoption("--part", default="1/1", help="of the tests, by their names: 2/3 for the second third")


def pytest_collection_modifyitems(config, items):
    """In float64 the quick tests take one structure: what goes wrong with the others there shows in float32.

    A test of outside numbers has no `dtype`, and is not meant. Of what a slow test repeats, CI takes one set
    of parameters, with a structure that has all there is; of outside numbers it takes every `model`.
    """
    repeats = {}
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        name = _function(item)
        single = name in SINGLE or values.get("name", "full") != "full"
        example = name.startswith(tuple(f"jaxgmm.{room}" for room in LONG_EXAMPLES))
        if (values.get("dtype") == "float64" and single) or example:
            item.add_marker(pytest.mark.slow)
        rare = item.get_closest_marker("exhaustive")
        if values and "model" not in values and item.get_closest_marker("slow") and not rare:
            repeats.setdefault((item.path, item.originalname), []).append((item, values.values()))
    for same in repeats.values():
        taken = next((item for item, values in same if CONTINUOUS in values), same[0][0])
        for item, _ in same:
            if item is not taken:
                item.add_marker(pytest.mark.exhaustive)
    part, parts = map(int, config.getoption("part").split("/"))
    drop = [item for item in items if zlib.crc32(_function(item).encode()) % parts != part % parts]
    if config.getoption("few"):
        each = {}
        for item in items:
            quick = item.get_closest_marker("slow") is None
            each.setdefault((item.path, _function(item), quick), []).append(item)
        kept = {item for same in each.values() for item in (same[0], same[-1])}
        drop += [item for item in items if item not in kept]
    config.hook.pytest_deselected(items=list(dict.fromkeys(drop)))
    dropped = set(drop)
    items[:] = [item for item in items if item not in dropped]


def _function(item):
    """The test's name, whatever its parameters."""
    return getattr(item, "originalname", item.name)


@contextlib.contextmanager
def x64(enabled: bool):
    """64-bit JAX for a while, spelled as every supported version of JAX understands it."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of compiled programs use up the memory maps that a process may have, and crash it."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"], ids=["x32", "x64"])
def dtype(request):
    with x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def double():
    """64-bit JAX, for tests against outside numbers."""
    with x64(True):
        yield np.dtype("float64")


def costly(name, *rest, quick=CORE):
    """A parameter set that only the slow tests take, if the structure is not of the core."""
    return pytest.param(name, *rest, marks=() if name in quick else pytest.mark.slow)


# The quick tests of EM itself take the structure that has all there is: a matrix for each component.
@pytest.fixture(params=[costly(n, quick=QUICK) for n in CORE])
def name(request):
    return request.param


# For tests of what a structure itself must do: all of them in float32, and in float64 those that are not
# held against mclust's numbers in that precision. `every_name` is for what is cheap.
every_name = pytest.mark.parametrize("name", NAMES)
every_name_at_a_cost = pytest.mark.parametrize("name", [costly(n) for n in NAMES])
every = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        costly(n, t, quick=("full", "diag"))
        for n in NAMES
        for t in ("float32", "float64")
        if n in CORE or t == "float32"
    ],
    indirect=["dtype"],
)


@pytest.fixture(scope="session")
def mclust():
    return {n: json.loads((DATA / f"mclust_{n}.json").read_text()) for n in ("iris", "faithful")}


def equations(program):
    """What a jaxpr does, with all that it calls: as text a part may stand once for several."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(part, "eqns"):
                yield from equations(part)


class LapackCall(NamedTuple):
    """One call of a LAPACK routine in a jaxpr, of so many matrices at once."""

    routine: str
    many: int
    rows: int
    columns: int

    @property
    def is_undivided(self):
        """Whether the routine does it in one thread, as measured; see `jaxgmm.kernels.linalg`."""
        most = {"eigh": 50_000, "svd": 35_000}.get(self.routine, 140_000)
        return self.many <= 1 or self.many * self.rows * self.columns * min(self.rows, self.columns) <= most


def lapack_calls(program):
    """What a jaxpr gives LAPACK, whose routines may divide a batch among the threads that wait for it."""
    routines = ("cholesky", "triangular_solve", "lu", "eigh", "svd", "geqrf", "householder_product", "eig")
    for equation in equations(program):
        if equation.primitive.name in routines:
            *lead, rows, columns = equation.invars[0].aval.shape
            yield LapackCall(equation.primitive.name, math.prod(lead), rows, columns)


def times_used(primitive, program):
    """How often a jaxpr has a primitive."""
    return sum(equation.primitive.name == primitive for equation in equations(program))


def overlapping(n_samples=400, n_features=3, n_components=3, seed=0, separation=2.0):
    """A mixture whose components overlap: X float64 (N, D) and the labels it was drawn with (N,)."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_components, n_features)) * separation
    factors = rng.normal(size=(n_components, n_features, n_features)) / np.sqrt(n_features)
    factors += 0.5 * np.eye(n_features)
    labels = rng.integers(n_components, size=n_samples)
    X = means[labels] + np.einsum("nde,ne->nd", factors[labels], rng.normal(size=(n_samples, n_features)))
    return X, labels


def soft_labels(labels, n_components, dtype=np.float64):
    """Responsibilities of 0.8 for the label, the rest spread evenly."""
    return (0.8 * np.eye(n_components)[labels] + 0.2 / n_components).astype(dtype)


def start_from(X, labels, name, dtype, **options):
    """Starting parameters of one family from soft labels."""
    resp = soft_labels(labels, int(labels.max()) + 1, dtype)
    return jaxgmm.m_step(resp, X.astype(dtype), covariance_type=name, **options)


def dense(params):
    """weights, means and covariances as float64 NumPy arrays, the covariances from float64 factors."""
    wide = [np.asarray(a, np.float64) for a in (params.weights, params.means)]
    with x64(True):
        scale = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), params.scale)
        cov = params.family.to_covariance(scale, params.means.shape)
    return *wide, np.asarray(cov)


def given(family, cov):
    """Dense covariances (K, D, D) in the shape that the family takes."""
    variances = np.einsum("kdd->kd", cov)
    return {
        (5, 7, 7): lambda: cov,
        (7, 7): lambda: cov[0],
        (5, 7): lambda: variances,
        (7,): lambda: variances[0],
        (5,): lambda: variances.mean(1),
        (): lambda: variances.mean(),
    }[family.covariance_shape(5, 7)]()


def takes_rows(family, scale, n_components, n_features):
    """For each array of a scale, whether its leading axis is the components'."""
    one, other = (
        jax.tree.leaves(jaxgmm.mixture.scale_like(family, k, n_features))
        for k in (n_components, n_components + 1)
    )
    return [a.shape != b.shape for a, b in zip(one, other, strict=True)]
