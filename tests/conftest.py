"""Shared fixtures: every test that takes `dtype` runs in float32 and, with 64-bit JAX, in float64."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import os
import pathlib
import tempfile
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or XLA tells of every cached program
os.environ["JAXGMM_CACHE"] = "off"  # but in tests/kernels/test_program_store.py

import jax
import numpy as np
import pytest

import jaxgmm
from jaxgmm.components import gaussian
from jaxgmm.kernels.program_store import AVAILABLE
from tests.quick import compile_quickly, quick_jit

# What one process of a test run has compiled, the others take from it: pytest's workers inherit the folder.
_KEPT = "JAXGMM_TEST_PROGRAMS"
if AVAILABLE:  # JAX's own cache has been right since then, too
    if _KEPT not in os.environ:
        _folder = tempfile.TemporaryDirectory(prefix="jaxgmm-tests-", ignore_cleanup_errors=True)
        os.environ[_KEPT] = _folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ[_KEPT])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tracing makes objects by the hundred thousand, all of them in use: collecting takes a sixth of its time.
gc.freeze()
gc.set_threshold(400_000, 20, 100)

# Silent promotion is how a float64 constant gets into float32 code, or (K,) is added to (N, K) the wrong way.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = pathlib.Path(__file__).parent / "data"
# What moves the fits of a structure as it moves the data: any linear map, a scaling of each axis, or only a
# rotation with one scaling.
EQUIVARIANCE = {
    **dict.fromkeys(["full", "tied", "VEE", "EVV"], "affine"),
    **dict.fromkeys(["diag", "EEI", "VEI", "EVI"], "axes"),
    **dict.fromkeys(["spherical", "EII", "EEV", "VEV", "EVE", "VVE"], "similar"),
}


def pytest_configure():
    compile_quickly()  # not on import: a worker that unpickles a test's class imports this in the middle


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
    """Thousands of compiled programs use up the memory maps of a process (65,530), and crash it."""
    yield
    gc.freeze()  # what a module leaves is nearly all in use: to look through it again takes seconds
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@contextlib.contextmanager
def case(*row):
    """A failure inside says in a note which row of a table it is of."""
    try:
        yield
    except BaseException as error:
        error.add_note("in the case " + ", ".join(map(repr, row)))
        raise


@pytest.fixture(params=["float32", "float64"], ids=["x32", "x64"])
def dtype(request):
    with x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def double():
    """64-bit JAX, for tests against outside numbers."""
    with x64(True):
        yield np.dtype("float64")


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
    """Starting parameters of one model from soft labels."""
    resp = soft_labels(labels, int(labels.max()) + 1, dtype)
    return jaxgmm.m_step(resp, X.astype(dtype), covariance_type=name, **options)


@functools.partial(quick_jit, static_argnames="model")
def _covariances(scale, means, *, model):
    scatter = model.component.scatter(model.component, scale)
    return model.covariance.to_covariance(scatter, means.shape)


def dense(params):
    """weights, means and covariances as float64 NumPy arrays, the covariances from float64 factors."""
    log_weights, means, scale = on_host((params.log_weights, params.means, params.scale), np.float64)
    with x64(True):
        cov = _covariances(scale, means, model=params.model)
    return np.exp(log_weights), means, np.asarray(cov)


def on_host(tree, dtype=None):
    """The arrays of a tree as NumPy's: to look at, to slice or to change them compiles nothing."""
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


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
        jax.tree.leaves(jaxgmm.mixture.scale_like(gaussian(family), k, n_features))
        for k in (n_components, n_components + 1)
    )
    return [a.shape != b.shape for a, b in zip(one, other, strict=True)]
