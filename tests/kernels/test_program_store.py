"""The program store: what is loaded gives the numbers of what was compiled, whatever lies in the folder."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jaxgmm
from jaxgmm.kernels import program_store as store
from jaxgmm.kernels import programs
from tests.components.test_custom import known_shape as custom
from tests.conftest import x64

pytestmark = pytest.mark.skipif(
    not store.AVAILABLE or jax.default_backend() != "cpu" or jax.device_count() > 1,
    reason="programs are kept for one CPU device, from JAX 0.6.1 on",
)


def double(x, *, times=2, key=None, model=None):
    shift = 0 if key is None else jax.random.normal(key, x["rows"].shape)
    return {"rows": times * x["rows"] + shift, "like": x["like"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of programs, and JAX without a cache of its own."""
    where = tmp_path / "programs"
    monkeypatch.setenv("JAXGMM_CACHE", str(where))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()  # or JAX goes on with the one that it has begun with
    yield where
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def again(monkeypatch):
    """Two functions: the program of `double` as another process has it; the number of compilations."""
    monkeypatch.setattr(programs, "_functions", {})
    compiled = []
    genuine = programs._Program._compile
    monkeypatch.setattr(
        programs._Program, "_compile", lambda self, *a: compiled.append(self) or genuine(self, *a)
    )

    def fresh(function=double):
        programs._functions.clear()
        return programs.jit(function, static_argnames=("times", "model"), name="jaxgmm.tests.double")

    return fresh, lambda: len(compiled)


def given(n=3, dtype=np.float32):
    return {"rows": np.arange(n, dtype=dtype), "like": jaxgmm.Prior(dof=jnp.float32(4))}


def entries(folder):
    return sorted(folder.glob("*.program"))


def test_a_program_is_loaded_with_its_structures_keys_and_static_arguments(folder, again):
    fresh, compiled = again
    key = jax.random.key(3)
    first = fresh()(given(), times=3, key=key)
    found = fresh()(given(), times=3, key=key)
    assert compiled() == 1
    assert len(entries(folder)) == 1
    np.testing.assert_array_equal(first["rows"], found["rows"])
    assert isinstance(found["like"], jaxgmm.Prior)
    assert not found["rows"].committed
    assert folder.stat().st_mode & 0o077 == 0
    assert entries(folder)[0].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "other",
    [
        {"x": given(4)},
        {"x": given(dtype=np.int32)},
        {"x": {**given(), "like": None}},
        {"times": 4},
        {"key": jax.random.key(1)},
        {"key": jax.random.key(1, impl="rbg")},
        {"model": "VVV"},
    ],
    ids=["shape", "dtype", "structure", "static", "key", "kind of key", "absent"],
)
def test_what_differs_in_anything_is_another_program(folder, again, other):
    fresh, compiled = again
    fresh()(given(), times=3)
    call = {"x": given(), "times": 3} | other
    found = fresh()(call.pop("x"), **call)
    assert compiled() == 2
    assert found["rows"].shape == other.get("x", given())["rows"].shape


def test_settings_of_jax_and_all_that_programs_depend_on_are_in_the_name(folder, again, monkeypatch):
    fresh, compiled = again
    fresh()(given())
    with x64(True):
        fresh()(given())
    with jax.default_matmul_precision("float32"):
        fresh()(given())
    assert compiled() == 3
    monkeypatch.setattr(store, "_environment", lambda: b"another release, source or processor")
    fresh()(given())
    assert compiled() == 4
    monkeypatch.setitem(programs.CPU_OPTIONS, "xla_backend_optimization_level", 2)
    monkeypatch.setattr(programs, "SMALL_LEVEL", {})
    fresh()(given())
    assert compiled() == 5


