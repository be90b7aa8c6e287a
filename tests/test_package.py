"""The house itself: what an import costs, which floor imports which, and what the public face shows."""

import ast
import copy
import functools
import inspect
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxgmm
from tests.problems import STRUCTURES, D, K

PACKAGE = pathlib.Path(jaxgmm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Nothing imports these but each other; only the summary is on the public face.
INTERFACES = {"interchange", "plot", "sklearn", "_summary", "cli"}
FACE = {"__init__", "_public"}
NAMESPACES = {
    name: getattr(jaxgmm, name)
    for name in (
        "components", "distributions", "gradients", "inference", "init", "outofcore", "parallel", "selection",
        "variational",
    )
}  # fmt: skip
PUBLIC = {
    name: getattr(place, name)
    for place in (jaxgmm, *NAMESPACES.values())
    for name in place.__all__
    if name not in NAMESPACES | dict.fromkeys(INTERFACES) and not inspect.ismodule(getattr(place, name))
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
RECORDS = [
    *("FitResult", "GMMParams", "Statistics", "Covariance", "Prior"),
    *("FitDiagnostics", "MonteCarlo", "Regression"),
]


def run_python(code, **variables):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def room(path):
    """The file's own place in the house: its name, or its folder's, right under the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def imports(path):
    """Every module that a file imports anywhere in it, in full, with names that are modules resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = PACKAGE.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                target = inside / alias.name
                is_module = target.with_suffix(".py").exists() or target.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def test_importing_is_quick_and_imports_nothing_that_is_optional(tmp_path):
    # Byte code is made once, when a package is installed or first imported; some environments never keep it.
    code = f"""
import json, sys, time, jax, jax.numpy, numpy
sys.pycache_prefix, sys.dont_write_bytecode = {str(tmp_path)!r}, False
before, seconds = set(sys.modules), []
for _ in range(4):
    for name in set(sys.modules) - before:
        del sys.modules[name]
    clock = time.process_time()
    import jaxgmm
    seconds.append(time.process_time() - clock)
print(json.dumps([min(seconds[1:]), sorted(set(sys.modules) - before)]))
"""
    seconds, modules = run_python(code)
    assert seconds < 0.2
    packages = {module.partition(".")[0] for module in modules}
    assert "jaxgmm" in packages
    assert not packages & {
        "sklearn", "matplotlib", "click", "rich", "polars", "scipy", "optax", "chex", "pandas", "pytest",
        "numpyro", "pyarrow", "skops", "zarr",
    }  # fmt: skip
    assert not {
        m
        for m in modules
        if m.startswith(tuple(f"jaxgmm.{interface}" for interface in INTERFACES - {"_summary"}))
    }


def test_importing_touches_no_device():
    # JAX looks for its platforms at the first computation, and would raise for this one.
    assert (
        run_python("import jaxgmm, json; print(json.dumps('ok'))", JAX_PLATFORMS="no_such_platform") == "ok"
    )


def test_what_a_module_may_import():
    for path in FILES:
        check_imports(path)


def check_imports(path):
    own = room(path)
    inside = {m.removeprefix("jaxgmm.") for m in imports(path) if m.partition(".")[0] == "jaxgmm"}
    if own in INTERFACES or path.name == "__main__.py":
        return
    assert "jaxgmm" not in inside or own in FACE, f"the public face imports {path}"
    rooms = {module.partition(".")[0] for module in inside}
    allowed = INTERFACES if own in FACE else set()
    assert not rooms & INTERFACES - allowed, f"{path} imports an interface"
    if own == "solvers":
        assert rooms <= {"solvers", "kernels"}, f"{path}: a solver knows nothing of mixtures"
        assert not {m for m in inside if m.startswith("kernels.")} & {"kernels.exact", "kernels.quadratic"}


def test_imports_make_no_circle():
    def name(path):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    # `from jaxgmm import validate` needs only validate: a package's own face is left out of the graph.
    graph = {name(p): {m for m in imports(p) if m.startswith("jaxgmm.")} for p in FILES}
    graph.pop("jaxgmm")
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys() - {module}}
        assert leaves, f"these import one another: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def test_the_core_needs_only_jax_and_numpy():
    allowed = {"jax", "jaxlib", "numpy", "optax", "jaxgmm"} | sys.stdlib_module_names
    for path in FILES:
        if room(path) not in INTERFACES:
            # What needs an extra imports it when it is called.
            extra = {
                "_progress.py": {"IPython"},
                "_wasserstein.py": {"ot"},
                "_open_source.py": {"pyarrow"},
                "_dask.py": {"dask"},
                "_spark.py": {"pyarrow", "pyspark"},
            }.get(path.name, set())
            assert {m.partition(".")[0] for m in imports(path)} <= allowed | extra, path


def test_names_of_files_say_something():
    for path in FILES:
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path


def test_a_namespace_shows_what_it_lists_and_no_module_of_its_own():
    for module in (jaxgmm, *NAMESPACES.values()):
        assert module.__doc__
        assert len(module.__all__) == len(set(module.__all__))
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"
        if module not in (jaxgmm, NAMESPACES["parallel"]):
            modules = {n for n, value in vars(module).items() if inspect.ismodule(value)}
            assert {n for n in modules if not n.startswith("_")} <= {
                "covariance",
                "base",
                "registry",
                "weights",
            }, module.__name__


def test_the_public_face_has_what_the_design_promises():
    promised = (
        "e_step m_step em_step fit fit_restarts fit_components fit_best select fit_gradient fit_variational "
        "fit_stream fit_sharded best check aic bic icl n_parameters log_prob component_log_prob "
        "responsibilities predict score elbo sample make_params GMMParams FitResult Status Selection Prior "
        "default_prior save load summary components init selection inference gradients distributions "
        "variational outofcore parallel plot sklearn interchange __version__"
    )
    assert set(promised.split()) <= set(jaxgmm.__all__)
    assert set(dir(jaxgmm)) == set(jaxgmm.__all__)


def test_type_checkers_are_told_where_every_public_name_is():
    told = {
        (alias.name, node.module)
        for node in ast.walk(ast.parse((PACKAGE / "_public.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {(name, f"jaxgmm.{module}") for name, module in jaxgmm._HOME.items()}
    spaces = {name for name in jaxgmm.__all__ if inspect.ismodule(getattr(jaxgmm, name))}
    assert spaces | set(jaxgmm._HOME) | {"__version__"} == set(jaxgmm.__all__)


def test_a_fit_imports_no_search_and_no_stream():
    loaded = run_python(
        "import json, sys, jaxgmm; jaxgmm.make_params, jaxgmm.fit, jaxgmm.predict; "
        "print(json.dumps(list(sys.modules)))"
    )
    apart = ("selection", "outofcore", "variational", "gradients", "inference", "distributions", "parallel")
    assert [name for name in loaded if name.startswith(tuple(f"jaxgmm.{a}" for a in apart))] == []
    assert "jaxgmm.io.exported" in loaded  # or jax.export would not know the records


def test_every_export_is_documented():
    for name, value in PUBLIC.items():
        if not callable(value):
            continue
        doc = inspect.getdoc(value) or ""
        assert re.match(r".{10,}[.:](\n|$)", doc), f"{name}: the first line is one sentence"
        if name in RECORDS:
            for field in getattr(value, "_fields", None) or value.__dataclass_fields__:
                assert re.search(rf"^  .*\b{field}\b.*:", doc, re.MULTILINE), (
                    f"{name}.{field} is not explained"
                )


def test_every_function_explains_its_arguments_and_shows_an_example():
    for name, function in FUNCTIONS.items():
        doc = inspect.getdoc(function) or ""
        parameters = list(inspect.signature(function).parameters)
        _, example, shown = doc.partition("Example:\n")
        assert example, f"{name}: no example"
        assert re.search(rf"^\s+>>> .*\b{name}\(", shown, re.MULTILINE), (
            f"{name}: the example does not call it"
        )
        # (params, X) says enough by itself.
        if len(parameters) > 2:
            _, found, explained = doc.partition("Args:\n")
            assert found, f"{name}: no Args"
            explained = re.split(r"^\w+:\n", explained, flags=re.MULTILINE)[0]
            for parameter in parameters:
                told = re.search(rf"^  .*\b{parameter}\b.*:", explained, re.MULTILINE)
                assert told, f"{name}: {parameter} is missing"


@functools.cache
def records():
    """Parameters, statistics and a result, of arrays that nothing has computed."""
    scale = np.stack([(k + 1.0) * np.eye(D) + np.tri(D, k=-1) for k in range(K)])
    arrays = (np.log(np.full(K, 1 / K)), np.arange(1.0 * K * D).reshape(K, D), scale)
    params = jaxgmm.GMMParams(*(a.astype(np.float32) for a in arrays), jaxgmm.components.gaussian("full"))
    shapes = jax.eval_shape(jaxgmm.em_step, params, jax.ShapeDtypeStruct((9, D), np.float32))[1]
    moments = jax.tree.map(lambda a: np.full(a.shape, 0.5, a.dtype), shapes)
    number, count = np.float32(-1.5), np.int32(0)
    result = jaxgmm.FitResult(params, number, number, count, count, np.zeros(4, np.float32))
    return jax.device_put((params, moments, result))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_records_are_pytrees_that_map_stack_and_come_out_of_vmap():
    for record in records():
        same = jax.tree.map(lambda a: a, record)
        assert type(same) is type(record)
        equal(same, record)
        stacked = jax.tree.map(lambda *a: np.stack(a), record, record)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {2}
        equal(jax.vmap(lambda one: one)(stacked), stacked)
        equal(jax.tree.map(lambda a: a[1], stacked), record)


def test_stacked_params_have_batched_weights_and_dense_covariances():
    params = records()[0]
    other = jax.tree.map(lambda a: 2 * np.asarray(a), params)
    stacked = jax.tree.map(lambda *a: np.stack(a), params, other)
    assert (stacked.n_components, stacked.n_features) == (K, D)
    seen = jax.jit(lambda p: (p.weights, p.covariances))
    weights, covariances = seen(stacked)
    for i, one in enumerate([params, other]):
        np.testing.assert_array_equal(np.asarray(weights)[i], seen(one)[0])
        np.testing.assert_allclose(np.asarray(covariances)[i], seen(one)[1], rtol=1e-6)


def test_records_are_immutable():
    for record in records():
        field = next(iter(record.__dataclass_fields__))
        with pytest.raises(AttributeError):
            setattr(record, field, None)


@pytest.mark.parametrize("copying", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, copy.copy])
def test_records_survive_pickling_and_copying_and_keep_their_family(copying):
    for record in records():
        equal(copying(record), record)  # the structure holds the family: only an equal one shares its traces


def survive_pickling(names):
    for name in names:
        structure = jaxgmm.components.get_covariance(name)
        assert pickle.loads(pickle.dumps(structure)) == structure, name


def test_structures_survive_pickling():
    survive_pickling(STRUCTURES)