def test_the_environment_names_source_releases_and_processor(monkeypatch):
    digest = store._environment()
    assert jax.__version__.encode() in digest
    genuine = pathlib.Path.read_bytes
    for owner, name, value in (
        (store, "_processor", lambda: "another"),
        (pathlib.Path, "read_bytes", lambda path: genuine(path) + b" "),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert store._environment.__wrapped__() != digest
    for name in ("XLA_NO_SUCH_VARIABLE", "JAX_NO_SUCH_VARIABLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert store._environment.__wrapped__() != digest


def multiple(x, times, shift):
    return times * x + shift


def test_static_arguments_may_be_given_by_position(folder, again):
    fresh, compiled = again
    x = np.ones(3, np.float32)
    for _ in range(2):
        fresh()  # another process
        function = programs.jit(multiple, static_argnames="times", name="jaxgmm.tests.multiple")
        np.testing.assert_array_equal(function(x, 3, x), 4 * x)
        np.testing.assert_array_equal(function(x, times=3, shift=x), 4 * x)
    assert compiled() == 1
    assert len(entries(folder)) == 1


def test_a_name_is_the_same_before_and_after_xla_refuses_an_option(folder, again, monkeypatch):
    """Some options are retired in time: a process that has compiled nothing yet does not know which."""
    fresh, compiled = again
    monkeypatch.setattr(programs, "CPU_OPTIONS", programs.CPU_OPTIONS | {"xla_cpu_no_such_option": True})
    monkeypatch.setattr(programs, "_unknown", set())
    fresh()(given(3))
    assert programs._unknown == {"xla_cpu_no_such_option"}
    fresh()(given(4))
    programs._unknown.clear()
    fresh()(given(4))
    assert compiled() == 2


def test_two_threads_that_ask_for_a_program_compile_it_once(folder, again):
    fresh, compiled = again
    function, at_once, found = fresh(), threading.Barrier(2), []

    def ask():
        at_once.wait()
        found.append(function(given())["rows"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled() == 1
    np.testing.assert_array_equal(*found)


def test_records_of_the_users_own_are_not_kept(folder, again):
    fresh, _ = again
    for model in (lambda x: x, custom, jaxgmm.components.gaussian(custom)):
        fresh()(given(), model=model)
    assert not folder.exists()


def test_where_jax_is_to_look_into_programs_or_caches_itself_nothing_is_kept(folder, again, tmp_path):
    fresh, compiled = again
    for setting in (jax.debug_nans(True), jax.disable_jit(), jax.checking_leaks()):
        with setting:
            fresh()(given())
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    fresh()(given())
    assert compiled() == 0
    assert not folder.exists()


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(bytes(content))


def damage_all(path):
    path.write_bytes(b"")


def damage_name(path):
    """Another program's file under this one's name."""
    other = next(p for p in entries(path.parent) if p != path)
    shutil.copy(other, path)


def damage_kind(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [damage_half, damage_byte, damage_all, damage_name, damage_kind])
def test_a_damaged_file_is_compiled_anew(folder, again, damage):
    fresh, compiled = again
    fresh()(given(5))
    first = entries(folder)
    wanted = fresh()(given())
    damage(next(p for p in entries(folder) if p not in first))
    found = fresh()(given())
    np.testing.assert_array_equal(found["rows"], wanted["rows"])
    assert compiled() == 3
    if damage is not damage_kind:
        fresh()(given())
        assert compiled() == 3


def test_a_flipped_bit_is_found_wherever_it_is(folder, again):
    again[0]()(given())
    (path,) = entries(folder)
    content = path.read_bytes()
    assert store.load(path.stem) is not None
    for at in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert store.load(path.stem) is None, at


def test_a_loaded_program_that_does_not_run_is_compiled(folder, again, monkeypatch):
    fresh, compiled = again
    wanted = fresh()(given())

    def broken(*leaves):
        raise RuntimeError("symbols not found")

    genuine = store.load
    monkeypatch.setattr(store, "load", lambda name: (found := genuine(name)) and found._replace(run=broken))
    np.testing.assert_array_equal(fresh()(given())["rows"], wanted["rows"])
    assert compiled() == 2


def test_a_folder_that_others_may_write_to_is_not_used(folder, again, monkeypatch):
    fresh, compiled = again
    fresh()(given())
    folder.chmod(0o777)
    fresh()(given())
    assert compiled() == 2
    folder.chmod(0o700)
    fresh()(given())
    assert compiled() == 2
    monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1, raising=False)
    fresh()(given())
    assert compiled() == 3


def test_a_place_that_cannot_be_written_costs_nothing_but_time(again, monkeypatch, tmp_path, folder):
    fresh, _ = again
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "programs", "/proc/programs"):
        monkeypatch.setenv("JAXGMM_CACHE", str(place))
        np.testing.assert_array_equal(fresh()(given())["rows"], [0, 2, 4])
    assert jaxgmm.cache.info()[1:3] == (0, 0)


def test_a_full_disk_leaves_no_part_of_a_file(folder, again, monkeypatch):
    fresh, _ = again

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    np.testing.assert_array_equal(fresh()(given())["rows"], [0, 2, 4])
    assert os.listdir(folder) == []


def test_the_least_recently_used_go_first(folder, again, monkeypatch):
    fresh, _ = again
    for n in (3, 4, 5):
        fresh()(given(n))
        newest = max(entries(folder), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (1e9 + n, 1e9 + n))
    fresh()(given(3))  # used again
    monkeypatch.setattr(store, "LIMIT", 3 * entries(folder)[0].stat().st_size + 200)
    fresh()(given(6))
    left = {int(p.stat().st_mtime) for p in entries(folder)}
    assert len(left) <= 3
    assert int(1e9 + 4) not in left
    assert int(1e9 + 5) in left


def test_the_public_face_says_what_there_is_and_removes_it(folder, again, monkeypatch):
    fresh, _ = again
    assert jaxgmm.cache.info() == (folder, 0, 0, store.LIMIT)
    fresh()(given())
    (folder / "of the user's.txt").write_text("stays")
    where, n, size, _ = jaxgmm.cache.info()
    assert (where, n, size) == (folder, 1, entries(folder)[0].stat().st_size)
    assert jaxgmm.cache.clear() == 1
    assert os.listdir(folder) == ["of the user's.txt"]
    monkeypatch.setenv("JAXGMM_CACHE", "off")
    fresh()(given())
    assert jaxgmm.cache.folder() is None
    assert jaxgmm.cache.info() == (None, 0, 0, store.LIMIT)
    monkeypatch.delenv("JAXGMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/of/somebody")
    assert jaxgmm.cache.folder() == pathlib.Path("/home/of/somebody/jaxgmm/programs")


def test_only_one_false_alarm_is_kept_from_stderr(capfd):
    line = b"E1130 cpu_aot_loader.cc:195] Target machine feature +prefer-no-gather is not supported\n"
    with store._without_false_alarms():
        os.write(2, line + b"another line\n" + line.replace(b"prefer-no-gather", b"avx512f"))
    said = capfd.readouterr().err
    assert said.splitlines() == ["another line", line.decode().replace("prefer-no-gather", "avx512f").strip()]


def test_threads_that_load_at_once_leave_stderr_as_it_was(capfd):
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with store._without_false_alarms():
            inside.set()
            go_on.wait(10)
            os.write(2, b"of the first\n")

    def second():
        inside.wait(10)
        threading.Timer(0.05, go_on.set).start()
        with store._without_false_alarms():
            os.write(2, b"of the second\n")

    threads = [threading.Thread(target=act) for act in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err.splitlines() == ["of the first", "of the second", "afterwards"]


def test_every_program_of_the_package_has_a_name_of_its_own():

    for name in jaxgmm.__all__:
        getattr(jaxgmm, name)  # imports the module that has it
    functions = {}
    modules = [module for name, module in sys.modules.items() if name.startswith("jaxgmm.")]
    made = [v for module in modules for v in vars(module).values() if isinstance(v, programs._Program)]
    assert len(made) > 30
    for program in made:
        assert program._name, program.__qualname__
        assert functions.setdefault(program._name, program._function) is program._function


# What crashed in trials is tried in processes of its own.

CALLS = """
import json, sys, threading, warnings
import jax, numpy as np, jaxgmm
from jax import monitoring
seconds = []
monitoring.register_event_duration_secs_listener(
    lambda name, took, **_: seconds.append(took) if "backend_compile" in name else None)
X = np.random.default_rng(int(sys.argv[1])).normal(size=(60, 3)).astype(np.float32)

def fit():
    # The first act of a process is a program that calls LAPACK.
    start = jaxgmm.make_params([0.5, 0.5], X[:2], np.stack([np.eye(3)] * 2))
    result = jaxgmm.fit(start, X, max_iter=5)
    return [float(result.objective)] + np.asarray(result.params.means).ravel().tolist()

found = []
run = lambda: found.append(fit())
if sys.argv[2] == "thread":
    for act in (run, lambda: jax.jit(lambda a: a @ a)(np.eye(3))):
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
else:
    run()
print(json.dumps({"compiled": len(seconds), "found": found[0]}))
"""


def start(folder, seed, how="main"):
    variables = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, "-c", CALLS, str(seed), how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=variables | {"JAXGMM_CACHE": str(folder)},
    )  # fmt: skip


def end(process):
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def test_other_processes_load_what_two_at_once_have_compiled(tmp_path):
    folder = tmp_path / "programs"
    both = [start(folder, 0) for _ in "ab"]
    first, second = map(end, both)
    assert first["found"] == second["found"]
    assert min(first["compiled"], second["compiled"]) > 0
    assert all(path.suffix == ".program" for path in folder.iterdir())
    assert b"lapack" in b"".join(path.read_bytes() for path in folder.iterdir())
    same, other, off = start(folder, 0), start(folder, 1, "thread"), start("off", 1)
    same, other, off = end(same), end(other), end(off)
    assert same == first | {"compiled": 0}
    assert other["compiled"] == 1  # the thread's own
    assert other["found"] == off["found"]
    assert off["compiled"] > 0
